"""Exact nearest-neighbour search over descriptors with faiss."""

from typing import Literal

import faiss
import numpy as np

BLOCK_BYTES = 512 * 2**20


def search(
    database: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    metric: Literal["inner_product", "l2"] = "inner_product",
    block_bytes: int = BLOCK_BYTES,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest database rows of each query, nearest first.

    The database is walked in blocks where it lies, so it may be a memory map or float16, and no index
    holds a second copy of it. For unit descriptors both metrics give one order.

    Args:
        database: ``[n, d]``.
        queries: ``[m, d]``.
        k: neighbours per query; at most n are returned.
        block_bytes: size of the float32 copy made of a block that is not float32 already.

    Returns:
        (scores float32 ``[m, k]``, indices int64 ``[m, k]``): inner products falling, or squared distances
        rising. Equal scores are listed in the order of the database.

    Raises:
        ValueError: shapes do not match, the database is empty, or a value is not finite.
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
    sign = -1.0 if metric == "inner_product" else 1.0
    kind = faiss.METRIC_INNER_PRODUCT if metric == "inner_product" else faiss.METRIC_L2
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores = np.empty((len(queries), 0), np.float32)
    indices = np.empty((len(queries), 0), np.int64)
    rows = max(1, block_bytes // (4 * database.shape[1]))
    for start in range(0, len(database), rows):
        block = np.ascontiguousarray(database[start : start + rows], dtype=np.float32)
        found, where = faiss.knn(queries, block, min(k, len(block)), metric=kind)
        if (where < 0).any() or not np.isfinite(found).all():
            raise ValueError("search: descriptors hold values that are not finite")
        scores = np.concatenate([scores, found], axis=1)
        indices = np.concatenate([indices, where + start], axis=1)
        order = np.lexsort((indices, sign * scores), axis=1)[:, :k]
        scores, indices = np.take_along_axis(scores, order, 1), np.take_along_axis(indices, order, 1)
    return scores, indices
