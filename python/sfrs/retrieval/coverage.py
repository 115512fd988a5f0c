"""Where an index is weak: places that look alike, and places that want more photographs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sfrs.data.coordinates import metres_between
from sfrs.retrieval.location import RADIUS, Place, places

if TYPE_CHECKING:
    from sfrs.retrieval.index import Index
    from sfrs.retrieval.tested import Answer

FAR = 4 * RADIUS  # metres from where a photograph was taken beyond which its best match shows another place
MOST_GAPS = 10
MOST_PAIRS = 100


@dataclass(frozen=True)
class Gap(Place):
    """A place whose photographs are not found by the others: one more would help most here."""

    photos: int  # tested photographs within 50 m of it that have no other within 25 m, or are not found


def gaps(index: "Index", answers: Sequence["Answer"], most: int = MOST_GAPS) -> list[Gap]:
    """Find the places that want photographs, those with the most of them that are not found first.

    A place is the middle of what lies within twice `RADIUS` of a photograph; no two overlap.
    """
    rows = [answer.row for answer in answers if not (answer.answerable and answer.right)]
    left = np.asarray(index.positions[rows], dtype=np.float64).reshape(-1, 2)
    found = []
    while len(left) and len(found) < most:
        near = metres_between(left[:, None], left) <= 2 * RADIUS
        here = near[int(near.sum(axis=1).argmax())]
        place = places(left[here].mean(axis=0)[None], index.zone)[0]
        found.append(Gap(**vars(place), photos=int(here.sum())))
        left = left[~here]
    return found


def look_alikes(index: "Index", answers: Sequence["Answer"], most: int = MOST_PAIRS) -> list[tuple[int, int]]:
    """Return pairs of rows, a photograph and one of another place that it was taken for; the surest first."""
    wrong = [a for a in answers if metres_between(index.positions[a.row], index.positions[a.match]) > FAR]
    wrong.sort(key=lambda answer: -answer.confidence)
    return [(answer.row, answer.match) for answer in wrong[:most]]
