"""The registry: what is measured, on which inputs, against whom.

A case builds its inputs from a seed and offers the same computation by several peers. Every peer returns a
list of tensors (results, then gradients); the gate compares them with the float64 run of the oracle.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import sfrs_ext
from sfrs_ext import reference

from . import peers
from .goals import Goals

OURS = "sfrs_ext"
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Peer:
    """One way to compute a case.

    Attributes:
        function: maps the inputs to the result.
        compiled: runs through ``torch.compile``.
        dtype: of the inputs it gets, where that is not the case's own.
        prepare: what it makes of the inputs once, before any time is taken, and keeps: memory of its own.
    """

    function: Callable
    compiled: bool = False
    dtype: torch.dtype | None = None
    prepare: Callable[[Inputs], Inputs] | None = None


@dataclass(frozen=True)
class Case:
    """One question: how fast is this computation, by whom.

    Attributes:
        name: as given to ``--case``.
        about: the computation and its shapes, for tables.
        inputs: builds the tensors from a generator.
        compute: maps a peer's function and its inputs to results; with gradients or without.
        peers: who computes it, ours first.
        oracle: maps the inputs in float64 to the exact result.
        tolerance: largest error of any result, relative to the largest value, that the gate lets through.
        images: how many images one call handles; times are given per image.
        flops: floating-point operations of one call by the least known algorithm.
        goals: what ours should reach beside the peers.
        threads: how many, whatever the command says; None: as it says.
        calls: in a row, whose mean is one time: where the time per image is compared with that of a batch,
            a time has to last as long, since the machine's speed changes from one millisecond to the next.
        maps: how many maps of each layout of ``benchmarks.kernel_steps`` one call aggregates, where those
            steps are all that it does.
    """

    name: str
    about: str
    inputs: Callable[[torch.Generator], Inputs]
    compute: Callable[[Callable, Inputs], list[Tensor]]
    peers: dict[str, Peer]
    oracle: Callable
    tolerance: float
    images: int
    flops: float
    shapes: dict = field(default_factory=dict)
    goals: Goals = Goals()
    threads: int | None = None
    calls: int = 1
    maps: dict[str, int] = field(default_factory=dict)

    @property
    def backward(self) -> bool:
        return self.compute is forward_backward


@dataclass(frozen=True)
class Sizes:
    """Shapes of all cases: a conv5 map of a 480x640 image, a tuple's galleries, a re-ranking of all pairs."""

    batch: int = 8
    dim: int = 512
    height: int = 30
    width: int = 40
    clusters: int = 64
    galleries: int = 11
    queries: int = 256
    images: int = 2048


TINY = Sizes(batch=2, dim=24, height=5, width=6, clusters=8, galleries=3, queries=5, images=7)
"""For tests: every path of every case, in milliseconds."""


