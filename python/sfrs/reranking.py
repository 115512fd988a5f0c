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
CACHED_BYTES = 8 * 2**20


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
    rows = min(count, tile_rows(features, count, tile_bytes))
    tile = features.new_empty(rows, count)
    neighbours, furthest = [], []
    for start in range(0, count, rows):
        part = features[start : start + rows]
        similarity = torch.mm(part, features.T, out=tile[: len(part)])
        furthest.append(2 - 2 * similarity.amin(dim=1))
        diagonal = torch.arange(len(part), device=features.device)
        similarity[diagonal, start + diagonal] = torch.inf
        neighbours.append(largest(similarity, min(k + 1, count)))
    return torch.cat(neighbours), torch.cat(furthest).clamp_min(torch.finfo(features.dtype).tiny)


def tile_rows(features: Tensor, width: int, tile_bytes: int) -> int:
    """Rows of a tile ``[rows, width]``; on a CPU it stays in the cache from its product to its sorting."""
    limit = min(tile_bytes, CACHED_BYTES) if features.device.type == "cpu" else tile_bytes
    return max(1, limit // (width * features.element_size()))


def largest(values: Tensor, count: int) -> Tensor:
    """Columns of the ``count`` largest values of each row, largest first: int64 ``[t, count]``.

    The largest ``count`` of a row stand in those ``count`` groups of columns whose own largest are largest,
    so only these groups are sorted. About half the time of ``topk`` on a CPU.
    """
    group = max(1, round((values.shape[1] / max(1, count)) ** 0.5))
    if group < 3:
        return values.topk(count, dim=1).indices
    columns = values.shape[1] // group  # a group is the columns c, c + columns, c + 2 columns, ...
    whole = values[:, : group * columns].unflatten(1, (group, columns))
    best = whole.amax(dim=1).topk(count, dim=1, sorted=False).indices
    steps = columns * torch.arange(group, device=values.device)
    rest = torch.arange(group * columns, values.shape[1], device=values.device).expand(len(values), -1)
    candidates = torch.cat(((best[:, None] + steps[:, None]).flatten(1), rest), dim=1)
    return candidates.gather(1, values.gather(1, candidates).topk(count, dim=1).indices)


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
    small = _reciprocal(neighbours[:, :half].contiguous(), torch.arange(count, device=images.device))
    rows = max(1, tile_bytes // (8 * 4 * (width * half + width * width) + count))
    members = []
    for tile in images.split(rows):
        core = _reciprocal(neighbours, tile)  # [t, k1 + 1], n where not reciprocal
        in_core = torch.zeros(len(tile), count + 1, dtype=torch.bool, device=tile.device)
        in_core.scatter_(1, core, True)[:, count] = False
        near = small[core.clamp_max(count - 1)]  # [t, k1 + 1, half], the core's own smaller sets
        shared = in_core.gather(1, near.flatten(1)).view_as(near).sum(dim=2)
        accepted = (core < count) & (3 * shared > 2 * (near < count).sum(dim=2))
        widened = near.masked_fill_(~accepted[:, :, None], count).flatten(1)
        members.append(_distinct(torch.cat((core, widened), dim=1), count))
    longest = max((m.shape[1] for m in members), default=0)
    members = torch.cat([F.pad(m, (0, longest - m.shape[1]), value=count) for m in members])
    distances = _squared_distances(features, images, members, tile_bytes)
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


def _reciprocal(neighbours: Tensor, images: Tensor) -> Tensor:
    """The neighbours ``[t, k + 1]`` of ``images`` that have the image among their own; n for the others."""
    own = neighbours[images]
    mutual = (neighbours[own] == images[:, None, None]).any(dim=2)
    return own.masked_fill(~mutual, len(neighbours))


def _distinct(values: Tensor, blank: int) -> Tensor:
    """Each row's distinct values, ascending, then ``blank`` (the largest value), cut to the longest row."""
    values = values.to(torch.int32).sort(dim=1).values
    repeated = torch.zeros_like(values, dtype=torch.bool)
    repeated[:, 1:] = values[:, 1:] == values[:, :-1]
    values = values.masked_fill_(repeated, blank)
    longest = int((values < blank).sum(dim=1).max())
    return values.sort(dim=1).values[:, :longest].long()


def _squared_distances(features: Tensor, images: Tensor, others: Tensor, tile_bytes: int) -> Tensor:
    """Between ``images [m]`` and their ``others [m, W]``: ``[m, W]``; others of n, at the end of a row, are
    none, and what stands there has no meaning.

    Only what a tile needs is read: rows of descriptors are long.
    """
    count = len(features)
    lengths = (others < count).sum(dim=1)
    order = lengths.argsort()
    rows = max(1, tile_bytes // (max(1, others.shape[1]) * features.shape[1] * features.element_size()))
    similarity = features.new_zeros(others.shape)
    for tile, longest in zip(order.split(rows), lengths[order].split(rows), strict=True):
        longest = int(longest[-1])
        chosen = features[others[tile, :longest].clamp_max(count - 1)]
        similarity[tile, :longest] = torch.bmm(chosen, features[images[tile]][:, :, None]).squeeze(2)
    return (2 - 2 * similarity).clamp_min(0)


def _jaccard(members: Tensor, weights: Tensor, place: Tensor, count: int) -> Tensor:
    """``[t, C]``; ``place [t, 1 + C]`` are the rows of a query and its candidates in ``members``."""
    query, candidates = place[:, 0], place[:, 1:]
    dense = weights.new_zeros(len(place), count + 1).scatter_(1, members[query], weights[query])
    same = dense.gather(1, members[candidates].flatten(1)).view(*candidates.shape, -1)
    overlap = torch.minimum(same, weights[candidates]).sum(
        dim=2
    )  # sum of minima; sum of maxima is 2 minus it
    return 1 - overlap / (2 - overlap)
