"""Nearest neighbours agree with a sorted matrix of all products in float64."""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import sfrs_ext

SIZES = ((1, 1, 1), (5, 7, 3), (6, 16, 1), (49, 33, 64), (100, 1000, 65), (3, 2000, 130), (50, 1300, 600))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def exact(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small whole numbers, whose products are exact in every dtype, with many ties."""
    return torch.randint(-3, 4, (rows, dim), generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_a_stable_sort_of_all_products(size):
    rows, gallery, dim = size
    x, y = exact(rows, dim, 0), exact(gallery, dim, 1)
    products = x.double() @ y.double().T
    ranked = products.sort(dim=1, descending=True, stable=True)
    for k in sorted({1, min(2, gallery), min(21, gallery), gallery}):
        found = sfrs_ext.nearest(x, y, k)
        assert torch.equal(found.index, ranked.indices[:, :k])
        assert torch.equal(found.similarity.double(), ranked.values[:, :k])
        assert torch.equal(found.least.double(), products.amin(dim=1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_finds_the_same_products(dtype):
    x, y = exact(20, 8, 2, dtype), exact(300, 8, 3, dtype)
    found = sfrs_ext.nearest(x, y, 9)
    products = x.double() @ y.double().T
    assert torch.equal(found.similarity.double(), products.topk(9).values)
    assert torch.equal(products.gather(1, found.index), found.similarity.double())
    assert found.similarity.dtype == dtype and found.index.dtype == torch.int64


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_a_row_comes_first_among_its_own_even_among_copies(dtype):
    x = exact(1, 5, 4, dtype).repeat(40, 1)
    found = sfrs_ext.nearest(x, x, 3, own=True)
    assert found.index[:, 0].tolist() == list(range(40))
    assert found.similarity[:, 0].isinf().all() and found.similarity[:, 1:].isfinite().all()
    assert torch.equal(found.least, (x * x).sum(dim=1))
    alone = sfrs_ext.nearest(x[:1], x[:1], 1, own=True)
    assert alone.index.tolist() == [[0]] and alone.least.tolist() == [torch.inf]


@pytest.mark.parametrize("rows", (2, 191, 192, 193, 700, 1700))
@pytest.mark.parametrize("threads", (1, 3))
def test_rows_among_themselves_are_ranked_as_among_any_others(rows, threads):
    """Each product is computed once, for both rows; ties are many, and come in any order."""
    x = exact(rows, 6, rows)
    products = x.double() @ x.double().T
    ranked = products.clone().fill_diagonal_(torch.inf).sort(dim=1, descending=True, stable=True)
    with threads_of_torch(threads):
        for k in sorted({1, min(21, rows), min(150, rows)}):
            found = sfrs_ext.nearest(x, x, k, own=True)
            assert torch.equal(found.index, ranked.indices[:, :k])
            assert torch.equal(found.similarity.double(), ranked.values[:, :k])
            assert torch.equal(found.least.double(), products.fill_diagonal_(torch.inf).amin(dim=1))


def test_a_gallery_of_several_chunks_is_searched_whole():
    """More columns than stand in panels at a time, and more dimensions than a slice."""
    y = torch.nn.functional.normalize(
        torch.randn(700, 4096, generator=torch.Generator().manual_seed(5)), dim=1
    )
    x = y[::50] + 0.001
    found = sfrs_ext.nearest(x, y, 2)
    assert found.index[:, 0].tolist() == list(range(0, 700, 50))
    torch.testing.assert_close(
        found.least.double(), (x.double() @ y.double().T).amin(dim=1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("misleading", ("highest", "lowest", "rising", "falling", "equal"))
def test_a_gallery_in_an_order_that_misleads_is_searched_as_any_other(misleading):
    """A bound from evenly spaced rows that are the best of all, of which there are too few, and the like."""
    size, step = 2560, 10  # ten rows for each that the bound is taken from
    values = torch.rand(size, generator=torch.Generator().manual_seed(8))
    if misleading in ("highest", "lowest"):
        values[::step] += 2 if misleading == "highest" else -2
    elif misleading == "equal":
        values = torch.ones(size)
    else:
        values = values.sort(descending=misleading == "falling").values
    x, y = torch.tensor([[1.0], [2.0]]), values[:, None]
    for k in (1, 40, 300):
        found = sfrs_ext.nearest(x, y, k)
        ranked = values.sort(descending=True, stable=True)
        assert torch.equal(found.index, ranked.indices[:k].expand(2, k))
        assert torch.equal(found.similarity, x * ranked.values[:k])


def lists_of(barred: Tensor) -> tuple[Tensor, Tensor]:
    """As `excluded` takes it what is true in each row."""
    return torch.nn.functional.pad(barred.sum(dim=1).cumsum(0), (1, 0)), barred.nonzero()[:, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gallery", (40, 1300))
@pytest.mark.parametrize("which", ("none", "some", "best"))
def test_what_is_excluded_is_no_neighbour_and_not_the_least(dtype, gallery, which):
    x, y = exact(60, 8, 9, dtype), exact(gallery, 8, 10, dtype)
    products = x.double() @ y.double().T
    if which == "best":  # and the bound is not to be taken from them
        barred = products >= products.topk(20, dim=1).values[:, -1:]
    else:
        barred = torch.rand(60, gallery, generator=torch.Generator().manual_seed(11)) < 0.3
        barred[::4] = False
        if which == "none":
            barred[:] = False
    products[barred] = -torch.inf
    k = min(15, int((~barred).sum(dim=1).min()))
    found = sfrs_ext.nearest(x, y, k, excluded=lists_of(barred))
    assert torch.equal(found.similarity.double(), products.topk(k).values)
    assert torch.equal(products.gather(1, found.index), found.similarity.double())
    products[barred] = torch.inf
    assert torch.equal(found.least.double(), products.amin(dim=1))


def test_where_there_is_no_kernel_lists_are_cut_as_the_tiles_are(monkeypatch):
    monkeypatch.setattr("sfrs_ext._nearest.TILE_BYTES", 7 * 40 * 8)  # tiles of seven rows
    x, y = exact(60, 8, 12, torch.float64), exact(40, 8, 13, torch.float64)
    barred = torch.rand(60, 40, generator=torch.Generator().manual_seed(14)) < 0.4
    found = sfrs_ext.nearest(x, y, 5, excluded=lists_of(barred))
    products = (x @ y.T).masked_fill(barred, -torch.inf)
    assert torch.equal(found.similarity, products.topk(5).values)
    assert torch.equal(found.least, products.masked_fill(barred, torch.inf).amin(dim=1))


def test_without_enough_rows_that_are_not_excluded_there_is_an_error():
    barred = torch.zeros(3, 5, dtype=torch.bool)
    barred[1, 1:] = True
    assert sfrs_ext.nearest(torch.ones(3, 2), torch.ones(5, 2), 1, excluded=lists_of(barred)).index[1] == 0
    with pytest.raises(ValueError, match="row 1 of x has fewer than k = 2"):
        sfrs_ext.nearest(torch.ones(3, 2), torch.ones(5, 2), 2, excluded=lists_of(barred))


@contextmanager
def threads_of_torch(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("own", (False, True))
def test_threads_change_no_bit(own):
    x = torch.randn(1500, 64, generator=torch.Generator().manual_seed(6))
    results = []
    for threads in (1, 3):
        with threads_of_torch(threads):
            results.append(sfrs_ext.nearest(x, x, 11, own=own))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_what_is_no_number_is_no_neighbour(dtype):
    x, y = torch.ones(3, 2, dtype=dtype), torch.ones(4, 2, dtype=dtype)
    y[1] = torch.nan
    assert sfrs_ext.nearest(x, y, 3).index.sort(dim=1).values.tolist() == [[0, 2, 3]] * 3
    x[2, 0] = torch.nan
    with pytest.raises(ValueError, match="row 2 of x has fewer than k = 2"):
        sfrs_ext.nearest(x, y, 2)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_no_rows_have_no_neighbours(dtype):
    found = sfrs_ext.nearest(torch.ones(0, 2, dtype=dtype), torch.ones(4, 2, dtype=dtype), 2)
    assert [tuple(part.shape) for part in found] == [(0, 2), (0, 2), (0,)]


def test_rows_may_be_strided_and_need_no_gradient():
    x = exact(9, 12, 7).requires_grad_()
    found = sfrs_ext.nearest(x[:, ::2], x[:, ::2], 2)
    again = sfrs_ext.nearest(x[:, ::2].contiguous(), x[:, ::2].contiguous(), 2)
    assert torch.equal(found.index, again.index) and not found.similarity.requires_grad


def lists(*offsets: int, rows: list[int] | None = None) -> tuple[Tensor, Tensor]:
    return torch.tensor(offsets), torch.tensor(rows or [], dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, but is list"),
        ({"x": torch.ones(3)}, ValueError, r"x is \[3\], but must be rows \[., D\]"),
        ({"y": torch.ones(4, 3)}, ValueError, r"y is \[4, 3\], but x has D = 2"),
        ({"y": torch.ones(4, 2).double()}, TypeError, "y is torch.float64, but x is torch.float32"),
        ({"x": torch.ones(3, 2).int()}, TypeError, "x must be float32, float64, bfloat16 or float16"),
        ({"k": 0}, ValueError, r"k is 0, but must be in 1 \.\. 4"),
        ({"k": 5}, ValueError, r"k is 5, but must be in 1 \.\. 4"),
        ({"k": 2.0}, TypeError, r"k must be an integer, but is 2\.0"),
        ({"own": True}, ValueError, "the same rows, but they have 3 and 4"),
        (
            {"y": torch.ones(3, 2), "own": True, "excluded": lists(0, 0, 0, 0)},
            ValueError,
            "do not go together",
        ),
        (
            {"excluded": lists(0, 1, 1, rows=[0])},
            ValueError,
            "has 3 offsets, but must have 4",
        ),
        ({"excluded": lists(0, 1, 1, 1, rows=[4])}, ValueError, "names rows 4 to 4 of y, which has 4"),
        ({"excluded": lists(0, 1, 1, 2, rows=[0])}, ValueError, "do not rise from 0 to its 1 rows"),
        ({"excluded": lists(0, 0, 0, 2, rows=[1, 1])}, ValueError, "do not ascend for each row"),
        (
            {"excluded": (torch.zeros(4), torch.zeros(0))},
            TypeError,
            r"offsets of excluded are torch.float32 \[4\]",
        ),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"x": torch.ones(3, 2), "y": torch.ones(4, 2), "k": 2} | change
    with pytest.raises(error, match=message):
        sfrs_ext.nearest(**arguments)


def test_compiles_without_a_graph_break():
    x = exact(12, 8, 8)
    compiled = torch.compile(lambda a: sfrs_ext.nearest(a, a, 3).index, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), sfrs_ext.nearest(x, x, 3).index)
