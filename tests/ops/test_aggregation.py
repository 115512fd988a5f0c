"""netvlad and region_vlad compute what the papers' equations say, forward and backward."""

import pytest
import torch
from problems import DTYPES, LAYOUTS, SHAPES, Problem, Shape
from tolerance import assert_as_exact_as_eager

import sfrs_ext
from sfrs_ext import reference

OPERATORS = ("netvlad", "region_vlad")


def check(problem: Problem, operator: str, **options) -> None:
    kernel = problem.results(getattr(sfrs_ext, operator), **options)
    eager = problem.results(getattr(reference, operator), **options)
    exact = problem.to(torch.float64).results(getattr(reference, operator), **options)
    # A normalised descriptor of one position does not depend on its mask: terms of size one cancel.
    alone = problem.x.shape[2] * problem.x.shape[3] == 1
    for name in exact:
        scale = 1.0 if alone or name == "dmask" else 0.0
        assert_as_exact_as_eager(name, kernel[name], eager[name], exact[name], scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_agrees_with_the_reference_on_every_shape(operator, shape, dtype, device):
    options = {}
    if shape.dim == 1:  # normalised, one dimension is a sign: all gradients would be zero but for rounding
        norms = (
            ("normalize_input", "intra_norm", "l2_norm") if operator == "netvlad" else ("normalize_input",)
        )
        options = dict.fromkeys(norms, False)
    check(Problem.make(shape, dtype, device=device), operator, **options)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", (SHAPES[1], SHAPES[6], SHAPES[8]), ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_reads_every_layout_in_place(operator, shape, layout, dtype, device):
    check(Problem.make(shape, dtype, layout, device=device), operator)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("normalize_input", (True, False))
def test_optional_arguments_may_be_absent(operator, normalize_input, device):
    shape = Shape("small", 2, 24, 5, 6, 7)
    check(
        Problem.make(shape, torch.float32, bare=True, device=device),
        operator,
        normalize_input=normalize_input,
    )


@pytest.mark.parametrize("intra_norm", (True, False))
@pytest.mark.parametrize("l2_norm", (True, False))
def test_normalisations_are_optional(intra_norm, l2_norm, device):
    problem = Problem.make(SHAPES[1], torch.float32, device=device)
    check(problem, "netvlad", intra_norm=intra_norm, l2_norm=l2_norm)
    check(problem, "netvlad", intra_norm=intra_norm, l2_norm=l2_norm, flatten=False)


def test_tokens_are_a_map_without_rows(device):
    problem = Problem.make(Shape("tokens", 2, 48, 7, 5, 6), torch.float32, device=device)
    tokens = problem.x.flatten(2).transpose(1, 2).contiguous().requires_grad_()
    maps = problem.x.clone().requires_grad_()
    options = dict(centroids=problem.centroids, bias=problem.bias)
    of_map = sfrs_ext.netvlad(maps, problem.weight, mask=problem.mask, **options)
    of_tokens = sfrs_ext.netvlad(tokens, problem.weight, mask=problem.mask.flatten(1), **options)
    torch.testing.assert_close(of_tokens, of_map)
    grad = torch.randn_like(of_map)
    of_map.backward(grad)
    of_tokens.backward(grad)
    torch.testing.assert_close(tokens.grad, maps.grad.flatten(2).transpose(1, 2))


def test_quarters_sum_to_the_whole_image(device):
    problem = Problem.make(SHAPES[8], torch.float64, device=device)
    quarters = sfrs_ext.region_vlad(problem.x, problem.weight, problem.centroids)
    whole = sfrs_ext.netvlad(
        problem.x, problem.weight, problem.centroids, intra_norm=False, l2_norm=False, flatten=False
    )
    torch.testing.assert_close(quarters.sum(1), whole)


@pytest.mark.parametrize("given", ("weight", "logits"))
@pytest.mark.parametrize("operator", OPERATORS)
def test_gradients_are_those_of_finite_differences(operator, given, device):
    problem = Problem.make(Shape("tiny", 2, 5, 3, 3, 3, 1), torch.float64, given=given, device=device)
    leaves = [t if t is None else t.requires_grad_() for t in problem.tensors()]
    assert torch.autograd.gradcheck(lambda *t: problem.call(getattr(sfrs_ext, operator), t), leaves)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("wanted", Problem.NAMES)
def test_a_single_wanted_gradient_is_the_same_as_among_all(operator, wanted, device):
    given = "logits" if wanted == "logits" else "weight"
    problem = Problem.make(SHAPES[1], torch.float32, given=given, device=device)
    together = problem.results(getattr(sfrs_ext, operator))[f"d{wanted}"]
    alone = problem.results(getattr(sfrs_ext, operator), wanted=(wanted,))[f"d{wanted}"]
    assert torch.equal(alone, together)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("threads", (1, 2, 3, 5, 16))
@pytest.mark.parametrize("shape", (SHAPES[0], SHAPES[8]), ids=str)
def test_any_number_of_threads_agrees_and_gives_the_same_bits_twice(operator, shape, threads):
    problem = Problem.make(shape, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        first, second = (problem.results(getattr(sfrs_ext, operator)) for _ in range(2))
        check(problem, operator)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_empty_batch_gives_an_empty_result_and_zero_gradients(operator, device):
    results = Problem.make(Shape("empty", 0, 8, 3, 3, 4), torch.float32, device=device).results(
        getattr(sfrs_ext, operator)
    )
    assert results["result"].shape[0] == 0 and results["dx"].shape == (0, 8, 3, 3)
    for name in ("dweight", "dcentroids", "dbias"):
        assert torch.equal(results[name], torch.zeros_like(results[name]))


@pytest.mark.parametrize("given", ("weight", "logits"))
@pytest.mark.parametrize("batch", (0, 2))
@pytest.mark.parametrize("operator", OPERATORS)
def test_nothing_to_aggregate_gives_zeros(operator, batch, given, device):
    shape = Shape("no positions", batch, 8, 0, 5, 3)
    problem = Problem.make(shape, torch.float32, given=given, device=device)
    results = problem.results(getattr(sfrs_ext, operator))
    assert results["dx"].shape == (batch, 8, 0, 5) and results["result"].shape[0] == batch
    assert not any(torch.any(t != 0) for t in results.values())


@pytest.mark.parametrize("operator", OPERATORS)
def test_zero_vectors_stay_finite(operator, device):
    problem = Problem.make(Shape("zeros", 2, 16, 4, 4, 4), torch.float32, device=device)
    problem.x[0] = 0
    problem.x[1, :, 0, 0] = 0
    check(problem, operator)


@pytest.mark.parametrize("operator", OPERATORS)
def test_huge_logits_do_not_overflow(operator, device):
    problem = Problem.make(Shape("huge", 2, 16, 4, 4, 4), torch.float32, device=device)
    problem.weight *= 1e4
    problem.bias[:] = torch.tensor([1e4, -1e4, 0, 1e4], device=device)
    check(problem, operator)


def exact_products_are_split(device: str) -> bool:
    """Whether float32 products are sums of three products of rounded parts."""
    return device == "cuda" or sfrs_ext.kernels() == "emulated"


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("value", (float("nan"), float("inf")))
@pytest.mark.parametrize("place", ("x", "weight", "bias", "centroids"))
def test_nan_and_inf_spread_as_in_the_reference(operator, place, value, device):
    problem = Problem.make(Shape("nan", 2, 20, 4, 5, 6), torch.float32, device=device)
    getattr(problem, place).view(-1)[3] = value
    kernel = problem.call(getattr(sfrs_ext, operator), problem.tensors())
    expected = problem.call(getattr(reference, operator), problem.tensors())
    if place == "weight" and value == float("inf") and exact_products_are_split(device):
        # Infinity less its rounded part is NaN, where one product would be an infinite logit.
        assert torch.all(kernel.isnan() | ~expected.isnan())
        expected = torch.where(kernel.isnan(), kernel, expected)
    assert torch.equal(kernel.isnan(), expected.isnan())
    torch.testing.assert_close(kernel, expected, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_parameters_may_stay_float32_beside_16_bit_features(device):
    problem = Problem.make(SHAPES[1], torch.float32, device=device)
    x = problem.x.bfloat16()
    weight = problem.weight.clone().requires_grad_()
    out = sfrs_ext.netvlad(x, weight, problem.centroids, ghost_clusters=2)
    exact = reference.netvlad(x.float(), problem.weight, problem.centroids, ghost_clusters=2)
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * exact.abs().max()
    out.float().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_every_float16_and_bfloat16_value_is_read_exactly(device):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32, device=device).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype)
        x = x[x.isfinite() & (x.abs() < 1e4) & ((x == 0) | (x.abs() > 1e-30))]
        # One cluster, one position, no norms: V = x. Reads and writes must both be exact.
        x = x[: len(x) // 64 * 64]
        out = sfrs_ext.netvlad(
            x.view(64, -1, 1, 1),
            x.new_zeros(1, len(x) // 64),
            normalize_input=False,
            intra_norm=False,
            l2_norm=False,
        )
        assert torch.equal(out.view(-1), x)


@pytest.mark.parametrize("operator", ["netvlad", "region_vlad"])
@pytest.mark.parametrize(("size", "strides"), [((8, 1), (1, 272)), ((8, 1), (3, 8)), ((1, 8), (99, 1))])
def test_strides_of_dimensions_of_size_one_say_nothing(operator, size, strides):
    memory = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = memory.as_strided((2, 5, *size), (150, 30, *strides)).requires_grad_()
    weight, centroids = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = getattr(sfrs_ext, operator)(x, weight, centroids)
    exact = getattr(reference, operator)(x, weight, centroids)
    torch.testing.assert_close(found, exact)
    grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in (found, exact)]
    torch.testing.assert_close(*grads)
