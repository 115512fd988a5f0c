"""Arguments of a wrong kind are refused by name, by operators and reference alike; empty ones are not."""

import inspect

import pytest
import torch
from torch import Tensor

import sfrs_ext
from sfrs_ext import reference

X, WEIGHT = torch.randn(2, 8, 4, 5), torch.randn(4, 8)
KERNEL, ROWS = torch.randn(3, 8, 3, 3), torch.randn(6, 8)
VLAD = dict(
    x=X,
    weight=WEIGHT,
    centroids=WEIGHT[1:],
    bias=WEIGHT[:, 0],
    mask=X[:, 0],
    ghost_clusters=1,
    normalize_input=True,
)
NORMS = dict(intra_norm=True, l2_norm=True, flatten=True)
LOGITS = dict(x=X, logits=X[:, :4], ghost_clusters=1)
SIMILARITY = dict(query=torch.randn(2, 3, 8), quarters=torch.randn(5, 4, 3, 8))
VALID = [
    *((module.netvlad, VLAD | NORMS) for module in (sfrs_ext, reference)),
    *((module.netvlad, LOGITS) for module in (sfrs_ext, reference)),
    *((module.region_vlad, VLAD) for module in (sfrs_ext, reference)),
    *((module.region_similarity, SIMILARITY) for module in (sfrs_ext, reference)),
    (sfrs_ext.conv3x3, dict(x=X, weight=KERNEL, bias=KERNEL[:, 0, 0, 0], relu=True)),
    (sfrs_ext.conv3x3, dict(x=X, weight=KERNEL, packed=sfrs_ext.conv3x3_weight(KERNEL))),
    (sfrs_ext.conv3x3_weight, dict(weight=KERNEL)),
]
WRONG_TENSORS = {
    "a list": lambda t: t.tolist(),
    "an array": lambda t: t.numpy(),
    "text": lambda t: "1",
    "sparse": lambda t: t.to_sparse(),
    "mkldnn": lambda t: t.to_mkldnn(),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "jagged": lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
    "complex": lambda t: t.to(torch.complex64),
    "an integer": lambda t: t.long(),
    "eight bits": lambda t: t.to(torch.float8_e4m3fn),
    "double among others": lambda t: t.double(),
    "on meta": lambda t: t.to("meta"),
    "without dimensions": lambda t: t.sum(),
    "with one dimension more": lambda t: t[..., None, None, None],
}
WRONG_FLAGS = (None, 1, 0.5, "yes", torch.ones(2), torch.tensor(True))
WRONG_INTEGERS = (None, "1", 1.5, 2.0, -1, True, torch.tensor(1), 1000)
WRONG_LISTS = (5, "ab", torch.zeros(2, 2), (None, None), (torch.zeros(7).long(),))


def wrong_values(value: object):
    if isinstance(value, Tensor):
        return {
            kind: make(value) for kind, make in WRONG_TENSORS.items() if kind != "jagged" or value.dim() > 1
        }
    for of, wrong in ((bool, WRONG_FLAGS), (int, WRONG_INTEGERS), (tuple, WRONG_LISTS)):
        if isinstance(value, of):
            return {str(v): v for v in wrong}


def name_of(function) -> str:
    return (
        f"reference.{function.__name__}" if function.__module__ == reference.__name__ else function.__name__
    )


CASES = {
    f"{i} {name_of(function)} {argument}": (function, valid, argument)
    for i, (function, valid) in enumerate(VALID)
    for argument in valid
}


@pytest.mark.filterwarnings("ignore")  # of nested and quantised tensors
@pytest.mark.parametrize("autocast", (False, True), ids=("", "autocast"))
@pytest.mark.parametrize("case", CASES)
def test_the_argument_is_named(case, autocast):
    function, valid, argument = CASES[case]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        function(**valid)
        for kind, value in wrong_values(valid[argument]).items():
            alone = len(inspect.signature(function).parameters) == 1
            double_is_right = kind == "double among others" and (autocast or alone)
            one_more = kind == "with one dimension more" and argument == "quarters"
            if double_is_right or one_more:
                continue
            with pytest.raises((TypeError, ValueError)) as error:
                function(**valid | {argument: value})
            message = str(error.value)
            assert message.startswith(f"{name_of(function)}: ") and argument in message, (kind, message)


