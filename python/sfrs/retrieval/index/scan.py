"""Exact comparison of queries with rows, where the rows lie."""

import warnings

import numpy as np
import torch
from torch import Tensor

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
    """The k rows most similar to each query, best first.

    Unlike `search` this passes over removed rows, multiplies with all threads for a
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
    best = torch.full((len(queries), k), -torch.inf)
    where = torch.full((len(queries), k), -1, dtype=torch.int64)
    for start in range(0, len(rows), BLOCK_ROWS):
        block = torch.from_numpy(rows[start : start + BLOCK_ROWS])
        scores = _products(block, asked)  # [b, m]
        removed = np.flatnonzero(~live[start : start + BLOCK_ROWS])
        if len(removed):
            scores[torch.from_numpy(removed)] = -torch.inf
        found, index = scores.T.contiguous().topk(min(k, len(block)), dim=1)
        best, where = _best(torch.cat([best, found], 1), torch.cat([where, index + start], 1), k)
    where[best == -torch.inf] = -1
    return best.numpy(), where.numpy()


def compare(
    rows: np.ndarray, candidates: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar of each query's own candidates, as :func:`scan` returns them.

    Args:
        candidates: int64 ``[m, c]`` row numbers; -1 is none.
    """
    best = torch.full((len(queries), k), -torch.inf)
    where = torch.full((len(queries), k), -1, dtype=torch.int64)
    for i, query in enumerate(torch.from_numpy(queries)):
        # In the order of the rows, so that the disk is read in one direction.
        chosen = np.sort(candidates[i][candidates[i] >= 0])
        scores = torch.from_numpy(rows[chosen]).float() @ query
        found, index = _best(scores[None], torch.from_numpy(chosen)[None], k)
        best[i, : found.shape[1]], where[i, : found.shape[1]] = found[0], index[0]
    return best.numpy(), where.numpy()


def _products(block: Tensor, queries: Tensor) -> Tensor:
    if block.dtype == torch.float32:
        return block @ queries.T
    scores = torch.empty(len(block), len(queries))
    converted = torch.empty(min(len(block), CONVERTED_ROWS), block.shape[1])
    for start in range(0, len(block), CONVERTED_ROWS):
        part = block[start : start + CONVERTED_ROWS]
        torch.matmul(
            converted[: len(part)].copy_(part), queries.T, out=scores[start : start + CONVERTED_ROWS]
        )
    return scores


def _best(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best per line, equal ones by their row: topk promises no order, stable sorts do."""
    order = rows.argsort(dim=1)
    scores, rows = scores.gather(1, order), rows.gather(1, order)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order), rows.gather(1, order)
