"""Logits that the caller computed take the place of the weight's, and get a gradient."""

import pytest
import torch
from problems import DTYPES, LAYOUTS, SHAPES, Problem, Shape
from test_aggregation import OPERATORS, check

import sfrs_ext
from sfrs_ext import reference

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s.dim > 1], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_agrees_with_the_reference_on_every_shape(operator, shape, dtype, device):
    check(Problem.make(shape, dtype, given="logits", device=device), operator)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_reads_every_layout_in_place(operator, layout, device):
    check(Problem.make(SHAPES[1], torch.float32, layout, given="logits", device=device), operator)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("normalize_input", (True, False))
def test_optional_arguments_may_be_absent(operator, normalize_input, device):
    problem = Problem.make(
        Shape("small", 2, 24, 5, 6, 7), torch.float32, bare=True, given="logits", device=device
    )
    check(problem, operator, normalize_input=normalize_input)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_weights_own_logits_give_the_weights_result(operator, device):
    problem = Problem.make(SHAPES[1], torch.float64, device=device)
    features = torch.nn.functional.normalize(problem.x, dim=1)
    logits = torch.einsum("kd,bdhw->bkhw", problem.weight, features)
    expected = problem.call(getattr(sfrs_ext, operator), problem.tensors())
    problem.weight, problem.logits = None, logits
    torch.testing.assert_close(problem.call(getattr(sfrs_ext, operator), problem.tensors()), expected)
    problem.logits = logits.flatten(2).transpose(1, 2)
    torch.testing.assert_close(problem.call(getattr(sfrs_ext, operator), problem.tensors()), expected)


def test_an_impossible_cluster_has_no_share(device):
    problem = Problem.make(
        Shape("small", 2, 24, 5, 6, 7), torch.float32, bare=True, given="logits", device=device
    )
    problem.logits[:, 2] = float("-inf")
    check(problem, "netvlad")
    vlad = sfrs_ext.netvlad(problem.x, logits=problem.logits, flatten=False)
    assert not vlad[:, 2].any()


def test_batch_norm_on_the_logits_of_tokens():
    """The video classification models with NetVLAD and ghost clusters, one training step."""

    def step(operator, dtype):
        g = torch.Generator().manual_seed(0)
        x, weight, centroids = (
            torch.randn(*size, dtype=torch.float64, generator=g).to(dtype).requires_grad_()
            for size in ((6, 10, 16), (7, 16), (5, 16))
        )
        norm = torch.nn.BatchNorm1d(7, dtype=dtype)
        logits = norm((x @ weight.T).flatten(0, 1)).view(6, 10, 7)
        out = operator(x, logits=logits, centroids=centroids, ghost_clusters=2, normalize_input=False)
        out.square()[:, ::3].sum().backward()
        return out, x.grad, weight.grad, centroids.grad, norm.weight.grad, norm.running_var

    exact = step(reference.netvlad, torch.float64)
    for kernel, expected in zip(step(sfrs_ext.netvlad, torch.float32), exact, strict=True):
        torch.testing.assert_close(kernel.double(), expected, rtol=1e-3, atol=1e-5)


def test_autocast_takes_the_logits_of_a_layer_under_autocast():
    x, layer = torch.randn(2, 8, 4, 5), torch.nn.Conv2d(8, 3, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(x)
        out = sfrs_ext.netvlad(x, logits=logits)
    assert logits.dtype == out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert torch.isfinite(layer.weight.grad).all()


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_a_layer_and_its_aggregation_compile_without_a_graph_break():
    layer, x = torch.nn.Conv2d(8, 3, 1), torch.randn(2, 8, 4, 5)

    def step(x):
        return sfrs_ext.netvlad(x, logits=layer(x)).square()[:, ::2].sum()

    (expected,) = torch.autograd.grad(step(x), layer.weight)
    (compiled,) = torch.autograd.grad(
        torch.compile(step, fullgraph=True, backend="aot_eager")(x), layer.weight
    )
    torch.testing.assert_close(compiled, expected)
