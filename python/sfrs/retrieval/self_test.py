"""What an index knows of its own photographs: each of a sample is located among the others.

Photographs of the same moment are left out, see `sfrs.retrieval.near_duplicates`. Pictures of nowhere
are shown to it as well. What comes of it calibrates the confidence of answers and says whether re-ranking
helps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sfrs.data.coordinates import metres_between, within
from sfrs.retrieval.confidence import (
    LEAST_SIMILAR,
    REFUSED_OWN,
    SOFTNESS,
    Calibration,
    fit,
    prior_log_odds,
    probability_own,
    sameness,
)
from sfrs.retrieval.coverage import FAR, gaps
from sfrs.retrieval.location import RADIUS, locate_weighed
from sfrs.retrieval.matches import Matches, WeighedMatches, weigh_matches
from sfrs.retrieval.near_duplicates import NearDuplicates
from sfrs.retrieval.recall import mcnemar
from sfrs.retrieval.region_rerank import DEPTH
from sfrs.retrieval.strangers import strangers
from sfrs.retrieval.tested import Answer, SelfTest, Way
from sfrs.runtime.progress import Progress, Tasks, quiet

if TYPE_CHECKING:
    from sfrs.retrieval.index import Index

SAMPLE = 400
"""Photographs that are located: the share that is found is then known to 2.5 points."""

RERANKED = 100
"""Those of them that are re-ranked as well."""

DESCRIBED = 32
"""Photographs that are described again for what their quarters show, where an index keeps no regions."""

SPARE = 50
"""Matches that are looked at beyond those re-ranked, for photographs of one moment among them."""

COMPARED = 64
"""Neighbours in space of which it is asked whether they are of the same moment, at most."""

FEWEST = 10
"""Photographs with a position below which there is nothing to test."""

SURE, AGREEING = 0.8, 5
"""Confidence and matches from which on an answer far off doubts what a photograph says of its position."""

SIGNIFICANT = 0.05
"""p of the gain by re-ranking below which it is recommended."""


def self_test(index: "Index", *, sample: int = SAMPLE, seed: int = 0, tasks: Tasks | None = None) -> SelfTest:
    """Locate a sample of an index's photographs among the others, and pictures of nowhere.

    Args:
        sample: photographs that are located; the same ones for equal seeds.
        tasks: opens a progress display.
    """
    placed = np.flatnonzero(np.isfinite(index.positions).all(axis=1))
    test = SelfTest(index.generation, index.fingerprint, len(index), len(placed))
    if len(placed) < FEWEST:
        return test
    rows = np.sort(np.random.default_rng(seed).permutation(placed)[:sample])
    matches, answerable = leave_one_out(index, rows, (tasks or quiet)("self-test"))
    own = Shown(matches, own_sameness(index, rows))
    pictures = strangers()
    quarters = np.empty((len(pictures), *index.model.quarters_shape), np.float16)
    found = zip(*index.search(index.model.encode(pictures, quarters=quarters), DEPTH), strict=True)
    foreign = Shown([Matches.searched(*one) for one in found], sameness(torch.from_numpy(quarters)))
    search, answers = examine(index, "search", Asked(rows, answerable, own), foreign)
    ways = {"search": search}
    if index.has_regions:
        part = np.linspace(0, len(rows) - 1, min(RERANKED, len(rows))).astype(int)
        asked = Asked(
            rows[part], answerable[part], own.part(part).reranked(index, index.quarters(rows[part]))
        )
        way, others = examine(index, "regions", asked, foreign.reranked(index, torch.from_numpy(quarters)))
        ways["regions"] = compared(way, others, answers)
    doubted = [
        str(index.files[a.row])
        for a in answers
        if a.agreeing >= AGREEING and a.confidence >= SURE and a.off > FAR
    ]
    weak = gaps(index, answers)
    return replace(test, tested=len(rows), ways=ways, answers=answers, disagreeing=doubted, gaps=weak)


@dataclass(frozen=True)
class Shown:
    """Pictures shown to an index: the matches of each, and how alike its quarters are, nan if not known."""

    matches: list[Matches]
    sameness: np.ndarray

    def part(self, which: np.ndarray) -> "Shown":
        return Shown([self.matches[i] for i in which], self.sameness[which])

    def reranked(self, index: "Index", quarters: Tensor) -> "Shown":
        ordered = [m.reranked(index, q[None].float()) for m, q in zip(self.matches, quarters, strict=True)]
        return replace(self, matches=ordered)

    def weighed(self, index: "Index", calibration: Calibration) -> list[WeighedMatches | None]:
        shown = zip(self.matches, self.sameness.tolist(), strict=True)
        return [weigh_matches(index, matches, calibration, same) for matches, same in shown]

    def level(self) -> float:
        """Median score of the best match."""
        return float(np.median([matches.scores[0] for matches in self.matches]))


@dataclass(frozen=True)
class Asked:
    """Photographs of an index, and whether another photograph of their place is among the others."""

    rows: np.ndarray
    answerable: np.ndarray
    shown: Shown


def leave_one_out(index: "Index", rows: np.ndarray, progress: Progress) -> tuple[list[Matches], np.ndarray]:
    """Search for photographs of an index among the others, without those of the same moment.

    Args:
        rows: with a position, int64 ``[m]``.

    Returns:
        (the matches of each; whether another photograph of its place is among the others, bool ``[m]``).
    """
    placed = np.flatnonzero(np.isfinite(index.positions).all(axis=1))
    near = within(index.positions[rows], index.positions[placed], RADIUS)
    duplicates = NearDuplicates(index)
    similarities, found = index.search(index.descriptors(rows), 1 + DEPTH + SPARE)
    left, answerable = [], np.zeros(len(rows), bool)
    for i, row in enumerate(rows.tolist()):
        matches = Matches.searched(similarities[i], found[i])
        known = dict(zip(matches.rows.tolist(), matches.similarities.tolist(), strict=True))
        here = placed[near[i]]
        here = here[here != row]
        here = here[np.argsort(~np.isin(here, matches.rows), kind="stable")][:COMPARED]
        moment = duplicates.of(row, here, np.array([known.get(other, -np.inf) for other in here.tolist()]))
        left.append(matches.without([row, *here[moment]]))
        answerable[i] = not moment.all()
        progress(i + 1, len(rows))
    return left, answerable


def own_sameness(index: "Index", rows: np.ndarray) -> np.ndarray:
    """Compute how alike the quarters of photographs are, ``[m]``; nan where that would take too long.

    Where the index keeps no regions, some photographs are described again; those whose files are gone are
    passed over.
    """
    values = np.full(len(rows), np.nan)
    step = 1 if index.has_regions else max(1, len(rows) // DESCRIBED)
    for i in range(0, len(rows), step):
        if index.has_regions or index.files[rows[i]].is_file():
            values[i] = sameness(index.quarters(rows[[i]]))[0]
    return values


def own_background(index: "Index", rows: np.ndarray) -> float:
    """Mean similarity of any two of an index's photographs."""
    descriptors = index.descriptors(rows[:COMPARED])
    count = len(descriptors)
    total = float(np.square(descriptors.sum(axis=0)).sum())
    return (total - count) / (count * (count - 1))


