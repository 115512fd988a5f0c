"""Positions of several cities in one coordinate system."""

from collections.abc import Mapping

import numpy as np

APART = 1_000.0
"""Metres that cities have to lie apart."""

SHIFT = 2_000_000.0
"""Metres a city is moved eastwards; a UTM zone is less than half as wide."""


def eastward_shifts(positions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How far to move each city so that none lies on another, metres.

    The same metres of two UTM zones are two places on earth. Cities whose rectangles in ``positions`` (UTM,
    ``[n, 2]``) come nearer than `APART` would have neighbours in each other: the later one is moved. Others
    stay where they are.
    """
    placed: list[tuple[np.ndarray, np.ndarray]] = []
    shifts = {}
    for city, points in positions.items():
        low, high = points.min(axis=0) - APART, points.max(axis=0)
        shift = 0.0
        while any(_meet(low, high, other, shift) for other in placed):
            shift += SHIFT
        placed.append((low + (shift, 0), high + (shift, 0)))
        shifts[city] = shift
    return shifts


def _meet(low: np.ndarray, high: np.ndarray, other: tuple[np.ndarray, np.ndarray], shift: float) -> bool:
    moved = np.array([shift, 0.0])
    return bool((low + moved <= other[1]).all() and (other[0] <= high + moved).all())
