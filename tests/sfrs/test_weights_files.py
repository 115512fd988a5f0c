"""Files of weights: every tensor is used, or named and refused; nothing in a file runs."""

import json
import zipfile

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfrs.data.images import load_image
from sfrs.models.backbones import vgg16_layers
from sfrs.models.foreign import read_weights
from sfrs.models.model import Model
from sfrs.models.network import METADATA_KEY, load_network, save_network
from sfrs.models.weights_file import WeightsError, read_tensors
from sfrs.models.whitening import Whitening
from sfrs.runtime.errors import UserError
from sfrs.runtime.tensor_files import write_tensors

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VLAD = {"conv.weight": torch.ones(3, 512, 1, 1), "centroids": torch.ones(3, 512)}


def vgg16(prefix: str) -> dict[str, Tensor]:
    """VGG16 of ones, of which a file holds a number per tensor."""
    found, channels = {}, 3
    for index, width in zip(vgg16_layers().values(), WIDTHS, strict=True):
        found[f"{prefix}{index}.weight"] = torch.ones(1).expand(width, channels, 3, 3)
        found[f"{prefix}{index}.bias"] = torch.ones(1).expand(width)
        channels = width
    return found


def paper(prefix: str = "") -> dict[str, Tensor]:
    return vgg16(f"{prefix}base_model.base.") | {f"{prefix}net_vlad.{key}": t for key, t in VLAD.items()}


def text(description: dict) -> dict[str, str]:
    return {METADATA_KEY: json.dumps(description)}


@pytest.fixture
def refused(tmp_path):
    """The message with which a checkpoint is refused."""

    def refused(content, **options) -> str:
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(WeightsError, match=r"model\.pth: ") as found:
            load_network(tmp_path / "model.pth", **options)
        return str(found.value)

    return refused


def test_torchvisions_vgg16_computes_the_same_features(tmp_path):
    torch.manual_seed(1)
    layers, channels = [], 3
    for number, width in enumerate(WIDTHS):
        layers += [nn.MaxPool2d(2)] if number in (2, 4, 7, 10) else []
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width
    features = nn.Sequential(*layers[:-1])
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    classifier = {f"classifier.{i}.{kind}": torch.ones(2) for i in (0, 3, 6) for kind in ("weight", "bias")}
    torch.save(state | classifier, tmp_path / "vgg.pth")
    network, image = load_network(tmp_path / "vgg.pth"), torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.allclose(network.features(network.trunk(image)), features(image), atol=1e-5)
    assert network.meta["untrained_vlad"] and network.backbone.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("content", "inputs", "clusters"),
    [
        (vgg16("base_model.base."), "caffe", 0),
        (vgg16("base."), "caffe", 0),
        (vgg16(""), "caffe", 0),
        ({"model": vgg16("backbone.features.")}, "imagenet", 0),
        ({"net": {"state_dict": vgg16("module._orig_mod.model.")}}, "caffe", 0),
        (paper("module."), "caffe", 3),
        ({"state_dict": paper("model.embed_net."), "epoch": 3, "best": np.float64(0.9)}, "caffe", 3),
        ({"model_state_dict": paper("_orig_mod."), "recalls": np.ones(2), "x": [1]}, "caffe", 3),
        ({"model": paper(), "optimizer": {"state": {0: {"exp_avg": torch.ones(9)}}}}, "caffe", 3),
        (paper() | {"bn.num_batches_tracked": torch.tensor(3)}, "caffe", 3),
        (paper() | {"mean": torch.tensor([123.68, 116.78, 103.94]), "std": torch.ones(3, 1, 1)}, "caffe", 3),
    ],
)  # fmt: skip
def test_wrappers_and_prefixes_are_looked_through(tmp_path, content, inputs, clusters):
    torch.save(content, tmp_path / "model.pth")
    found = read_weights(tmp_path / "model.pth")
    assert found.description["options"] == {"inputs": inputs} and len(found.tensors) == (
        28 if clusters else 26
    )
    assert found.description["meta"]["untrained_vlad"] == (not clusters)
    assert not clusters or found.description["num_clusters"] == clusters


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        ({"net_vlad.crn.filter.weight": torch.ones(2)}, "net_vlad.crn.*"),
        ({"fc.weight": torch.ones(2, 2)}, "fc.*"),
        ({"whiten_layer.weight": torch.ones(2), "whiten_layer.bias": torch.ones(2)}, "whiten*"),
        ({"classifier.0.weight": torch.ones(2)}, "classifier.0.weight"),
        ({"mean": torch.tensor([0.1, 0.2, 0.3])}, "mean"),
        (vgg16("teacher."), "teacher.*"),
        (vgg16("teacher.base_model.base."), "teacher.*"),
    ],
)
def test_tensors_without_a_place_are_refused_unless_they_are_to_be_ignored(tmp_path, refused, more, pattern):
    message = refused(paper() | more)
    assert (next(iter(more)) in message or "2 networks in it" in message) and "--ignore-keys" in message
    assert len(read_weights(tmp_path / "model.pth", ["x", pattern]).tensors) == 28


