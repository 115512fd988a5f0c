"""Photographs of one moment: a self-test that found them for each other would flatter the index."""

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfrs.data.photos import time_of

if TYPE_CHECKING:
    from sfrs.retrieval.index import Index

SECONDS = 30.0  # photographs taken within so long of each other are of one moment
COPY = 0.999  # similarity from which on two photographs are copies of one


class NearDuplicates:
    """Says which photographs of an index are of the same moment as another.

    By the time in their names or their EXIF, within `SECONDS`. Where one of the two carries no time,
    by their names: the frame before and after in one folder, whose names differ by one in one number. And
    copies, by their descriptors.
    """

    def __init__(self, index: "Index") -> None:
        self._files = index.files
        self._times: dict[int, datetime | None] = {}

    def of(self, row: int, others: np.ndarray, similarities: np.ndarray) -> np.ndarray:
        """Return which of ``others``, rows ``[n]``, show the moment of ``row``; bool ``[n]``.

        ``similarities`` are those of their descriptors; -inf where not known.
        """
        return np.array(
            [
                similarity >= COPY or self._one_moment(row, int(other))
                for other, similarity in zip(others, similarities, strict=True)
            ],
            dtype=bool,
        )

    def _one_moment(self, row: int, other: int) -> bool:
        one, two = self._time(row), self._time(other)
        if one is None or two is None:
            return consecutive(self._files[row], self._files[other])
        if one.tzinfo is None or two.tzinfo is None:  # one clock of the two is local: of one camera, both are
            one, two = one.replace(tzinfo=None), two.replace(tzinfo=None)
        return abs((one - two).total_seconds()) <= SECONDS

    def _time(self, row: int) -> datetime | None:
        if row not in self._times:
            self._times[row] = time_of(self._files[row])
        return self._times[row]


def consecutive(one: Path, other: Path) -> bool:
    """Return whether two files are one frame and the next: their names differ by one in one number."""
    if one.parent != other.parent:
        return False
    first, second = (re.split(r"(\d+)", _without_position(file.stem)) for file in (one, other))
    if len(first) != len(second):
        return False
    different = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    return (
        len(different) == 1
        and all(part.isdecimal() for part in different[0])
        and abs(int(different[0][0]) - int(different[0][1])) == 1
    )


def _without_position(name: str) -> str:
    """Drop easting and northing of a name ``@easting@northing@...``: they differ from frame to frame."""
    return name.split("@", 3)[-1] if name.startswith("@") else name
