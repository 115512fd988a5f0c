"""Exact nearest-neighbour search over descriptors. Of equal scores the lower row comes first."""

import faiss
import numpy as np
from torch import Tensor

BLOCK_BYTES = 512 * 2**20


def search(
    database: np.ndarray, queries: np.ndarray, k: int, *, block_bytes: int = BLOCK_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k database rows of each query with the largest inner products, largest first.

    The database is walked in blocks where it lies, so it may be a memory map or float16, and no index holds a
    second copy of it. Raises `ValueError` if shapes do not match, the database is empty, or a value is not
    finite.

    Args:
        database, queries: ``[n, d]`` and ``[m, d]``.
        k: neighbours per query; at most n are returned.
        block_bytes: size of the float32 copy made of a block that is not float32 already.

    Returns:
        (inner products float32 ``[m, k]``, falling, indices int64 ``[m, k]``). Of equal scores the lower row
        comes first, whatever the blocks.
    """
    if database.ndim != 2 or queries.ndim != 2 or database.shape[1] != queries.shape[1]:
        raise ValueError(
            f"search: database is {database.shape} and queries {queries.shape}; expected [n, d], [m, d]"
        )
    if len(database) == 0 or k < 1:
        raise ValueError(
            f"search: database has {len(database)} rows and k is {k}; expected at least 1 of each"
        )
    k = min(k, len(database))
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores, indices = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    rows = max(1, block_bytes // (4 * database.shape[1]))
    for start in range(0, len(database), rows):
        block = np.ascontiguousarray(database[start : start + rows], dtype=np.float32)
        found, where = _search_block(block, queries, min(k, len(block)))
        scores, indices = np.hstack([scores, found]), np.hstack([indices, where + start])
        scores, indices = _ranked(scores, indices, k)
    return scores, indices


def _search_block(block: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Search a block. faiss keeps any of equal scores, so queries whose list ends among them ask for more."""
    found, where = faiss.knn(queries, block, min(k + 1, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
    if (where < 0).any() or not np.isfinite(found).all():
        raise ValueError("search: descriptors hold values that are not finite")
    scores, indices = _ranked(found, where, k)
    if k < len(block):
        tied = np.flatnonzero(found[:, k] == found[:, k - 1])
        more = min(2 * k, len(block))
        for part in np.array_split(tied, 1 + len(tied) * more * 12 // BLOCK_BYTES) if len(tied) else ():
            found, where = _search_block(block, queries[part], more)
            scores[part], indices[part] = found[:, :k], where[:, :k]
    return scores, indices


def _ranked(scores: np.ndarray, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((indices, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(indices, order, 1)


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k largest of each row ``[m, n]`` and their columns, largest first; of equal ones the lower
    column first.

    Raises `ValueError` if a score is not a number.
    """
    found, columns = scores.topk(k, dim=1)
    if found.isnan().any():
        raise ValueError("search: descriptors hold values that are not finite")
    least = found[:, -1:]  # of whose equals topk keeps any
    cut = ((scores == least).sum(dim=1) > (found == least).sum(dim=1)).nonzero()[:, 0]
    columns[cut] = scores[cut].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.sort(dim=1).values
    found, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return found, columns.gather(1, order)