def forward(function: Callable, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return [function(*inputs.values())]


def forward_backward(function: Callable, inputs: Inputs) -> list[Tensor]:
    tensors = dict(inputs)
    grad = tensors.pop("grad")
    leaves = [t.detach().requires_grad_() for t in tensors.values()]
    out = function(*leaves)
    out.backward(grad.to(out.dtype))  # autocast chooses the type of the result
    return [out.detach(), *(t.grad for t in leaves)]


def netvlad_inputs(batch, dim, height, width, clusters, dtype, layout, with_grad):
    def build(g: torch.Generator) -> Inputs:
        x = torch.randn(batch, dim, height, width, generator=g).to(dtype)
        inputs = {
            "x": x.contiguous(memory_format=layout),
            "weight": (0.3 * torch.randn(clusters, dim, generator=g)).to(dtype),
            "centroids": (0.05 * torch.randn(clusters, dim, generator=g)).to(dtype),
        }
        if with_grad:
            inputs["grad"] = torch.randn(batch, clusters * dim, generator=g).to(dtype)
        return inputs

    return build


def eager_and_compiled(name: str, function: Callable, dtype: torch.dtype | None = None) -> dict[str, Peer]:
    return {
        name: Peer(function, dtype=dtype),
        f"{name} torch.compile": Peer(function, compiled=True, dtype=dtype),
    }


RESIDUAL_FORMS = {"residual": Peer(peers.residual), "per-cluster loop": Peer(peers.cluster_loop)}


def netvlad_case(
    name: str, sizes: Sizes, *, dtype=torch.float32, layout=torch.contiguous_format, batch: int | None = None,
    backward: bool = False, forms: dict[str, Peer] | None = None, **options,
) -> Case:  # fmt: skip
    batch = batch or sizes.batch
    dim, height, width, clusters = sizes.dim, sizes.height, sizes.width, sizes.clusters
    contenders = {OURS: Peer(sfrs_ext.netvlad)} | eager_and_compiled("two-GEMM", peers.two_gemm)
    if dtype == torch.bfloat16:
        contenders |= eager_and_compiled("two-GEMM autocast", peers.two_gemm_autocast, torch.float32)
    threads, calls = options.get("threads"), options.get("calls")
    steps = "tokens" if layout == torch.channels_last else "planes"
    return Case(
        name=name,
        about=f"netvlad {'forward + backward' if backward else 'forward'}, "
        f"{batch}x{dim}x{height}x{width}, K = {clusters}, {str(dtype).removeprefix('torch.')}"
        + (", channels_last" if layout == torch.channels_last else "")
        + (f", {threads} thread" if threads else "")
        + (f", mean of {calls} calls" if calls else ""),
        inputs=netvlad_inputs(batch, dim, height, width, clusters, dtype, layout, backward),
        compute=forward_backward if backward else forward,
        peers=contenders | (forms or {}),
        oracle=reference.netvlad,
        tolerance=2e-5 if dtype == torch.float32 else 4e-2,  # torch's gradients in bfloat16 err by 1e-2
        images=batch,
        # Two products forward; backward needs four: dA, dX twice and dW.
        flops=2.0 * batch * clusters * dim * height * width * (6 if backward else 2),
        shapes=dict(B=batch, D=dim, H=height, W=width, K=clusters, dtype=str(dtype)),
        maps={steps: batch} if dtype == torch.float32 else {},
        **options,
    )


def fused_step(query, gallery, weight, centroids):
    u = sfrs_ext.netvlad(query, weight, centroids)
    quarters = sfrs_ext.region_vlad(gallery, weight, centroids)
    return sfrs_ext.region_similarity(u, quarters.unsqueeze(0))


def region_step(describe: Callable, describe_regions: Callable) -> Callable:
    def step(query, gallery, weight, centroids):
        return (
            describe_regions(gallery, weight, centroids) @ describe(query, weight, centroids)[0]
        ).unsqueeze(0)

    return step


def region_step_case(sizes: Sizes, **options) -> Case:
    galleries, clusters = sizes.galleries, sizes.clusters
    dim, height, width = sizes.dim, sizes.height, sizes.width

    def build(g: torch.Generator) -> Inputs:
        inputs = netvlad_inputs(
            galleries, dim, height, width, clusters, torch.float32, torch.contiguous_format, False
        )(g)
        return {
            "query": torch.randn(1, dim, height, width, generator=g),
            "gallery": inputs["x"],
            "weight": inputs["weight"],
            "centroids": inputs["centroids"],
            "grad": torch.randn(1, galleries, 9, generator=g),
        }

    two_gemm = region_step(peers.two_gemm, peers.two_gemm_regions)
    return Case(
        name="region-step",
        about=f"1 query x {galleries} galleries x 9 regions, forward + backward, {dim}x{height}x{width}, "
        f"K = {clusters}, float32",
        inputs=build,
        compute=forward_backward,
        peers={
            OURS: Peer(fused_step),
            **eager_and_compiled("two-GEMM", two_gemm),
            "residual": Peer(region_step(peers.residual, peers.residual_regions)),
        },
        oracle=two_gemm,
        tolerance=1e-3,  # the gradient of the centroids cancels; all peers err by 2e-4 there
        images=1,
        flops=2.0 * (galleries + 1) * clusters * dim * height * width * 6,
        shapes=dict(G=galleries, D=dim, H=height, W=width, K=clusters, dtype="torch.float32"),
        maps={"planes": 1, "quarters": galleries},
        **options,
    )


def all_pairs_case(sizes: Sizes, **options) -> Case:
    queries, images, clusters, dim = sizes.queries, sizes.images, sizes.clusters, sizes.dim

    def build(g: torch.Generator) -> Inputs:
        query = torch.randn(queries, clusters * dim, generator=g)
        return {
            "query": torch.nn.functional.normalize(query).view(queries, clusters, dim),
            "quarters": torch.randn(images, 4, clusters, dim, generator=g),
        }

    return Case(
        name="all-pairs",
        about=f"region_similarity of {queries} queries x {images} images, K = {clusters}, D = {dim}, float32",
        inputs=build,
        compute=forward,
        peers={
            OURS: Peer(sfrs_ext.region_similarity),
            "nine descriptors, GEMM": Peer(peers.dense_regions),
            "GEMM over kept descriptors": Peer(peers.kept_regions, prepare=peers.keep_regions),
        },
        oracle=peers.dense_regions_in_blocks,
        tolerance=2e-5,
        images=1,
        flops=8.0 * queries * images * clusters * dim,
        shapes=dict(Q=queries, N=images, K=clusters, D=dim, dtype="torch.float32"),
        **options,
    )


def registry(sizes: Sizes) -> dict[str, Case]:
    """All cases by name, in the order of the tables."""
    bfloat16 = dict(dtype=torch.bfloat16)
    cases = [
        netvlad_case(
            "netvlad-forward", sizes, forms=RESIDUAL_FORMS,
            goals=Goals(compiled=2.6, eager=3.3, peak_share=0.75),
        ),
        netvlad_case(
            "netvlad-forward-backward", sizes, backward=True, forms=RESIDUAL_FORMS,
            goals=Goals(compiled=3.3, eager=4.5),
        ),
        netvlad_case("netvlad-forward-channels-last", sizes, layout=torch.channels_last),
        netvlad_case("netvlad-forward-bfloat16", sizes, **bfloat16, goals=Goals(compiled=1.8)),
        netvlad_case(
            "netvlad-forward-backward-bfloat16", sizes, **bfloat16, backward=True, goals=Goals(compiled=2.0)
        ),
        netvlad_case(
            "netvlad-forward-one-image", sizes, batch=1, calls=sizes.batch,
            goals=Goals(time_of=("netvlad-forward", 1.10)),
        ),
        netvlad_case("netvlad-forward-one-thread", sizes, threads=1, goals=Goals(eager=2.8)),
        region_step_case(sizes, goals=Goals(compiled=3.6, eager=5.0, peak_bytes=100e6)),
        all_pairs_case(sizes, goals=Goals(eager=2.0, memory=9.0)),
    ]  # fmt: skip
    return {case.name: case for case in cases}


CASES = registry(Sizes())
