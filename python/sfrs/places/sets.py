"""What every reader returns: image sets with positions, and lists of neighbours."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from sfrs.errors import UserError


class PlacesError(UserError, ValueError):
    """A data set cannot be read as it stands; the message names the file or column."""


class CoordinatesWarning(UserWarning):
    """The coordinates can be read but hardly mean metres."""


@dataclass(frozen=True)
class ImageSet:
    """Images and where they were taken.

    Attributes:
        files: n paths.
        positions: float64 ``[n, 2]``, easting and northing in metres.
        place_ids: int64 ``[n]``; images of one panorama share one id (see :func:`number_places`).
    """

    files: tuple[Path, ...]
    positions: np.ndarray
    place_ids: np.ndarray

    def __post_init__(self):
        n = len(self.files)
        if self.positions.shape != (n, 2) or self.place_ids.shape != (n,):
            raise ValueError(
                f"ImageSet: {n} files, but positions {self.positions.shape} and place_ids "
                f"{self.place_ids.shape}; expected ({n}, 2) and ({n},)"
            )

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, keep: np.ndarray) -> "ImageSet":
        """The images at ``keep`` (indices or a boolean mask ``[n]``), in that order."""
        rows = np.arange(len(self))[keep]
        return ImageSet(tuple(self.files[i] for i in rows), self.positions[rows], self.place_ids[rows])


@dataclass(frozen=True)
class Places:
    """One split of a data set: queries to be located among the images of a database."""

    name: str
    split: str
    database: ImageSet
    queries: ImageSet


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths in compressed rows.

    Attributes:
        values: int64 ``[nnz]``, all lists one after the other.
        offsets: int64 ``[n + 1]``; list ``i`` is ``values[offsets[i]:offsets[i + 1]]``.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> "Ragged":
        counts = np.fromiter((len(items) for items in lists), np.int64, len(lists))
        offsets = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
        values = np.fromiter((item for items in lists for item in items), np.int64, int(offsets[-1]))
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        if not -len(self) <= i < len(self):
            raise IndexError(f"list {i} of {len(self)}")
        i %= len(self)
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def counts(self) -> np.ndarray:
        """Length of every list, int64 ``[n]``."""
        return np.diff(self.offsets)

    def rows(self) -> np.ndarray:
        """For every value the list it belongs to, int64 ``[nnz]``."""
        return np.repeat(np.arange(len(self)), self.counts())


def within(queries: np.ndarray, database: np.ndarray, radius: float) -> Ragged:
    """For each query the indices of the database positions at most ``radius`` metres away, ascending.

    Args:
        queries: ``[m, 2]`` in metres.
        database: ``[n, 2]`` in metres.
        radius: metres, inclusive.
    """
    if len(queries) == 0 or len(database) == 0:
        return Ragged(np.zeros(0, np.int64), np.zeros(len(queries) + 1, np.int64))
    return Ragged.from_lists(cKDTree(database).query_ball_point(queries, radius, return_sorted=True))


def make_places(
    name: str,
    split: str,
    database: Sequence[tuple[Path, float, float, str]],
    queries: Sequence[tuple[Path, float, float, str]],
) -> Places:
    """Build :class:`Places` from rows (file, easting, northing, panorama id or ""), in the rows' order.

    Warns:
        CoordinatesWarning: the coordinates look like degrees.
    """
    numbers: dict[tuple, int] = {}
    sets = []
    for role, rows in (("database", database), ("queries", queries)):
        positions = np.array([row[1:3] for row in rows], dtype=np.float64).reshape(-1, 2)
        sets.append(ImageSet(tuple(row[0] for row in rows), positions, number_places(role, rows, numbers)))
    _warn_if_degrees(name, sets[0].positions)
    return Places(name, split, *sets)


def number_places(
    role: str, rows: Sequence[tuple[Path, float, float, str]], numbers: dict[tuple, int]
) -> np.ndarray:
    """Number the panoramas the images were cut from, int64 ``[n]``.

    Two images share an id if they were taken at one position and carry the same panorama id, or none.
    A query shares an id with a database image only if both name the panorama: standing at the same spot
    on another day is no reason to exclude an image from the positives, being the same recording is.

    Args:
        numbers: ids given so far, extended in place, so that database and queries are numbered together.
    """
    keys = [(easting, northing, panorama or f"({role})") for _, easting, northing, panorama in rows]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _warn_if_degrees(name: str, positions: np.ndarray) -> None:
    # Neighbouring photographs lie metres apart, which is 1e-5 to 1e-3 in degrees: with those every image
    # would be within 25 "metres" of every query and every recall 100 %.
    distinct = np.unique(positions, axis=0)
    if len(distinct) < 2 or np.abs(distinct).max() > 180:
        return
    nearest = cKDTree(distinct).query(distinct, k=2)[0][:, 1]
    if np.median(nearest) < 0.01:
        warnings.warn(
            f"{name}: the coordinates look like degrees (first: {positions[0, 0]:g}, {positions[0, 1]:g}; "
            f"neighbours {np.median(nearest):.1g} apart). Expected easting and northing in metres (UTM): "
            "with degrees every database image counts as right.",
            CoordinatesWarning,
            stacklevel=4,
        )
