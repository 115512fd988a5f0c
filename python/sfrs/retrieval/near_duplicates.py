"""Photographs of one moment: a self-test that found them for each other would flatter the index."""

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfrs.data.exif import taken
from sfrs.data.images import BadImageError

if TYPE_CHECKING:
    from sfrs.retrieval.index import Index

SECONDS = 30.0
"""Photographs taken within so long of each other are of one moment."""

COPY = 0.999
"""Similarity from which on two photographs are copies of one."""

TIME_FIELD, FULL_FORM_FIELDS = 13, 16
"""The time in a name of the full form, ``@east@north@...@height@YYYYMMDD_hhmmss@note@.jpg``."""


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

        Args:
            similarities: of the descriptors of ``others`` with that of ``row``; -inf where not known.
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


def time_of(file: Path) -> datetime | None:
    """Read when a photograph was taken, by its name or its EXIF; None where neither says it or it is gone."""
    fields = file.name.split("@")
    if len(fields) == FULL_FORM_FIELDS:
        try:
            return datetime.strptime(fields[TIME_FIELD], "%Y%m%d_%H%M%S")
        except ValueError:
            return None
    try:
        return taken(file)
    except BadImageError:
        return None


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
