"""Recall@N, spatial non-maximum suppression before it, and whether one network's is better than another's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from sfrs.data.ragged import Ragged

RECALL_AT = (1, 5, 10, 20)
NMS_DEPTH = 12
"""Tokyo 24/7 has 12 images per panorama: of the first 12 N predictions one per panorama is kept."""

SAME_TIME_DEPTH = 10
"""Predictions of the query's own time stamp are dropped from the first 10 N (Tokyo Time Machine)."""


def correct(predictions: np.ndarray, positives: Ragged) -> np.ndarray:
    """Mark the predictions ``[m, k]`` (database indices, -1 is never right) that are right, bool ``[m, k]``.

    ``positives`` are the database indices that count as right for each of the m queries.
    """
    if len(predictions) != len(positives):
        raise ValueError(
            f"recall: {len(predictions)} rows of predictions, but {len(positives)} lists of positives"
        )
    if predictions.size == 0 or positives.values.size == 0:
        return np.zeros(predictions.shape, dtype=bool)
    n = max(int(predictions.max()), int(positives.values.max())) + 1
    keys = np.arange(len(predictions))[:, None] * n + predictions
    return np.isin(keys, positives.rows() * n + positives.values) & (predictions >= 0)


def recall_at(predictions: np.ndarray, positives: Ragged, ns: Sequence[int] = RECALL_AT) -> dict[int, float]:
    """Compute the share of queries, in 0..1, with a positive among the first N predictions, for each N.

    Queries without any positive cannot be answered and are not counted; with no query left the recalls
    are NaN.
    """
    answerable = positives.counts() > 0
    right = correct(predictions, positives)[answerable]
    if not answerable.any():
        return {n: float("nan") for n in ns}
    return {n: float(right[:, :n].any(axis=1).mean()) for n in ns}


def without_same_time(
    predictions: np.ndarray, query_stamps: np.ndarray, database_stamps: np.ndarray, n: int
) -> np.ndarray:
    """Keep the first n predictions ``[m, k]`` whose time stamp is not the query's, int64 ``[m, n]``, -1 past
    the end.

    Time stamps are int64, of the m queries and of the database.
    """
    keep = (predictions >= 0) & (database_stamps[predictions] != query_stamps[:, None])
    return _first(predictions, keep, n)


def spatial_nms(predictions: np.ndarray, place_ids: np.ndarray, n: int) -> np.ndarray:
    """Keep the best image of each panorama among the first 12 n predictions, ``[m, n]``, -1 past the end.

    ``place_ids`` are the panoramas of the database images, n is the largest N of recall@N.
    """
    predictions = predictions[:, : NMS_DEPTH * n]
    places = place_ids[predictions]
    # A stable sort brings the images of a panorama together with the best one in front.
    order = np.argsort(places, axis=1, kind="stable")
    ranked = np.take_along_axis(places, order, 1)
    first = np.ones(ranked.shape, dtype=bool)
    first[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    keep = np.empty_like(first)
    np.put_along_axis(keep, order, first, 1)
    return _first(predictions, keep, n)


def _first(predictions: np.ndarray, keep: np.ndarray, n: int) -> np.ndarray:
    front = np.argsort(~keep, axis=1, kind="stable")[:, :n]
    kept = np.where(np.take_along_axis(keep, front, 1), np.take_along_axis(predictions, front, 1), -1)
    return np.pad(kept, ((0, 0), (0, n - kept.shape[1])), constant_values=-1)


@dataclass(frozen=True)
class Paired:
    """Two networks on the same queries."""

    gained: int  # queries the first finds and the second does not
    lost: int  # the reverse
    difference: float  # recall of the first minus that of the second, in 0..1
    p_value: float  # two-sided probability of a split as uneven if neither is better (binomial, exact)


def mcnemar(first: np.ndarray, second: np.ndarray) -> Paired:
    """Compare hits (bool [m]) of two networks on the same m queries (McNemar 1947, exact form).

    Raises ValueError if the shapes differ or there are no queries.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"mcnemar: hits are {first.shape} and {second.shape}, expected the same [m], m > 0")
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return Paired(gained, lost, (gained - lost) / len(first), float(p_value))
