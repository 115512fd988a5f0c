"""Argument checks of the public operators, written once.

Every message names the operator, the argument, what came and what was expected. Texts are made where a check
has failed and nowhere else: they take time, and a compiler cannot trace the text of a size that it leaves
open.
"""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, bfloat16, float16, float32, float64

STORAGE = (float32, float64, bfloat16, float16)


def accumulation_dtype(storage: torch.dtype) -> torch.dtype:
    """The dtype in which the kernels add up, and in which parameters are handed to them."""
    return float64 if storage == float64 else float32


def shape_of(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"


def tensor(operator: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{operator}: {name} must be a torch.Tensor, but is {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        came = "nested" if value.is_nested else value.layout
        raise TypeError(f"{operator}: {name} must be a dense tensor, but is {came}")


def floating(operator: str, name: str, value: Any) -> None:
    """A tensor of a dtype that has kernels."""
    tensor(operator, name, value)
    if value.dtype not in STORAGE:
        allowed = "float32, float64, bfloat16 or float16"
        raise TypeError(f"{operator}: {name} must be {allowed}, but is {value.dtype}")


def same_device(operator: str, name: str, value: Tensor, reference: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{operator}: {name} is on {value.device}, but {reference} is on {other.device}")


def same_kind(operator: str, name: str, value: Any, reference: str, other: Tensor) -> None:
    """A tensor in the dtype and on the device of another."""
    tensor(operator, name, value)
    same_device(operator, name, value, reference, other)
    if value.dtype != other.dtype:
        raise TypeError(f"{operator}: {name} is {value.dtype}, but {reference} is {other.dtype}")


def parameter(operator: str, name: str, value: Any, x: Tensor) -> None:
    """A parameter comes in the dtype of x, or in float32 beside a 16-bit x."""
    tensor(operator, name, value)
    same_device(operator, name, value, "x", x)
    if value.dtype != x.dtype and value.dtype != accumulation_dtype(x.dtype):
        allowed = " or ".join(dict.fromkeys(map(str, (x.dtype, accumulation_dtype(x.dtype)))))
        raise TypeError(f"{operator}: {name} is {value.dtype}, but must be {allowed} because x is {x.dtype}")


def flags(operator: str, **values: object) -> None:
    for name, value in values.items():
        if value is not True and value is not False:
            raise TypeError(f"{operator}: {name} must be True or False, but is {_object(value)}")


def integer(operator: str, name: str, value: object) -> None:
    if type(value) is int or isinstance(value, torch.SymInt):
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{operator}: {name} must be an integer, but is {_object(value)}")


def _object(value: object) -> str:
    """A value of a wrong type; of tensors and arrays, which have long texts, only the type."""
    plain = value is None or isinstance(value, (bool, int, float, complex, str))
    return f"{value!r}" if plain else f"a {type(value).__name__}"


def misshapen(operator: str, name: str, value: Tensor, expected: str, because: str = "") -> ValueError:
    return ValueError(f"{operator}: {name} is {shape_of(value)}, but must be {expected}{because}")


def columns_of_logits(operator: str, x: Tensor, logits: Tensor) -> int:
    """K + G."""
    parameter(operator, "logits", logits, x)
    because = "because x is"
    if x.dim() == 3:
        if logits.dim() != 3 or logits.shape[0] != x.shape[0] or logits.shape[1] != x.shape[1]:
            expected = f"[{x.shape[0]}, {x.shape[1]}, K + G] {because} {shape_of(x)}"
            raise misshapen(operator, "logits", logits, expected)
        return logits.shape[2]
    batch, _, height, width = x.shape
    if logits.dim() == 4:
        fits = logits.shape[0] == batch and logits.shape[2] == height and logits.shape[3] == width
    else:
        fits = logits.dim() == 3 and logits.shape[0] == batch and logits.shape[1] == height * width
    if not fits:
        expected = f"[{batch}, K + G, {height}, {width}] or [{batch}, {height * width}, K + G]"
        raise misshapen(operator, "logits", logits, expected, f" {because} {shape_of(x)}")
    return logits.shape[1 if logits.dim() == 4 else 2]


def assignment(
    operator: str, x: Tensor, weight: Tensor | None, logits: Tensor | None, ghost_clusters: int
) -> int:
    """Checks what the soft assignment is made of; returns K + G."""
    if (weight is None) == (logits is None):
        came = "neither is given" if weight is None else "both are given"
        raise TypeError(f"{operator}: exactly one of weight and logits must be given, but {came}")
    if weight is not None:
        parameter(operator, "weight", weight, x)
        if weight.dim() != 2:
            raise misshapen(operator, "weight", weight, "[K + ghost_clusters, D]")
        dim = x.shape[1 if x.dim() == 4 else 2]
        if weight.shape[1] != dim:
            raise ValueError(f"{operator}: weight is {shape_of(weight)}, but x has D = {dim}")
        columns = weight.shape[0]
    else:
        assert logits is not None
        columns = columns_of_logits(operator, x, logits)
    integer(operator, "ghost_clusters", ghost_clusters)
    if not 0 <= ghost_clusters < columns:
        name, what = ("weight", "rows") if logits is None else ("logits", "columns")
        if columns == 0:
            given: Any = weight if logits is None else logits
            raise ValueError(f"{operator}: {name} is {shape_of(given)}, but must have K + G of at least 1")
        raise ValueError(
            f"{operator}: ghost_clusters is {ghost_clusters}, but must be at least 0 and less than the "
            f"{columns} {what} of {name}"
        )
    return columns


def aggregation(
    operator: str,
    x: Tensor,
    weight: Tensor | None,
    logits: Tensor | None,
    centroids: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    ghost_clusters: int,
    tokens: bool,
    **options: bool,
) -> None:
    """Checks the arguments of `netvlad`, and of `region_vlad`, which takes no ``tokens``."""
    flags(operator, **options)
    floating(operator, "x", x)
    if x.dim() != 4 and not (tokens and x.dim() == 3):
        expected = "a map [B, D, H, W] or tokens [B, N, D]" if tokens else "a map [B, D, H, W]"
        raise misshapen(operator, "x", x, expected)
    columns = assignment(operator, x, weight, logits, ghost_clusters)
    clusters, dim = columns - ghost_clusters, x.shape[1 if x.dim() == 4 else 2]
    if dim == 0:
        raise ValueError(f"{operator}: x is {shape_of(x)}, but must have D of at least 1")
    if centroids is not None:
        parameter(operator, "centroids", centroids, x)
        if centroids.dim() != 2 or centroids.shape[0] != clusters or centroids.shape[1] != dim:
            because = f" (K = {clusters}, D = {dim})"
            raise misshapen(operator, "centroids", centroids, f"[{clusters}, {dim}]", because)
    if bias is not None:
        parameter(operator, "bias", bias, x)
        if bias.dim() != 1 or bias.shape[0] != columns:
            because = ", one value per cluster and ghost cluster"
            raise misshapen(operator, "bias", bias, f"[{columns}]", because)
    if mask is not None:
        parameter(operator, "mask", mask, x)
        if not _covers(mask, x):
            expected = [x.shape[0], *x.shape[2:]] if x.dim() == 4 else [*x.shape[:2]]
            because = f" because x is {shape_of(x)}"
            raise misshapen(operator, "mask", mask, f"[{', '.join(map(str, expected))}]", because)


def _covers(mask: Tensor, x: Tensor) -> bool:
    """Whether mask is [B, H, W], [B, 1, H, W] or [B, H W] of a map, or [B, N] of tokens."""
    rank = mask.dim()
    if rank == 0 or mask.shape[0] != x.shape[0]:
        return False
    if rank == 2:
        return mask.shape[1] == (x.shape[1] if x.dim() == 3 else x.shape[2] * x.shape[3])
    if x.dim() == 3 or rank not in (3, 4) or (rank == 4 and mask.shape[1] != 1):
        return False
    return mask.shape[-2] == x.shape[2] and mask.shape[-1] == x.shape[3]


def similarity(operator: str, query: Tensor, quarters: Tensor) -> None:
    """Checks the arguments of `region_similarity`."""
    floating(operator, "query", query)
    floating(operator, "quarters", quarters)
    same_kind(operator, "quarters", quarters, "query", query)
    if quarters.dim() not in (4, 5) or quarters.shape[-3] != 4:
        raise misshapen(operator, "quarters", quarters, "[T, G, 4, K, D] or [N, 4, K, D]")
    clusters, dim = quarters.shape[-2:]
    if clusters == 0 or dim == 0:
        raise ValueError(f"{operator}: quarters is {shape_of(quarters)}, but must have K and D of at least 1")
    if query.dim() == 3:
        fits = query.shape[1] == clusters and query.shape[2] == dim
    else:
        fits = query.dim() == 2 and query.shape[1] == clusters * dim
    if not fits:
        expected = f"[T, {clusters}, {dim}] or [T, {clusters * dim}]"
        raise misshapen(operator, "query", query, expected, f" because quarters is {shape_of(quarters)}")
    if quarters.dim() == 5 and quarters.shape[0] != query.shape[0]:
        raise ValueError(
            f"{operator}: quarters is {shape_of(quarters)}, a list for each of {quarters.shape[0]} queries, "
            f"but query has {query.shape[0]} rows"
        )


def convolution_weight(operator: str, weight: Tensor) -> None:
    floating(operator, "weight", weight)
    if weight.dim() != 4 or weight.shape[2] != 3 or weight.shape[3] != 3:
        raise misshapen(operator, "weight", weight, "[O, C, 3, 3]")
