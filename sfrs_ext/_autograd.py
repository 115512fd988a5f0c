"""Fake kernels and gradients of the compiled operators, which csrc/ops.cpp declares."""

import torch
from torch import Tensor

from . import _C  # noqa: F401  registers the operators
from ._checks import accumulation_dtype

ops = torch.ops.sfrs_ext

DOTS = 13  # numbers per pair and cluster that region_similarity saves, see csrc/region_similarity.h


def read_in_place_as_planes(x: Tensor) -> bool:
    """Whether the kernels walk x plane by plane; the same rule as in csrc/glue.h."""
    return x.stride(3) == 1 or x.stride(1) != 1


@torch.library.register_fake("sfrs_ext::aggregate")
def _(x, weight, centroids, bias, mask, regions, ghost_clusters, normalize_input, intra_norm, l2_norm, save):
    batch, dim, height, width = x.shape
    logits = weight.shape[0]
    clusters, saved = logits - ghost_clusters, batch if save else 0
    acc = accumulation_dtype(x.dtype)
    return (
        x.new_empty(batch, regions, clusters, dim),
        x.new_empty(saved, height * width, logits, dtype=acc),
        x.new_empty(saved, height * width, dtype=acc),
        x.new_empty(saved if regions == 1 else 0, clusters + 1, dtype=acc),
    )


@torch.library.register_fake("sfrs_ext::aggregate_backward")
def _(
    grad,
    x,
    weight,
    centroids,
    bias,
    mask,
    vlad,
    logits,
    inv_norm,
    scale,
    regions,
    ghost_clusters,
    normalize_input,
    intra_norm,
    l2_norm,
    needs,
):
    batch, dim, height, width = x.shape
    acc = accumulation_dtype(x.dtype)
    layout = torch.contiguous_format if read_in_place_as_planes(x) else torch.channels_last
    shapes = (
        (2, (weight.shape[0], dim)),
        (4, (weight.shape[0] - ghost_clusters, dim)),
        (8, (weight.shape[0],)),
        (16, (batch, height * width)),
    )
    dx = (
        torch.empty((batch, dim, height, width), dtype=x.dtype, device=x.device, memory_format=layout)
        if needs & 1
        else x.new_empty(0)
    )
    return (dx, *(x.new_empty(size if needs & bit else (0,), dtype=acc) for bit, size in shapes))


@torch.library.register_fake("sfrs_ext::region_similarity")
def _(query, quarters, save):
    lists = quarters.dim() == 5
    gallery = quarters.shape[1 if lists else 0]
    acc = accumulation_dtype(query.dtype)
    saved = query.shape[0] if save and lists else 0
    return (
        query.new_empty(query.shape[0], gallery, 9, dtype=acc),
        query.new_empty(saved, gallery, query.shape[1], DOTS, dtype=torch.float64),
    )


@torch.library.register_fake("sfrs_ext::region_similarity_backward")
def _(grad, query, quarters, similarity, dots, need_query, need_quarters):
    return (
        query.new_empty(query.shape if need_query else (0,)),
        quarters.new_empty(quarters.shape if need_quarters else (0,)),
    )


def _require_saved(ctx, operator: str) -> None:
    if not ctx.saved:
        raise RuntimeError(f"sfrs_ext.{operator}: called with save=False, nothing was kept for a backward")


def _aggregate_setup(ctx, inputs, output):
    x, weight, centroids, bias, mask, *options, save = inputs
    vlad, logits, inv_norm, scale = output
    ctx.mark_non_differentiable(logits, inv_norm, scale)
    ctx.set_materialize_grads(False)
    ctx.options, ctx.saved = options, save
    ctx.save_for_backward(x, weight, centroids, bias, mask, vlad, logits, inv_norm, scale)


def _aggregate_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 11
    _require_saved(ctx, "aggregate")
    tensors = ctx.saved_tensors
    needs = sum(1 << i for i in range(5) if ctx.needs_input_grad[i] and tensors[i] is not None)
    grads = ops.aggregate_backward(grad, *tensors, *ctx.options, needs)
    return (*(g if needs >> i & 1 else None for i, g in enumerate(grads)), *(None,) * 6)


def _similarity_setup(ctx, inputs, output):
    query, quarters, save = inputs
    similarity, dots = output
    ctx.mark_non_differentiable(dots)
    ctx.set_materialize_grads(False)
    ctx.saved = save
    ctx.save_for_backward(query, quarters, similarity, dots)


def _similarity_backward(ctx, grad, _):
    if grad is None:
        return None, None, None
    _require_saved(ctx, "region_similarity")
    need_query, need_quarters = ctx.needs_input_grad[:2]
    dquery, dquarters = ops.region_similarity_backward(grad, *ctx.saved_tensors, need_query, need_quarters)
    return dquery if need_query else None, dquarters if need_quarters else None, None


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
