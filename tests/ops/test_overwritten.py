"""A result may be written into before its backward: gradients stay right, and nothing is copied for it."""

import weakref

import pytest
import torch
from foreign_layers import ConvolutionNetVLAD, D, K
from torch import nn
from torch.utils.checkpoint import checkpoint

import sfrs_ext
from sfrs_ext import reference

pytestmark = pytest.mark.slow

NORMS = {"both": {}, "intra": dict(l2_norm=False), "l2": dict(intra_norm=False)}


def leaves(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def conv_relu(module):
    if module is sfrs_ext:
        return lambda x, weight, bias: sfrs_ext.conv3x3(x, weight, bias, relu=True)
    return lambda *tensors: nn.functional.conv2d(*tensors, padding=1).relu().clone()


MAP = ((2, D, 4, 5), (K, D), (K, D))
OPERATORS = {
    **{
        f"netvlad, norms: {name}": (lambda m, o=options: lambda x, w, c: m.netvlad(x, w, c, **o), MAP)
        for name, options in NORMS.items()
    },
    "netvlad, no norms": (lambda m: lambda *t: m.netvlad(*t, intra_norm=False, l2_norm=False), MAP),
    "netvlad, not flat": (lambda m: lambda *t: m.netvlad(*t, flatten=False), MAP),
    "netvlad of logits": (lambda m: lambda x, a: m.netvlad(x, logits=a), ((2, 20, D), (2, 20, K))),
    "region_vlad": (lambda m: m.region_vlad, MAP),
    "region_similarity of lists": (lambda m: m.region_similarity, ((2, K, D), (2, 3, 4, K, D))),
    "region_similarity of all pairs": (lambda m: m.region_similarity, ((2, K, D), (3, 4, K, D))),
    "conv3x3": (conv_relu, ((2, 3, 5, 6), (9, 3, 3, 3), (9,))),
}
WRITES = {
    "ReLU(inplace=True)": nn.ReLU(inplace=True),
    "Dropout(inplace=True)": lambda y: (torch.manual_seed(1), nn.functional.dropout(y, inplace=True))[1],
    "mul_": lambda y: y.mul_(2),
    "a part": lambda y: (y[..., ::2].zero_(), y)[1],
    "a view": lambda y: (y.detach()[1:].fill_(7), y)[1],
}


def gradients(function, inputs, write, copy=False):
    """Gradients of a projection of the result after a write, into the result itself or into a copy."""
    y = function(*inputs)
    y = write(y.clone() if copy else y)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return torch.autograd.grad((y.square() * weights + y).sum(), inputs)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_are_those_of_the_forward(name, write):
    make, shapes = OPERATORS[name]
    inputs = leaves(*shapes)
    found = gradients(make(sfrs_ext), inputs, WRITES[write])
    expected = gradients(make(sfrs_ext), inputs, WRITES[write], copy=True)
    assert all(map(torch.equal, found, expected))
    if write == "Dropout(inplace=True)":
        return  # what is dropped depends on the dtype
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    for ours, exact in zip(found, gradients(make(reference), doubles, WRITES[write]), strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("inside", (True, False), ids=("in the graph", "after it"))
@pytest.mark.parametrize("name", OPERATORS)
def test_a_compiled_result_may_be_written_into(name, inside):
    make, shapes = OPERATORS[name]
    inputs, write, operator = leaves(*shapes), WRITES["mul_"], make(sfrs_ext)
    expected = gradients(operator, inputs, write, copy=True)
    torch._dynamo.reset()
    compiled = torch.compile(
        (lambda *t: write(operator(*t))) if inside else operator, backend="aot_eager", fullgraph=True
    )
    found = gradients(compiled, inputs, (lambda y: y) if inside else write)
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("kind", ("sfrs_ext.nn", "fused", "checkpointed"))
def test_layers_may_be_followed_by_inplace_modules(kind):
    torch.manual_seed(0)
    vlad = ConvolutionNetVLAD() if kind == "fused" else sfrs_ext.nn.NetVLAD(K, D)
    if kind == "fused":
        assert sfrs_ext.accelerate(vlad).replaced
    x, head = torch.randn(2, D, 4, 5), nn.Linear(K * D, 3)

    def parameter_gradients(*between):
        network = nn.Sequential(vlad, *between, head)
        network.zero_grad()
        y = checkpoint(network, x, use_reentrant=False) if kind == "checkpointed" else network(x)
        y.square().sum().backward()
        return [p.grad.clone() for p in vlad.parameters()]

    expected = parameter_gradients(nn.ReLU())
    assert all(map(torch.equal, parameter_gradients(nn.ReLU(inplace=True)), expected))


def test_a_second_backward_through_the_same_graph_is_right_too():
    inputs = leaves(*MAP)
    y = sfrs_ext.netvlad(*inputs)
    loss = y.mul_(2).square().sum() + y.sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, inputs)))


@pytest.mark.parametrize("name", OPERATORS)
def test_no_copy_of_the_result_is_saved(name):
    make, shapes = OPERATORS[name]
    inputs, saved = leaves(*shapes), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = make(sfrs_ext)(*inputs)
    known = {t.untyped_storage().data_ptr() for t in (*inputs, y)}
    new = [t for t in saved if t.untyped_storage().data_ptr() not in known]
    result = y.untyped_storage().nbytes()
    assert not any(t.untyped_storage().nbytes() == result and t.dtype == y.dtype for t in new)
    if name == "conv3x3":  # a bit per output
        assert sum(t.untyped_storage().nbytes() for t in new) == 2 * 5 * 6 * 2


@pytest.mark.parametrize("name", OPERATORS)
def test_a_result_that_is_given_up_frees_what_was_saved(name):
    make, shapes = OPERATORS[name]
    inputs = leaves(*shapes)
    y = make(sfrs_ext)(*inputs)
    gone = weakref.ref(inputs[0])
    del inputs, y
    assert gone() is None


def test_an_input_that_was_written_into_is_still_refused():
    x, weight, centroids = leaves(*MAP)
    features = x * 1
    y = sfrs_ext.netvlad(features, weight, centroids)
    features.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
