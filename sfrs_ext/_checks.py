"""Argument checks of the public operators, written once.

Every message names the operator, the argument, what came and what was expected.
"""

from torch import Tensor, bfloat16, dtype, float16, float32, float64

STORAGE = (float32, float64, bfloat16, float16)


def accumulation_dtype(storage: dtype) -> dtype:
    """The dtype in which the kernels add up, and in which parameters are handed to them."""
    return float64 if storage == float64 else float32


def shape_of(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"


def tensor(operator: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{operator}: {name} must be a torch.Tensor, but is {type(value).__name__}")


def storage(operator: str, name: str, value: Tensor) -> None:
    if value.dtype not in STORAGE:
        allowed = "float32, float64, bfloat16 or float16"
        raise TypeError(f"{operator}: {name} must be {allowed}, but is {value.dtype}")


def same_device(operator: str, name: str, value: Tensor, reference: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{operator}: {name} is on {value.device}, but {reference} is on {other.device}")


def shape(operator: str, name: str, value: Tensor, expected: str, fits: bool, because: str) -> None:
    if not fits:
        raise ValueError(f"{operator}: {name} is {shape_of(value)}, but must be {expected}{because}")


def parameter(operator: str, name: str, value: Tensor, x: Tensor) -> None:
    """A parameter comes in the dtype of x, or in float32 beside a 16-bit x."""
    tensor(operator, name, value)
    same_device(operator, name, value, "x", x)
    if value.dtype not in (x.dtype, accumulation_dtype(x.dtype)):
        allowed = " or ".join(dict.fromkeys(map(str, (x.dtype, accumulation_dtype(x.dtype)))))
        raise TypeError(f"{operator}: {name} is {value.dtype}, but must be {allowed} because x is {x.dtype}")


def assignment(
    operator: str, x: Tensor, weight: Tensor | None, logits: Tensor | None, ghost_clusters: int
) -> int:
    """Checks what the soft assignment is made of; returns K + G."""
    if (weight is None) == (logits is None):
        came = "neither is given" if weight is None else "both are given"
        raise TypeError(f"{operator}: exactly one of weight and logits must be given, but {came}")
    dim = x.shape[1] if x.dim() == 4 else x.shape[2]
    if weight is not None:
        parameter(operator, "weight", weight, x)
        shape(operator, "weight", weight, "[K + ghost_clusters, D]", weight.dim() == 2, "")
        if weight.shape[1] != dim:
            raise ValueError(f"{operator}: weight is {shape_of(weight)}, but x has D = {dim}")
        columns, where = weight.shape[0], "rows of weight"
    else:
        parameter(operator, "logits", logits, x)
        if x.dim() == 4:
            batch, _, height, width = x.shape
            expected = f"[{batch}, K + G, {height}, {width}] or [{batch}, {height * width}, K + G]"
            fits = (
                (logits.shape[0], *logits.shape[2:]) == (batch, height, width)
                if logits.dim() == 4
                else logits.dim() == 3 and logits.shape[:2] == (batch, height * width)
            )
        else:
            expected = f"[{x.shape[0]}, {x.shape[1]}, K + G]"
            fits = logits.dim() == 3 and logits.shape[:2] == x.shape[:2]
        shape(operator, "logits", logits, expected, fits, f" because x is {shape_of(x)}")
        columns, where = logits.shape[1 if logits.dim() == 4 else 2], "columns of logits"
    if not 0 <= ghost_clusters < columns:
        raise ValueError(
            f"{operator}: ghost_clusters is {ghost_clusters}, but must be at least 0 and less than the "
            f"{columns} {where}"
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
) -> None:
    """Checks the arguments that :func:`netvlad` and :func:`region_vlad` share."""
    tensor(operator, "x", x)
    storage(operator, "x", x)
    expected = "a map [B, D, H, W] or tokens [B, N, D]" if tokens else "a map [B, D, H, W]"
    shape(operator, "x", x, expected, x.dim() == 4 or (tokens and x.dim() == 3), "")
    dim = x.shape[1] if x.dim() == 4 else x.shape[2]

    columns = assignment(operator, x, weight, logits, ghost_clusters)
    clusters = columns - ghost_clusters
    if dim == 0:
        raise ValueError(f"{operator}: x is {shape_of(x)}, but must have D of at least 1")
    if centroids is not None:
        parameter(operator, "centroids", centroids, x)
        fits = centroids.dim() == 2 and centroids.shape[0] == clusters and centroids.shape[1] == dim
        shape(operator, "centroids", centroids, f"[{clusters}, {dim}]", fits, f" (K = {clusters}, D = {dim})")
    if bias is not None:
        parameter(operator, "bias", bias, x)
        fits = bias.dim() == 1 and bias.shape[0] == columns
        shape(operator, "bias", bias, f"[{columns}]", fits, ", one value per cluster and ghost cluster")
    if mask is not None:
        _mask(operator, mask, x)


def _mask(operator: str, mask: Tensor, x: Tensor) -> None:
    parameter(operator, "mask", mask, x)
    because = f" because x is {shape_of(x)}"
    if x.dim() == 4:
        batch, _, height, width = x.shape
        fits = mask.shape in ((batch, height, width), (batch, 1, height, width), (batch, height * width))
        shape(operator, "mask", mask, f"[{batch}, {height}, {width}]", fits, because)
    else:
        fits = mask.shape == x.shape[:2]
        shape(operator, "mask", mask, f"[{x.shape[0]}, {x.shape[1]}]", fits, because)


def similarity(operator: str, query: Tensor, quarters: Tensor) -> None:
    """Checks the arguments of :func:`region_similarity`."""
    for name, value in (("query", query), ("quarters", quarters)):
        tensor(operator, name, value)
        storage(operator, name, value)
    same_device(operator, "quarters", quarters, "query", query)
    if query.dtype != quarters.dtype:
        raise TypeError(f"{operator}: quarters is {quarters.dtype}, but query is {query.dtype}")
    fits = quarters.dim() in (4, 5) and quarters.shape[-3] == 4
    shape(operator, "quarters", quarters, "[T, G, 4, K, D] or [N, 4, K, D]", fits, "")
    clusters, dim = quarters.shape[-2:]
    if 0 in (clusters, dim):
        raise ValueError(f"{operator}: quarters is {shape_of(quarters)}, but must have K and D of at least 1")
    fits = query.dim() in (2, 3) and (
        tuple(query.shape[1:]) == (clusters, dim) if query.dim() == 3 else query.shape[1] == clusters * dim
    )
    because = f" because quarters is {shape_of(quarters)}"
    shape(operator, "query", query, f"[T, {clusters}, {dim}] or [T, {clusters * dim}]", fits, because)
    if quarters.dim() == 5 and quarters.shape[0] != query.shape[0]:
        raise ValueError(
            f"{operator}: quarters is {shape_of(quarters)}, a list for each of {quarters.shape[0]} queries, "
            f"but query has {query.shape[0]} rows"
        )


def convolution_weight(operator: str, weight: Tensor) -> None:
    tensor(operator, "weight", weight)
    fits = weight.dim() == 4 and tuple(weight.shape[2:]) == (3, 3)
    shape(operator, "weight", weight, "[O, C, 3, 3]", fits, "")
