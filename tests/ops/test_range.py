"""Values whose squares leave the range of float32 give what float64 makes of them; so do their gradients."""

import pytest
import torch
from problems import Problem, Shape, projection_of
from test_region_similarity import inputs, results
from tolerance import assert_exact_beyond_eager, gradient_terms, times_size_of_x

import sfrs_ext
from sfrs_ext import reference

SHAPES = (Shape("several tiles", 2, 24, 15, 14, 7, 2), Shape("more than a vector", 2, 70, 3, 7, 19))
MAGNITUDES = (1e19, 1e30, 1e-15, 1e-25)
DTYPES = (torch.float32, torch.bfloat16)


def check(problem: Problem, operator: str, **options) -> None:
    kernel = problem.results(getattr(sfrs_ext, operator), **options)
    exact = problem.to(torch.float64).results(getattr(reference, operator), **options)
    norms = dict(intra_norm=True, l2_norm=True) if operator == "netvlad" else {}
    arguments = dict(zip(Problem.NAMES, problem.tensors(), strict=True), ghost_clusters=problem.ghosts)
    terms = gradient_terms(arguments | norms | options, projection_of(exact["result"]))
    for name in exact:
        if name == "dx":
            exact[name] = times_size_of_x(problem.x, exact[name])
            kernel[name] = times_size_of_x(problem.x, kernel[name]).to(kernel[name].dtype)
        assert_exact_beyond_eager(name, kernel[name], exact[name], terms.get(name[1:], 0.0))


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("place", ("x", "weight", "centroids", "mask"))
@pytest.mark.parametrize("layout", ("planes", "channels_last"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operator", ("netvlad", "region_vlad"))
def test_any_argument_may_be_large_or_small(operator, shape, layout, place, magnitude):
    problem = Problem.make(shape, torch.float32, layout)
    getattr(problem, place).mul_(magnitude)
    check(problem, operator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ("planes", "channels_last"))
@pytest.mark.parametrize("operator", ("netvlad", "region_vlad"))
def test_large_features_may_stand_between_ordinary_ones(operator, layout, dtype):
    problem = Problem.make(SHAPES[0], dtype, layout)
    for row, magnitude in enumerate((1e12, 1e19, 1e20, 1e30, 1e36)):
        problem.x[:, :, 2 * row + 1, row:] *= magnitude
    check(problem, operator)


@pytest.mark.parametrize("norms", ((True, False), (False, True), (False, False)))
def test_one_normalisation_alone_keeps_the_range(norms):
    intra_norm, l2_norm = norms
    problem = Problem.make(SHAPES[0], torch.float32)
    problem.centroids[::2] *= 1e22
    check(problem, "netvlad", intra_norm=intra_norm, l2_norm=l2_norm)
    problem.mask *= 1e-22
    check(problem, "netvlad", intra_norm=intra_norm, l2_norm=l2_norm)


def test_large_arguments_may_come_together():
    problem = Problem.make(SHAPES[0], torch.float32)
    for name in ("x", "weight", "centroids", "mask"):
        getattr(problem, name).mul_(1e18)
    check(problem, "netvlad")


def cluster_by_cluster(found: dict, quarters: torch.Tensor) -> dict:
    """Gradients by quarters times the size of each, which they fall with."""
    size = quarters.double().norm(dim=-1, keepdim=True)
    return found | {"dquarters": (found["dquarters"].double() * size).to(found["dquarters"])}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("shape", ((2, 3, 4, 16), (1, 11, 3, 40), (9, 21, 5, 33)), ids=str)
@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
def test_quarters_may_be_large_or_small(all_pairs, shape, magnitude, dtype, device):
    query, quarters = inputs(shape, all_pairs, dtype, device)
    for clusters in (slice(None), slice(0, 1)):
        scaled = quarters.clone()
        scaled[..., clusters, :] *= magnitude
        kernel = results(sfrs_ext.region_similarity, query, scaled)
        exact = results(reference.region_similarity, query.double(), scaled.double())
        kernel, exact = cluster_by_cluster(kernel, scaled), cluster_by_cluster(exact, scaled)
        for name in exact:
            assert_exact_beyond_eager(name, kernel[name], exact[name])


@pytest.mark.parametrize("all_pairs", (False, True), ids=("lists", "all pairs"))
def test_one_quarter_may_be_small(all_pairs, device):
    query, quarters = inputs((5, 7, 3, 40), all_pairs, torch.float32, device)
    quarters[..., 1, :, :] *= 1e-22
    kernel = results(sfrs_ext.region_similarity, query, quarters)
    exact = results(reference.region_similarity, query.double(), quarters.double())
    kernel, exact = cluster_by_cluster(kernel, quarters), cluster_by_cluster(exact, quarters)
    for name in exact:
        assert_exact_beyond_eager(name, kernel[name], exact[name])