def test_where_nothing_fits_the_top_keys_are_listed(refused):
    message = refused({"state_dict": {"stem.0.weight": torch.ones(1), "blocks.1.weight": torch.ones(1)}})
    assert "has state_dict.stem, state_dict.blocks" in message and "features.0.weight" in message


def test_missing_and_misshapen_tensors_are_named(refused):
    state = vgg16("features.")
    del state["features.21.bias"]
    assert "features.21.bias (conv4_3) is missing" in refused(state)
    assert "(conv1_1) is [64, 3, 7, 7]; expected" in refused({"backbone.0.weight": torch.ones(64, 3, 7, 7)})
    message = refused(paper() | {"net_vlad.centroids": torch.ones(3, 256)})
    assert "net_vlad.centroids (centroids) is [3, 256]; expected [K, 512]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_values_that_are_not_finite_name_their_tensor(refused, value):
    centroids = torch.ones(3, 512, dtype=torch.float64)
    centroids[1, 2] = value
    message = refused(paper() | {"net_vlad.centroids": centroids})
    assert "1 of 1536 values of net_vlad.centroids are NaN or infinite" in message


def test_a_descriptor_that_is_not_finite_names_its_image(run, tmp_path, tiny_network, make_image):
    files = [make_image("fine.png"), make_image("glare.png", scene=1)]
    nn.init.constant_(tiny_network.backbone.head.weight, 3e38)
    save_network(tmp_path / "net.safetensors", tiny_network, {"image_size": [48, 64]})
    with pytest.raises(UserError, match="fine.png: its descriptor is not finite"):
        Model.load(tmp_path / "net.safetensors").encode(files)
    with pytest.raises(UserError, match="image 0: its descriptor is not finite"):
        Model.load(tmp_path / "net.safetensors").encode([load_image(files[0], None)])
    out = tmp_path / "x.npy"
    code, _, err = run("describe", files[0], "--weights", tmp_path / "net.safetensors", "--out", out)
    assert code == 2 and "fine.png: its descriptor is not finite" in err and not out.exists()


def test_the_command_takes_patterns(run, tmp_path, tiny_network, make_image):
    save_network(tmp_path / "net.safetensors", tiny_network, {"image_size": [48, 64]})
    tensors, description = read_tensors(tmp_path / "net.safetensors")
    write_tensors(tmp_path / "more.safetensors", tensors | {"fc.bias": torch.ones(1)}, text(description))
    arguments = ("describe", make_image("a.png"), "--weights", tmp_path / "more.safetensors")
    code, _, err = run(*arguments, "--out", tmp_path / "x.npy")
    assert code == 2 and "fc.bias have no place in the network it describes" in err
    assert run(*arguments, "--out", tmp_path / "x.npy", "--ignore-keys", "fc.*")[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet"}, "'resnet' is not known"),
        ({"backbone": 5}, "the description in it is damaged: backbone"),
        ({"options": {"channels": -6}}, "cannot be built"),
        ({"options": {"width": 6}}, "cannot be built"),
        ({"num_clusters": 10**12}, r"vlad.* is \[4, 6\S*\]; expected \[1000000000000"),
        ({"bias": True}, "vlad.conv.bias is missing"),
        ({"meta": {"image_size": "large"}}, "image_size"),
        ({"meta": None}, "meta"),
    ],
)
def test_a_damaged_description_of_a_network_is_named(tmp_path, tiny_network, changes, message):
    path = tmp_path / "net.safetensors"
    save_network(path, tiny_network)
    tensors, description = read_tensors(path)
    write_tensors(path, tensors, text(description | changes))
    with pytest.raises(WeightsError, match=rf"net\.safetensors: .*{message}"):
        load_network(path)


def test_whatever_is_damaged_ends_in_one_message(tmp_path, tiny_network):
    save_network(tmp_path / "net.safetensors", tiny_network, {"image_size": [48, 64]})
    torch.save({"pca_layer.weight": torch.ones(3, 8), "pca_layer.bias": torch.ones(3)}, tmp_path / "pca.pth")
    random, refused = np.random.default_rng(0), 0
    for name, load in (("net.safetensors", load_network), ("pca.pth", Whitening.load)):
        whole = (tmp_path / name).read_bytes()
        for _ in range(60):
            damaged = bytearray(whole[: random.integers(len(whole)) if random.random() < 0.1 else None])
            for place in random.integers(len(damaged), size=3):
                damaged[place] ^= 1 << random.integers(8)
            (tmp_path / name).write_bytes(damaged)
            try:
                load(tmp_path / name)
            except WeightsError as error:
                assert name in str(error) and "\n" not in str(error)
                refused += 1
    assert refused > 30


