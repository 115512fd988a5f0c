"""Fake kernels and gradients of the compiled operators, which csrc/ops.cpp declares."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _cuda  # noqa: F401  registers the operators
from ._checks import accumulation_dtype

ops = torch.ops.sfrs_ext

DOTS = 13  # numbers per pair and cluster that region_similarity saves, see csrc/region_similarity.h


def read_in_place_as_planes(x: Tensor) -> bool:
    """Whether the kernels walk x plane by plane; the same rule as in csrc/glue.h."""
    return x.stride(3) == 1 or x.stride(1) != 1


@torch.library.register_fake("sfrs_ext::aggregate")
def _(
    x,
    weight,
    logits,
    centroids,
    bias,
    mask,
    regions,
    ghost_clusters,
    normalize_input,
    intra_norm,
    l2_norm,
    tf32,
    save,
):
    batch, dim, height, width = x.shape
    columns = logits.shape[2] if weight is None else weight.shape[0]
    clusters, saved = columns - ghost_clusters, batch if save else 0
    saves_logits = weight is not None and x.device.type != "cuda"  # the backward has them, or computes them
    acc = accumulation_dtype(x.dtype)
    return (
        x.new_empty(batch, regions, clusters, dim),
        x.new_empty(saved if saves_logits else 0, height * width, columns, dtype=acc),
        x.new_empty(saved, height * width, dtype=acc),
        x.new_empty(saved if regions == 1 else 0, clusters + 1, dtype=acc),
    )


@torch.library.register_fake("sfrs_ext::aggregate_backward")
def _(
    grad,
    x,
    weight,
    logits,
    centroids,
    bias,
    mask,
    vlad,
    saved_logits,
    inv_norm,
    scale,
    regions,
    ghost_clusters,
    normalize_input,
    intra_norm,
    l2_norm,
    tf32,
    needs,
):
    batch, dim, height, width = x.shape
    columns = logits.shape[2] if weight is None else weight.shape[0]
    acc = accumulation_dtype(x.dtype)
    layout = torch.contiguous_format if read_in_place_as_planes(x) else torch.channels_last
    shapes = (
        (2, (columns, dim)),
        (4, (batch, height * width, columns)),
        (8, (columns - ghost_clusters, dim)),
        (16, (columns,)),
        (32, (batch, height * width)),
    )
    dx = (
        torch.empty((batch, dim, height, width), dtype=x.dtype, device=x.device, memory_format=layout)
        if needs & 1
        else x.new_empty(0)
    )
    return (dx, *(x.new_empty(size if needs & bit else (0,), dtype=acc) for bit, size in shapes))


@torch.library.register_fake("sfrs_ext::region_similarity")
def _(query, quarters, tf32, save):
    lists = quarters.dim() == 5
    gallery = quarters.shape[1 if lists else 0]
    acc = accumulation_dtype(query.dtype)
    saved = query.shape[0] if save and lists else 0
    return (
        query.new_empty(query.shape[0], gallery, 9, dtype=acc),
        query.new_empty(saved, gallery, query.shape[1], DOTS, dtype=torch.float64),
    )


@torch.library.register_fake("sfrs_ext::region_similarity_backward")
def _(grad, query, quarters, similarity, dots, tf32, need_query, need_quarters):
    return (
        query.new_empty(query.shape if need_query else (0,)),
        quarters.new_empty(quarters.shape if need_quarters else (0,)),
    )


def _require_saved(ctx, operator: str) -> None:
    if not ctx.saved:
        raise RuntimeError(f"sfrs_ext.{operator}: called with save=False, nothing was kept for a backward")


AGGREGATED = 6  # the differentiable arguments of aggregate, which come first


def _aggregate_setup(ctx, inputs, output):
    tensors, options, ctx.saved = inputs[:AGGREGATED], inputs[AGGREGATED:-1], inputs[-1]
    vlad, *for_backward = output
    ctx.mark_non_differentiable(*for_backward)
    ctx.set_materialize_grads(False)
    ctx.options = options
    ctx.save_for_backward(*tensors, vlad, *for_backward)


def _aggregate_backward(ctx, grad, *_):
    not_differentiable = (None,) * (len(ctx.options) + 1)
    if grad is None:
        return (None,) * AGGREGATED + not_differentiable
    _require_saved(ctx, "aggregate")
    tensors = ctx.saved_tensors
    needs = sum(1 << i for i in range(AGGREGATED) if ctx.needs_input_grad[i] and tensors[i] is not None)
    grads = ops.aggregate_backward(grad, *tensors, *ctx.options, needs)
    return (*(g if needs >> i & 1 else None for i, g in enumerate(grads)), *not_differentiable)


def _similarity_setup(ctx, inputs, output):
    query, quarters, ctx.tf32, ctx.saved = inputs
    similarity, dots = output
    ctx.mark_non_differentiable(dots)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, quarters, similarity, dots)


def _similarity_backward(ctx, grad, _):
    if grad is None:
        return None, None, None, None
    _require_saved(ctx, "region_similarity")
    needs = ctx.needs_input_grad[:2]
    grads = ops.region_similarity_backward(grad, *ctx.saved_tensors, ctx.tf32, *needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), None, None)


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError(
        "sfrs_ext: the operators have no second derivative; use sfrs_ext.reference where you need one"
    )


register = torch.library.register_autograd
register("sfrs_ext::aggregate", _aggregate_backward, setup_context=_aggregate_setup)
register("sfrs_ext::region_similarity", _similarity_backward, setup_context=_similarity_setup)
register("sfrs_ext::aggregate_backward", _no_second_derivative)
register("sfrs_ext::region_similarity_backward", _no_second_derivative)


def will_differentiate(*tensors: Tensor | None) -> bool:
    """Whether the backward will want what the forward can save for it."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def refuse_tangents(operator: str, instead: str, *tensors: Tensor | None) -> None:
    """The kernels drop tangents, and forward mode would take that for a derivative of zero."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(
            f"{operator}: forward-mode differentiation (torch.func.jvp, torch.autograd.forward_ad) is not "
            f"implemented; use {instead}"
        )
