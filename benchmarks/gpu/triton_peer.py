"""NetVLAD in Triton, forward and backward: the shortest way to a fused kernel, as a peer.

A program takes some tiles of one image's positions, keeps weights and sums ``[K, D]`` and reads the features
once; a second kernel adds up and normalises. The backward recomputes the assignment, as ours does. For 16-bit
types: in float32 the weights and a tile do not fit shared memory.

``python -m benchmarks.gpu.triton_peer`` compiles all kernels for sm_90, without a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MULTIPROCESSORS = 132  # programs are cut so that there are about as many
MOST_DIMENSIONS = 512  # a program keeps [K, D] in registers
SHARED_MEMORY = 232448  # bytes that a block of sm_90 may have


@triton.jit
def assign(X, W, k, K: tl.constexpr, valid):
    """Assignments ``[K, P]`` of a tile ``[D, P]`` and the inverse norms ``[P]``."""
    x = X.to(tl.float32)
    inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, 0)), 1e-12)
    logits = tl.dot(W, X) * inverse[None, :]
    logits = tl.where((k < K)[:, None], logits, -float("inf"))
    shares = tl.exp(logits - tl.max(logits, 0)[None, :])
    return tl.where(valid[None, :], shares / tl.sum(shares, 0)[None, :], 0.0), inverse


@triton.jit
def sum_up(
    x, w, sums, masses, P, sb, sd, sp, K: tl.constexpr, D: tl.constexpr, KP: tl.constexpr, DP: tl.constexpr,
    BP: tl.constexpr, SPLITS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0).to(tl.int64)
    image, split = unit // SPLITS, unit % SPLITS
    d, k = tl.arange(0, DP), tl.arange(0, KP)
    inside = (k < K)[:, None] & (d < D)[None, :]
    W = tl.load(w + k[:, None] * D + d[None, :], mask=inside, other=0.0)
    total, mass = tl.zeros((KP, DP), tl.float32), tl.zeros((KP,), tl.float32)
    for tile in range(TILES):
        p = (split * TILES + tile) * BP + tl.arange(0, BP)
        here = (d < D)[:, None] & (p < P)[None, :]
        X = tl.load(x + image * sb + d[:, None] * sd + p[None, :] * sp, mask=here, other=0.0)
        A, inverse = assign(X, W, k, K, p < P)
        mass += tl.sum(A, 1)
        total = tl.dot((A * inverse[None, :]).to(X.dtype), tl.trans(X), total)
    tl.store(sums + unit * K * D + k[:, None] * D + d[None, :], total, mask=inside)
    tl.store(masses + unit * K + k, mass, mask=k < K)


@triton.jit
def finish(
    sums, masses, c, out, inner, outer, K: tl.constexpr, D: tl.constexpr, KP: tl.constexpr, DP: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    d, k = tl.arange(0, DP), tl.arange(0, KP)
    inside, at = (k < K)[:, None] & (d < D)[None, :], k[:, None] * D + d[None, :]
    V, mass = tl.zeros((KP, DP), tl.float32), tl.zeros((KP,), tl.float32)
    for split in range(SPLITS):
        unit = image * SPLITS + split
        V += tl.load(sums + unit * K * D + at, mask=inside, other=0.0)
        mass += tl.load(masses + unit * K + k, mask=k < K, other=0.0)
    V -= mass[:, None] * tl.load(c + at, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.maximum(tl.sqrt(tl.sum(V * V, 1)), 1e-12)
    V *= scale[:, None]
    norm = 1.0 / tl.maximum(tl.sqrt(tl.sum(tl.sum(V * V, 1), 0)), 1e-12)
    tl.store(out + image * K * D + at, (V * norm).to(out.dtype.element_ty), mask=inside)
    tl.store(inner + image * K + k, scale, mask=k < K)
    tl.store(outer + image, norm)


@triton.jit
def through_norms(
    grad,
    out,
    inner,
    outer,
    c,
    dv,
    along,
    K: tl.constexpr,
    D: tl.constexpr,
    KP: tl.constexpr,
    DP: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    d, k = tl.arange(0, DP), tl.arange(0, KP)
    inside, at = (k < K)[:, None] & (d < D)[None, :], k[:, None] * D + d[None, :]
    g = tl.load(grad + image * K * D + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(out + image * K * D + at, mask=inside, other=0.0).to(tl.float32)
    norm, scale = tl.load(outer + image), tl.load(inner + image * K + k, mask=k < K, other=0.0)
    g = norm * (g - u * tl.sum(tl.sum(u * g, 1), 0))
    u /= norm
    g = scale[:, None] * (g - u * tl.sum(u * g, 1)[:, None])
    tl.store(dv + image * K * D + at, g.to(dv.dtype.element_ty), mask=inside)
    centroids = tl.load(c + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(along + image * K + k, tl.sum(g * centroids, 1), mask=k < K)


@triton.jit
def gradients(
    x, w, dv, along, dx, dw, masses, P, sb, sd, sp, K: tl.constexpr, D: tl.constexpr, KP: tl.constexpr,
    DP: tl.constexpr, BP: tl.constexpr, SPLITS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0).to(tl.int64)
    image, split = unit // SPLITS, unit % SPLITS
    d, k = tl.arange(0, DP), tl.arange(0, KP)
    inside, at = (k < K)[:, None] & (d < D)[None, :], k[:, None] * D + d[None, :]
    W = tl.load(w + at, mask=inside, other=0.0)
    G = tl.load(dv + image * K * D + at, mask=inside, other=0.0)
    centre = tl.load(along + image * K + k, mask=k < K, other=0.0)
    total, mass = tl.zeros((KP, DP), tl.float32), tl.zeros((KP,), tl.float32)
    for tile in range(TILES):
        p = (split * TILES + tile) * BP + tl.arange(0, BP)
        here = (d < D)[:, None] & (p < P)[None, :]
        place = image * sb + d[:, None] * sd + p[None, :] * sp
        X = tl.load(x + place, mask=here, other=0.0)
        A, inverse = assign(X, W, k, K, p < P)
        dA = tl.dot(G, X) * inverse[None, :] - centre[:, None]
        dS = A * (dA - tl.sum(A * dA, 0)[None, :])
        mass += tl.sum(A, 1)
        total = tl.dot((dS * inverse[None, :]).to(X.dtype), tl.trans(X), total)
        dX = tl.dot(tl.trans(G), A.to(X.dtype))
        dX = tl.dot(tl.trans(W), dS.to(X.dtype), dX)
        unit_x = X.to(tl.float32) * inverse[None, :]
        dX = inverse[None, :] * (dX - unit_x * tl.sum(unit_x * dX, 0)[None, :])
        tl.store(dx + place, dX.to(dx.dtype.element_ty), mask=here)
    tl.store(dw + unit * K * D + at, total, mask=inside)
    tl.store(masses + unit * K + k, mass, mask=k < K)


def sizes_of(x: Tensor, weight: Tensor, positions: int) -> dict:
    """Compile-time sizes for features ``[B, D, P]``, in tiles of so many positions."""
    batch, _, many = x.shape
    clusters, dim = weight.shape
    tiles = triton.cdiv(many, positions)
    splits = max(1, min(tiles, MULTIPROCESSORS // max(batch, 1)))
    return {
        "K": clusters, "D": dim, "KP": max(16, triton.next_power_of_2(clusters)),
        "DP": max(16, triton.next_power_of_2(dim)), "BP": positions, "SPLITS": splits,
        "TILES": triton.cdiv(tiles, splits),
    }  # fmt: skip


def only(sizes: dict, *names: str) -> dict:
    return {name: sizes[name] for name in names}


class NetVLAD(torch.autograd.Function):
    """``(x [B, D, P], weight [K, D], centroids [K, D]) -> [B, K * D]``, all contiguous but x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, centroids: Tensor) -> Tensor:
        batch, _, many = x.shape
        sizes = sizes_of(x, weight, 32)
        units, (clusters, dim) = batch * sizes["SPLITS"], weight.shape
        scratch = {"dtype": torch.float32, "device": x.device}
        sums, masses = torch.empty(units, clusters, dim, **scratch), torch.empty(units, clusters, **scratch)
        inner, outer = torch.empty(batch, clusters, **scratch), torch.empty(batch, **scratch)
        out = torch.empty(batch, clusters * dim, dtype=x.dtype, device=x.device)
        sum_up[(units,)](
            x,
            weight,
            sums,
            masses,
            many,
            *x.stride(),
            **sizes,
            num_warps=8,
            num_stages=2,
        )
        finish[(batch,)](
            sums,
            masses,
            centroids,
            out,
            inner,
            outer,
            **only(sizes, "K", "D", "KP", "DP", "SPLITS"),
            num_warps=8,
        )
        ctx.save_for_backward(x, weight, centroids, out, inner, outer)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, centroids, out, inner, outer = ctx.saved_tensors
        batch, _, many = x.shape
        sizes = sizes_of(x, weight, 16)
        units, (clusters, dim) = batch * sizes["SPLITS"], weight.shape
        scratch = {"dtype": torch.float32, "device": x.device}
        dv = torch.empty(batch, clusters, dim, dtype=x.dtype, device=x.device)
        along = torch.empty(batch, clusters, **scratch)
        through_norms[(batch,)](
            grad.contiguous(), out, inner, outer, centroids, dv, along, **only(sizes, "K", "D", "KP", "DP"),
            num_warps=8,
        )  # fmt: skip
        dx = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
        dw, masses = torch.empty(units, clusters, dim, **scratch), torch.empty(units, clusters, **scratch)
        gradients[(units,)](
            x, weight, dv, along, dx, dw, masses, many, *x.stride(), **sizes,
            num_warps=8, num_stages=1,
        )  # fmt: skip
        mass = masses.view(batch, -1, clusters).sum(1)
        dcentroids = -torch.einsum("bk,bkd->kd", mass, dv.float())
        return dx, dw.sum(0).to(weight.dtype), dcentroids.to(centroids.dtype)


