"""Re-ranking by regions: the first images of a search, ordered by how their parts match the query's.

A photograph taken some steps aside shows the same house in another quarter of the picture, among other
things. The descriptor of the whole image mixes these with the house; the nine regions of two images find it.
`SCORES` are the ways to make one number of the 81 similarities; ``docs/reranking.md`` measures which of
them help.

Whitening concerns the search alone: it chooses the candidates, un-whitened regions order them.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfrs.models.model import Model, compact
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress, silent
from sfrs_ext import region_similarity
from sfrs_ext.reference import region_descriptors

DEPTH = 100  # images of a search that are re-ranked
Quarters = Callable[[np.ndarray], Tensor]
"""Database rows ``[C]`` -> their quarter VLADs ``[C, 4, K, D]``; may be valid only until the next call."""


def region_matches(query_quarters: Tensor, quarters: Tensor) -> Tensor:
    """Compare the nine regions of queries with the nine regions of database images.

    The regions of the queries, which are few, are built as descriptors; those of the database images never
    are (`sfrs_ext.region_similarity`).

    Args:
        query_quarters: quarter VLADs of T queries, ``[T, 4, K, D]``, from `sfrs_ext.region_vlad`.
        quarters: those of N database images, ``[N, 4, K, D]``.

    Returns:
        Similarities ``[T, N, 9, 9]``: ``[t, n, i, j]`` is region i of query t with region j of image n, in
        the order of ``sfrs_ext.REGIONS``; ``[..., 0, 0]`` is the similarity of the whole images.
    """
    regions = region_descriptors(query_quarters).flatten(0, 1)  # [T * 9, K, D]
    return region_similarity(regions, quarters).unflatten(0, (-1, 9)).transpose(1, 2)


def _chamfer(matches: Tensor) -> Tensor:
    return (matches.amax(-1).mean(-1) + matches.amax(-2).mean(-1)) / 2


def _nine_best(matches: Tensor) -> Tensor:
    return matches.flatten(-2).topk(9).values.mean(-1)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    # Much has to match, some of it well: the mean of the next two.
    "mixed": lambda matches: (_chamfer(matches) + _nine_best(matches)) / 2,
    # Mean similarity of a region to its best counterpart, over the regions of both images.
    "chamfer": _chamfer,
    # Mean of the nine best of the 81 pairs.
    "nine-best": _nine_best,
    # Mean similarity of the regions in the same place.
    "aligned": lambda matches: matches.diagonal(dim1=-2, dim2=-1).mean(-1),
    # The whole query with the best region.
    "whole-query": lambda matches: matches[..., 0, :].amax(-1),
    "best-pair": lambda matches: matches.flatten(-2).amax(-1),
}
"""Scores of region matches ``[..., 9, 9]`` -> ``[...]``; the first is the default."""

DEFAULT_SCORE = next(iter(SCORES))


@dataclass(frozen=True)
class Reranking:
    """The number of images of a search to order by their regions, and the one of `SCORES` to order by.

    Raises `UserError` if there is no such score.
    """

    depth: int = DEPTH
    score: str = DEFAULT_SCORE

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise UserError(f"--rerank-score is {self.score!r}; expected one of {', '.join(SCORES)}.")


@dataclass(frozen=True)
class Reranked:
    """The candidates of one query, best first; C of them."""

    rows: np.ndarray  # of the database, int64 [C]
    scores: np.ndarray  # float32 [C], falling
    pairs: np.ndarray | None = None  # int64 [C, 2]: regions of query and image that match best, if compared


@torch.no_grad()
def rerank(
    query_quarters: Tensor, rows: np.ndarray, quarters: Quarters, score: str = DEFAULT_SCORE
) -> Reranked:
    """Order the candidates ``rows`` (int64 ``[C]``) of one query by their regions; equal scores keep their
    order.

    Args:
        query_quarters: ``[1, 4, K, D]``, float32.
        quarters: gives the candidates' quarter VLADs, kept by `sfrs.models.model.compact`.
    """
    if len(rows) == 0:
        return Reranked(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 2), np.int64))
    # Through float16 like the candidates: what that drops must not be missing on one side alone.
    query_quarters = compact(query_quarters).float()
    matches = region_matches(query_quarters, quarters(rows))[0].float()  # [C, 9, 9]
    scores = SCORES[score](matches)
    order = scores.argsort(descending=True, stable=True)
    best = matches.flatten(1).argmax(dim=1)[order]
    pairs = torch.stack((best // 9, best % 9), dim=1)
    order = order.cpu().numpy()
    return Reranked(np.asarray(rows)[order], scores.cpu().numpy()[order], pairs.cpu().numpy())


def rerank_all(
    query_quarters: Quarters,
    candidates: np.ndarray,
    quarters: Quarters,
    *,
    score: str = DEFAULT_SCORE,
    depth: int = DEPTH,
    progress: Progress = silent,
) -> np.ndarray:
    """Order the first ``depth`` candidates of every query (database rows int64 ``[m, k]``, best first, -1
    past the end); those after them stay where they are.
    """
    result = candidates.copy()
    for query, found in enumerate(candidates[:, :depth]):
        ranked = rerank(query_quarters(np.array([query])), found[found >= 0], quarters, score)
        result[query, : len(ranked.rows)] = ranked.rows
        progress(query + 1, len(candidates))
    return result


class KeptQuarters:
    """Quarter VLADs kept as float16 ``[n, 4, K, D]``, in memory or a memory map, handed out as float32.

    Rows are copied one by one into a buffer that is used again: fresh memory for every query would cost more
    than the comparison (50 MB at K = 64, D = 512 and 100 candidates).
    """

    def __init__(self, kept: np.ndarray, device: str | torch.device = "cpu"):
        self.kept = torch.from_numpy(kept)
        self.device = device
        self.buffer = torch.empty(0, *kept.shape[1:])

    def __call__(self, rows: np.ndarray) -> Tensor:
        """``[C]`` -> float32 ``[C, 4, K, D]`` on the device, valid until the next call."""
        if len(rows) > len(self.buffer):
            self.buffer = torch.empty(len(rows), *self.buffer.shape[1:])
        for place, row in zip(self.buffer, rows.tolist(), strict=False):
            place.copy_(self.kept[row])
        return self.buffer[: len(rows)].to(self.device)


class RememberedQuarters:
    """Quarter VLADs that take long to compute, ``[C]`` -> ``[C, 4, K, D]``, computed once: the last ones
    asked for are kept as float16, in at most ``limit`` bytes.
    """

    def __init__(self, compute: Callable[[np.ndarray], Tensor], limit: int = 2**30):
        self.compute, self.limit = compute, limit
        self.known: dict[int, Tensor] = {}  # oldest first

    def __call__(self, rows: np.ndarray) -> Tensor:
        """``[C]`` -> float32 ``[C, 4, K, D]``."""
        wanted = np.asarray(rows).tolist()
        missing = [row for row in wanted if row not in self.known]
        found = {row: self.known.pop(row) for row in dict.fromkeys(wanted) if row in self.known}
        if missing:
            found |= dict(zip(missing, compact(self.compute(np.array(missing))), strict=True))
        self.known |= found
        for row in list(self.known)[: max(0, len(self.known) - self.limit // found[wanted[0]].nbytes)]:
            del self.known[row]
        return torch.stack([found[row] for row in wanted]).float()


@contextmanager
def temporary_quarters(model: Model, images: int) -> Iterator[np.ndarray]:
    """Open a temporary memory map for the quarter VLADs of so many images."""
    shape = (images, *model.quarters_shape)
    needed, free = 2 * math.prod(shape), shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise UserError(
            f"Re-ranking by regions keeps {needed / 1e9:.1f} GB of quarter VLADs meanwhile, but "
            f"{tempfile.gettempdir()} has {free / 1e9:.1f} GB free. Set TMPDIR to a larger disk."
        )
    with tempfile.TemporaryDirectory(prefix="sfrs-quarters-") as folder:
        yield np.memmap(Path(folder) / "quarters.float16", dtype=np.float16, mode="w+", shape=shape)
