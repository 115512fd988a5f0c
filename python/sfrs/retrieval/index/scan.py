"""Exact comparison of queries with rows, where the rows lie."""

import warnings

import numpy as np
import torch
from torch import Tensor

from sfrs.retrieval.search import largest

# Descriptors are mapped read-only: a mapping that may be written, if only in private, counts as memory, and
# the system refuses one that is larger than it has. torch warns of that once in a process; nothing here
# writes to them, so that once is now.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(bytes(4), dtype=np.float32))

BLOCK_ROWS = 65_536
CONVERTED_ROWS = 512
"""Rows of float16 made float32 at once: small enough to be in the cache when they are multiplied."""


def scan(rows: np.ndarray, live: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the k rows most similar to each query, best first.

    Unlike `search` this passes over rows that do not count, multiplies with all threads for a
    single query too, and converts float16 in the cache.

    Args:
        rows: descriptors ``[n, d]``, float32 or float16, usually a memory map.
        live: bool ``[n]``, rows that count.
        queries: float32 ``[m, d]``.

    Returns:
        (similarities float32 ``[m, k]``, rows int64 ``[m, k]``); equal similarities in the order of the
        rows; -inf and -1 past the end.
    """
    asked = torch.from_numpy(queries)
    best, where = _nothing(len(queries), k)
    for start in range(0, len(rows), BLOCK_ROWS):
        if not live[start : start + BLOCK_ROWS].any():
            continue
        scores = _products(torch.from_numpy(rows[start : start + BLOCK_ROWS]), asked)  # [b, m]
        removed = np.flatnonzero(~live[start : start + BLOCK_ROWS])
        if len(removed):
            scores[torch.from_numpy(removed)] = -torch.inf
        found, index = largest(scores.T.contiguous(), min(k, len(scores)))
        best, column = largest(torch.cat([best, found], 1), k)
        where = torch.cat([where, index + start], 1).gather(1, column)
    where[best == -torch.inf] = -1
    return best.numpy(), where.numpy()


def compare(
    rows: np.ndarray, candidates: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k most similar of each query's own ``candidates``, rows int64 ``[m, c]``, -1 for none; see
    `scan`.
    """
    best, where = _nothing(len(queries), k)
    for i, query in enumerate(torch.from_numpy(queries)):
        # In the order of the rows, so that the disk is read in one direction.
        chosen = np.sort(candidates[i][candidates[i] >= 0])
        scores = torch.from_numpy(rows[chosen]).float() @ query
        count = min(k, len(chosen))
        found, index = largest(scores[None], count)
        best[i, :count], where[i, :count] = found[0], torch.from_numpy(chosen)[index[0]]
    return best.numpy(), where.numpy()


def _nothing(queries: int, k: int) -> tuple[Tensor, Tensor]:
    return torch.full((queries, k), -torch.inf), torch.full((queries, k), -1)


def _products(block: Tensor, queries: Tensor) -> Tensor:
    if block.dtype == torch.float32:
        return block @ queries.T
    scores = torch.empty(len(block), len(queries))
    converted = torch.empty(min(len(block), CONVERTED_ROWS), block.shape[1])
    for part, out in zip(block.split(CONVERTED_ROWS), scores.split(CONVERTED_ROWS), strict=True):
        torch.matmul(converted[: len(part)].copy_(part), queries.T, out=out)
    return scores
