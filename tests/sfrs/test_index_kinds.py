"""Every kind of index gives exact similarities, finds what comparing every row finds, and follows changes."""

import dataclasses

import numpy as np
import pytest

from sfrs.models.model import Model
from sfrs.retrieval.index import Index
from sfrs.retrieval.index import quantised as quantised_module
from sfrs.retrieval.index.build import KINDS, Builder
from sfrs.retrieval.index.derive import derive
from sfrs.retrieval.index.quantised import Compressed
from sfrs.retrieval.index.store import Entry, Store
from sfrs.retrieval.search import compare, scan
from sfrs.runtime.errors import UserError

COMPRESSED = tuple(quantised_module.KINDS)
VIEWS = 4


@pytest.fixture(autouse=True)
def _small_indices_are_compressed_too(monkeypatch):
    monkeypatch.setattr(quantised_module, "FEWEST", 100)


def unit_rows(n: int, seed: int = 0) -> np.ndarray:
    """Descriptors ``[n, 24]``, `VIEWS` of each place, places in a few directions."""
    random = np.random.default_rng(seed)
    places = random.normal(size=(-(-n // VIEWS), 24)) * np.arange(1, 25) ** -0.4
    rows = np.repeat(places, VIEWS, axis=0)[:n]
    rows = rows + 0.25 * random.normal(size=rows.shape) * np.arange(1, 25) ** -0.4
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def make_index(tmp_path, tiny_network):
    """An index of made-up descriptors: rows of numbers for files that do not exist."""

    def make(kind: str, rows: np.ndarray):
        path = tmp_path / f"{kind}.index"
        path.mkdir()
        Store.create(path, Model(tiny_network, size=(48, 64)), kind).close()
        append(path, rows)
        return path

    return make


def append(path, rows: np.ndarray) -> None:
    store = Store.open(path)
    first = store.slots()
    names = [b"/made/up/%05d.jpg" % (first + i) for i in range(len(rows))]
    store.add([Entry(name, 0.0, 0.0, 0, 0) for name in names], rows)
    derive(store, None)
    store.close()


def found(index: Index, queries: np.ndarray, k: int = 10):
    return index.search(queries, k)


@pytest.mark.parametrize("kind", KINDS)
def test_similarities_are_exact_and_the_best_images_are_found(make_index, kind):
    rows = unit_rows(1200)
    index = Index.open(make_index(kind, rows))
    queries = unit_rows(1200, seed=0)[5:1200:40] + 0.02
    similarities, where = found(index, queries)
    np.testing.assert_allclose(similarities, (queries[:, None] * rows[where]).sum(-1), atol=2e-3)
    best = (queries @ rows.T).argmax(axis=1)
    assert (where[:, 0] == best).mean() >= (1.0 if kind in ("exact", "float16", "pq") else 0.9)
    assert (np.diff(similarities, axis=1) <= 0).all()
    assert all(len(set(row)) == 10 for row in where)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_all_images_can_be_asked_for(make_index, kind):
    index = Index.open(make_index(kind, unit_rows(300)))
    where = found(index, unit_rows(2, seed=3), 320)[1]
    assert (np.sort(where[:, :300], axis=1) == np.arange(300)).all() and (where[:, 300:] == -1).all()


@pytest.mark.parametrize("kind", COMPRESSED)
def test_removed_images_leave_the_compressed_copy(make_index, kind, monkeypatch):
    few = dataclasses.replace(quantised_module.KINDS[kind], candidates=5, share=0.0, probed=0.2)
    monkeypatch.setitem(quantised_module.KINDS, kind, few)
    rows = unit_rows(400)
    path = make_index(kind, rows)
    nearest = found(Index.open(path), rows[:1], 60)[1][0]
    with Builder(path) as builder:
        for row in nearest:
            builder.remove(f"*/{row:05d}.jpg")
        builder.finish()
    index = Index.open(path)
    where = found(index, rows[:1], 10)[1][0]
    names = {index.files[row].name for row in where}
    assert len(index) == 340 and (where >= 0).all() and len(names) == 10
    assert names.isdisjoint({f"{row:05d}.jpg" for row in nearest})


@pytest.mark.parametrize("kind", COMPRESSED)
def test_the_images_added_last_can_be_removed(make_index, kind):
    rows = unit_rows(400)
    path = make_index(kind, rows)
    with Builder(path) as builder:
        builder.remove("*/0039?.jpg")
        builder.finish()
    index = Index.open(path)
    where = found(index, rows[380:], 10)[1]
    assert len(index) == 390 and list(path.glob("*.faiss")) and where.max() < 390 and (where >= 0).all()
    assert (where[:10, 0] == np.arange(380, 390)).mean() >= 0.9


@pytest.mark.parametrize("kind", COMPRESSED)
def test_added_images_are_found(make_index, kind):
    rows = unit_rows(600)
    path = make_index(kind, rows[:400])
    append(path, rows[400:])
    index = Index.open(path)
    assert (path / f"{kind}-2.faiss").is_file() and not (path / f"{kind}-1.faiss").exists()
    assert (found(index, rows[400:], 1)[1][:, 0] == np.arange(400, 600)).mean() > 0.95
    assert Store.open(path).settings["trained"] == 400
    append(path, unit_rows(300, seed=5))
    assert Store.open(path).settings["trained"] == 900  # more than twice as many: fitted again


def test_the_kind_of_an_index_can_change(make_index):
    rows = unit_rows(500)
    path = make_index("exact", rows)
    before = found(Index.open(path), rows[:9])
    for kind in ("pq", "ivf", "float16", "disk"):
        with Builder(path, kind=kind) as builder:
            builder.finish()
        index = Index.open(path)
        assert index.kind == kind and (found(index, rows[:9])[1][:, 0] == before[1][:, 0]).all()
        assert len(list(path.glob("*.faiss"))) == (kind in COMPRESSED)
        stored = "float32" if kind in ("pq", "ivf") else "float16"
        assert [file.suffix for file in path.glob("descriptors-*")] == [f".{stored}"]
    with (
        pytest.raises(UserError, match="--kind exact: .* keeps its descriptors as float16"),
        Builder(path, kind="exact"),
    ):
        pass


def test_few_images_are_compared_without_a_copy(make_index, monkeypatch):
    monkeypatch.setattr(quantised_module, "FEWEST", 1000)
    path = make_index("pq", unit_rows(200))
    assert not list(path.glob("*.faiss"))
    assert (found(Index.open(path), unit_rows(200), 1)[1][:, 0] == np.arange(200)).all()


def test_a_lost_copy_is_made_again_and_a_damaged_one_named(make_index):
    path = make_index("pq", unit_rows(300))
    (path / "pq-1.faiss").write_bytes(b"broken")
    with pytest.raises(UserError, match="pq-1.faiss: this file is missing or damaged"):
        Index.open(path)
    (path / "pq-1.faiss").unlink()
    with Builder(path, kind="pq") as builder:
        builder.finish()
    assert (found(Index.open(path), unit_rows(300), 1)[1][:, 0] == np.arange(300)).all()


@pytest.mark.parametrize("kind", ["exact", "float16", "pq"])
def test_descriptors_that_are_not_finite_are_a_damaged_index(make_index, kind):
    rows = unit_rows(1200)
    path = make_index(kind, rows)
    store = Store.open(path)
    file, dtype, shape = store.rows_of("descriptors")
    store.close()
    numbers = np.memmap(file, dtype, "r+", shape=(1200, *shape))
    numbers[7, 3] = np.nan
    numbers.flush()
    with pytest.raises(UserError, match=f"{path}: its descriptors are damaged"):
        found(Index.open(path), rows[5:9])


def test_the_lists_of_disk_stay_on_disk(make_index):
    index = Index.open(make_index("disk", unit_rows(400)))
    lists = quantised_module.faiss.downcast_InvertedLists(index._compressed.index.invlists)
    assert type(lists).__name__ == "OnDiskInvertedLists"


def test_lengths_that_no_part_divides_are_padded():
    rows = np.pad(unit_rows(300), ((0, 0), (0, 3)))[:, :27]
    copy = Compressed.train("pq", rows)
    copy.extend(rows)
    candidates = copy.candidates(rows[:5], 1, np.ones(300, bool))
    assert copy.dim == 27 and (candidates == np.arange(5)[:, None]).any(axis=1).all()


def test_float16_rows_are_scanned_as_float32_ones(monkeypatch):
    monkeypatch.setattr("sfrs.retrieval.search.BLOCK_ROWS", 64)
    monkeypatch.setattr("sfrs.retrieval.search.CONVERTED_ROWS", 30)
    rows = unit_rows(250).astype(np.float16)
    live = np.arange(250) % 7 > 0
    scores, where = scan(rows, live, unit_rows(9, seed=1), 12)
    exact = unit_rows(9, seed=1) @ rows.astype(np.float32).T
    exact[:, ~live] = -np.inf
    assert (where == np.argsort(-exact, axis=1, kind="stable")[:, :12]).all()
    np.testing.assert_allclose(scores, np.take_along_axis(exact, where, 1), atol=1e-6)


@pytest.mark.parametrize("block_rows", [1000, 64, 7])
def test_equal_similarities_are_listed_in_the_order_of_the_rows(monkeypatch, block_rows):
    monkeypatch.setattr("sfrs.retrieval.search.BLOCK_ROWS", block_rows)
    random = np.random.default_rng(0)
    rows, queries = (random.choice([-1.0, 1.0], (n, 6)).astype(np.float32) for n in (500, 9))
    expected = np.argsort(-(queries @ rows.T), axis=1, kind="stable")[:, :20]
    assert (scan(rows, np.ones(500, bool), queries, 20)[1] == expected).all()
    every = np.tile(random.permutation(500), (9, 1))
    assert (compare(rows, every, queries, 20)[1] == expected).all()
