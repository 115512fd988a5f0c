"""Fake kernels and gradients of the compiled operators, which csrc/ops.cpp declares."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._checks import accumulation_dtype
from ._dispatch import call, ops, register

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
    parts,
    ghost_clusters,
    normalize_input,
    intra_norm,
    l2_norm,
    tf32,
    save,
    keep,
):
    batch, dim, height, width = x.shape
    columns = logits.shape[2] if weight is None else weight.shape[0]
    clusters, saved = columns - ghost_clusters, batch if save else 0
    saves_logits = weight is not None and x.device.type != "cuda"  # the backward has them, or computes them
    acc = accumulation_dtype(x.dtype)
    vlad = x.new_empty(batch, parts, clusters, dim)
    return (
        vlad,
        x.new_empty(saved if saves_logits else 0, height * width, columns, dtype=acc),
        x.new_empty(saved, height * width, dtype=acc),
        x.new_empty(saved if parts == 1 else 0, clusters + 1, dtype=acc),
        torch.empty_like(vlad) if keep else x.new_empty(0),
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
    parts,
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
def _(query, quarters, tf32, save, keep):
    lists = quarters.dim() == 5
    gallery = quarters.shape[1 if lists else 0]
    acc = accumulation_dtype(query.dtype)
    saved = query.shape[0] if save and lists else 0
    similarity = query.new_empty(query.shape[0], gallery, 9, dtype=acc)
    return (
        similarity,
        query.new_empty(saved, gallery, query.shape[1], DOTS, dtype=torch.float64),
        torch.empty_like(similarity) if keep else similarity.new_empty(0),
    )


@torch.library.register_fake("sfrs_ext::region_similarity_backward")
def _(grad, query, quarters, similarity, dots, tf32, need_query, need_quarters):
    return (
        query.new_empty(query.shape if need_query else (0,)),
        quarters.new_empty(quarters.shape if need_quarters else (0,)),
    )


def _save(ctx: Any, tensors: tuple[Tensor | None, ...], result: Tensor | None, kept: Tensor | None) -> None:
    """Save what a backward reads, the operator's result last: ``kept``, a copy of it, if there is one.

    Torch refuses a backward that reads a tensor which has been written into since, but whoever gets a result
    may write into it, as ``ReLU(inplace=True)`` does. So an alias is saved that torch does not watch, and
    beside it one without elements, which shares the result's version, that every write raises.
    """
    ctx.version = None
    if result is not None and kept is None and type(result) is Tensor:
        ctx.witness, ctx.version = result.detach(), result._version
        if not torch._C._len_torch_dispatch_stack():  # a mode need not know what this does
            ctx.witness.data = result.new_empty(0)
        result = result.data
    ctx.save_for_backward(*tensors, result if kept is None else kept)


def _saved(ctx: Any, forward: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor | None, ...]:
    """What `_save` was given; a result that was written into is computed again from the tensors."""
    *tensors, result = ctx.saved_tensors
    if ctx.version is not None and ctx.witness._version != ctx.version:
        with torch.no_grad():
            result = forward(*tensors)[0]
    return (*tensors, result)


def _require_saved(ctx, operator: str) -> None:
    if not ctx.saved:
        raise RuntimeError(f"sfrs_ext.{operator}: called with save=False, nothing was kept for a backward")


AGGREGATED = 6  # the differentiable arguments of aggregate, which come first


def _aggregate_setup(ctx, inputs, output):
    tensors, ctx.options, (ctx.saved, keep) = inputs[:AGGREGATED], inputs[AGGREGATED:-2], inputs[-2:]
    vlad, *for_backward, kept = output
    ctx.mark_non_differentiable(*for_backward, kept)
    ctx.set_materialize_grads(False)
    _, _, _, intra_norm, l2_norm, _ = ctx.options
    normalised = intra_norm or l2_norm
    _save(ctx, (*tensors, *for_backward), vlad if normalised else None, kept if keep else None)


def _aggregate_backward(ctx, grad, *_):
    not_differentiable = (None,) * (len(ctx.options) + 2)
    if grad is None:
        return (None,) * AGGREGATED + not_differentiable
    _require_saved(ctx, "aggregate")

    def again(*tensors):
        return ops.aggregate(*tensors[:AGGREGATED], *ctx.options, False, False)

    saved = _saved(ctx, again)
    tensors, for_backward, vlad = saved[:AGGREGATED], saved[AGGREGATED:-1], saved[-1]
    needs = sum(1 << i for i in range(AGGREGATED) if ctx.needs_input_grad[i] and tensors[i] is not None)
    grads = call("aggregate_backward", grad, *tensors, vlad, *for_backward, *ctx.options, needs)
    return (*(g if needs >> i & 1 else None for i, g in enumerate(grads)), *not_differentiable)


def _similarity_setup(ctx, inputs, output):
    query, quarters, ctx.tf32, ctx.saved, keep = inputs
    similarity, dots, kept = output
    ctx.mark_non_differentiable(dots, kept)
    ctx.set_materialize_grads(False)
    _save(ctx, (query, quarters, dots), similarity, kept if keep else None)


def _similarity_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 5
    _require_saved(ctx, "region_similarity")

    def again(query, quarters, dots):
        return ops.region_similarity(query, quarters, ctx.tf32, False, False)

    query, quarters, dots, similarity = _saved(ctx, again)
    needs = ctx.needs_input_grad[:2]
    grads = call("region_similarity_backward", grad, query, quarters, similarity, dots, ctx.tf32, *needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), None, None, None)


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError(
        "sfrs_ext: the operators have no second derivative; use sfrs_ext.reference where you need one"
    )


register("aggregate", _aggregate_backward, _aggregate_setup)
register("region_similarity", _similarity_backward, _similarity_setup)
register("aggregate_backward", _no_second_derivative)
register("region_similarity_backward", _no_second_derivative)
