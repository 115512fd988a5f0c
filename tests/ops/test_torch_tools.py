"""Other tools of torch see the operators: transforms, the counter of operations, tracing, ONNX."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.func import grad, hessian, jacrev, vjp, vmap
from torch.utils.flop_counter import FlopCounterMode

import sfrs_ext
from sfrs_ext import reference

pytestmark = pytest.mark.slow

K, D = 4, 8


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


def conv(module):
    if module is sfrs_ext:
        return lambda x, weight: sfrs_ext.conv3x3(x, weight, relu=True)
    return lambda x, weight: nn.functional.conv2d(x, weight, padding=1).relu()


OPERATORS = {
    "netvlad": (lambda m: m.netvlad, (randn(2, D, 4, 5), randn(K, D), 0.1 * randn(K, D))),
    "netvlad, no norms": (
        lambda m: lambda *t: m.netvlad(*t, intra_norm=False, l2_norm=False),
        (randn(2, D, 4, 5), randn(K, D)),
    ),
    "netvlad of logits": (
        lambda m: lambda x, logits, mask: m.netvlad(x, logits=logits, mask=mask),
        (randn(2, D, 4, 5), randn(2, K, 4, 5), randn(2, 4, 5)),
    ),
    "region_vlad": (lambda m: m.region_vlad, (randn(2, D, 4, 5), randn(K, D))),
    "region_similarity, lists": (lambda m: m.region_similarity, (randn(2, K, D), randn(2, 3, 4, K, D))),
    "region_similarity, pairs": (lambda m: m.region_similarity, (randn(2, K, D), randn(3, 4, K, D))),
    "conv3x3": (conv, (randn(2, 3, 4, 5), randn(5, 3, 3, 3))),
}
MODULES = (sfrs_ext, reference)


def agree(found, expected):
    for ours, want in zip(*(torch.utils._pytree.tree_leaves(r) for r in (found, expected)), strict=True):
        torch.testing.assert_close(ours, want, atol=1e-4, rtol=1e-4)


def examples(tensors, in_dims):
    """Three examples of each tensor that is mapped, side by side in the dimension that says so."""
    return [
        t if dim is None else torch.stack([t, 2 * t, -t + 1], dim)
        for t, dim in zip(tensors, in_dims, strict=True)
    ]


@pytest.mark.parametrize("mapped", ("first", "second", "all"))
@pytest.mark.parametrize("name", OPERATORS)
def test_vmap_of_results_and_gradients(name, mapped):
    make, tensors = OPERATORS[name]
    rest = len(tensors) - 2
    in_dims = {"first": (0, None), "second": (None, 1), "all": (1, 0)}[mapped] + (
        (0,) * rest if mapped == "all" else (None,) * rest
    )
    inputs, every = examples(tensors, in_dims), tuple(range(len(tensors)))

    def run(module):
        operator = make(module)
        result = vmap(operator, in_dims)(*inputs)
        gradients = vmap(grad(lambda *t: operator(*t).sin().sum(), every), in_dims)(*inputs)
        of_all = grad(lambda *t: vmap(operator, in_dims)(*t).sin().sum(), every)(*inputs)
        return result, gradients, of_all

    agree(*map(run, MODULES))


def test_vmap_of_no_examples():
    x, weight = torch.randn(0, 2, D, 4, 5), randn(K, D)
    assert vmap(lambda x: sfrs_ext.netvlad(x, weight))(x).shape == (0, 2, K * D)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_and_jacobians_of_torch_func(name):
    make, tensors = OPERATORS[name]
    every = tuple(range(len(tensors)))

    def run(module):
        operator = make(module)
        result, pull = vjp(operator, *tensors)
        overwritten = grad(lambda *t: operator(*t).clone().mul_(2).sin().sum(), every)(*tensors)
        return result, pull(result.cos()), jacrev(operator, every)(*tensors), overwritten

    agree(*map(run, MODULES))
    found = grad(lambda *t: make(sfrs_ext)(*t).mul_(2).sin().sum(), every)(*tensors)
    agree(found, grad(lambda *t: make(reference)(*t).clone().mul_(2).sin().sum(), every)(*tensors))


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "conv3x3"])
def test_second_derivatives_of_torch_func_are_refused(name):
    make, (first, *others) = OPERATORS[name]
    for twice in (hessian, lambda f: jacrev(jacrev(f))):
        with pytest.raises(NotImplementedError, match="sfrs_ext: .* use sfrs_ext.reference where you need"):
            twice(lambda t: make(sfrs_ext)(t, *others).sum())(first)


def counts(function, *tensors):
    """Operations of the forward and of the backward."""
    with FlopCounterMode(display=False) as counter:
        result = function(*tensors)
    forward = counter.get_total_flops()
    if not result.requires_grad:
        return forward, 0
    with FlopCounterMode(display=False) as counter:
        result.sum().backward()
    return forward, counter.get_total_flops()


def test_a_map_of_the_paper_counts_its_two_products():
    x, weight = torch.randn(1, 512, 30, 40), torch.randn(64, 512, requires_grad=True)
    assert counts(sfrs_ext.netvlad, x, weight) == (157_286_400, 157_286_400)
    assert counts(sfrs_ext.netvlad, x.requires_grad_(), weight) == (157_286_400, 2 * 157_286_400)
    maps, kernel = torch.randn(1, 64, 32, 32), torch.randn(64, 64, 3, 3)
    assert counts(sfrs_ext.conv3x3, maps, kernel) == (75_497_472, 0)


@pytest.mark.parametrize("name", [name for name in OPERATORS if "similarity" not in name])
def test_what_is_counted_is_what_torch_counts_of_the_same_in_its_own_operators(name):
    make, tensors = OPERATORS[name]
    for needs in itertools.product((False, True), repeat=len(tensors)):
        given = [t.clone().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]
        found, expected = (counts(make(module), *given) for module in MODULES)
        if (
            name != "netvlad of logits" or not needs[2]
        ):  # there torch multiplies by the mask without a product
            assert found == expected, needs


@pytest.mark.parametrize("lists", (False, True))
def test_similarities_count_four_products_a_pair_and_nine_squares_an_image(lists):
    query, quarters = randn(2, K, D).requires_grad_(), randn(*([2] * lists), 3, 4, K, D).requires_grad_()
    pairs, images = 2 * 3, 2 * 3 if lists else 3
    products = 2 * K * D
    found = counts(sfrs_ext.region_similarity, query, quarters)
    assert found == ((4 * pairs + 9 * images) * products, (8 * pairs + 9 * images) * products)


COUNTER = "from torch.utils.flop_counter import FlopCounterMode"
USE = """
import sys
assert {loaded} == ("torch.utils.flop_counter" in sys.modules)
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    sfrs_ext.netvlad(torch.ones(1, 8, 2, 2), torch.ones(4, 8))
print(counter.get_total_flops())
"""


@pytest.mark.parametrize("first", (True, False), ids=("before", "after"))
def test_the_counter_may_be_imported_before_or_after(first):
    lines = [f"import torch; {COUNTER if first else ''}", "import sfrs_ext", USE.format(loaded=first)]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.stdout == f"{2 * 2 * 4 * 4 * 8}\n", done.stderr


LAYERS = {
    "NetVLAD": lambda: sfrs_ext.nn.NetVLAD(K, D),
    "RegionNetVLAD": lambda: sfrs_ext.nn.RegionNetVLAD(K, D, bias=True),
    "assignment": lambda: sfrs_ext.nn.NetVLAD(K, D, assignment=nn.Conv2d(D, K, 1)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_symbolic_trace_keeps_the_call(layer):
    vlad = LAYERS[layer]()
    for module in (vlad, nn.Sequential(nn.Conv2d(3, D, 1), vlad, nn.ReLU(inplace=True))):
        x = torch.randn(2, D if module is vlad else 3, 4, 5)
        traced = torch.fx.symbolic_trace(module)
        assert sfrs_ext.netvlad in {node.target for node in traced.graph.nodes}
        assert torch.equal(traced(x), module(x))


def test_functions_are_traced_too():
    def function(x, weight, kernel):
        quarters = sfrs_ext.region_vlad(sfrs_ext.conv3x3(x, kernel), weight)
        return sfrs_ext.region_similarity(quarters[:, 0], quarters)

    given = torch.randn(2, 3, 4, 5), torch.randn(K, D), torch.randn(D, 3, 3, 3)
    assert torch.equal(torch.fx.symbolic_trace(function)(*given), function(*given))


class Network(nn.Module):
    """Every operator that a network may hold."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(D, 3, 3, 3))
        self.vlad = sfrs_ext.nn.RegionNetVLAD(K, D, ghost_clusters=1)

    def forward(self, x):
        features = sfrs_ext.conv3x3(x, self.kernel, relu=True)
        return sfrs_ext.region_similarity(self.vlad(features), self.vlad.quarters(features))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", (True, False), ids=("dynamo", "script"))
def test_onnx_export_writes_operators_that_every_runtime_has(dynamo, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    network, x, file = Network().eval(), torch.randn(2, 3, 5, 6), str(tmp_path / "network.onnx")
    if dynamo:
        auto = torch.export.Dim.DYNAMIC
        torch.onnx.export(network, (x,), file, dynamic_shapes=({0: auto, 2: auto, 3: auto},), verbose=False)
    else:
        torch.onnx.export(network, (x,), file, dynamo=False)
    assert all(node.domain in ("", "pkg.onnxscript.torch_lib") for node in onnx.load(file).graph.node)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for images in (x, torch.randn(3, 3, 7, 4)) if dynamo else (x,):
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(images), atol=1e-5, rtol=1e-4)