EMPTY = {
    "no images": (0, 8, 4, 5),
    "no positions": (2, 8, 0, 5),
    "no row": (2, 8, 4, 0),
    "one position": (2, 8, 1, 1),
    "nothing": (0, 8, 0, 0),
}


@pytest.mark.parametrize("masked", (False, True), ids=("", "mask"))
@pytest.mark.parametrize("given", ("weight", "logits"))
@pytest.mark.parametrize("name", ("netvlad", "region_vlad"))
@pytest.mark.parametrize("case", EMPTY)
def test_empty_maps_have_the_result_of_the_reference(case, name, given, masked):
    batch, dim, height, width = EMPTY[case]

    def run(module):
        torch.manual_seed(0)
        tensors = dict(x=torch.randn(batch, dim, height, width), centroids=torch.randn(3, dim))
        shape = (3, dim) if given == "weight" else (batch, 3, height, width)
        tensors[given] = torch.randn(shape)
        if masked:
            tensors["mask"] = torch.rand(batch, height, width)
        inputs = [t.requires_grad_() for t in tensors.values()]
        result = getattr(module, name)(**tensors)
        return result, *torch.autograd.grad(result.sin().sum(), inputs)

    for ours, expected in zip(run(sfrs_ext), run(reference), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("module", (sfrs_ext, reference), ids=("operator", "reference"))
def test_without_clusters_or_features_there_is_no_descriptor(module):
    prefix = "" if module is sfrs_ext else "reference."
    with pytest.raises(
        ValueError, match=rf"^{prefix}netvlad: weight is \[0, 8\], but must have K \+ G of at"
    ):
        module.netvlad(X, WEIGHT[:0])
    with pytest.raises(
        ValueError, match=rf"^{prefix}netvlad: logits is \[2, 0, 4, 5\], but must have K \+ G"
    ):
        module.netvlad(X, logits=X[:, :0])
    with pytest.raises(ValueError, match=rf"^{prefix}netvlad: x is .*, but must have D of at least 1"):
        module.netvlad(X[:, :0], WEIGHT[:, :0])
    with pytest.raises(
        ValueError, match=rf"^{prefix}region_similarity: quarters is .* K and D of at least 1"
    ):
        module.region_similarity(torch.zeros(2, 0, 8), torch.zeros(5, 4, 0, 8))


@pytest.mark.parametrize(("queries", "gallery"), ((0, 5), (3, 0), (0, 0)))
@pytest.mark.parametrize("lists", (False, True))
def test_no_queries_or_no_gallery_have_the_result_of_the_reference(lists, queries, gallery):
    query = torch.randn(queries, 3, 8, requires_grad=True)
    quarters = torch.randn(*([queries] * lists), gallery, 4, 3, 8, requires_grad=True)
    expected = reference.region_similarity(query, quarters)
    found = sfrs_ext.region_similarity(query, quarters)
    assert found.shape == expected.shape
    wanted = torch.autograd.grad(expected.sum(), (query, quarters))
    for ours, want in zip(torch.autograd.grad(found.sum(), (query, quarters)), wanted, strict=True):
        torch.testing.assert_close(ours, want)


def test_sizes_of_numpy_and_of_exported_programs_are_integers():
    import numpy as np

    expected = sfrs_ext.netvlad(X, WEIGHT, ghost_clusters=1)
    assert torch.equal(sfrs_ext.netvlad(X, WEIGHT, ghost_clusters=np.int64(1)), expected)

    class Ghosts(torch.nn.Module):
        def forward(self, x, weight, centroids):
            ghosts = weight.shape[0] - centroids.shape[0]
            return sfrs_ext.netvlad(x, weight, centroids, ghost_clusters=ghosts)

    auto = torch.export.Dim.AUTO
    shapes = ({0: auto}, {0: auto}, {0: auto})
    program = torch.export.export(Ghosts(), (X, WEIGHT, WEIGHT[1:]), dynamic_shapes=shapes, strict=False)
    more = torch.randn(9, 8), torch.randn(8, 8)  # the number of ghosts is a constant of the program
    found = program.module()(X[:1].repeat(3, 1, 1, 1), *more)
    torch.testing.assert_close(found[:1], sfrs_ext.netvlad(X[:1], *more, ghost_clusters=1))
