"""Compiled and exported calls serve every size: one graph for all, one recompilation by default."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import sfrs_ext

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # torch.compile's own

K, D = 11, 23
SIZES = ((2, 6, 7), (3, 8, 5), (5, 4, 10), (4, 9, 8), (7, 5, 9))  # batch, height, width


def tensors(batch: int, height: int, width: int) -> dict[str, torch.Tensor]:
    """Everything that calls of one size may need. No two dimensions without a relation are equal at first."""
    generator = torch.Generator().manual_seed(batch)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    positions = height * width
    return dict(
        x=randn(batch, D, height, width),
        tokens=randn(batch, positions, D),
        weight=randn(K + 1, D),
        bias=randn(K + 1),
        centroids=randn(K, D),
        mask=randn(batch, height, width).abs(),
        mask4=randn(batch, 1, height, width).abs(),
        mask2=randn(batch, positions).abs(),
        logits=randn(batch, K + 1, height, width),
        token_logits=randn(batch, positions, K + 1),
        query=randn(batch, K, D),
        flat_query=randn(batch, K * D),
        lists=randn(batch, height, 4, K, D),
        quarters=randn(width, 4, K, D),
        maps=randn(batch, 3, height, width),
        kernel=randn(13, 3, 3, 3),
        offset=randn(13),
        rows=randn(batch + 2, D),
        others=randn(positions + 3, D),
    )


def vlad(operator, features="x", **names):
    """A call with ghost cluster; ``names`` of arguments are those of ``tensors``."""

    def call(t):
        return operator(t[features], ghost_clusters=1, **{name: t[key] for name, key in names.items()})

    return call


WEIGHT = dict(weight="weight", centroids="centroids", bias="bias")
CALLS = {
    "netvlad": vlad(sfrs_ext.netvlad, **WEIGHT),
    "netvlad, mask": vlad(sfrs_ext.netvlad, mask="mask", **WEIGHT),
    "netvlad, mask [B, 1, H, W]": vlad(sfrs_ext.netvlad, mask="mask4", **WEIGHT),
    "netvlad, mask [B, P]": vlad(sfrs_ext.netvlad, mask="mask2", **WEIGHT),
    "netvlad, logits": vlad(sfrs_ext.netvlad, logits="logits", centroids="centroids"),
    "netvlad, logits [B, P, K]": vlad(sfrs_ext.netvlad, logits="token_logits", mask="mask"),
    "netvlad, tokens": vlad(sfrs_ext.netvlad, "tokens", mask="mask2", **WEIGHT),
    "netvlad, tokens and logits": vlad(sfrs_ext.netvlad, "tokens", logits="token_logits", mask="mask2"),
    "netvlad, plain sums": lambda t: sfrs_ext.netvlad(
        t["x"], t["weight"], normalize_input=False, intra_norm=False, l2_norm=False, flatten=False
    ),
    "region_vlad": vlad(sfrs_ext.region_vlad, **WEIGHT),
    "region_vlad, mask": vlad(sfrs_ext.region_vlad, mask="mask", **WEIGHT),
    "region_vlad, logits": vlad(sfrs_ext.region_vlad, logits="logits", mask="mask2"),
    "region_similarity, lists": lambda t: sfrs_ext.region_similarity(t["query"], t["lists"]),
    "region_similarity, all pairs": lambda t: sfrs_ext.region_similarity(t["flat_query"], t["quarters"]),
    "conv3x3": lambda t: sfrs_ext.conv3x3(t["maps"], t["kernel"], t["offset"], relu=True),
    "conv3x3, packed": lambda t: sfrs_ext.conv3x3(
        t["maps"], t["kernel"], packed=sfrs_ext.conv3x3_weight(t["kernel"])
    ),
}


def results(result) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize(("dynamic", "frames"), ((None, 2), (True, 1)), ids=("default", "dynamic"))
@pytest.mark.parametrize("name", CALLS)
def test_five_sizes_share_a_graph(name, dynamic, frames):
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(CALLS[name], fullgraph=True, dynamic=dynamic, backend=counter)
    for size in SIZES:
        given = tensors(*size)
        expected = results(CALLS[name](given))
        assert all(map(torch.equal, results(compiled(given)), expected))
    assert counter.frame_count == frames


class Call(nn.Module):
    """A call of the table as a module, as exporting takes it."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, t):
        return CALLS[self.name](t)


@pytest.mark.parametrize("strict", (True, False), ids=("strict", "not strict"))
@pytest.mark.parametrize("name", CALLS)
def test_an_exported_call_serves_other_sizes(name, strict):
    needed, given = set(), tensors(*SIZES[0])

    class Recording(dict):
        def __getitem__(self, key):
            needed.add(key)
            return super().__getitem__(key)

    CALLS[name](Recording(given))
    names = sorted(needed)
    fixed = ("weight", "bias", "centroids", "kernel", "offset")
    shapes = {n: [torch.export.Dim.AUTO] * given[n].dim() for n in names if n not in fixed}
    shapes |= {n: None for n in names if n in fixed}
    program = torch.export.export(
        Call(name),
        ({n: given[n] for n in names},),
        dynamic_shapes=({n: shapes[n] for n in names},),
        strict=strict,
    )
    exported = program.module()
    for size in SIZES[1:3]:
        given = tensors(*size)
        found = results(exported({n: given[n] for n in names}))
        assert all(map(torch.equal, found, results(CALLS[name](given))))


@pytest.mark.parametrize("name", CALLS)
def test_compiled_gradients_serve_other_sizes(name):
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[name], fullgraph=True, dynamic=True, backend="aot_eager")
    for size in SIZES[:3]:
        given = {n: t.requires_grad_() for n, t in tensors(*size).items()}
        inputs = list(given.values())
        expected = torch.autograd.grad(CALLS[name](given).square().sum(), inputs, allow_unused=True)
        found = torch.autograd.grad(compiled(given).square().sum(), inputs, allow_unused=True)
        for ours, want in zip(found, expected, strict=True):
            assert (ours is None) == (want is None)
            if want is not None:
                torch.testing.assert_close(ours, want)


def test_a_wrong_argument_is_named_by_compiled_calls_too():
    torch._dynamo.reset()
    compiled = torch.compile(CALLS["netvlad, mask"], dynamic=True, backend="eager")
    compiled(tensors(*SIZES[0]))
    with pytest.raises(ValueError, match=r"netvlad: mask is \[3, 5, 8\], but must be \[3, 8, 5\]"):
        given = tensors(*SIZES[1])
        compiled(given | dict(mask=given["mask"].mT))
