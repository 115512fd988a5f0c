"""Is one network better than another on the same queries? Exact McNemar test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


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
