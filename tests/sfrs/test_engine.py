"""An index in Milvus Lite: what it holds and finds is what a folder holds and finds."""

import json

import numpy as np
import pytest

from sfrs.data.collection import read_photos
from sfrs.models.model import Model
from sfrs.models.network import save_network
from sfrs.retrieval.index import Adding, Index, builder_class
from sfrs.retrieval.index.engine_store import EngineStore
from sfrs.retrieval.index.milvus import Milvus, key_of
from sfrs.retrieval.near import Near
from sfrs.runtime.errors import UserError

pytest.importorskip("pymilvus", reason="the extra [milvus] is missing")

SIZE = (48, 64)


@pytest.fixture
def model(tiny_network):
    return Model(tiny_network, size=SIZE)


@pytest.fixture
def path(tmp_path):
    return f"milvus:{tmp_path}/town.db"


def build(path, photos, model=None, **options):
    with builder_class(path)(path, model, **options) as builder:
        builder.add(read_photos(photos), Adding())
        return builder.finish()


def opened(path):
    index = Index.open(path)
    index.close()
    return index


def test_it_finds_what_a_folder_finds(place_folder, path, tmp_path, model):
    folder = Index.build(place_folder, model, out=tmp_path / "town.index", zone="33N", regions=True)
    engine = Index.build(place_folder, model, out=path, zone="33N", regions=True)
    assert engine.change.added == len(engine) == 12 and engine.zone == "33N"
    assert sorted(engine.files) == list(folder.files) and engine.has_regions
    row_of = {file: row for row, file in enumerate(folder.files)}
    same = [row_of[file] for file in engine.files]
    np.testing.assert_allclose(engine.positions, folder.positions[same], atol=1e-9)
    np.testing.assert_allclose(engine.descriptors([3, 1]), folder.descriptors([same[3], same[1]]), atol=1e-6)
    np.testing.assert_allclose(engine.quarters([5]), folder.quarters([same[5]]), atol=1e-3)
    queries = sorted((place_folder / "images/test/queries").iterdir())
    for options in ({}, {"rerank": "regions"}, {"near": Near(*degrees(folder, 3), 150.0)}):
        ours, theirs = engine.locate(queries, **options), folder.locate(queries, **options)
        for one, other in zip(ours, theirs, strict=True):
            assert [match.file for match in one.matches] == [match.file for match in other.matches]
            assert one.location.confidence == pytest.approx(other.location.confidence, abs=1e-3)
    assert engine.self_test is not None and engine.self_test.tested == folder.self_test.tested
    engine.close()


def degrees(index, row):
    from sfrs.data.coordinates import to_degrees

    return to_degrees(index.positions[[row]], index.zone)[0]


def test_near_keeps_to_the_circle_and_not_to_its_square(place_folder, path, tmp_path, model):
    for out in (path, tmp_path / "town.index"):
        index = Index.build(place_folder, model, out=out, zone="33N")
        center = degrees(index, int(np.flatnonzero(index.positions[:, 0] == 500300)[0]))
        queries = index.model.encode(sorted((place_folder / "images/test/queries").iterdir()))
        scores, rows = index.search(queries, 12, Near(*center, 101.0))
        found = rows[np.isfinite(scores)].reshape(len(queries), -1)
        assert {tuple(sorted(index.positions[row, 0])) for row in found} == {(500200, 500300, 500400)}
        with pytest.raises(UserError, match="no image in this circle"):
            index.search(queries, 1, Near(-30.0, 100.0, 500.0))
        corner = Near(*center, 99.0)  # the neighbours are within its square's reach, not within its radius
        assert (index.search(queries, 12, corner)[1] >= 0).sum() == len(queries)


def test_what_changed_is_described_again_and_what_is_removed_is_gone(place_folder, path, model):
    build(path, place_folder, model, regions=True)
    first = opened(path)
    changed = sorted((place_folder / "images/test/database").iterdir())[4]
    changed.write_bytes(changed.with_name(sorted(p.name for p in changed.parent.iterdir())[5]).read_bytes())
    change = build(path, place_folder)
    assert (change.added, change.described_again, change.unchanged) == (0, 1, 11)
    with builder_class(path)(path) as builder:
        builder.remove(changed.name)
        assert builder.finish().removed == 1
    index = opened(path)
    assert len(index) == 11 and changed not in list(index.files) and index.generation == first.generation + 2
    assert index.self_test is None