def netvlad(x: Tensor, weight: Tensor, centroids: Tensor) -> Tensor:
    """``[B, K * D]`` of a map ``[B, D, H, W]`` or of tokens ``[B, N, D]``, read in place."""
    return NetVLAD.apply(x.flatten(2) if x.dim() == 4 else x.mT, weight, centroids)


def compiled(kernel, types: dict[str, str], constants: dict, warps: int, stages: int):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {n: types.get(n, "constexpr" if n in constants else "i32") for n in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def main() -> None:
    sizes = {"K": 64, "D": 512, "KP": 64, "DP": 512, "SPLITS": 2, "TILES": 19}
    types = dict.fromkeys("sums masses inner outer along dw".split(), "*fp32")
    types |= dict.fromkeys("x w c out grad dv dx".split(), "*bf16")
    for kernel, positions, stages in (
        (sum_up, 32, 2),
        (finish, 0, 1),
        (through_norms, 0, 1),
        (gradients, 16, 1),
    ):
        values = sizes | {"BP": positions}
        constants = {n: v for n, v in values.items() if n in kernel.arg_names}
        made = compiled(kernel, types, constants, 8, stages)
        found = [name for name in ("wgmma", "mma.sync") if name in made.asm["ptx"]]
        name, shared = kernel.__name__, made.metadata.shared
        print(f"{name:14} {shared} bytes of shared memory, {' and '.join(found) or 'no products'}")
        if shared > SHARED_MEMORY:
            raise SystemExit(f"{name} does not fit: a block may have {SHARED_MEMORY} bytes of shared memory")


if __name__ == "__main__":
    main()
