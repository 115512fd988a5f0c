"""Score descriptors that another program has written."""

import time
from pathlib import Path

import numpy as np

from sfrs.data.places import Places
from sfrs.data.tables import read_npy
from sfrs.retrieval.evaluation import Evaluation, Scoring, check_answerable, score, search_depth
from sfrs.retrieval.search import search
from sfrs.runtime.errors import UserError

UNIT = 1e-3  # how far lengths of descriptors may be from 1 to count as unit vectors


def load_descriptors(path: Path) -> np.ndarray:
    """Map a ``.npy`` file of real numbers ``[n, dim]``. Raises `UserError` if it is none."""
    array = read_npy(path, mapped=True)
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise UserError(
            f"{path}: {list(array.shape)} {array.dtype}; expected real numbers [n, dim] of n images."
        )
    return array


def evaluate_saved(
    database: np.ndarray, queries: np.ndarray, places: Places, scoring: Scoring | None = None
) -> Evaluation:
    """Rank descriptors ``[n, dim]`` of the database for those of the queries ``[m, dim]``, and score them.

    Unit vectors are ranked by inner product, others by Euclidean distance, for unit vectors the same. Raises
    `UserError` if the two do not go together, or with ``places``; a value is not finite.
    """
    scoring = scoring or Scoring()
    for role, array, images in (
        ("database", database, places.database),
        ("queries", queries, places.queries),
    ):
        if len(array) != len(images):
            raise UserError(
                f"{len(array):,} descriptors of the {role} for {len(images):,} images; expected as many."
            )
    if database.shape[1] != queries.shape[1]:
        raise UserError(
            f"Descriptors of the database have {database.shape[1]} numbers, those of the queries "
            f"{queries.shape[1]}; expected as many."
        )
    check_answerable(places, scoring.radius)
    lengths, asked = _lengths("database", database), _lengths("queries", queries)
    started = time.perf_counter()
    if np.abs(np.concatenate([lengths, asked]) - 1).max() > UNIT:
        # |q - d|^2 falls as q d - |d|^2 / 2 rises, an inner product with one number more.
        database = np.column_stack([database, -0.5 * lengths**2]).astype(np.float32)
        queries = np.column_stack([queries, np.ones(len(queries))]).astype(np.float32)
    _, found = search(database, queries, search_depth(places, max(scoring.recalls), nms=scoring.nms))
    return score(places, found, scoring, {"search": time.perf_counter() - started})


def _lengths(role: str, descriptors: np.ndarray) -> np.ndarray:
    """Return the Euclidean length of each descriptor, float64 ``[n]``."""
    # The files are mapped; einsum converts them block by block.
    lengths = np.sqrt(np.einsum("nd,nd->n", descriptors, descriptors, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(lengths))
    if len(bad):
        raise UserError(f"{len(bad):,} descriptors of the {role} are not finite, the first in row {bad[0]}.")
    return lengths
