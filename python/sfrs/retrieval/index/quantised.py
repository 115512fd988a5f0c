"""Compressed copies of the descriptors (faiss), which name candidates that are then compared exactly."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from sfrs.runtime.atomic_io import replaced
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress, silent

HEAD = 64 * 2**20
"""Bytes of a file that are checked before faiss reads it: of ten million images all that is not codes."""
FEWEST = 2_000  # images below which no copy is made: comparing every row takes milliseconds
PART = 8  # numbers of a descriptor that share a product-quantised code of 4 bits
LARGEST_PARTS = 512  # parts at most: faiss adds their similarities in 16 bits, and more would saturate
TRAINED_ON = 4_096  # descriptors that the 16 centres of every part are fitted to
PER_LIST = 64  # descriptors per inverted list that its centre is fitted to
BLOCK_ROWS = 8_192


@dataclass(frozen=True)
class Kind:
    """The way a compressed kind searches."""

    codes: str  # in words of faiss's index factory; there are about as many lists as the root of the images
    candidates: int  # that are compared exactly for each query, at least
    share: float = 0.0  # of the images that is compared exactly: the more there are, the closer they lie
    probed: float = 1.0  # share of the inverted lists that is read for a query

    @property
    def lists(self) -> bool:
        return self.codes.startswith("IVF")


KINDS = {
    "pq": Kind("PQ{parts}x4fs", 500, 1 / 500),
    "ivf": Kind("IVF{lists},PQ{parts}x4fs", 500, 1 / 500, probed=0.25),
    "disk": Kind("IVF{lists},RaBitQ", 200, probed=0.25),
}
"""Kinds that have a compressed copy; the others compare every row."""


class Compressed:
    """A faiss index whose entry i is row i of the descriptor file, removed or not.

    - pq: product quantiser of 4 bits per part, compared in registers (faiss's fast scan); in memory.
    - ivf: the same in inverted lists, of which the nearest are read; in memory.
    - disk: one bit per number (RaBitQ) in inverted lists that stay in the file, mapped.

    It pads descriptors of ``dim`` numbers to a multiple of the parts.
    """

    def __init__(self, kind: str, index: Any, dim: int) -> None:
        self.kind, self.index, self.dim = KINDS[kind], index, dim

    def __len__(self) -> int:
        return self.index.ntotal

    @classmethod
    def train(cls, kind: str, rows: np.ndarray) -> "Compressed":
        """Fit a copy of ``kind`` to ``rows`` ``[n, dim]``, taking evenly spaced ones; it is empty still."""
        if kind == "disk" and not hasattr(faiss, "IndexIVFRaBitQ"):
            raise UserError(f"--kind disk needs faiss 1.11 or newer, but this is {faiss.__version__}.")
        parts = min(LARGEST_PARTS, 2 * math.ceil(rows.shape[1] / (2 * PART)))
        padded, lists = parts * math.ceil(rows.shape[1] / parts), max(1, round(math.sqrt(len(rows))))
        codes = KINDS[kind].codes.format(parts=parts, lists=lists)
        index: Any = faiss.index_factory(padded, codes, faiss.METRIC_INNER_PRODUCT)
        if KINDS[kind].lists:
            options = dict(niter=8, spherical=True, seed=1, max_points_per_centroid=PER_LIST)
            means = faiss.Kmeans(padded, lists, **options)
            means.train(_sample(rows, PER_LIST * lists, padded))
            index.quantizer.add(means.centroids)
        threads = faiss.omp_get_max_threads()
        # Thousands of tiny fits: threads would wait for each other longer than they work.
        faiss.omp_set_num_threads(1)
        try:
            index.train(_sample(rows, TRAINED_ON, padded))
        finally:
            faiss.omp_set_num_threads(threads)
        return cls(kind, index, rows.shape[1])

    def extend(self, rows: np.ndarray, progress: Progress = silent) -> None:
        """Add the rows of ``rows`` ``[n, dim]`` that are not in yet, which are the last ones."""
        for start in range(len(self), len(rows), BLOCK_ROWS):
            self.index.add(_padded(rows[start : start + BLOCK_ROWS], self.index.d))
            progress(len(self), len(rows))

    def save(self, path: Path) -> str:
        """Write the copy, replacing ``path`` in one step; return its `digest_of`."""
        with replaced(path) as partial:
            faiss.write_index(self.index, str(partial))
            return digest_of(partial)

    @classmethod
    def open(
        cls, path: Path, kind: str, dim: int, digest: str | None = None, *, to_extend: bool = False
    ) -> "Compressed":
        """Read `save`'s file, if it has this ``digest``: a damaged one can make faiss take any amount of
        memory.

        The lists of the kind disk stay there unless ``to_extend``. Raises `UserError` if the file is missing
        or damaged.
        """
        mapped = kind == "disk" and not to_extend
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if mapped else 0
        try:
            if digest not in (None, digest_of(path)):
                raise RuntimeError("another digest")
            index = faiss.read_index(str(path), flags)
        except (RuntimeError, OSError, MemoryError) as error:
            raise UserError(
                f"{path}: this file is missing or damaged. Remove it; sfrs index --kind {kind} then makes it "
                "from the descriptors."
            ) from error
        return cls(kind, index, dim)

    def candidates(self, queries: np.ndarray, k: int, live: np.ndarray) -> np.ndarray:
        """Name the rows to compare exactly, int64 ``[m, c]``, -1 for none; at least k that are ``live``."""
        queries, kind = _padded(queries, self.index.d), self.kind
        wanted, probed = max(kind.candidates, round(kind.share * len(self)), 4 * k), kind.probed
        enough = min(k, int(live.sum()))
        while True:
            wanted, probed = min(wanted, len(self)), min(probed, 1.0)
            if kind.lists:
                self.index.nprobe = math.ceil(probed * self.index.nlist)
            found = self.index.search(queries, wanted)[1]
            if found.max(initial=-1) >= len(live):
                raise ValueError("the compressed copy names rows that are not there")
            found[(found >= 0) & ~live[found]] = -1
            # Where all candidates of a query have been removed, or its lists are short, look further.
            if ((found >= 0).sum(axis=1) >= enough).all() or (wanted == len(self) and probed == 1.0):
                return found
            wanted, probed = 2 * wanted, 2 * probed


def digest_of(path: Path) -> str:
    """SHA-256 of a file's length and its first HEAD bytes."""
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(HEAD))
    digest.update(f"{path.stat().st_size}".encode())
    return digest.hexdigest()


def _sample(rows: np.ndarray, count: int, dim: int) -> np.ndarray:
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64))
    return _padded(rows[chosen], dim)


def _padded(rows: np.ndarray, dim: int) -> np.ndarray:
    # By torch, which makes float32 of float16 five times as fast as numpy.
    padded = torch.zeros(len(rows), dim)
    padded[:, : rows.shape[1]] = torch.from_numpy(rows)
    return padded.numpy()
