"""What is measured on a GPU: computations, their inputs, and who competes.

Bytes are counted with every operator reading its inputs and writing its results once; operations are those of
the products alone. Parameters have the dtype of the features, for everyone.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import sfrs_ext
from sfrs_ext import reference

from .. import peers
from ..cases import OURS, fused_step, region_step

EAGER = "two-GEMM"
TRITON = "Triton"
AUTOTUNE = "max-autotune-no-cudagraphs"  # without graphs of its own: every contender is captured in one
PRECISIONS = {  # dtype of the features, and whether float32 products may be rounded to TF32
    "bf16": (torch.bfloat16, False),
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
}
TOLERANCES = {"bf16": 2e-2, "fp32": 2e-5, "tf32": 5e-3}


@dataclass(frozen=True)
class Contender:
    """A way to compute a case.

    Attributes:
        mode: of torch.compile, where it is compiled.
        turn: small ones are measured first, in all cases: time may run out.
    """

    function: Callable
    mode: str | None = None
    turn: int = 0


@dataclass(frozen=True)
class Case:
    """One computation on one size and precision.

    Attributes:
        about: the computation and its shapes, for tables.
        inputs: builds the tensors on the device of a generator.
        contenders: ours first; ``EAGER`` is always among them.
        oracle: computes the same, and is run in float64.
        tolerance: largest error of ours, relative to the largest value of a result; whoever errs more, and
            more than twice what ``EAGER`` does, computes something else.
        backward: whether gradients of all inputs but ``fixed`` are part of it.
        bytes, flops: the least that has to be moved and computed.
    """

    name: str
    about: str
    precision: str
    inputs: Callable[[torch.Generator], dict[str, Tensor]]
    contenders: dict[str, Contender]
    oracle: Callable
    backward: bool
    bytes: float
    flops: float
    tolerance: float
    fixed: tuple[str, ...] = ("grad",)
    shapes: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """The paper's sizes, or for rehearsals ones that any machine computes at once."""

    batches: tuple[int, ...] = (64, 1, 12, 256)
    dim: int = 512
    height: int = 30
    width: int = 40
    clusters: int = 64
    token_dim: int = 768
    token_sides: tuple[int, ...] = (16, 23)
    videos: int = 2048
    frames: int = 100
    galleries: tuple[int, ...] = (11, 21)
    queries: int = 128
    gallery: int = 1024


TINY = Sizes((2, 1), 16, 4, 5, 4, 24, (3,), 8, 5, (3,), 4, 6)


def randn(g: torch.Generator, *size: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*size, generator=g, device=g.device)


def parameters(g: torch.Generator, clusters: int, dim: int) -> dict[str, Tensor]:
    return {"weight": randn(g, clusters, dim, scale=0.3), "centroids": randn(g, clusters, dim, scale=0.05)}


