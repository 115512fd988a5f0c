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

OURS = "sfrs_ext"
Peer = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Case:
    """One question: how fast is this computation, by whom.

    Attributes:
        name: as given to ``--case``.
        about: the computation and its shapes, for tables.
        inputs: builds the tensors from a generator.
        compute: maps a peer's function and the inputs to results; run under ``torch.enable_grad`` or not.
        functions: the peers, ours first. Names ending in "compile" go through ``torch.compile``.
        tolerance: largest error of any result, relative to the largest value, that the gate lets through.
        images: how many images one call handles; times are given per image.
        flops: floating-point operations of one call by the least known algorithm.
    """

    name: str
    about: str
    inputs: Callable[[torch.Generator], dict[str, Tensor]]
    compute: Callable[[Callable, dict[str, Tensor]], list[Tensor]]
    functions: dict[str, Callable]
    oracle: Callable
    tolerance: float
    images: int
    flops: float
    shapes: dict = field(default_factory=dict)


CASES: dict[str, Case] = {}


def register(case: Case) -> None:
    if case.name in CASES:
        raise ValueError(f"two cases are called {case.name}")
    CASES[case.name] = case


def forward(function: Callable, inputs: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [function(*inputs.values())]


def forward_backward(function: Callable, inputs: dict[str, Tensor]) -> list[Tensor]:
    tensors = dict(inputs)
    grad = tensors.pop("grad")
    leaves = [t.detach().requires_grad_() for t in tensors.values()]
    out = function(*leaves)
    out.backward(grad)
    return [out.detach(), *(t.grad for t in leaves)]


def netvlad_inputs(batch, dim, height, width, clusters, dtype, layout, with_grad):
    def build(g: torch.Generator) -> dict[str, Tensor]:
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


def add_netvlad(
    name, *, dtype=torch.float32, layout=torch.contiguous_format, batch=8, backward=False, slow=True
):
    dim, height, width, clusters = 512, 30, 40, 64
    functions = {OURS: sfrs_ext.netvlad, "two-GEMM": peers.two_gemm, "two-GEMM torch.compile": peers.two_gemm}
    if slow:
        functions |= {"residual": peers.residual, "per-cluster loop": peers.cluster_loop}
    gemm = 2.0 * batch * clusters * dim * height * width
    register(
        Case(
            name=name,
            about=f"netvlad {'forward + backward' if backward else 'forward'}, "
            f"{batch}x{dim}x{height}x{width}, K = {clusters}, {str(dtype).removeprefix('torch.')}"
            + (", channels_last" if layout == torch.channels_last else ""),
            inputs=netvlad_inputs(batch, dim, height, width, clusters, dtype, layout, backward),
            compute=forward_backward if backward else forward,
            functions=functions,
            oracle=reference.netvlad,
            tolerance=2e-5 if dtype == torch.float32 else 4e-2,
            images=batch,
            flops=gemm * (6 if backward else 2),
            shapes=dict(B=batch, D=dim, H=height, W=width, K=clusters, dtype=str(dtype)),
        )
    )


add_netvlad("netvlad-forward")
add_netvlad("netvlad-forward-backward", backward=True)
add_netvlad("netvlad-forward-channels-last", layout=torch.channels_last, slow=False)
add_netvlad("netvlad-forward-bfloat16", dtype=torch.bfloat16, slow=False)
add_netvlad("netvlad-forward-one-image", batch=1, slow=False)


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


def add_region_step(galleries: int = 11):
    dim, height, width, clusters = 512, 30, 40, 64

    def build(g: torch.Generator) -> dict[str, Tensor]:
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
    register(
        Case(
            name="region-step",
            about=f"1 query x {galleries} galleries x 9 regions, forward + backward, 512x30x40, K = 64, "
            "float32",
            inputs=build,
            compute=forward_backward,
            functions={
                OURS: fused_step,
                "two-GEMM": two_gemm,
                "two-GEMM torch.compile": two_gemm,
                "residual": region_step(peers.residual, peers.residual_regions),
            },
            oracle=two_gemm,
            tolerance=1e-3,  # the gradient of the centroids cancels; all peers err by 2e-4 there
            images=1,
            flops=2.0 * (galleries + 1) * clusters * dim * height * width * 6,
            shapes=dict(G=galleries, D=dim, H=height, W=width, K=clusters, dtype="torch.float32"),
        )
    )


add_region_step()


def add_all_pairs(queries: int = 64, gallery: int = 256):
    clusters, dim = 64, 512

    def build(g: torch.Generator) -> dict[str, Tensor]:
        query = torch.randn(queries, clusters * dim, generator=g)
        return {
            "query": torch.nn.functional.normalize(query).view(queries, clusters, dim),
            "quarters": torch.randn(gallery, 4, clusters, dim, generator=g),
        }

    register(
        Case(
            name="all-pairs",
            about=f"region_similarity of {queries} queries x {gallery} images, K = 64, D = 512, float32",
            inputs=build,
            compute=forward,
            functions={OURS: sfrs_ext.region_similarity, "nine descriptors, GEMM": peers.dense_regions},
            oracle=peers.dense_regions,
            tolerance=2e-5,
            images=1,
            flops=8.0 * queries * gallery * clusters * dim,
            shapes=dict(Q=queries, N=gallery, K=clusters, D=dim, dtype="torch.float32"),
        )
    )


add_all_pairs()