def test_a_killed_build_goes_on_and_is_not_read_before_its_end(place_folder, path, model, monkeypatch):
    written, add = [], EngineStore.add

    def killed(store, entries, *parts):
        if written:
            raise KeyboardInterrupt
        add(store, entries, *parts)
        written.extend(entries)

    monkeypatch.setattr(EngineStore, "add", killed)
    monkeypatch.setattr("sfrs.retrieval.index.build.BATCH_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        build(path, place_folder, model)
    with pytest.raises(UserError, match="not finished"):
        Index.open(path)
    monkeypatch.setattr(EngineStore, "add", add)
    change = build(path, place_folder, model)
    assert (change.added, change.unchanged) == (12 - len(written), len(written)) and len(written) == 8
    assert len(opened(path)) == 12


def test_the_model_is_checked_against_the_one_of_the_index(place_folder, path, model, tiny_network):
    build(path, place_folder, model)
    with pytest.raises(UserError, match="size of this index"):
        build(path, place_folder, Model(tiny_network, size=(64, 64)))
    store = EngineStore.open(path)
    store.keep("model", "AAAA")
    store.close()
    with pytest.raises(UserError):
        Index.open(path)


@pytest.mark.parametrize("address", ["milvus:town", "milvus://host/town", "milvus://host:1/to-wn", "milvus:"])
def test_addresses_are_refused_in_one_line(address):
    with pytest.raises(UserError, match="is no address of an index in Milvus; expected milvus:FILE.db"):
        Index.open(address)


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no index here"):
        Index.open(f"milvus:{tmp_path}/none.db")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"milvus://127.0.0.1:1/town: this cannot be opened"):
        Index.open("milvus://127.0.0.1:1/town")


def test_keys_are_of_the_path_alone():
    keys = {key_of(f"/photos/{i}.jpg".encode()) for i in range(10_000)}
    assert len(keys) == 10_000 and min(keys) >= 0 and max(keys) < 2**63
    assert key_of(b"/photos/1.jpg") in keys


def test_the_commands_take_an_address(run, place_folder, path, tmp_path, tiny_network):
    weights = tmp_path / "tiny.safetensors"
    save_network(weights, tiny_network, {"image_size": [48, 64]})
    code, _, err = run("index", place_folder, "--out", path, "--weights", weights, "--kind", "pq")
    assert code == 2 and "--kind is 'pq'; expected one of exact, float16." in err
    code, _, err = run("index", place_folder, "--out", path, "--weights", weights, "--kind", "float16")
    assert code == 2 and "Milvus Lite keeps float32 only" in err and not list(tmp_path.glob("*.db"))
    code, text, err = run("index", place_folder, "--out", path, "--weights", weights, "--zone", "33N")
    assert code == 0 and "12 added" in text and "self-test" in text, err
    query = sorted((place_folder / "images/test/queries").iterdir())[3]
    index = opened(path)
    latitude, longitude = degrees(index, int(np.flatnonzero(index.positions[:, 0] == 500300)[0]))
    near = f"{latitude:.6f},{longitude:.6f},150"
    code, text, err = run("locate", query, "--index", path, "--json", "--near", near)
    assert code == 0 and len(json.loads(text)["queries"][0]["matches"]) == 3, err
    code, _, err = run("locate", query, "--index", path, "--near", "here")
    assert code == 2 and "--near is 'here'; expected LAT,LON,RADIUS" in err
    code, text, _ = run("index", "--out", path, "--info", "--json")
    assert code == 0 and json.loads(text)["images"] == 12


def test_a_collection_that_is_no_index_is_left_alone(place_folder, path, model):
    milvus = Milvus(path)
    milvus.create(milvus.name, {"theirs": 2}, half=False, texts=(), numbers={})
    milvus.close()
    with pytest.raises(UserError, match="there is a collection images that is no index"):
        build(path, place_folder, model)
    milvus = Milvus(path)
    assert milvus.collections == {"images"}
    milvus.close()


def test_every_row_is_read_once_however_many_there_are_in_a_range(path, monkeypatch):
    monkeypatch.setattr("sfrs.retrieval.index.milvus.MOST", 4)
    milvus = Milvus(path)
    milvus.create("numbers", {"unused": 2}, half=False, texts=["text"], numbers={})
    keys = [key_of(b"%d" % i) for i in range(50)]
    milvus.upsert("numbers", [{"id": key, "text": str(key), "unused": [0.0, 0.0]} for key in keys])
    assert sorted(row["text"] for row in milvus.rows("numbers", ["text"])) == sorted(map(str, keys))
    milvus.close()


def test_whitening_is_learned_before_describing(place_folder, path, model):
    with builder_class(path)(path, model) as builder:
        builder.add(read_photos(place_folder), Adding(whiten=True))
        builder.finish()
    index = opened(path)
    assert index.model.whitening is not None
    assert build(path, place_folder).unchanged == 12