def rounded(inputs: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    return {name: t.to(PRECISIONS[precision][0]) for name, t in inputs.items()}


def compiled(function: Callable, turn: int) -> dict[str, Contender]:
    """Under torch.compile, and later, since it takes long, with its own search for the fastest kernels."""
    return {
        "torch.compile": Contender(function, "default", turn),
        "torch.compile max-autotune": Contender(function, AUTOTUNE, turn + 1),
    }


def has_triton() -> bool:
    """Whether Triton is here and can run: on a GPU, or in its interpreter."""
    runs = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and importlib.util.find_spec("triton") is not None


def in_triton(dim: int, turn: int) -> dict[str, Contender]:
    if not has_triton():
        return {}
    from . import triton_peer

    fits = dim <= triton_peer.MOST_DIMENSIONS
    return {TRITON: Contender(triton_peer.netvlad, turn=turn)} if fits else {}


def aggregation(
    operator: str, precision: str, batch: int, sizes: Sizes, *, backward: bool, layout: str, side: int = 0
) -> Case:
    """``netvlad`` or ``region_vlad`` of a map, or of tokens if ``side`` is given."""
    clusters, parts = sizes.clusters, 4 if operator == "region_vlad" else 1
    dim = sizes.token_dim if side else sizes.dim
    height, width = (side, side) if side else (sizes.height, sizes.width)
    where = f"{batch}x{side * side}x{dim}" if side else f"{batch}x{dim}x{height}x{width}"

    def build(g: torch.Generator) -> dict[str, Tensor]:
        x = randn(g, batch, height * width, dim) if side else randn(g, batch, dim, height, width)
        inputs = rounded({"x": x, **parameters(g, clusters, dim)}, precision)
        if layout == "channels_last":
            inputs["x"] = inputs["x"].contiguous(memory_format=torch.channels_last)
        if backward:
            size = (batch, clusters * dim) if parts == 1 else (batch, parts, clusters, dim)
            inputs["grad"] = randn(g, *size).to(inputs["x"].dtype)
        return inputs

    eager, ours = (getattr(module, operator) for module in (reference, sfrs_ext))
    contenders = {OURS: Contender(ours), EAGER: Contender(eager)}
    first = batch == sizes.batches[0]
    if layout != "channels_last" and not side:
        residual = peers.residual if parts == 1 else peers.residual_quarters
        contenders["residual"] = Contender(residual, turn=1 if first else 4)
        if parts == 1:
            contenders["per-cluster loop"] = Contender(peers.cluster_loop, turn=1 if first else 4)
    headline = first and operator == "netvlad" and not (side or layout) and precision != "tf32"
    contenders |= compiled(eager, 1 if headline else 3 if first else 5)
    if operator == "netvlad" and precision == "bf16":
        contenders |= in_triton(dim, 1 if first else 4)

    element = torch.finfo(PRECISIONS[precision][0]).bits // 8
    x, vlad = batch * dim * height * width, batch * parts * clusters * dim
    moved = (3 * x + 3 * vlad + 4 * clusters * dim) if backward else (x + vlad + 2 * clusters * dim)
    direction = "forward-backward" if backward else "forward"
    kind = f"{operator}-tokens-{side}" if side else f"{operator}{'-channels-last' if layout else ''}"
    return Case(
        name=f"{kind}-{direction}-B{batch}-{precision}",
        about=f"{operator} {direction.replace('-', ' + ')}, {where}, K = {clusters}"
        + (", channels_last" if layout else ""),
        precision=precision,
        inputs=build,
        contenders=contenders,
        oracle=eager,
        backward=backward,
        bytes=element * moved,
        flops=2.0 * x * clusters * (6 if backward else 2),
        tolerance=TOLERANCES[precision],
        shapes=dict(B=batch, D=dim, H=height, W=width, K=clusters, parts=parts, layout=layout or "planes"),
    )


def batch_norm(
    logits: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, training: bool = True
) -> Tensor:
    return torch.nn.functional.batch_norm(logits, mean, variance, scale, shift, training=training)


def video_eager(x, clusters, centroids, scale, shift, mean, variance, training=True):
    """The model of KernelBench level 3, problems 46 and 47, step by step; ``[B, D * K]``, feature-major."""
    count, (frames, dim) = centroids.shape[-1], x.shape[1:]
    flat = x.reshape(-1, dim)
    logits = batch_norm(flat @ clusters, scale, shift, mean, variance, training)
    assignment = logits.softmax(1)[:, :count]
    assignment = assignment.view(-1, frames, count)
    subtrahend = assignment.sum(1, keepdim=True) * centroids
    vlad = (assignment.transpose(1, 2) @ x).transpose(1, 2) - subtrahend
    vlad = torch.nn.functional.normalize(vlad)
    return torch.nn.functional.normalize(vlad.reshape(-1, dim * count))


def video_clusters_first(x, clusters, centroids, scale, shift, mean, variance):
    """The same by our operator: ``[B, K * D]``, cluster-major."""
    logits = batch_norm(x.reshape(-1, x.shape[2]) @ clusters, scale, shift, mean, variance)
    ghosts = clusters.shape[1] - centroids.shape[-1]
    options = dict(ghost_clusters=ghosts, normalize_input=False)
    return sfrs_ext.netvlad(x, logits=logits.view(*x.shape[:2], -1), centroids=centroids[0].mT, **options)


def video_fused(x, clusters, centroids, *norm):
    """The same in the order of the model's own result, which costs a copy."""
    vlad = video_clusters_first(x, clusters, centroids, *norm)
    return vlad.unflatten(1, (centroids.shape[-1], -1)).mT.flatten(1)


def evaluated_eager(x, clusters, centroids, *norm):
    """The same in evaluation: batch norm has statistics of its own."""
    return video_eager(x, clusters, centroids, *norm, training=False)


def evaluated_clusters_first(x, clusters, centroids, scale, shift, mean, variance):
    """By our operator: batch norm is a scale of the weights and a bias."""
    factor = scale * (variance + 1e-5).rsqrt()
    ghosts = clusters.shape[1] - centroids.shape[-1]
    weight, bias = (clusters * factor).mT, shift - mean * factor
    return sfrs_ext.netvlad(x, weight, centroids[0].mT, bias, ghost_clusters=ghosts, normalize_input=False)


def evaluated_fused(x, clusters, centroids, *norm):
    vlad = evaluated_clusters_first(x, clusters, centroids, *norm)
    return vlad.unflatten(1, (centroids.shape[-1], -1)).mT.flatten(1)


def video(problem: int, precision: str, sizes: Sizes, *, backward: bool, training: bool = True) -> Case:
    videos, frames, dim = sizes.videos, sizes.frames, sizes.dim
    clusters, ghosts = sizes.clusters // 2, sizes.clusters // 4 if problem == 46 else 0
    columns = clusters + ghosts

    def build(g: torch.Generator) -> dict[str, Tensor]:
        scale = dim**-0.5
        inputs = {
            "x": randn(g, videos, frames, dim),
            "clusters": randn(g, dim, columns, scale=scale),
            "centroids": randn(g, 1, dim, clusters, scale=scale),
            "scale": 1 + randn(g, columns, scale=0.1),
            "shift": randn(g, columns, scale=0.1),
            "mean": randn(g, columns, scale=0.0),
            "variance": 1 + randn(g, columns, scale=0.0),
        }
        if backward:
            inputs["grad"] = randn(g, videos, dim * clusters)
        return rounded(inputs, precision)

    element = torch.finfo(PRECISIONS[precision][0]).bits // 8
    x, vlad = videos * frames * dim, videos * clusters * dim
    eager, ours, clusters_first = (
        (video_eager, video_fused, video_clusters_first)
        if training
        else (evaluated_eager, evaluated_fused, evaluated_clusters_first)
    )
    contenders = {OURS: Contender(ours), EAGER: Contender(eager)}
    if not backward:  # a gradient of the other order is another computation
        contenders[f"{OURS}, cluster-major"] = Contender(clusters_first)
    # KernelBench itself is run in float32.
    contenders |= compiled(eager, 1 if problem == 46 and precision == "fp32" else 3)
    direction = "forward-backward" if backward else "forward" if training else "evaluation"
    return Case(
        name=f"kernelbench-{problem}-{direction}-{precision}",
        about=f"KernelBench level 3 problem {problem}, {direction.replace('-', ' + ')}, "
        f"{videos}x{frames}x{dim}, K = {clusters}, {ghosts} ghosts"
        + (", batch norm in training" if training else ""),
        precision=precision,
        inputs=build,
        contenders=contenders,
        oracle=eager,
        backward=backward,
        # In training statistics of all logits come before the first assignment, and those of their gradients
        # before the first gradient of x: two passes over x forward, two backward.
        bytes=element * ((5 * x + 3 * vlad) if backward else (2 if training else 1) * x + vlad),
        flops=2.0 * x * (3 * clusters + 3 * columns if backward else clusters + columns),
        tolerance=max(TOLERANCES[precision], 1e-4),  # batch norm divides by deviations that cancel
        fixed=("grad", "mean", "variance"),
        shapes=dict(B=videos, N=frames, D=dim, K=clusters, G=ghosts, training=training),
    )


def step(galleries: int, precision: str, sizes: Sizes) -> Case:
    """One query, its galleries, nine regions each: descriptors, similarities, all gradients."""
    dim, height, width, clusters = sizes.dim, sizes.height, sizes.width, sizes.clusters

    def build(g: torch.Generator) -> dict[str, Tensor]:
        query, gallery = (randn(g, n, dim, height, width) for n in (1, galleries))
        inputs = {"query": query, "gallery": gallery, **parameters(g, clusters, dim)}
        return rounded(inputs, precision) | {"grad": randn(g, 1, galleries, 9)}

    eager = region_step(peers.two_gemm, peers.two_gemm_regions)
    residual = region_step(peers.residual, peers.residual_regions)
    element = torch.finfo(PRECISIONS[precision][0]).bits // 8
    x, vlad = (galleries + 1) * dim * height * width, clusters * dim
    contenders = {OURS: Contender(fused_step), EAGER: Contender(eager)}
    contenders["residual"] = Contender(residual, turn=1)
    return Case(
        name=f"region-step-{galleries}-{precision}",
        about=f"1 query x {galleries} galleries x 9 regions, forward + backward, {dim}x{height}x{width}, "
        f"K = {clusters}",
        precision=precision,
        inputs=build,
        contenders=contenders | compiled(eager, 2 if galleries == sizes.galleries[0] else 5),
        oracle=eager,
        backward=True,
        # Quarters and their gradient: written once, read by both operators, the quarters also backward.
        bytes=element * (3 * x + 5 * 4 * galleries * vlad + 6 * vlad + 4 * vlad),
        flops=2.0 * x * clusters * 6,
        tolerance=max(TOLERANCES[precision], 1e-3),  # the gradient of the centroids cancels
        shapes=dict(G=galleries, D=dim, H=height, W=width, K=clusters),
    )


def all_pairs(precision: str, sizes: Sizes) -> Case:
    queries, gallery, clusters, dim = sizes.queries, sizes.gallery, sizes.clusters, sizes.dim

    def build(g: torch.Generator) -> dict[str, Tensor]:
        query = torch.nn.functional.normalize(randn(g, queries, clusters * dim))
        quarters = randn(g, gallery, 4, clusters, dim)
        return rounded({"query": query.view(queries, clusters, dim), "quarters": quarters}, precision)

    element = torch.finfo(PRECISIONS[precision][0]).bits // 8
    return Case(
        name=f"all-pairs-{precision}",
        about=f"region_similarity of {queries} queries x {gallery} images, K = {clusters}, D = {dim}",
        precision=precision,
        inputs=build,
        contenders={
            OURS: Contender(sfrs_ext.region_similarity),
            EAGER: Contender(peers.dense_regions),
            **compiled(peers.dense_regions, 3),
        },
        oracle=peers.dense_regions,
        backward=False,
        bytes=element * (queries + 4 * gallery) * clusters * dim + 4 * queries * gallery * 9,
        flops=8.0 * queries * gallery * clusters * dim,
        tolerance=TOLERANCES[precision],
        shapes=dict(Q=queries, N=gallery, K=clusters, D=dim),
    )


def registry(sizes: Sizes) -> dict[str, Case]:
    """All cases, the most telling first: time may run out."""
    cases: list[Case] = []
    precisions, directions = tuple(PRECISIONS), (False, True)
    for batch in sizes.batches:
        for operator in ("netvlad", "region_vlad"):
            for precision in precisions:
                cases += (
                    aggregation(operator, precision, batch, sizes, backward=b, layout="") for b in directions
                )
        if batch == sizes.batches[0]:
            cases += (video(46, p, sizes, backward=b) for p in precisions for b in directions)
            cases += (video(46, p, sizes, backward=False, training=False) for p in precisions)
            cases += (step(galleries, p, sizes) for galleries in sizes.galleries for p in precisions)
            for side in sizes.token_sides:
                cases += (
                    aggregation("netvlad", p, batch, sizes, backward=b, layout="", side=side)
                    for p in ("bf16", "fp32")
                    for b in directions
                )
            cases += (
                aggregation("netvlad", p, batch, sizes, backward=b, layout="channels_last")
                for p in ("bf16", "fp32")
                for b in directions
            )
            cases += (all_pairs(p, sizes) for p in precisions)
            cases += (video(47, p, sizes, backward=b) for p in precisions for b in directions)
            cases += (video(47, p, sizes, backward=False, training=False) for p in precisions)
    return {case.name: case for case in cases}
