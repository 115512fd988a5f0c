"""region_similarity equals the dot products with the nine region descriptors that it never builds."""

import functools

import pytest
import torch
from problems import DTYPES
from tolerance import assert_as_exact_as_eager

import sfrs_ext
from sfrs_ext import reference

pytestmark = pytest.mark.slow

SHAPES = (  # T queries, G gallery images, K, D
    (1, 11, 64, 512),
    (2, 3, 4, 16),
    (7, 19, 5, 33),
    (1, 5, 3, 40),
    (13, 9, 2, 8),
    (30, 2, 1, 100),
)


def inputs(shape, all_pairs: bool, dtype: torch.dtype, device: str = "cpu"):
    queries, gallery, clusters, dim = shape
    g = torch.Generator().manual_seed(0)
    query = torch.randn(queries, clusters * dim, dtype=torch.float64, generator=g)
    query = torch.nn.functional.normalize(query).view(queries, clusters, dim).to(dtype)
    lists = () if all_pairs else (queries,)
    quarters = torch.randn(*lists, gallery, 4, clusters, dim, dtype=torch.float64, generator=g).to(dtype)
    return query.to(device), quarters.to(device)


def results(operator, query, quarters):
    query, quarters = query.detach().requires_grad_(), quarters.detach().requires_grad_()
    out = operator(query, quarters)
    g = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, dtype=torch.float64, generator=g).to(out))
    return {"result": out.detach(), "dquery": query.grad, "dquarters": quarters.grad}


@functools.cache  # for every set of kernels
def expected(shape, all_pairs: bool, dtype: torch.dtype, device: str):
    """Results in float64 and of eager torch."""
    query, quarters = inputs(shape, all_pairs, dtype, device)
    exact = results(reference.region_similarity, query.double(), quarters.double())
    eager = results(reference.region_similarity, query, quarters)
    if dtype in (torch.bfloat16, torch.float16):
        eager["result"] = eager["result"].float()
    return exact, eager


def check(shape, all_pairs: bool, dtype: torch.dtype, device: str):
    kernel = results(sfrs_ext.region_similarity, *inputs(shape, all_pairs, dtype, device))
    exact, eager = expected(shape, all_pairs, dtype, device)
    assert kernel["result"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for name in exact:
        assert_as_exact_as_eager(name, kernel[name], eager[name], exact[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
def test_agrees_with_region_descriptors(shape, all_pairs, dtype, device):
    check(shape, all_pairs, dtype, device)


@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
def test_gradients_are_those_of_finite_differences(all_pairs, device):
    query, quarters = inputs((3, 2, 3, 4), all_pairs, torch.float64, device)
    assert torch.autograd.gradcheck(
        sfrs_ext.region_similarity, (query.requires_grad_(), quarters.requires_grad_())
    )


@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
def test_norms_of_quarters_that_nearly_cancel_keep_their_digits(all_pairs, device):
    query, quarters = inputs((4, 6, 3, 32), all_pairs, torch.float32, device)
    quarters[..., 1, :, :] = -quarters[..., 0, :, :] * (1 + 1e-3)
    kernel = sfrs_ext.region_similarity(query, quarters)
    exact = reference.region_similarity(query.double(), quarters.double())
    # The numerator adds d_0 and d_1, a thousand times larger than their sum; a norm put together from
    # dot products of quarters would lose a million.
    assert_as_exact_as_eager("result", kernel, exact.float(), exact, scale=1e3 * exact.abs().max().item())


@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
def test_a_cluster_without_residuals_counts_as_in_the_reference(all_pairs, device):
    query, quarters = inputs((4, 6, 3, 16), all_pairs, torch.float64, device)
    quarters[..., :, 1, :] = 0
    out, exact = sfrs_ext.region_similarity(query, quarters), reference.region_similarity(query, quarters)
    torch.testing.assert_close(out, exact)
    quarters[...] = 0
    assert torch.equal(sfrs_ext.region_similarity(query, quarters), torch.zeros_like(exact))


@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
def test_clusters_below_the_norm_bound_have_the_gradient_of_the_reference(all_pairs, device):
    query, quarters = inputs((4, 3, 3, 8), all_pairs, torch.float64, device)
    quarters[..., :, 1, :] *= 1e-13  # norms between zero and eps
    kernel = results(sfrs_ext.region_similarity, query, quarters)
    exact = results(reference.region_similarity, query, quarters)
    for name in exact:
        torch.testing.assert_close(
            kernel[name], exact[name], rtol=1e-9, atol=1e-9 * exact[name].abs().max().item()
        )


@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
def test_nan_spreads_as_in_the_reference(all_pairs, device):
    query, quarters = inputs((4, 6, 3, 16), all_pairs, torch.float32, device)
    quarters.view(-1, 4, 3, 16)[2, 1, 0, 5] = float("nan")
    kernel = sfrs_ext.region_similarity(query, quarters)
    assert torch.equal(kernel.isnan(), reference.region_similarity(query, quarters).isnan())


@pytest.mark.parametrize("sizes", ((0, 5), (5, 0)))
@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
def test_empty_sides_give_empty_results(sizes, all_pairs, device):
    out = results(sfrs_ext.region_similarity, *inputs((*sizes, 2, 8), all_pairs, torch.float32, device))
    assert out["result"].shape == (*sizes, 9)
    assert not out["dquery"].any() and not out["dquarters"].any()


def test_flat_queries_and_slices_are_taken(device):
    query, quarters = inputs((6, 5, 3, 16), True, torch.float32, device)
    expected = reference.region_similarity(query[::2], quarters[1:4])
    torch.testing.assert_close(sfrs_ext.region_similarity(query.flatten(1)[::2], quarters[1:4]), expected)


@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
@pytest.mark.parametrize("threads", (1, 2, 3))
def test_two_runs_give_the_same_bits(all_pairs, threads):
    query, quarters = inputs((7, 19, 5, 33), all_pairs, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        first, second = (results(sfrs_ext.region_similarity, query, quarters) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_whole_image_similarity_is_that_of_the_descriptors():
    x = torch.randn(3, 24, 6, 8)
    layer = sfrs_ext.nn.RegionNetVLAD(5, 24)
    descriptors, quarters = layer(x), layer.quarters(x)
    whole = sfrs_ext.region_similarity(descriptors, quarters)[..., 0]
    torch.testing.assert_close(whole, descriptors @ descriptors.T)
