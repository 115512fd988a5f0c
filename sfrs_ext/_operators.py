"""The public operators: check, bring arguments into the kernels' form, call, shape the result."""

import torch
from torch import Tensor

from . import (
    _autograd,  # noqa: F401  registers the gradients
    _checks,
    _flops,  # noqa: F401  registers what FlopCounterMode counts
    reference,
)
from ._dispatch import (
    call,
    public,
    refuse_tangents,
    will_differentiate,
    writes_go_unseen,
)


def _autocasts(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def _autocast(operator: str, x: Tensor) -> Tensor:
    """Under autocast float32 features are read in the autocast dtype; everything else keeps its own."""
    _checks.floating(operator, "x", x)
    if x.dtype == torch.float32 and _autocasts(x):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def _matmul_may_round_to_tf32() -> bool:
    # Also says what the older switches are set to: cuda.matmul.allow_tf32, set_float32_matmul_precision.
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


# A compiled graph is guarded by torch on this very switch. This is what torch.compiler.assume_constant_result
# sets; to call it would load the compiler, a second and a half, with every import of sfrs_ext.
_matmul_may_round_to_tf32._dynamo_marked_constant = True


def _tf32(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cuda" and _matmul_may_round_to_tf32()


def _aggregate(
    x: Tensor,
    weight: Tensor | None,
    logits: Tensor | None,
    centroids: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    parts: int,
    ghost_clusters: int,
    normalize_input: bool,
    intra_norm: bool,
    l2_norm: bool,
) -> Tensor:
    if x.dim() == 3:
        x = x.transpose(1, 2).unsqueeze(2)  # tokens are a map of height one
    if logits is not None and logits.dim() == 4:
        logits = logits.flatten(2).transpose(1, 2)
    if mask is not None:
        mask = mask.reshape(mask.shape[0], x.shape[2] * x.shape[3])
    acc = _checks.accumulation_dtype(x.dtype)
    # Where nothing changes, to() returns the same tensor, microseconds later.
    tensors = tuple(
        t if t is None or t.dtype == acc else t.to(acc) for t in (weight, logits, centroids, bias, mask)
    )
    options = (parts, ghost_clusters, normalize_input, intra_norm, l2_norm, _tf32(x))
    save = will_differentiate(x, *tensors)
    keep = save and (intra_norm or l2_norm) and writes_go_unseen(x)
    return call("aggregate", x, *tensors, *options, save, keep)[0]


@public(reference.netvlad)
def netvlad(
    x: Tensor,
    weight: Tensor | None = None,
    centroids: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    logits: Tensor | None = None,
    ghost_clusters: int = 0,
    mask: Tensor | None = None,
    normalize_input: bool = True,
    intra_norm: bool = True,
    l2_norm: bool = True,
    flatten: bool = True,
) -> Tensor:
    """NetVLAD: softly assign local features to clusters and add up their residuals.

    ``V[k] = sum_p m[p] a_k(x[p]) (x[p] - c[k])`` with ``a = softmax(W x + b)``, then, each
    optional, intra-normalisation of every ``V[k]`` and L2 normalisation of the whole
    (Arandjelovic et al., CVPR 2016, equations 1-4). One pass over ``x``; neither
    assignments nor residuals are ever written out.

    Args:
        x: local features ``[B, D, H, W]``, contiguous or channels_last, or tokens
            ``[B, N, D]``; crops and slices with contiguous rows or features are read in
            place. float32, float64, bfloat16 or float16.
        weight: assignment weights ``[K + G, D]``, in the dtype of ``x`` or, beside 16-bit
            features, float32. The same holds for all following tensors.
        centroids: ``[K, D]``; absent means zero.
        bias: ``[K + G]``; absent means zero.
        logits: the assignment's logits, instead of ``weight``, where they are more than
            ``W x``: ``[B, K + G, H, W]`` from a convolution (best channels_last) or
            ``[B, N, K + G]`` from a linear layer.
        ghost_clusters: G, the last rows of ``weight`` or columns of ``logits``, which take
            part in the softmax and are dropped (GhostVLAD).
        mask: weight of every position, ``[B, H, W]`` or ``[B, N]``.
        normalize_input: L2-normalise every ``x[p]`` first.
        intra_norm: L2-normalise every ``V[k]``.
        l2_norm: L2-normalise the descriptor.
        flatten: return ``[B, K * D]``, cluster-major; otherwise ``[B, K, D]``.

    Returns:
        Descriptors in the dtype of ``x``; sums, softmax and norms are float32 at least.
        Differentiable once in every tensor, in reverse mode; ``torch.func.vmap`` calls it for
        one example after another. The result may be written into before its backward. Two
        runs give the same bits, on the CPU with the same number of threads. On CUDA float32
        products keep float32's digits, their sums nearly (docs/operators.md), or are rounded to
        TF32 where ``torch.backends.cuda.matmul`` allows it, and K + G may be 320 at most, 256 in
        float64.

    Raises:
        TypeError: a type or dtype does not fit, or not exactly one of ``weight`` and ``logits`` is given.
        ValueError: a shape or device does not fit. Both name the argument.
        NotImplementedError: a tensor has a forward-mode tangent; ``sfrs_ext.reference`` takes it.

    Batch norm on the logits needs all of them before the first assignment; in training
    (``norm = BatchNorm1d(K + G)``, tokens ``x``):

        logits = norm((x @ weight.T).flatten(0, 1)).view(*x.shape[:2], -1)
        netvlad(x, logits=logits, centroids=centroids, ghost_clusters=G, normalize_input=False)
    """
    x = _autocast("netvlad", x)
    tensors = (weight, logits, centroids, bias, mask)
    options = dict(normalize_input=normalize_input, intra_norm=intra_norm, l2_norm=l2_norm)
    _checks.aggregation("netvlad", x, *tensors, ghost_clusters, tokens=True, flatten=flatten, **options)
    refuse_tangents("netvlad", "sfrs_ext.reference.netvlad", x, *tensors)
    vlad = _aggregate(x, *tensors, 1, ghost_clusters, **options)
    return vlad.flatten(1) if flatten else vlad.squeeze(1)


@public(reference.region_vlad)
def region_vlad(
    x: Tensor,
    weight: Tensor | None = None,
    centroids: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    logits: Tensor | None = None,
    ghost_clusters: int = 0,
    mask: Tensor | None = None,
    normalize_input: bool = True,
) -> Tensor:
    """Un-normalised VLADs of the four quarters of every map, in one pass over ``x``.

    VLAD is additive over positions, so the whole image, its halves and its quarters (the
    nine regions of SFRS, Ge et al., ECCV 2020, section 3.3) are sums of these four.
    Quarters are top left, top right, bottom left, bottom right, cut at ``H // 2`` and
    ``W // 2``; odd maps work, and a quarter without positions is zero.

    Args:
        x: ``[B, D, H, W]``; see `netvlad` for this and all other arguments.

    Returns:
        ``[B, 4, K, D]`` in the dtype of ``x``, to be compared with queries by
        `region_similarity`.
    """
    x = _autocast("region_vlad", x)
    tensors = (weight, logits, centroids, bias, mask)
    options = dict(normalize_input=normalize_input)
    _checks.aggregation("region_vlad", x, *tensors, ghost_clusters, tokens=False, **options)
    refuse_tangents("region_vlad", "sfrs_ext.reference.region_vlad", x, *tensors)
    return _aggregate(x, *tensors, 4, ghost_clusters, **options, intra_norm=False, l2_norm=False)


@public(reference.region_similarity)
def region_similarity(query: Tensor, quarters: Tensor) -> Tensor:
    """Dot products of query descriptors with the descriptors of all nine regions of gallery images.

    The region descriptors (sum of quarter VLADs, intra-normalised, L2-normalised) are never
    built: four dot products and nine squares per cluster hold all that nine regions need.

    Args:
        query: normalised descriptors ``[T, K, D]`` or ``[T, K * D]``.
        quarters: from `region_vlad`, in the dtype of ``query`` (autocast takes the wider of two);
            either a list for every
            query, ``[T, G, 4, K, D]``, or one gallery for all queries, ``[N, 4, K, D]``.

    Returns:
        Similarities ``[T, G, 9]`` or ``[T, N, 9]``, float64 for float64 and float32
        otherwise. Regions are whole, top, bottom, left, right, then the four quarters
        (``sfrs_ext.REGIONS``).

    Raises:
        TypeError, ValueError: as in `netvlad`.
    """
    _checks.floating("region_similarity", "query", query)
    _checks.floating("region_similarity", "quarters", quarters)
    if _autocasts(query):
        widest = torch.promote_types(query.dtype, quarters.dtype)
        query, quarters = query.to(widest), quarters.to(widest)
    _checks.similarity("region_similarity", query, quarters)
    refuse_tangents("region_similarity", "sfrs_ext.reference.region_similarity", query, quarters)
    if query.dim() == 2:
        query = query.unflatten(1, quarters.shape[-2:])
    save = will_differentiate(query, quarters)
    return call("region_similarity", query, quarters, _tf32(query), save, save and writes_go_unseen(query))[0]
