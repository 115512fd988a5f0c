import numpy as np
import pytest
import torch

from sfrs.retrieval.search import largest, search


def unit(n: int, d: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def blocks(monkeypatch):
    """Set how many rows and queries are multiplied at once."""

    def set_sizes(rows: int, queries: int = 4) -> None:
        monkeypatch.setattr("sfrs.retrieval.search.BLOCK_ROWS", rows)
        monkeypatch.setattr("sfrs.retrieval.search.QUERIES", queries)

    return set_sizes


@pytest.mark.parametrize("rows", [1000, 7, 1])
def test_search_is_exact_whatever_the_blocks(rows, blocks):
    blocks(rows)
    database, queries = unit(100, 32, 0), unit(9, 32, 1)
    scores, indices = search(database, queries, 10)
    similarities = queries.astype(np.float64) @ database.T
    assert indices.tolist() == np.argsort(-similarities, axis=1)[:, :10].tolist()
    assert np.allclose(scores, np.take_along_axis(similarities, indices, 1), atol=1e-6)


def test_equal_scores_come_in_database_order(blocks):
    blocks(3)
    database = np.repeat(unit(2, 8, 4), 5, axis=0)
    _, indices = search(database, database[:1], 10)
    assert indices.tolist() == [list(range(10))]


@pytest.mark.parametrize("block_rows", [1000, 300, 64, 7, 1])
def test_of_many_equal_scores_the_first_rows_are_kept_whatever_the_blocks(block_rows, blocks):
    blocks(block_rows)
    random = np.random.default_rng(9)
    database, queries = (random.choice([-1.0, 1.0], (n, 6)).astype(np.float32) for n in (1000, 30))
    expected = np.argsort(-(queries @ database.T), axis=1, kind="stable")[:, :12]
    scores, indices = search(database, queries, 12)
    assert (indices == expected).all() and (scores[:, 0] == 6).all()
    assert (largest(torch.from_numpy(queries @ database.T), 12)[1].numpy() == expected).all()


def test_k_is_cut_to_the_database():
    assert search(unit(3, 8, 5), unit(2, 8, 6), 20)[1].shape == (2, 3)


def test_half_precision_memory_maps_are_searched_in_place(tmp_path, blocks):
    blocks(8)
    database = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float16, shape=(50, 16))
    database[:] = unit(50, 16, 7)
    _, indices = search(database, np.asarray(database[10:12], np.float32), 1)
    assert indices.tolist() == [[10], [11]]


@pytest.mark.parametrize("kind", ["<f8", ">f4", ">f2"])
def test_arrays_of_other_numbers_are_searched_as_float32(kind):
    database = unit(50, 16, 8).astype(kind)
    assert search(database, database[5:7], 1)[1].tolist() == [[5], [6]]
    assert search(database[:, ::2], database[5:7, ::2], 1)[1].tolist() == [[5], [6]]


@pytest.mark.parametrize("kind", ["<f4", "<f2"])
def test_views_are_searched_by_parts_that_are_copied(kind, monkeypatch):
    monkeypatch.setattr("sfrs.retrieval.search.COPIED", 4 * 16 * 7)
    database = unit(50, 16, 8).astype(kind)
    queries = database[5:7].astype(np.float32)
    assert search(database[::-1], queries, 1)[1].tolist() == [[44], [43]]
    assert search(database[:, ::-1], queries[:, ::-1], 1)[1].tolist() == [[5], [6]]
    assert search(database[:1][::-1], queries[:1][::-1], 1)[1].tolist() == [[0]]


@pytest.mark.parametrize("kind", ["<f4", "<f2"])
def test_the_defaults_of_torch_do_not_matter(kind):
    database = unit(600, 16, 8).astype(kind)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            scores, rows = search(database, database[5:7], 2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert scores.dtype == np.float32 and rows[:, 0].tolist() == [5, 6]


@pytest.mark.parametrize(("rows", "dim", "asked"), [(1001, 70, 1), (1003, 4096, 1), (1003, 4096, 40)])
def test_equal_rows_have_equal_scores(rows, dim, asked):
    database = np.repeat(unit(1, dim, 3), rows, axis=0)
    scores, indices = search(database, unit(asked, dim, 4), 10)
    assert (indices == np.arange(10)).all() and (scores == scores[:, :1]).all()


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match="database is"):
        search(unit(4, 8, 0), unit(4, 9, 0), 1)
    with pytest.raises(ValueError, match="0 rows"):
        search(np.zeros((0, 8), np.float32), unit(4, 8, 0), 1)
    broken = unit(4, 8, 0)
    broken[2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        search(broken, unit(4, 8, 0), 4)
    with pytest.raises(ValueError, match="not finite"):
        search(unit(4, 8, 0), broken, 1)
