"""k-reciprocal re-ranking as tensor operations (Zhong et al., CVPR 2017), as SFRS uses it to find difficult
positives.

Two images are k-reciprocal neighbours if each is among the k nearest of the other. Every image ``i`` gets
the set of its k1-reciprocal neighbours, widened by the k1/2-reciprocal sets of those members that lie in it
for more than two thirds, and a weight ``exp(-d(i, j))`` for each member, normalised to sum 1. The Jaccard
distance of two images compares these weighted sets; the re-ranking distance is ``(1 - lambda) Jaccard +
lambda d``.

Choices, where implementations differ:
- ``d(i, j)`` is the squared Euclidean distance, squared once, divided by the distance from i to the image
  furthest from it, as in Zhong et al. (The SFRS authors' code squares the squared distance again.)
- k2 = 1, the value SFRS uses: no averaging over neighbours (local query expansion).
- The neighbourhood lists cover all images; sets, weights and distances are computed only for the asked pairs.

Memory beyond inputs and outputs is bounded by ``tile_bytes``, up to a factor of about two.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_BYTES = 256 * 2**20


def reranked_distances(
    features: Tensor,
    queries: Tensor,
    candidates: Tensor,
    *,
    k1: int = 20,
    lambda_value: float = 0.1,
    tile_bytes: int = TILE_BYTES,
) -> Tensor:
    """Re-ranking distances between queries and a few candidates of each.

    Args:
        features: unit vectors ``[n, d]`` of all images, queries and gallery.
        queries: rows of ``features``, int64 ``[b]``.
        candidates: rows of ``features``, int64 ``[b, C]``; -1 where a query has fewer than C.

    Returns:
        ``[b, C]`` in ``features``' dtype; infinite where the candidate is -1.
    """
    neighbours, furthest = nearest_neighbours(features, k1, tile_bytes=tile_bytes)
    asked, place = torch.cat((queries[:, None], candidates.clamp_min(0)), dim=1).unique(return_inverse=True)
    members, weights = reciprocal_sets(features, asked, neighbours, furthest, tile_bytes=tile_bytes)
    rows = max(
        1,
        tile_bytes
        // (4 * features.element_size() * (len(features) + candidates.shape[1] * members.shape[1])),
    )
    jaccard = torch.cat([_jaccard(members, weights, tile, len(features)) for tile in place.split(rows)])
    pairs = torch.cat(
        [
            _squared_distances(features, q, c, tile_bytes)
            for q, c in zip(queries.split(rows), candidates.clamp_min(0).split(rows), strict=True)
        ]
    )
    distance = (1 - lambda_value) * jaccard + lambda_value * pairs / furthest[queries][:, None]
    return distance.masked_fill(candidates < 0, torch.inf)


def nearest_neighbours(features: Tensor, k: int, *, tile_bytes: int = TILE_BYTES) -> tuple[Tensor, Tensor]:
    """For each image itself and its k nearest others, and the squared distance to the furthest image.

    Returns:
        ``(neighbours int64 [n, min(k + 1, n)], furthest [n])``; an image is its own first neighbour.
    """
    count = len(features)
    rows = max(1, tile_bytes // (count * features.element_size()))
    neighbours, furthest = [], []
    for start in range(0, count, rows):
        similarity = features[start : start + rows] @ features.T
        furthest.append(2 - 2 * similarity.amin(dim=1))
        diagonal = torch.arange(len(similarity), device=features.device)
        similarity[diagonal, start + diagonal] = torch.inf
        neighbours.append(similarity.topk(min(k + 1, count), dim=1).indices)
    return torch.cat(neighbours), torch.cat(furthest).clamp_min(torch.finfo(features.dtype).tiny)


def reciprocal_sets(
    features: Tensor, images: Tensor, neighbours: Tensor, furthest: Tensor, *, tile_bytes: int = TILE_BYTES
) -> tuple[Tensor, Tensor]:
    """The widened k-reciprocal sets of some images as padded rows.

    Args:
        images: rows of ``features``, int64 ``[m]``.
        neighbours, furthest: from `nearest_neighbours`.

    Returns:
        ``(members int64 [m, W], weights [m, W])``: members ascending, padded with n (of weight 0); weights
    sum to 1.
    """
    count, width = len(features), neighbours.shape[1]
    half = round((width - 1) / 2) + 1
    rows = max(1, tile_bytes // (8 * 2 * width * half * max(half, width)))
    members = []
    for tile in images.split(rows):
        forward = neighbours[tile]  # [t, k1 + 1]
        reciprocal = (neighbours[forward] == tile[:, None, None]).any(dim=2)  # [t, k1 + 1]
        near = neighbours[forward][:, :, :half]  # [t, k1 + 1, half]: the neighbours' own neighbours
        mutual = (neighbours[near][..., :half] == forward[:, :, None, None]).any(dim=3)
        reciprocal_forward = forward.masked_fill(~reciprocal, -1)
        shared = mutual & (near[..., None] == reciprocal_forward[:, None, None, :]).any(dim=3)
        accepted = reciprocal & (3 * shared.sum(dim=2) > 2 * mutual.sum(dim=2))  # [t, k1 + 1]
        widened = near.masked_fill(~(mutual & accepted[:, :, None]), count).flatten(1)
        members.append(_distinct(torch.cat((forward.masked_fill(~reciprocal, count), widened), dim=1), count))
    longest = max((m.shape[1] for m in members), default=0)
    members = torch.cat([F.pad(m, (0, longest - m.shape[1]), value=count) for m in members])
    distances = _squared_distances(features, images, members.clamp_max(count - 1), tile_bytes)
    weights = (-distances / furthest[images][:, None]).exp().masked_fill(members == count, 0)
    return members, weights / weights.sum(dim=1, keepdim=True)


def promoted(distances: Tensor, count: int) -> Tensor:
    """Which candidates re-ranking moved forward (SFRS, supplement: difficult positives).

    Args:
        distances: re-ranking distances ``[b, C]`` of candidates that stand in the order of their feature
            distance; infinite where there is no candidate.

    Returns:
        int64 ``[b, min(count, C)]``: columns of ``distances``. First those that rose, most first, then
        those that kept their rank, each in re-ranked order; those that fell are dropped; the rest is -1.
    """
    order = distances.argsort(dim=1, stable=True)  # the candidate at each re-ranked rank
    rise = order - torch.arange(order.shape[1], device=order.device)
    kept = (rise >= 0) & distances.gather(1, order).isfinite()
    choice = torch.where(kept, -rise, 1).argsort(dim=1, stable=True)[:, :count]
    return order.gather(1, choice).masked_fill(~kept.gather(1, choice), -1)


def _distinct(values: Tensor, blank: int) -> Tensor:
    """Each row's distinct values, ascending, then ``blank`` (the largest value), cut to the longest row."""
    values = values.sort(dim=1).values
    repeated = torch.zeros_like(values, dtype=torch.bool)
    repeated[:, 1:] = values[:, 1:] == values[:, :-1]
    values = values.masked_fill(repeated, blank).sort(dim=1).values
    return values[:, : int((values < blank).sum(dim=1).max())]


def _squared_distances(features: Tensor, images: Tensor, others: Tensor, tile_bytes: int) -> Tensor:
    """Between ``images [m]`` and their ``others [m, W]``: ``[m, W]``."""
    rows = max(1, tile_bytes // (max(1, others.shape[1]) * features.shape[1] * features.element_size()))
    parts = [
        torch.bmm(features[o], features[i][:, :, None]).squeeze(2)
        for i, o in zip(images.split(rows), others.split(rows), strict=True)
    ]
    return (2 - 2 * torch.cat(parts)).clamp_min(0)


def _jaccard(members: Tensor, weights: Tensor, place: Tensor, count: int) -> Tensor:
    """``[t, C]``; ``place [t, 1 + C]`` are the rows of a query and its candidates in ``members``."""
    query, candidates = place[:, 0], place[:, 1:]
    dense = weights.new_zeros(len(place), count + 1).scatter_(1, members[query], weights[query])
    same = dense.gather(1, members[candidates].flatten(1)).view(*candidates.shape, -1)
    overlap = torch.minimum(same, weights[candidates]).sum(
        dim=2
    )  # sum of minima; sum of maxima is 2 minus it
    return 1 - overlap / (2 - overlap)
