"""The index's positions as a map can show them: thinned out evenly where there are many."""

import numpy as np

from sfrs.retrieval.coverage import look_alikes
from sfrs.retrieval.index import Index

MOST_POINTS = 4000
"""As many dots as a browser moves smoothly, and more than the eye tells apart."""


def overview(index: Index, most: int = MOST_POINTS) -> dict:
    """At most ``most`` positions of the index with one row each, as JSON.

    Images taken at one spot count once. Where that leaves too many, one per cell of a square grid is kept,
    the finest grid that makes them few enough.

    Returns:
        ``images``: all in the index; ``zone``; ``points``: lists (row, easting, northing) in metres. Of the
        self-test: ``look_alikes``, lists (easting, northing, easting, northing) of places taken for each
        other, and ``gaps``, lists (easting, northing, photographs that want another there).
    """
    positions = np.asarray(index.positions, dtype=np.float64).reshape(-1, 2)
    rows = np.flatnonzero(np.isfinite(positions).all(axis=1))
    test = index.self_test
    pairs = look_alikes(index, test.answers) if test else []
    rows = rows[_one_per_cell(positions[rows], 0.01)]
    if len(rows) > most:
        rows = rows[_thinned(positions[rows], most)]
    return {
        "images": len(index),
        "zone": index.zone,
        "points": [
            [int(row), round(float(east), 2), round(float(north), 2)]
            for row, (east, north) in zip(rows, positions[rows], strict=True)
        ],
        "look_alikes": [
            [*positions[one].round(1).tolist(), *positions[two].round(1).tolist()] for one, two in pairs
        ],
        "gaps": [[gap.easting, gap.northing, gap.photos] for gap in (test.gaps if test else [])],
    }


def _thinned(positions: np.ndarray, most: int) -> np.ndarray:
    """Rows of one position per cell, by bisection of the cells' side; at most ``most``."""
    small, large = 0.0, float(np.ptp(positions, axis=0).max()) + 1.0
    kept = np.zeros(1, dtype=np.int64)
    for _ in range(16):
        side = (small + large) / 2
        found = _one_per_cell(positions, side)
        if len(found) > most:
            small = side
        else:
            large, kept = side, found
    return kept


def _one_per_cell(positions: np.ndarray, side: float) -> np.ndarray:
    """The first row of each cell of a grid, ascending; ``side`` in metres."""
    if len(positions) == 0:
        return np.zeros(0, dtype=np.int64)
    columns, lines = np.floor((positions - positions.min(axis=0)) / side).astype(np.int64).T
    return np.sort(np.unique(columns * (lines.max() + 1) + lines, return_index=True)[1])
