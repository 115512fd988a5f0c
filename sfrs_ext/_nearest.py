"""Exact nearest neighbours by inner product, without the matrix of all products."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks
from ._dispatch import in_onnx_export, ops, public, register, values_are_known

TILE_BYTES = 64 * 2**20
"""Of products at a time where there is no kernel."""


class Nearest(NamedTuple):
    """What :func:`nearest` returns.

    Attributes:
        similarity: the largest inner products, ``[M, k]``, largest first.
        index: the rows of ``y`` that they belong to, int64 ``[M, k]``.
        least: the smallest inner product of each row of ``x``, ``[M]``.
    """

    similarity: Tensor
    index: Tensor
    least: Tensor


@torch.library.register_fake("sfrs_ext::nearest")
def _(x, y, k, own, offsets, excluded):
    rows = x.shape[0]
    return x.new_empty(rows, k), x.new_empty(rows, k, dtype=torch.int64), x.new_empty(rows)


register("nearest")


def _check(x: Tensor, y: Tensor, k: int, own: bool) -> None:
    operator = "nearest"
    for name, value in (("x", x), ("y", y)):
        _checks.floating(operator, name, value)
        if value.dim() != 2:
            raise _checks.misshapen(operator, name, value, "rows [., D]")
    _checks.same_kind(operator, "y", y, "x", x)
    if y.shape[1] != x.shape[1]:
        raise ValueError(f"{operator}: y is {_checks.shape_of(y)}, but x has D = {x.shape[1]}")
    _checks.flags(operator, own=own)
    rows = y.shape[0]
    if own and rows != x.shape[0]:
        raise ValueError(
            f"{operator}: own needs x and y to be the same rows, but they have {x.shape[0]} and {rows}"
        )
    _checks.integer(operator, "k", k)
    if not 1 <= k <= rows:
        raise ValueError(f"{operator}: k is {k}, but must be in 1 .. {rows}, the rows of y")


def _check_excluded(x: Tensor, y: Tensor, own: bool, excluded: tuple[Tensor, Tensor]) -> None:
    operator = "nearest"
    if own:
        raise ValueError(f"{operator}: excluded and own do not go together")
    if not isinstance(excluded, (tuple, list)) or len(excluded) != 2:
        came = f"{len(excluded)} of them" if isinstance(excluded, (tuple, list)) else type(excluded).__name__
        raise TypeError(f"{operator}: excluded must be two tensors, offsets and rows, but is {came}")
    offsets, rows = excluded
    for name, value in (("the offsets of excluded", offsets), ("the rows of excluded", rows)):
        _checks.tensor(operator, name, value)
        _checks.same_device(operator, name, value, "x", x)
        if value.dtype != torch.int64 or value.dim() != 1:
            raise TypeError(
                f"{operator}: {name} are {value.dtype} {_checks.shape_of(value)}, but must be int64 [.]"
            )
    if offsets.shape[0] != x.shape[0] + 1:
        raise ValueError(
            f"{operator}: excluded has {offsets.shape[0]} offsets, but must have {x.shape[0] + 1}"
        )
    if not values_are_known(offsets):
        return
    if offsets[0] != 0 or offsets[-1] != len(rows) or (offsets.diff() < 0).any():
        raise ValueError(f"{operator}: the offsets of excluded do not rise from 0 to its {len(rows)} rows")
    rises = rows.diff() > 0
    begins = offsets[1:-1]
    rises[begins[(begins > 0) & (begins < len(rows))] - 1] = True  # from one list to the next it need not
    if not rises.all():
        raise ValueError(f"{operator}: the rows of excluded do not ascend for each row of x")
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(y):
        raise ValueError(
            f"{operator}: excluded names rows {rows.min()} to {rows.max()} of y, which has {len(y)}"
        )


@public()
def nearest(
    x: Tensor, y: Tensor, k: int, *, own: bool = False, excluded: tuple[Tensor, Tensor] | None = None
) -> Nearest:
    """For every row of ``x`` the k rows of ``y`` with the largest inner products.

    Exact. On a CPU in float32 each tile of products is looked through while it is in the cache, so that
    the matrix of all products never exists; elsewhere torch's product and ``topk`` go tile by tile. For
    unit vectors these are the nearest neighbours in Euclidean and cosine distance.

    Args:
        x: ``[M, D]``. float32, float64, bfloat16 or float16.
        y: ``[N, D]``, in the dtype and on the device of ``x``; at least one row.
        k: 1 .. N.
        own: ``y`` is ``x``: a row comes first among its own neighbours, with an infinite product, and does
            not count for ``least``.
        excluded: rows of ``y`` that are no neighbours of a row of ``x``, and do not count for ``least``, as
            images of its own place are no negatives: ``(offsets [M + 1], rows)``, both int64 on the device of
            ``x``; of row i of ``x`` they are ``rows[offsets[i] : offsets[i + 1]]``, ascending.

    Returns:
        `Nearest`: among equal products the lower index comes first (on a CPU in float32; elsewhere as
        ``topk`` finds them). The same bits with any number of threads. Not differentiable.

    Raises:
        TypeError: a type or dtype does not fit.
        ValueError: a shape, a device or ``k`` does not fit; what is excluded is no lists of rows; or a row
            has fewer than ``k`` products that are numbers.
    """
    _check(x, y, k, own)
    if excluded is not None:
        _check_excluded(x, y, own, excluded)
    x, y = x.detach(), y.detach()
    found = _by_kernel(x, y, k, own, excluded) if _has_kernel(x) else _by_topk(x, y, k, own, excluded)
    if values_are_known(found.index) and (found.index < 0).any():
        row = int((found.index < 0).any(dim=1).nonzero()[0])
        raise ValueError(
            f"nearest: row {row} of x has fewer than k = {k} products that are numbers above -inf"
        )
    return found


def _has_kernel(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not in_onnx_export()


def _by_kernel(x: Tensor, y: Tensor, k: int, own: bool, excluded: tuple[Tensor, Tensor] | None) -> Nearest:
    return Nearest(*ops.nearest(x, y, k, own, *(excluded or (None, None))))


def _by_topk(x: Tensor, y: Tensor, k: int, own: bool, excluded: tuple[Tensor, Tensor] | None) -> Nearest:
    rows = max(1, TILE_BYTES // (len(y) * x.element_size()))
    parts = []
    for start in range(0, len(x), rows):
        products = x[start : start + rows] @ y.T
        if own:
            products.diagonal(start).fill_(torch.inf)
        barred = _barred(excluded, start, products) if excluded is not None else None
        if barred is not None:
            products[barred] = torch.inf  # not the least
        least = products.amin(dim=1)
        if barred is not None:
            products[barred] = -torch.inf  # and none of the largest
        ranked = products.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).topk(k, dim=1)
        index = ranked.indices.masked_fill(ranked.values == -torch.inf, -1)
        parts.append((ranked.values, index, least))
    if not parts:
        empty = x.new_empty(0, k)
        return Nearest(empty, empty.long(), x.new_empty(0))
    return Nearest(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _barred(excluded: tuple[Tensor, Tensor], start: int, products: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each excluded product of a tile that begins with row ``start``."""
    offsets, rows = excluded
    ends = offsets[start : start + len(products) + 1]
    row = torch.arange(len(products), device=products.device).repeat_interleave(ends.diff())
    return row, rows[ends[0] : ends[-1]]
