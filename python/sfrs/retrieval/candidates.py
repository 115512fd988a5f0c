"""What a search found for one photograph, and its order anew by regions."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sfrs.data.images import BadImageError, check_images
from sfrs.retrieval.index import Index
from sfrs.retrieval.location import CONSIDERED, REGION_TEMPERATURE, TEMPERATURE
from sfrs.retrieval.quarters import RememberedQuarters
from sfrs.retrieval.region_rerank import rerank
from sfrs.runtime.errors import UserError


@dataclass(frozen=True)
class Candidates:
    """Rows of an index, best first, and what they are ordered by; C of them.

    Attributes:
        rows: int64 ``[C]``.
        similarities: float32 ``[C]``, falling: of descriptors, or scores of re-ranking.
        temperature: of the weights of these similarities, see :func:`sfrs.retrieval.location.estimate`.
        pairs: after re-ranking int64 ``[C, 2]``: regions of the photograph and of the image that match best.
        left_out: rows that re-ranking could not compare, because their files cannot be read any more.
    """

    rows: np.ndarray
    similarities: np.ndarray
    temperature: float = TEMPERATURE
    pairs: np.ndarray | None = None
    left_out: tuple[int, ...] = ()


def reranked_depth(depth: int, top: int) -> int:
    """How many candidates to order anew: those shown and those weighed need a score as well."""
    return max(depth, top, CONSIDERED)


class RegionOrder:
    """Orders candidates anew by how their regions match the photograph's.

    Where the index keeps no regions, they are computed from the images' files. What cannot be read any more
    is left out: it has no score to be compared by.
    """

    def __init__(self, index: Index, depth: int, score: str):
        self.index, self.depth, self.score = index, depth, score
        self._quarters = index.quarters if index.has_regions else RememberedQuarters(index.quarters)
        self._unreadable: set[int] = set()

    def __call__(self, query: Tensor, candidates: Candidates) -> Candidates:
        """The first :attr:`depth` alone: what lies behind them has no score to be compared by.

        Args:
            query: quarter VLADs of the photograph, float32 ``[1, 4, K, D]``.

        Raises:
            UserError: none of the files of the candidates can be read any more.
        """
        first = candidates.rows[: self.depth]
        while True:
            readable = ~np.isin(first, list(self._unreadable))
            if len(first) and not readable.any():
                raise UserError(
                    f"{self.index.path}: none of the {len(first)} images to re-rank can be read any more, as "
                    f"{self.index.files[first[0]]}. An index built with --regions re-ranks without the files."
                )
            try:
                found = rerank(query, first[readable], self._quarters, self.score)
            except BadImageError:
                if not self._find_unreadable(first[readable]):
                    raise
                continue
            left_out = tuple(first[~readable].tolist())
            return Candidates(found.rows, found.scores, REGION_TEMPERATURE, found.pairs, left_out)

    def _find_unreadable(self, rows: np.ndarray) -> bool:
        """Remember which of the rows cannot be read; whether there are any."""
        files = [self.index.files[row] for row in rows]
        bad = {file for file, _ in check_images(files)}
        self._unreadable.update(int(row) for row, file in zip(rows, files, strict=True) if file in bad)
        return bool(bad)
