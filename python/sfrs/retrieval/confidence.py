"""How likely an answer is right, and whether the place is in the index at all.

What speaks for an answer is weighed by numbers that ``python -m benchmarks.confidence`` fits to several
sets (`RIGHT`, `KNOWN`), and moved towards what the index's self-test finds of its own
photographs: `fit`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from sfrs.data.coordinates import metres_between
from sfrs.retrieval.location import RADIUS, Weighed
from sfrs_ext.reference import region_descriptors

SOFTNESS = {"search": 0.18, "regions": 0.07}
"""Temperature of the weights, of the similarity of pictures of nowhere beyond that of any two images."""

RIGHT = {"search": (-2.243, 0.265, 0.892, 0.916), "regions": (-1.981, 0.261, 0.77, 0.921)}
"""Log odds of a right answer: constant, then by distinctness, share and count of the evidence."""

KNOWN = (5.661, 1.167, -8.82)
"""Log odds of a place in the index rather than elsewhere: constant, then by share and sameness."""

LEAST_KNOWN = 0.886
"""Probability of a place in the index below which an answer is refused, unless `fit` lowers it."""

REFUSED_OWN = 0.05  # share of its own photographs that an index may refuse at most
WEAK_SHARE = 0.864
"""Log odds of the share that nine of ten right answers of the search reach, see `probability_own`."""

SLOPE_MOVES, INTERCEPT_MOVES = 0.3, 0.5  # standard deviations of what an index may change: the prior of `fit`
COUNTED = 100.0
"""Photographs that a self-test counts as at most against that prior: queries are not like them."""

LEAST_SIMILAR = 1e-3  # similarities below are as good as none, so that their logarithms stay finite


@dataclass(frozen=True)
class Evidence:
    """What speaks for one answer, in numbers without a unit, which mean the same in every index."""

    # Log of the best match's similarity to the photograph over its similarity to images elsewhere: a match
    # that resembles other places more says little.
    distinctness: float
    share: float  # log odds of the share of the matches' weight that is near the position
    count: float  # log of the number of matches near the position
    sameness: float = 0.0  # log of `sameness` of the photograph over what is usual; 0 if not known


@dataclass(frozen=True)
class Calibration:
    """From evidence to probabilities, for the answers of one index by one way of searching."""

    temperature: float  # of the weights of matches
    background: float = 0.0  # similarity of any two of the index's images
    slope: float = 1.0  # of the log odds by `RIGHT`
    intercept: float = 0.0
    least_known: float = LEAST_KNOWN  # probability of a place in the index below which it is refused
    usual_sameness: float | None = None  # median `sameness` of the index's own photographs, if known

    def confidence(self, evidence: Evidence, way: str) -> float:
        """Probability that the position is right; of a place that is not in the index, of both."""
        right = float(expit(self.slope * prior_log_odds(evidence, way) + self.intercept))
        known = probability_known(evidence)
        return right if known >= self.least_known else right * known

    def lowered(self, least_known: float) -> "Calibration":
        """Return the calibration that refuses less, if ``least_known`` is lower."""
        return replace(self, least_known=min(self.least_known, least_known))

    def knows(self, evidence: Evidence) -> bool:
        """Whether the place may be in the index."""
        return probability_known(evidence) >= self.least_known


def evidence(
    weighed: Weighed,
    positions: np.ndarray,
    similarities: np.ndarray,
    alike: np.ndarray,
    sameness: float = 0.0,
) -> Evidence:
    """Collect what speaks for an answer, from the ``positions`` of all matches, ``[k, 2]``, the
    ``similarities`` of their descriptors with the photograph's, ``[k]``, beyond the background's, and those
    of the weighed matches, at least one, with each other, ``alike`` ``[c, c]``.
    """
    chosen, near = weighed.chosen, weighed.near
    best = int(np.argmax(near))
    far = metres_between(positions[chosen], positions[chosen[best]]) > RADIUS
    similarity = max(float(similarities[chosen][best]), LEAST_SIMILAR)
    other = max(float(alike[best][far].max()), similarity / 5) if far.any() else similarity
    share = min(max(weighed.share, 0.02), 0.98)
    return Evidence(
        distinctness=math.log(similarity / other),
        share=math.log(share / (1 - share)),
        count=math.log(near.sum()),
        sameness=sameness,
    )


@torch.no_grad()
def sameness(quarters: Tensor) -> np.ndarray:
    """Return how alike the four quarters ``[B, 4, K, D]`` of each image are, mean similarity in -1..1,
    ``[B]``.

    Clusters made from a collection tell the things in its photographs apart. What they were not made for, a
    wall, noise, or another town, falls into a few of them, in all four quarters alike.
    """
    parts = region_descriptors(quarters.float())[:, -4:].flatten(2)  # [B, 4, K * D]
    return ((parts @ parts.transpose(1, 2)).sum(dim=(1, 2)) - 4).div(12).cpu().numpy()


def relative_sameness(value: float, usual: float | None) -> float:
    """Log of `sameness` over what is usual, as in `Evidence`; ``value`` may be nan."""
    if usual is None or math.isnan(value):
        return 0.0
    return min(max(math.log(max(value, LEAST_SIMILAR) / max(usual, LEAST_SIMILAR)), -1.0), 2.5)


def prior_log_odds(evidence: Evidence, way: str) -> float:
    """Log odds of a right answer, for an index of which nothing is known."""
    constant, *weights = RIGHT[way]
    found = (evidence.distinctness, evidence.share, evidence.count)
    return constant + sum(w * x for w, x in zip(weights, found, strict=True))


def probability_known(evidence: Evidence) -> float:
    """Probability that a place is one of the index, rather than of another town or none."""
    constant, share, sameness = KNOWN
    return float(expit(constant + share * evidence.share + sameness * evidence.sameness))


def probability_own(evidence: Evidence, answerable: bool) -> float:
    """Compute `probability_known` of an index's own photograph, shown to the others.

    Without another of its place among them its share says nothing of what a query there would have, and
    counts as that of a weak right answer at least.
    """
    share = evidence.share if answerable else max(evidence.share, WEAK_SHARE)
    return probability_known(replace(evidence, share=share))


def fit(log_odds: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Fit (slope, intercept) of log odds ``[m]`` to what turned out right, bool ``[m]``.

    Most probable values (Platt 1999, with a prior): normal around 1 and 0. All photographs together count
    as `COUNTED` at most.
    """
    if len(right) == 0:
        return 1.0, 0.0
    each = min(1.0, COUNTED / len(right))

    def loss(line: np.ndarray) -> float:
        odds = line[0] * log_odds + line[1]
        surprise = (np.logaddexp(0, odds) - right * odds).sum()
        prior = ((line[0] - 1) / SLOPE_MOVES) ** 2 + (line[1] / INTERCEPT_MOVES) ** 2
        return each * surprise + prior / 2

    slope, intercept = minimize(loss, (1.0, 0.0), method="L-BFGS-B").x
    return float(slope), float(intercept)
