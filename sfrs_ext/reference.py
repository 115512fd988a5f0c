"""The operators in plain torch, written as the equations of the papers.

These functions define what the compiled operators compute. They run in any
floating dtype on any device and are differentiable by autograd, so they serve
as the float64 oracle of the tests and as the two-GEMM peer of the benchmarks.

Sources: NetVLAD, Arandjelovic et al., CVPR 2016 (equations 1-4); SFRS, Ge et
al., ECCV 2020 (section 3.3: regions and their similarities).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks

EPS = 1e-12
"""Lower bound of every norm that divides (the default of ``torch.nn.functional.normalize``)."""

ROUNDING = 2.0
"""Machine epsilons by which a sum of up to four rounded quarters may be off, see `region_descriptors`."""

REGIONS = (
    (0, 1, 2, 3),  # whole image
    (0, 1),  # top half
    (2, 3),  # bottom half
    (0, 2),  # left half
    (1, 3),  # right half
    (0,),  # top left quarter
    (1,),  # top right quarter
    (2,),  # bottom left quarter
    (3,),  # bottom right quarter
)
"""The nine regions of SFRS as sets of quarters, in the order of the reference implementation."""


def positions_first(x: Tensor) -> Tensor:
    """View a map ``[B, D, H, W]`` or tokens ``[B, N, D]`` as ``[B, P, D]``."""
    return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x


def assignments(
    features: Tensor,  # [B, P, D], normalised
    weight: Tensor | None = None,  # [K + G, D]
    logits: Tensor | None = None,  # [B, P, K + G] or [B, K + G, H, W]
    bias: Tensor | None = None,  # [K + G]
    ghost_clusters: int = 0,
) -> Tensor:
    """Soft assignment ``a_k(x)`` of every position to the K clusters (NetVLAD, equation 3)."""
    bias = None if bias is None else bias.to(features.dtype)
    if logits is None:
        assert weight is not None
        logits = F.linear(features, weight.to(features.dtype), bias)
    else:
        logits = positions_first(logits).to(features.dtype)
        logits = logits if bias is None else logits + bias
    return logits.softmax(-1)[..., : logits.shape[-1] - ghost_clusters]  # [B, P, K]


def aggregate(
    features: Tensor,  # [B, P, D]
    assignment: Tensor,  # [B, P, K]
    centroids: Tensor | None = None,  # [K, D]
) -> Tensor:
    """``V[k] = sum_p a_k(x_p) (x_p - c_k)`` as one GEMM and a rank correction (NetVLAD, equation 4)."""
    vlad = assignment.transpose(1, 2) @ features  # [B, K, D]
    if centroids is not None:
        vlad = vlad - assignment.sum(1).unsqueeze(-1) * centroids.to(features.dtype)
    return vlad


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
    """See `sfrs_ext.netvlad`."""
    options = dict(normalize_input=normalize_input, intra_norm=intra_norm, l2_norm=l2_norm, flatten=flatten)
    tensors = (x, weight, logits, centroids, bias, mask)
    _checks.aggregation("reference.netvlad", *tensors, ghost_clusters, tokens=True, **options)
    features = positions_first(x)
    if normalize_input:
        features = F.normalize(features, dim=-1, eps=EPS)
    assignment = assignments(features, weight, logits, bias, ghost_clusters)
    if mask is not None:
        assignment = assignment * mask.reshape(*features.shape[:2], 1).to(assignment.dtype)
    vlad = aggregate(features, assignment, centroids)
    if intra_norm:
        vlad = F.normalize(vlad, dim=-1, eps=EPS)
    if l2_norm:
        vlad = F.normalize(vlad.flatten(1), dim=-1, eps=EPS).view_as(vlad)
    return vlad.flatten(1) if flatten else vlad


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
    """See `sfrs_ext.region_vlad`."""
    options = dict(normalize_input=normalize_input)
    tensors = (x, weight, logits, centroids, bias, mask)
    _checks.aggregation("reference.region_vlad", *tensors, ghost_clusters, tokens=False, **options)
    height, width = x.shape[-2:]
    row, column = height // 2, width // 2
    windows = (
        (slice(None, row), slice(None, column)),
        (slice(None, row), slice(column, None)),
        (slice(row, None), slice(None, column)),
        (slice(row, None), slice(column, None)),
    )
    if logits is not None and logits.dim() == 3:
        logits = logits.transpose(1, 2).unflatten(2, (height, width))
    mask = None if mask is None else mask.reshape(x.shape[0], height, width)
    quarters = []
    for rows, columns in windows:
        part = None if mask is None else mask[:, rows, columns]
        quarters.append(
            netvlad(
                x[..., rows, columns],
                weight,
                centroids,
                bias,
                logits=None if logits is None else logits[..., rows, columns],
                ghost_clusters=ghost_clusters,
                mask=part,
                intra_norm=False,
                l2_norm=False,
                flatten=False,
                **options,
            )
        )
    return torch.stack(quarters, dim=1)  # [B, 4, K, D]


def region_descriptors(quarters: Tensor, storage: torch.dtype | None = None) -> Tensor:
    """Normalised descriptors ``[..., 9, K, D]`` of all regions from quarter VLADs ``[..., 4, K, D]``.

    This builds what `region_similarity` exists to avoid: 9/4 of the memory of its input.

    Where the quarters of a region cancel in a cluster, down to what their rounding leaves, there is no
    direction to normalise: the cluster is zero in that region, and no gradient flows through it. Cancelled is
    a norm of the sum below ``ROUNDING * epsilon * sqrt(sum_i |V_i|^2)``. Each quarter is known to
    ``epsilon / 2`` of its size, adding up errs by as much again, and the sizes of four quarters add up to at
    most twice the root of their squares.

    Args:
        storage: the dtype whose epsilon counts, that of ``quarters`` if None. Quarters of an operator that
            runs in another dtype are compared here in float64 with ``storage`` of the operator.
    """
    sums: Any = [sum(quarters[..., part, :, :] for part in parts) for parts in REGIONS]
    regions = torch.stack(sums, dim=-3)
    norms = regions.norm(dim=-1, keepdim=True)  # [..., 9, K, 1]
    sizes = quarters.detach().norm(dim=-1, keepdim=True)
    terms = torch.stack([sizes[..., list(parts), :, :].norm(dim=-3) for parts in REGIONS], dim=-3)
    cancelled = norms < ROUNDING * torch.finfo(storage or quarters.dtype).eps * terms
    regions = regions / norms.clamp_min(EPS).masked_fill(cancelled, torch.inf)
    return F.normalize(regions.flatten(-2), dim=-1, eps=EPS).view_as(regions)


def region_similarity(query: Tensor, quarters: Tensor, storage: torch.dtype | None = None) -> Tensor:
    """See `sfrs_ext.region_similarity`, and `region_descriptors` for ``storage``."""
    _checks.similarity("reference.region_similarity", query, quarters)
    clusters, dim = quarters.shape[-2:]
    query = query.reshape(query.shape[0], clusters, dim)
    regions = region_descriptors(quarters, storage)
    if quarters.dim() == 5:
        return torch.einsum("tkd,tgrkd->tgr", query, regions)
    return torch.einsum("qkd,nrkd->qnr", query, regions)
