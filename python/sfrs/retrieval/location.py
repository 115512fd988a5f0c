"""From the positions of similar images to one position, and how far it can be trusted."""

import math
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from sfrs.data.coordinates import in_own_zone, metres_between, to_degrees

RADIUS = 25.0  # metres around an image within which others show the same place
CONSIDERED = 20  # matches that are weighed against each other
TEMPERATURE = 0.02  # of the similarities of descriptors: a match this much less similar weighs 1/e of another
REGION_TEMPERATURE = 0.015
"""The same for the scores of re-ranking by regions, which lie closer together.

Both were chosen on the validation quarters of rendered cities, where the confidence then is the share of
right answers; see docs/locate.md.
"""


@dataclass(frozen=True)
class Place:
    """A place: easting and northing in metres, nan if unknown, and degrees, None if unknown.

    Metres are those of the index's system, see `sfrs.data.coordinates`.
    """

    easting: float
    northing: float
    latitude: float | None
    longitude: float | None

    def coordinates(self, system: str = "") -> dict[str, Any]:
        """All four to the centimetre, None where they are not known.

        Of a system of several zones, easting and northing are those of the place's own ``zone``, and ``x``,
        ``y`` those of the system, in which all places can be drawn.
        """
        decimals = {"easting": 2, "northing": 2, "latitude": 7, "longitude": 7}
        found: dict[str, Any] = {
            name: rounded(getattr(self, name), digits) for name, digits in decimals.items()
        }
        if "+" not in system or found["easting"] is None:
            return found
        easting, _, zone = in_own_zone((self.easting, self.northing), system)
        return found | {
            "easting": rounded(easting, 2),
            "zone": zone,
            "x": found["easting"],
            "y": found["northing"],
        }


@dataclass(frozen=True)
class Location(Place):
    """The place where a photograph was taken, with its doubts."""

    confidence: float  # 0..1, how likely this is within `RADIUS`; see `estimate`
    spread: float  # root mean square distance in metres of the images it was made of, weighted as they were


def places(positions: np.ndarray, zone: str) -> list[Place]:
    """The places at easting and northing in metres, ``[n, 2]``; with degrees if the UTM zone is known."""
    positions = np.asarray(positions, np.float64)
    degrees = to_degrees(positions, zone) if zone else np.full_like(positions, np.nan)
    known = np.where(np.isnan(degrees), np.array(None), degrees)
    return [Place(*metres, *both) for metres, both in zip(positions.tolist(), known.tolist(), strict=True)]


@dataclass(frozen=True)
class Weighed:
    """The matches of one query that are weighed against each other, best first."""

    chosen: np.ndarray  # which of the matches, int64 [c]
    weights: np.ndarray  # [c], the best one weighs 1
    near: np.ndarray  # bool [c], those within `RADIUS` of the one around which most weight lies

    @property
    def share(self) -> float:
        """Share of the weight that is near, see `estimate`."""
        return float(self.weights[self.near].sum() / (self.weights.sum() + self.weights[-1]))


def weigh(positions: np.ndarray, similarities: np.ndarray, temperature: float) -> Weighed:
    """Weigh the first `CONSIDERED` matches with a known position, see `estimate`."""
    known = np.flatnonzero(np.isfinite(positions).all(axis=1) & np.isfinite(similarities))
    chosen = known[np.argsort(-similarities[known], kind="stable")][:CONSIDERED]
    if len(chosen) == 0:
        return Weighed(chosen, np.zeros(0), np.zeros(0, bool))
    weights = np.exp((similarities[chosen] - similarities[chosen[0]]) / temperature)
    apart = metres_between(positions[chosen][:, None], positions[chosen])
    return Weighed(chosen, weights, (apart <= RADIUS)[np.argmax((apart <= RADIUS) @ weights)])


def estimate(
    positions: np.ndarray, similarities: np.ndarray, zone: str = "", *, temperature: float = TEMPERATURE
) -> Location:
    """Weigh the matches of one query into a position.

    The first `CONSIDERED` matches with a known position weigh ``w = exp(s / temperature)``. The neighbourhood
    is what lies within `RADIUS` of the match around which most weight lies; the position is the weighted mean
    of the neighbourhood, which one good match far away does not move.

    The confidence is the neighbourhood's share of the weight of all these matches and of one more that nobody
    has looked at, as similar as the last of them: ``sum_near w / (sum_all w + w_last)``. It compares places
    of the database with each other; `sfrs.retrieval.confidence` makes a probability of it and of more.

    Args:
        positions: easting and northing in metres, ``[k, 2]``; nan where an image has none.
        similarities: ``[k]``, of descriptors, or scores of re-ranking.
        zone: UTM zone of the positions, such as "33N"; "" if it is not known.

    Returns:
        The location; without any known position nan and a confidence of 0.
    """
    positions, similarities = np.asarray(positions, np.float64), np.asarray(similarities, np.float64)
    if positions.shape != (*similarities.shape, 2) or similarities.ndim != 1:
        raise ValueError(
            f"estimate: positions are {positions.shape} and similarities {similarities.shape}; "
            "expected [k, 2] and [k]"
        )
    return locate_weighed(weigh(positions, similarities, temperature), positions, zone)


def locate_weighed(weighed: Weighed, positions: np.ndarray, zone: str) -> Location:
    """Return the location that matches at ``positions`` ``[k, 2]`` give, see `estimate`."""
    if len(weighed.chosen) == 0:
        return Location(math.nan, math.nan, None, None, 0.0, math.nan)
    near, weights = positions[weighed.chosen[weighed.near]], weighed.weights[weighed.near]
    centre = np.average(near, axis=0, weights=weights)
    squared = ((near - centre) ** 2).sum(axis=1)
    return Location(
        *astuple(places(centre[None], zone)[0]),
        confidence=weighed.share,
        spread=float(np.sqrt(np.average(squared, weights=weights))),
    )


def rounded(value: float | None, decimals: int) -> float | None:
    """Round for JSON, where None stands for what is not finite."""
    return None if value is None or not math.isfinite(value) else round(value, decimals)
