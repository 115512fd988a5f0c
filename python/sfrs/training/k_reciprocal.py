"""k-reciprocal re-ranking as tensor operations (Zhong et al., CVPR 2017), as SFRS uses it to find difficult
positives.

Two images are k-reciprocal neighbours if each is among the k nearest of the other. Every image ``i`` gets
the set of its k1-reciprocal neighbours, widened by the k1/2-reciprocal sets of those members that lie in it
for more than two thirds, and a weight ``exp(-d(i, j))`` for each member, normalised to sum 1. The Jaccard
distance of two images compares these weighted sets; the re-ranking distance is ``(1 - lambda) Jaccard +
lambda d``.

Choices, where implementations differ:
- ``d(i, j)`` is the squared Euclidean distance divided by that from i to the image furthest from it, as in
  Zhong et al. With ``power`` 4 both are squared once more, as in the implementation of the SFRS authors.
- k2 = 1, the value SFRS uses: no averaging over neighbours (local query expansion).
- The neighbourhood lists cover all images; sets, weights and distances are computed only for the asked pairs.

Memory beyond inputs and outputs is bounded by `TILE_BYTES`, up to a factor of about two. On a CPU tiles of
all but products are smaller: they stay in the cache, and the heap keeps them from one tile to the next.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sfrs.retrieval.search import largest

TILE_BYTES = 256 * 2**20
CACHED_BYTES = 8 * 2**20
GATHERED_BYTES = 2**20
"""Of rows that are gathered on a CPU and used once: what the heap keeps from one tile to the next."""


def reranked_distances(
    features: Tensor,
    queries: Tensor,
    candidates: Tensor,
    *,
    k1: int = 20,
    lambda_value: float = 0.1,
    power: int = 2,
) -> Tensor:
    """Compute re-ranking distances between queries and a few candidates of each.

    Args:
        features: unit vectors ``[n, d]`` of all images, queries and gallery.
        queries: rows of ``features``, int64 ``[b]``.
        candidates: rows of ``features``, int64 ``[b, C]``; -1 where a query has fewer than C.
        power: of the Euclidean distances, 2 or 4.

    Returns:
        ``[b, C]`` in ``features``' dtype; infinite where the candidate is -1.
    """
    neighbours = nearest_neighbours(features, k1, power)
    present = candidates.clamp_min(0)
    asked, place = torch.cat((queries[:, None], present), dim=1).unique(return_inverse=True)
    members, weights = reciprocal_sets(features, asked, neighbours, power)
    jaccard = _jaccard(members, weights, place, len(features))
    direct = _distances(similarities(features, queries, features, present), power)
    distance = (1 - lambda_value) * jaccard + lambda_value * direct / neighbours.furthest[queries][:, None]
    return distance.masked_fill(candidates < 0, torch.inf)


class Neighbours(NamedTuple):
    """The nearest neighbours of all images."""

    images: Tensor  # int64 [n, min(k + 1, n)], nearest first; an image is its own first neighbour
    similarity: Tensor  # to each of them, infinite to itself, [n, min(k + 1, n)]
    furthest: Tensor  # distance to the furthest image, squared or to another power, [n]


def nearest_neighbours(features: Tensor, k: int, power: int = 2) -> Neighbours:
    """Find for each image itself and its k nearest others, and the distance to the furthest image."""
    count, parts = len(features), []
    rows = max(1, TILE_BYTES // (count * features.element_size()))
    for start in range(0, count, rows):
        products = features[start : start + rows] @ features.T
        products.diagonal(start).fill_(torch.inf)
        parts.append((*largest(products, min(k + 1, count)), products.amin(dim=1)))
    similarity, images, least = map(torch.cat, zip(*parts, strict=True))
    tiny = torch.finfo(features.dtype).tiny
    return Neighbours(images, similarity, _distances(least, power).clamp_min(tiny))


def tile_rows(device: torch.device, row_bytes: int, cached: int = CACHED_BYTES) -> int:
    """Return the rows of a tile; on a CPU it takes ``cached`` bytes."""
    return max(1, (min(TILE_BYTES, cached) if device.type == "cpu" else TILE_BYTES) // row_bytes)


def reciprocal_sets(
    features: Tensor, images: Tensor, neighbours: Neighbours, power: int = 2
) -> tuple[Tensor, Tensor]:
    """Return the widened k-reciprocal sets of some ``images`` (int64 ``[m]``) as padded rows.

    They are ``(members int64 [m, W], weights [m, W])``: first the k1-reciprocal neighbours, nearest first,
    then what the sets of others add, ascending; n (of weight 0) for none, anywhere; weights sum to 1.
    """
    count, width = len(features), neighbours.images.shape[1]
    core = _reciprocal(neighbours.images, images)
    row, image = _added(neighbours, core, count)
    added = torch.bincount(row, minlength=len(images))
    column = width + torch.arange(len(row), device=row.device) - (added.cumsum(0) - added)[row]
    widest = int(added.max()) if len(images) else 0
    members = F.pad(core, (0, widest), value=count)
    members[row, column] = image
    distances = F.pad(_distances(neighbours.similarity[images], power), (0, widest))
    distances[row, column] = _distances(similarities(features, images[row], features, image[:, None]), power)[
        :, 0
    ]
    weights = (-distances / neighbours.furthest[images][:, None]).exp().masked_fill(members == count, 0)
    return members, weights / weights.sum(dim=1, keepdim=True)


def _added(neighbours: Neighbours, core: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find what widening adds to the sets ``core [m, k1 + 1]``: (rows of it, images), both ascending."""
    half = round((core.shape[1] - 1) / 2) + 1
    everyone = torch.arange(count, device=core.device)
    small = _reciprocal(neighbours.images[:, :half].contiguous(), everyone)
    small = F.pad(small, (0, 0, 0, 1), value=count)  # no image has an empty set
    sizes = (small < count).sum(dim=1)
    row_bytes = count + 1 + 16 * core.shape[1] * half
    rows = min(max(1, len(core)), tile_rows(core.device, row_bytes))
    in_core = torch.zeros(rows, count + 1, dtype=torch.bool, device=core.device)
    found_rows, found_images = [everyone[:0]], [everyone[:0]]
    for start in range(0, len(core), rows):
        own = core[start : start + rows]
        inside = in_core[: len(own)].zero_().scatter_(1, own, True)
        inside[:, count] = False
        near = small.index_select(0, own.flatten()).view(len(own), -1, half)  # the sets of its members
        shared = inside.gather(1, near.flatten(1)).view_as(near)
        row, place = (3 * shared.sum(dim=2) > 2 * sizes[own]).nonzero(as_tuple=True)  # the accepted ones
        image = near[row, place]  # [accepted, half]
        keys = (row * (count + 1))[:, None] + image
        once = keys[~shared[row, place] & (image < count)].unique()
        found_rows.append(start + once // (count + 1))
        found_images.append(once % (count + 1))
    return torch.cat(found_rows), torch.cat(found_images)


def promoted(distances: Tensor, count: int) -> Tensor:
    """Choose the candidates that re-ranking moved forward (SFRS, supplement: difficult positives).

    ``distances`` ``[b, C]`` are re-ranking distances of candidates in the order of their feature distance,
    infinite where there is no candidate. Returns columns of them, int64 ``[b, min(count, C)]``: first those
    that rose, most first, then those that kept their rank, each in re-ranked order; those that fell are
    dropped; the rest is -1.
    """
    order = distances.argsort(dim=1, stable=True)  # the candidate at each re-ranked rank
    rise = order - torch.arange(order.shape[1], device=order.device)
    kept = (rise >= 0) & distances.gather(1, order).isfinite()
    choice = torch.where(kept, -rise, 1).argsort(dim=1, stable=True)[:, :count]
    return order.gather(1, choice).masked_fill(~kept.gather(1, choice), -1)


def _reciprocal(neighbours: Tensor, images: Tensor) -> Tensor:
    """Return the mutual neighbours ``[m, k + 1]`` of ``images``; n in place of the others."""
    width, lists = neighbours.shape[1], neighbours.int()
    rows = tile_rows(neighbours.device, 16 * width * width)
    kept = []
    for tile in images.split(rows):
        own = neighbours[tile]
        theirs = lists.index_select(0, own.flatten()).view(-1, width, width)
        mutual = (theirs == tile.int()[:, None, None]).any(dim=2)
        kept.append(own.masked_fill_(~mutual, len(neighbours)))
    return torch.cat(kept)


def similarities(x: Tensor, rows: Tensor, y: Tensor, listed: Tensor) -> Tensor:
    """Compute products of ``rows [m]`` of ``x`` with the rows ``listed [m, L]`` of ``y``: ``[m, L]``."""
    row_bytes = max(1, listed.shape[1]) * y.shape[1] * y.element_size()
    tile = tile_rows(y.device, row_bytes, GATHERED_BYTES)
    parts = []
    for own, them in zip(rows.split(tile), listed.split(tile), strict=True):
        # On a CPU far faster than y[them].
        others = y.index_select(0, them.flatten()).view(*them.shape, y.shape[1])
        parts.append(torch.bmm(x[own][:, None], others.transpose(1, 2)).squeeze(1))
    return torch.cat(parts)


def _distances(similarity: Tensor, power: int) -> Tensor:
    """Turn dot products of unit vectors into Euclidean distances to the ``power``, 2 or 4."""
    return (2 - 2 * similarity).clamp_min(0).pow(power // 2)


def _jaccard(members: Tensor, weights: Tensor, place: Tensor, count: int) -> Tensor:
    """Return ``[b, C]``; ``place [b, 1 + C]`` are the rows of a query and its candidates in ``members``."""
    row_bytes = weights.element_size() * (count + 1 + 4 * place.shape[1] * members.shape[1])
    rows = min(len(place), tile_rows(weights.device, row_bytes))
    dense, parts = weights.new_empty(rows, count + 1), []
    for tile in place.split(rows):
        query, candidates = tile[:, 0], tile[:, 1:]
        whole = dense[: len(tile)].zero_().scatter_(1, members[query], weights[query])
        same = whole.gather(1, members[candidates].flatten(1)).view(*candidates.shape, -1)
        overlap = torch.minimum(same, weights[candidates]).sum(dim=2)  # of maxima: 2 minus that of minima
        parts.append(1 - overlap / (2 - overlap))
    return torch.cat(parts)
