"""The same functions as other projects compute them, written from their formulas.

Each takes ``(x, weight, centroids)`` with ``x`` ``[B, D, H, W]`` and returns what ``sfrs_ext.netvlad`` does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfrs_ext import reference
from sfrs_ext.reference import REGIONS

BLOCK = 64
"""Gallery images whose region descriptors are made at a time, where not all are needed at once."""


def two_gemm(x: Tensor, weight: Tensor, centroids: Tensor) -> Tensor:
    """Assignment and aggregation as one GEMM each: the fastest form in plain torch."""
    return reference.netvlad(x, weight, centroids)


def two_gemm_autocast(x: Tensor, weight: Tensor, centroids: Tensor) -> Tensor:
    """The same on float32 tensors, in bfloat16 where autocast chooses it."""
    with torch.autocast("cpu", torch.bfloat16):
        return two_gemm(x, weight, centroids)


def residual(x: Tensor, weight: Tensor, centroids: Tensor) -> Tensor:
    """All residuals ``[B, K, D, P]`` at once, then a weighted sum: the paper's reference form."""
    features = F.normalize(x, dim=1).flatten(2)  # [B, D, P]
    assignment = torch.einsum("kd,bdp->bkp", weight, features).softmax(1)
    residuals = features.unsqueeze(1) - centroids[None, :, :, None]
    vlad = (residuals * assignment.unsqueeze(2)).sum(-1)
    return F.normalize(F.normalize(vlad, dim=2).flatten(1), dim=1)


def cluster_loop(x: Tensor, weight: Tensor, centroids: Tensor) -> Tensor:
    """One cluster after the other, as pytorch-NetVlad does to save memory."""
    features = F.normalize(x, dim=1).flatten(2)
    assignment = torch.einsum("kd,bdp->bkp", weight, features).softmax(1)
    vlad = [
        ((features - centroids[k, :, None]) * assignment[:, k : k + 1]).sum(-1) for k in range(len(weight))
    ]
    return F.normalize(F.normalize(torch.stack(vlad, 1), dim=2).flatten(1), dim=1)


def residual_quarters(x: Tensor, weight: Tensor, centroids: Tensor) -> Tensor:
    """VLADs of the four quarters ``[B, 4, K, D]`` from all residuals of the map."""
    height, width = x.shape[-2:]
    features = F.normalize(x, dim=1)
    assignment = torch.einsum("kd,bdhw->bkhw", weight, features).softmax(1)
    residuals = features.unsqueeze(1) - centroids[None, :, :, None, None]
    residuals = residuals * assignment.unsqueeze(2)
    row, column = height // 2, width // 2
    quarters = [
        residuals[..., rows, columns].sum((-1, -2))
        for rows in (slice(None, row), slice(row, None))
        for columns in (slice(None, column), slice(column, None))
    ]
    return torch.stack(quarters, 1)


def region_descriptors(quarters: Tensor) -> Tensor:
    """Descriptors of the nine regions ``[B, 9, K * D]`` without a rule for cancelled quarters."""
    parts = quarters.unbind(1)
    regions = torch.stack([sum(parts[i] for i in region) for region in REGIONS], 1)
    return F.normalize(F.normalize(regions, dim=-1).flatten(2), dim=-1)


def residual_regions(x: Tensor, weight: Tensor, centroids: Tensor) -> Tensor:
    """Descriptors of the nine regions ``[B, 9, K * D]`` from all residuals."""
    return region_descriptors(residual_quarters(x, weight, centroids))


def two_gemm_regions(x: Tensor, weight: Tensor, centroids: Tensor) -> Tensor:
    """The same by one pair of GEMMs per quarter."""
    return region_descriptors(reference.region_vlad(x, weight, centroids))


def dense_regions(query: Tensor, quarters: Tensor) -> Tensor:
    """Nine normalised descriptors per gallery image, then one GEMM with all queries ``[Q, N, 9]``."""
    return kept_regions(query, region_descriptors(quarters))


def kept_regions(query: Tensor, regions: Tensor) -> Tensor:
    """The GEMM alone, over descriptors ``[N, 9, K * D]``; as a linear layer, MKL's fastest order."""
    similarity = F.linear(regions.flatten(0, 1), query.flatten(1))  # [N * 9, Q]
    return similarity.view(len(regions), 9, len(query)).permute(2, 0, 1)


def keep_regions(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of `kept_regions`, made in blocks: the descriptors of a large gallery fill gigabytes."""
    quarters = inputs["quarters"]
    regions = quarters.new_empty(len(quarters), 9, quarters[0, 0].numel())
    for part, into in zip(quarters.split(BLOCK), regions.split(BLOCK), strict=True):
        into.copy_(region_descriptors(part))
    return {"query": inputs["query"], "regions": regions}


def dense_regions_in_blocks(query: Tensor, quarters: Tensor) -> Tensor:
    """`dense_regions`, a block of gallery images at a time: the oracle, whose float64 fills twice as much."""
    return torch.cat([dense_regions(query, part) for part in quarters.split(BLOCK)], dim=1)
