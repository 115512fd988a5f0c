"""A whitening that an index learns from the photographs it begins with."""

import numpy as np
import pytest
import torch
from pictures import picture

from sfrs.data.places import load_places
from sfrs.models import fitting
from sfrs.models.model import Model
from sfrs.models.network import save_network
from sfrs.models.whitening import Whitening
from sfrs.retrieval.evaluation import evaluate
from sfrs.retrieval.index import Adding, Builder, Index
from sfrs.retrieval.index import build as build_module
from sfrs.runtime.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for n in range(30):
        (tmp_path / "photos").mkdir(exist_ok=True)
        picture(n).save(tmp_path / f"photos/@{100 * n}@0@.png")
    return tmp_path / "photos"


def model(network):
    return Model(network, size=(48, 64))


def test_it_is_learned_where_it_is_asked_for(folder, tiny_network, tmp_path):
    plain = Index.build(folder, model(tiny_network), out=tmp_path / "plain.index")
    index = Index.build(folder, model(tiny_network), out=tmp_path / "x.index", adding=Adding(whiten=True))
    assert plain.model.whitening is None and index.model.whitening is not None
    rows = np.arange(len(index))
    fitted = Whitening.fit(plain.descriptors(rows), plain.model.dim, shrinkage=fitting.SHRINKAGE)
    expected = Model(tiny_network, fitted, size=(48, 64)).encode(index.files[:])
    # The whitening is of the same numbers; directions of hardly any variance differ by rounding.
    np.testing.assert_allclose(
        index.descriptors(rows) @ index.descriptors(rows).T, expected @ expected.T, atol=1e-3
    )
    np.testing.assert_allclose(index.descriptors(rows), index.model.encode(index.files[:]), atol=1e-4)
    assert index.locate(index.files[3], rerank="none").matches[0].row == 3


def test_what_is_added_later_is_whitened_by_the_same(folder, tiny_network, tmp_path):
    out = tmp_path / "x.index"
    first = Index.build(folder, model(tiny_network), out=out, adding=Adding(whiten=True))
    picture(99).save(folder / "@5000@0@.png")
    second = Index.build(folder, out=out)
    assert second.change.added == 1 and second.fingerprint == first.fingerprint
    last = [file.name for file in second.files[:]].index("@5000@0@.png")
    described = second.model.encode([second.files[last]])
    np.testing.assert_allclose(second.descriptors([last]), described, atol=1e-4)


@pytest.mark.parametrize("engine", [False, True], ids=["folder", "engine"])
def test_the_same_command_with_weights_goes_on_with_the_whitening_it_learned(
    run, folder, tiny_network, tmp_path, engine
):
    if engine:
        pytest.importorskip("milvus_lite", reason="the extra [milvus] is missing")
    weights = tmp_path / "tiny.safetensors"
    out = f"milvus:{tmp_path}/x.db" if engine else tmp_path / "x.index"
    save_network(weights, tiny_network, {"image_size": [48, 64]})
    command = ["index", folder, "--out", out, "--weights", weights]
    assert run(*command, "--whiten")[0] == 0
    code, text, err = run(*command, "--whiten")
    assert code == 0 and "30 unchanged" in text, err
    picture(99).save(folder / "@5000@0@.png")
    assert "1 added, 0 described again, 0 removed, 30 unchanged" in run(*command)[1]
    code, _, err = run(*command, "--no-whiten")
    assert code == 2 and "--no-whiten" in err and "was begun with a whitening" in err


def test_without_a_word_it_is_learned_from_enough_photographs_with_clusters_of_theirs(
    folder, tiny_network, tmp_path, monkeypatch
):
    def built(name, whiten=None):
        tiny_network.meta["untrained_vlad"] = True
        adding = Adding(whiten=whiten, clusters={"images": 30, "per_image": 12})
        return Index.build(folder, model(tiny_network), out=tmp_path / name, adding=adding).model.whitening

    assert built("few.index") is None
    monkeypatch.setattr(fitting, "WHITENED_FROM", 30)
    assert built("enough.index") is not None and built("forbidden.index", False) is None


def test_a_build_killed_after_whitening_goes_on(folder, tiny_network, tmp_path, monkeypatch):
    out, adding = tmp_path / "x.index", Adding(whiten=True)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "derive", killed)
        with pytest.raises(KeyboardInterrupt):
            Index.build(folder, model(tiny_network), out=out, adding=adding)
    with Builder(out) as builder:
        builder.add([])
        builder.finish()
    index = Index.open(out)
    np.testing.assert_allclose(
        index.descriptors(np.arange(30)), index.model.encode(index.files[:]), atol=1e-4
    )


def test_another_whitening_than_was_begun_with_is_refused(folder, tiny_network, tmp_path):
    for asked, other, message in (
        (True, False, "--no-whiten: .* with a"),
        (None, True, "--whiten: .* without"),
    ):
        out = tmp_path / f"{asked}.index"
        begun = Index.build(folder, model(tiny_network), out=out, adding=Adding(whiten=asked))
        assert Index.build(folder, out=out, adding=Adding(whiten=asked)).fingerprint == begun.fingerprint
        with pytest.raises(UserError, match=message):
            Index.build(folder, out=out, adding=Adding(whiten=other))
    whitened = Model(tiny_network, Whitening(torch.randn(5, 24), torch.randn(5)), size=(48, 64))
    with pytest.raises(UserError, match="--whiten learns a whitening .* brings or was given one"):
        Index.build(folder, whitened, out=tmp_path / "twice.index", adding=Adding(whiten=True))
    assert not (tmp_path / "twice.index").exists()


@pytest.mark.parametrize("enough", (True, False))
def test_an_evaluation_takes_the_network_that_an_index_of_its_database_takes(
    place_folder, tiny_network, tmp_path, monkeypatch, enough
):
    monkeypatch.setattr(fitting, "WHITENED_FROM", 12 if enough else 13)
    clusters = {"images": 12, "per_image": 12}

    def untrained():
        tiny_network.meta["untrained_vlad"] = True
        return model(tiny_network)

    out = tmp_path / "town.index"
    index = Index.build(place_folder, untrained(), out=out, adding=Adding(clusters=clusters))
    evaluated, places = untrained(), load_places(place_folder)
    result = evaluate(evaluated, places, fitting=fitting.Fitting(clusters=clusters))
    assert evaluated.fingerprint() == index.fingerprint and (evaluated.whitening is not None) == enough
    _, rows = index.search(evaluated.encode(places.queries.files), 5)
    assert [[index.files[row] for row in found] for found in rows] == [
        [places.database.files[i] for i in found] for found in result.predictions[:, :5]
    ]


def test_shrinkage_keeps_descriptors_it_was_fitted_to_apart():
    rng = np.random.default_rng(0)
    places = np.repeat(rng.normal(size=(20, 64)), 2, axis=0) + 0.3 * rng.normal(size=(40, 64))
    descriptors = (places / np.linalg.norm(places, axis=1, keepdims=True)).astype(np.float32)

    def found(shrinkage):
        white = (
            Whitening.fit(descriptors, 64, shrinkage=shrinkage).apply(torch.from_numpy(descriptors)).numpy()
        )
        alike = white @ white.T - 2 * np.eye(40)
        return (alike.argmax(axis=1) // 2 == np.arange(40) // 2).mean()

    assert found(0.1) == 1.0 > 0.5 > found(0.0)
