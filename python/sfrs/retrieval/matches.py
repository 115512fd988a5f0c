"""The matches of one photograph in an index, and what they are worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from sfrs.retrieval.confidence import Calibration, Evidence, evidence, relative_sameness
from sfrs.retrieval.location import Weighed, weigh
from sfrs.retrieval.region_rerank import DEPTH, rerank

if TYPE_CHECKING:
    from sfrs.retrieval.index import Index


@dataclass(frozen=True)
class Matches:
    """Matches of one photograph, best first."""

    rows: np.ndarray  # of the index, int64 [k]
    scores: np.ndarray  # what they are ordered by, float32 [k]
    similarities: np.ndarray  # of the descriptors, [k]: the scores, unless they are re-ranked

    @classmethod
    def searched(cls, similarities: np.ndarray, rows: np.ndarray) -> "Matches":
        """Take what `sfrs.retrieval.index.Index.search` found for one descriptor."""
        there = rows >= 0
        return cls(rows[there], similarities[there], similarities[there])

    def without(self, rows: Sequence[int]) -> "Matches":
        kept = ~np.isin(self.rows, rows)
        return Matches(self.rows[kept], self.scores[kept], self.similarities[kept])

    def ordered(self, rows: np.ndarray, scores: np.ndarray) -> "Matches":
        """Order the matches ``rows`` by other scores, which fall."""
        place = {row: i for i, row in enumerate(self.rows.tolist())}
        return Matches(rows, scores, self.similarities[[place[row] for row in rows.tolist()]])

    def reranked(self, index: "Index", quarters: Tensor) -> "Matches":
        """Order the first ones by regions, given the photograph's quarter VLADs ``[1, 4, K, D]``."""
        found = rerank(quarters, self.rows[:DEPTH], index.quarters)
        return self.ordered(found.rows, found.scores)


@dataclass(frozen=True)
class WeighedMatches:
    """Matches weighed against each other, where they were taken, and what they say together."""

    weighed: Weighed
    positions: np.ndarray  # of all matches, float64 [k, 2]
    evidence: Evidence
    best: int  # row of the best match near the position


def weigh_matches(
    index: "Index", matches: Matches, calibration: Calibration, sameness: float = float("nan")
) -> WeighedMatches | None:
    """Weigh matches of a photograph whose quarters are so alike; None where no match has a position."""
    positions = np.asarray(index.positions[matches.rows], dtype=np.float64)
    weighed = weigh(positions, matches.scores, calibration.temperature)
    if not len(weighed.chosen):
        return None
    descriptors = index.descriptors(matches.rows[weighed.chosen])
    alike = descriptors @ descriptors.T - calibration.background
    similarities = matches.similarities - calibration.background
    relative = relative_sameness(sameness, calibration.usual_sameness)
    found = evidence(weighed, positions, similarities, alike, relative)
    best = matches.rows[weighed.chosen[np.argmax(weighed.near)]]
    return WeighedMatches(weighed, positions, found, int(best))
