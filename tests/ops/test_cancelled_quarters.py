"""Where the quarters of a region cancel, what rounding leaves of them counts for nothing."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from problems import DTYPES
from test_region_similarity import inputs, results
from tolerance import assert_as_exact_as_eager

import sfrs_ext
from sfrs_ext import reference

pytestmark = pytest.mark.slow

SHAPES = ((1, 5, 3, 40), (9, 21, 5, 33))  # T queries, G gallery images, K, D
LISTS_AND_PAIRS = pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))


def by_definition(query, quarters):
    """Without a rule for cancelled quarters."""
    regions = torch.stack([sum(quarters[..., i, :, :] for i in parts) for parts in sfrs_ext.REGIONS], -3)
    regions = F.normalize(F.normalize(regions, dim=-1, eps=1e-12).flatten(-2), dim=-1, eps=1e-12)
    equation = "td,tgrd->tgr" if quarters.dim() == 5 else "td,grd->tgr"
    return torch.einsum(equation, query.flatten(1), regions)


def whole(v):
    """The four quarters cancel; no two of them do."""
    return torch.stack((*v[:3], -(v[0] + v[1] + v[2])))


def halves(v):
    """Top and bottom halves cancel, and so does the whole image."""
    return torch.stack((v[0], -v[0], v[2], -v[2]))


def some_clusters(v):
    """The left half cancels in every other cluster."""
    v = v.clone()
    v[2, ..., ::2, :] = -v[0, ..., ::2, :]
    return v


def gaussian(v):
    return v


def integers(v):
    return (20 * v).round()


def eight_bits(v):
    """As a quantised network stores them: integers times a scale."""
    scale = v.abs().amax(-1, keepdim=True) / 127
    return (v / scale).round() * scale


def valued_as(dtype):
    def data(v):
        return v.to(dtype).double()

    data.__name__ = f"valued as {dtype}"
    return data


DATA = (gaussian, integers, eight_bits, valued_as(torch.bfloat16), valued_as(torch.float16))


def cancelling_inputs(shape, all_pairs, dtype, data, cancel, device):
    query, quarters = inputs(shape, all_pairs, torch.float64, device)
    quarters = data(quarters).to(dtype).movedim(-3, 0)
    return query.to(dtype), cancel(quarters).movedim(0, -3).contiguous()


@LISTS_AND_PAIRS
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_a_whole_image_that_cancels_is_like_nothing(all_pairs, dtype, device):
    query, quarters = inputs((2, 3, 64, 512), all_pairs, dtype, device)
    quarters[..., 2, :, :] = -quarters[..., 0, :, :] - quarters[..., 1, :, :]
    quarters[..., 3, :, :] = 0
    found = results(sfrs_ext.region_similarity, query, quarters)
    assert torch.equal(found["result"][..., 0], torch.zeros_like(found["result"][..., 0]))
    # The other regions as they are without the rule; the whole image takes no part.
    leaf = query.double().requires_grad_()
    expected = by_definition(leaf, quarters.double())[..., 1:]
    grad = torch.randn(found["result"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected.backward(grad[..., 1:].to(expected))
    torch.testing.assert_close(found["result"][..., 1:].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["dquery"].double(), leaf.grad, rtol=1e-4, atol=1e-6)


@LISTS_AND_PAIRS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cancel", (whole, halves, some_clusters), ids=lambda f: f.__name__)
@pytest.mark.parametrize("data", DATA, ids=lambda f: f.__name__)
def test_agrees_with_the_reference(data, cancel, shape, dtype, all_pairs, device):
    query, quarters = cancelling_inputs(shape, all_pairs, dtype, data, cancel, device)
    oracle = partial(reference.region_similarity, storage=dtype)
    kernel = results(sfrs_ext.region_similarity, query, quarters)
    exact = results(oracle, query.double(), quarters.double())
    # In float32: the norms of eager float16 end at 65504, and begin above eps.
    wide = query.dtype if dtype == torch.float64 else torch.float32
    eager = results(oracle, query.to(wide), quarters.to(wide))
    if cancel is not some_clusters:
        assert not kernel["result"][..., 0].any() and not exact["result"][..., 0].any()
    for name in exact:
        theirs = eager[name].to(kernel[name].dtype)
        assert_as_exact_as_eager(name, kernel[name], theirs, exact[name])


@LISTS_AND_PAIRS
def test_clusters_that_cancel_do_not_count_for_the_length_of_the_descriptor(all_pairs, device):
    query, quarters = inputs((2, 3, 8, 16), all_pairs, torch.float32, device)
    quarters = some_clusters(quarters.movedim(-3, 0)).movedim(0, -3)
    left = (quarters[..., 0, :, :] + quarters[..., 2, :, :])[..., 1::2, :]
    kept = F.normalize(left, dim=-1).flatten(-2) / 2  # four of eight clusters are left
    equation = "tgd,td->tg" if quarters.dim() == 5 else "gd,td->tg"
    expected = torch.einsum(equation, kept, query[:, 1::2].flatten(1))
    torch.testing.assert_close(sfrs_ext.region_similarity(query, quarters)[..., 3], expected)


@LISTS_AND_PAIRS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_half_counts_from_a_few_roundings_on(all_pairs, dtype, device):
    query, quarters = inputs((3, 4, 5, 64), all_pairs, dtype, device)
    for roundings, counts in ((1, False), (8, True)):
        quarters[..., 1, :, :] = -(quarters[..., 0, :, :] * (1 + roundings * torch.finfo(dtype).eps))
        exact = reference.region_similarity(query.double(), quarters.double(), storage=dtype)
        for found in (sfrs_ext.region_similarity(query, quarters), exact):
            assert found[..., 1].ne(0).all() == found[..., 1].any() == counts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ordinary_quarters_are_normalised_as_torch_does(dtype):
    query, quarters = inputs((3, 4, 5, 33), True, dtype)
    regions = torch.stack([sum(quarters[:, i] for i in parts) for parts in sfrs_ext.REGIONS], 1)
    regions = F.normalize(regions, dim=-1, eps=1e-12)
    expected = F.normalize(regions.flatten(-2), dim=-1, eps=1e-12).view_as(regions)
    assert torch.equal(reference.region_descriptors(quarters), expected)
