"""Exact nearest-neighbour search over descriptors. Of equal scores the lower row comes first."""

import warnings

import numpy as np
import torch
from torch import Tensor

# Descriptors may be mapped read-only: a mapping that may be written, if only in private, counts as memory,
# and the system refuses one that is larger than it has. torch warns of that once in a process; nothing here
# writes to them, so that once is now.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(bytes(4), dtype=np.float32))

BLOCK_ROWS, QUERIES = 65_536, 256  # whose products are computed at once, 64 MB of them
COPIED = 2**29  # bytes of rows that are copied at once, where they cannot be read as they lie
CONVERTED_ROWS = 512
"""Rows of float16 made float32 at once: small enough to be in the cache when they are multiplied."""


def search(database: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the k database rows of each query with the largest inner products, largest first.

    The database is walked in blocks where it lies, so it may be a memory map or float16, and no index holds a
    second copy of it. Raises `ValueError` if shapes do not match, the database is empty, or a value is not
    finite.

    Args:
        database, queries: ``[n, d]`` and ``[m, d]``.
        k: neighbours per query; at most n are returned.

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
    scores, rows = scan(database, np.ones(len(database), dtype=bool), queries, min(k, len(database)))
    if not np.isfinite(scores).all():
        raise ValueError("search: descriptors hold values that are not finite")
    return scores, rows


def scan(rows: np.ndarray, live: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the k rows most similar to each query, best first.

    Args:
        rows: descriptors ``[n, d]``, float32 or float16, usually a memory map.
        live: bool ``[n]``, rows that count.
        queries: ``[m, d]``.

    Returns:
        (similarities float32 ``[m, k]``, rows int64 ``[m, k]``); equal similarities in the order of the
        rows; -inf and -1 past the end.
    """
    asked = torch.from_numpy(np.array(queries, dtype=np.float32, order="C"))
    best, where = _nothing(len(asked), k)
    in_place = rows.dtype in (np.float32, np.float16) and rows.flags.c_contiguous and min(rows.strides) >= 0
    many = BLOCK_ROWS if in_place else max(1, min(BLOCK_ROWS, COPIED // (4 * rows.shape[1])))
    for start in range(0, len(rows), many):
        dead = torch.from_numpy(~live[start : start + many])
        if dead.all():
            continue
        block = rows[start : start + many]
        block = block if in_place else np.array(block, dtype=np.float32, order="C")
        for part in torch.arange(len(asked), device="cpu").split(QUERIES):
            scores = _products(asked[part], torch.from_numpy(block))  # [m, b]
            scores[:, dead] = -torch.inf
            found, index = largest(scores, min(k, len(block)))
            best[part], column = largest(torch.cat([best[part], found], 1), k)
            where[part] = torch.cat([where[part], index + start], 1).gather(1, column)
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
    best = torch.full((queries, k), -torch.inf, dtype=torch.float32, device="cpu")
    return best, torch.full((queries, k), -1, device="cpu")


def _products(queries: Tensor, block: Tensor) -> Tensor:
    """Multiply ``[m, d]`` with ``[b, d]``: float32 ``[m, b]``."""
    if block.dtype == torch.float32:
        return _multiply(queries, block)
    scores = torch.empty(len(queries), len(block), dtype=torch.float32, device="cpu")
    converted = torch.empty(CONVERTED_ROWS, block.shape[1], dtype=torch.float32, device="cpu")
    for part, out in zip(block.split(CONVERTED_ROWS), scores.split(CONVERTED_ROWS, dim=1), strict=True):
        out.copy_(_multiply(queries, converted[: len(part)].copy_(part)))
    return scores


def _multiply(queries: Tensor, rows: Tensor) -> Tensor:
    if len(queries) == 1:  # a product with a vector may add up equal rows in different orders
        return (queries.repeat(2, 1) @ rows.T)[:1]
    return (rows @ queries.T).T.contiguous()  # the quicker order


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