def examine(index: "Index", way: str, asked: Asked, foreign: Shown) -> tuple[Way, list[Answer]]:
    """Calibrate one way of searching, "search" or "regions", by its answers to the index's photographs.

    Returns:
        (how good the way is; the answers, but for photographs whose matches all have no position).
    """
    background = own_background(index, asked.rows)
    similar = np.median([matches.similarities.max() for matches in foreign.matches])
    beyond = max(1 - background / float(similar), LEAST_SIMILAR)  # of a similarity, what any two have not
    temperature = SOFTNESS[way] * max(foreign.level() * beyond, LEAST_SIMILAR)
    known = np.isfinite(asked.shown.sameness)
    usual = float(np.median(asked.shown.sameness[known])) if known.any() else None
    calibration = Calibration(temperature, background, usual_sameness=usual)
    weighed = asked.shown.weighed(index, calibration)
    tried = [
        Tried.of(index, row, answerable, certain, found)
        for row, answerable, certain, found in zip(asked.rows, asked.answerable, known, weighed, strict=True)
        if found is not None
    ]
    counted = [one for one in tried if one.answerable]
    odds = np.array([prior_log_odds(one.found.evidence, way) for one in counted])
    slope, intercept = fit(odds, np.array([one.off <= RADIUS for one in counted]))
    calibration = replace(calibration, slope=slope, intercept=intercept)
    own = [probability_own(one.found.evidence, one.answerable) for one in tried if one.known or usual is None]
    calibration = calibration.lowered(float(np.quantile(own, REFUSED_OWN))) if own else calibration
    answers = [one.answer(calibration.confidence(one.found.evidence, way)) for one in tried]
    hits = [answer.right for answer in answers if answer.answerable]
    strange = foreign.weighed(index, calibration)
    refused = sum(one is None or not calibration.knows(one.evidence) for one in strange)
    found = sum(hits) / len(hits) if hits else None
    return Way(calibration, found, len(hits), refused, len(strange)), answers


@dataclass(frozen=True)
class Tried:
    """What was found for one photograph of the index, and how far off that is in metres."""

    row: int
    answerable: bool
    known: bool  # how alike its quarters are
    found: WeighedMatches
    off: float

    @classmethod
    def of(cls, index: "Index", row: int, answerable: bool, known: bool, found: WeighedMatches) -> "Tried":
        place = locate_weighed(found.weighed, found.positions, "")
        off = float(metres_between((place.easting, place.northing), index.positions[row]))
        return cls(int(row), bool(answerable), bool(known), found, off)

    def answer(self, confidence: float) -> Answer:
        return Answer(
            row=self.row,
            match=self.found.best,
            off=round(self.off, 2),
            confidence=round(confidence, 4),
            agreeing=int(self.found.weighed.near.sum()),
            right=self.off <= RADIUS,
            answerable=self.answerable,
        )


def compared(way: Way, answers: Sequence[Answer], searched: Sequence[Answer]) -> Way:
    """Say whether a way finds more of the same photographs than the search alone."""
    by_search = {answer.row: answer.right for answer in searched}
    pairs = [(a.right, by_search[a.row]) for a in answers if a.answerable and a.row in by_search]
    if not pairs:
        return way
    paired = mcnemar(*np.array(pairs).T)
    helps = paired.difference > 0 and paired.p_value < SIGNIFICANT
    return replace(way, gain=paired.difference, p_value=paired.p_value, recommended=helps)
