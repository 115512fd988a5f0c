"""Mining as the paper's reference implementation does it, written from its rules: lists of the whole gallery.

For every query a dictionary of its distances to the whole gallery and a sorted list of the gallery; positives
and negatives are found by walking that list. k-reciprocal re-ranking (Zhong et al., CVPR 2017) holds matrices
of all pairs of images and computes the distance of every query to the whole gallery.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ListTuple:
    """A tuple by rows of the gallery; `difficult` is empty where it was not asked for."""

    query: int
    positive: int
    negatives: list[int]
    difficult: list[int]


def mine(
    queries: Sequence[int],
    query_descriptors: np.ndarray,
    database_descriptors: np.ndarray,
    positives: Sequence[Sequence[int]],
    pools: Sequence[Sequence[int]],
    *,
    negatives: int = 10,
    difficult: int = 10,
    positive_pool: int = 20,
    rerank: tuple[int, float] | None = None,
) -> list[ListTuple]:
    """Tuples of some queries.

    Args:
        queries: rows of ``query_descriptors``.
        query_descriptors, database_descriptors: unit vectors ``[m, d]`` and ``[n, d]``.
        positives: for each of ``queries``, rows of the database.
        pools: for each of ``queries``, the negatives to choose from: a random draw and the previous hardest.
        rerank: (k1, lambda): choose difficult positives by k-reciprocal re-ranking.
    """
    distances = 2 - 2 * query_descriptors[list(queries)] @ database_descriptors.T
    reranked = None
    if rerank is not None:
        everything = np.concatenate((query_descriptors, database_descriptors))
        reranked = reranked_to_all(everything, queries, len(query_descriptors), *rerank)
    tuples = []
    for row, query in enumerate(queries):
        distance = dict(enumerate(distances[row].tolist()))
        gallery = sorted(distance, key=distance.__getitem__)
        near, pool = set(positives[row]), set(pools[row])
        nearest = [image for image in gallery if image in near][:positive_pool]
        hardest = [image for image in gallery if image in pool][:negatives]
        chosen: list[int] = []
        if reranked is not None:
            again = dict(enumerate(reranked[row].tolist()))
            chosen = promoted(nearest, sorted(nearest, key=again.__getitem__))[:difficult]
        tuples.append(ListTuple(query, nearest[0], hardest, chosen))
    return tuples


def promoted(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Those that rose from ``before`` to ``after``, most first, then those that stayed."""
    rise = {image: before.index(image) - rank for rank, image in enumerate(after)}
    return sorted((image for image in after if rise[image] >= 0), key=lambda image: -rise[image])


def reranked_to_all(
    features: np.ndarray, queries: Sequence[int], first_of_gallery: int, k1: int, weight: float
) -> np.ndarray:
    """Re-ranking distances of ``queries`` to the whole gallery ``[len(queries), n]``, by all pairs.

    Args:
        features: unit vectors ``[m + n, d]``, queries then gallery.
        first_of_gallery: m.
        weight: lambda, of the distance itself.
    """
    distances = np.maximum(2 - 2 * features @ features.T, 0)
    np.fill_diagonal(distances, -1)  # an image is its own nearest
    ranks = np.argsort(distances, axis=1, kind="stable")
    np.fill_diagonal(distances, 0)
    distances /= distances.max(axis=1, keepdims=True)
    sets = np.zeros_like(distances)
    for image in range(len(features)):
        members = _expanded(ranks, image, k1)
        weights = np.exp(-distances[image, members])
        sets[image, members] = weights / weights.sum()
    holders = [np.flatnonzero(sets[:, image]) for image in range(len(features))]
    jaccard = np.empty((len(queries), len(features)), dtype=distances.dtype)
    for row, query in enumerate(queries):
        shared = np.zeros(len(features), dtype=distances.dtype)
        for member in np.flatnonzero(sets[query]):
            images = holders[member]
            shared[images] += np.minimum(sets[query, member], sets[images, member])
        jaccard[row] = 1 - shared / (2 - shared)
    both = (1 - weight) * jaccard + weight * distances[list(queries)]
    return both[:, first_of_gallery:]


def _reciprocal(ranks: np.ndarray, image: int, k: int) -> np.ndarray:
    forward = ranks[image, : k + 1]
    backward = ranks[forward, : k + 1]
    return forward[(backward == image).any(axis=1)]


def _expanded(ranks: np.ndarray, image: int, k1: int) -> np.ndarray:
    core = _reciprocal(ranks, image, k1)
    members = core
    for member in core:
        own = _reciprocal(ranks, member, round(k1 / 2))
        if 3 * len(np.intersect1d(own, core)) > 2 * len(own):
            members = np.append(members, own)
    return np.unique(members)