def test_numpy_scalars_of_old_numpy_are_read(tmp_path):
    torch.save({"a": torch.ones(1), "best": np.float64(0.5)}, tmp_path / "new.pth")
    # numpy < 2 called the module numpy.core; protocol 2 names it in plain text.
    with (
        zipfile.ZipFile(tmp_path / "new.pth") as source,
        zipfile.ZipFile(tmp_path / "old.pth", "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(name, content)
    assert read_tensors(tmp_path / "old.pth")[0]["a"].item() == 1


@pytest.mark.parametrize(
    "value",
    [np.int64(3), np.float32(0.5), np.float16(0.5), np.bool_(True), np.arange(3), np.ones(2, np.uint8)],
)
def test_numpy_values_of_any_number_type_may_stand_with_the_weights(tmp_path, value):
    torch.save({"a": torch.ones(1), "value": value}, tmp_path / "model.pth")
    assert read_tensors(tmp_path / "model.pth")[0]["a"].item() == 1


def test_weights_are_read_with_a_numpy_that_has_no_module_core(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(1), "best": np.float64(0.5)}, tmp_path / "model.pth")
    monkeypatch.delattr(np, "_core")  # as in numpy 1.26
    assert read_tensors(tmp_path / "model.pth")[0]["a"].item() == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("module.module.a.weight", "a.weight"),
        ("encoder.module._orig_mod.0.weight", "encoder.0.weight"),
        ("submodule.a.module", "submodule.a.module"),
    ],
)
def test_names_lose_what_data_parallel_and_compile_add(tmp_path, name, expected):
    torch.save({name: torch.ones(1)}, tmp_path / "model.pth")
    assert list(read_tensors(tmp_path / "model.pth")[0]) == [expected]


class Malicious:
    def __reduce__(self):
        return print, ("code from a weights file ran",)


def test_code_in_a_weights_file_does_not_run_and_nobody_is_told_to_run_it(tmp_path, refused, capsys):
    messages = [refused({"state_dict": {"a": torch.ones(1)}, "extra": Malicious()})]
    assert "ran" not in capsys.readouterr().out
    torch.save({"a": torch.ones(1)}, tmp_path / "script.pth")
    with zipfile.ZipFile(tmp_path / "script.pth", "a") as file:
        file.writestr("script/constants.pkl", b"")  # as in programs of TorchScript, which are code
    with pytest.raises(WeightsError) as found:
        load_network(tmp_path / "script.pth")
    for message in (*messages, str(found.value)):
        assert "objects other than tensors" in message and "weights_only" not in message


def test_files_that_are_no_weights_are_named(tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")  # what a failed download leaves
    (tmp_path / "key.pth").write_text("hW")  # opcodes of pickle, without what they refer to
    (tmp_path / "index.pth").write_text("2323")
    (tmp_path / "empty.pth").write_bytes(b"")
    endless = []
    endless.append(endless)
    torch.save(endless, tmp_path / "endless.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    texts = ("text.pth", "text.safetensors", "page.pth", "key.pth", "index.pth", "empty.pth")
    for name in (*texts, "endless.pth", "list.pth", "missing.pth"):
        with pytest.raises(WeightsError, match=name):
            load_network(tmp_path / name)
    torch.save({"pca_layer.weight": torch.ones(2, 4), "pca_layer.bias": torch.ones(2)}, tmp_path / "pca.pth")
    with pytest.raises(WeightsError, match="pca.pth: .* a whitening alone; give it as --whitening"):
        load_network(tmp_path / "pca.pth")


def test_a_pca_of_the_reference_implementation_is_a_whitening(tmp_path):
    h5py = pytest.importorskip("h5py")
    random = np.random.default_rng(0)
    directions, _ = np.linalg.qr(random.normal(size=(20, 8)))
    lams, mu = random.uniform(1, 2, 8), random.normal(size=(20, 1))
    path = tmp_path / "pca_params_model_best.h5"
    with h5py.File(path, "w") as file:
        file.update({"U": directions, "lams": lams, "mu": mu, "Utmu": directions.T @ mu})
    x = torch.randn(3, 20, dtype=torch.float64)
    expected = nn.functional.normalize(
        (x - torch.from_numpy(mu[:, 0])) @ torch.from_numpy(directions / np.sqrt(lams))
    )
    torch.testing.assert_close(Whitening.load(path).apply(x), expected, rtol=0, atol=1e-6)
    with h5py.File(path, "a") as file:
        file["rotation"] = directions
    with pytest.raises(WeightsError, match="pca_params_model_best.h5: rotation have no place"):
        Whitening.load(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(WeightsError, match="pca_params_model_best.h5: this HDF5 file cannot be read"):
        Whitening.load(path)
