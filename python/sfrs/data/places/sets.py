"""What every reader returns: image sets with positions, and lists of neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from sfrs.runtime.errors import UserError


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
        place_ids: int64 ``[n]``; images of one panorama share one id (see
            :func:`sfrs.data.places.assembly.number_places`).
        conditions: n names of what they were taken under, such as "night", or none where it is not known.
        time_stamps: int64 ``[n]``, or None. Images of equal time stamps are no answer to each other: where a
            data set makes its queries of the database (Tokyo Time Machine), those are the same recording.
    """

    files: tuple[Path, ...]
    positions: np.ndarray
    place_ids: np.ndarray
    conditions: tuple[str, ...] = ()
    time_stamps: np.ndarray | None = None

    def __post_init__(self):
        n = len(self.files)
        if self.positions.shape != (n, 2) or self.place_ids.shape != (n,):
            raise ValueError(
                f"ImageSet: {n} files, but positions {self.positions.shape} and place_ids "
                f"{self.place_ids.shape}; expected ({n}, 2) and ({n},)"
            )
        if len(self.conditions) not in (0, n):
            raise ValueError(f"ImageSet: {n} files, but {len(self.conditions)} conditions; expected {n} or 0")
        if self.time_stamps is not None and self.time_stamps.shape != (n,):
            raise ValueError(
                f"ImageSet: {n} files, but time_stamps {self.time_stamps.shape}; expected ({n},)"
            )

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, keep: np.ndarray) -> "ImageSet":
        """The images at ``keep`` (indices or a boolean mask ``[n]``), in that order."""
        rows = np.arange(len(self))[keep]
        return ImageSet(
            tuple(self.files[i] for i in rows),
            self.positions[rows],
            self.place_ids[rows],
            tuple(self.conditions[i] for i in rows) if self.conditions else (),
            None if self.time_stamps is None else self.time_stamps[rows],
        )


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

    def keep(self, mask: np.ndarray) -> "Ragged":
        """The same lists with the values at ``mask`` (bool ``[nnz]``) only."""
        counts = np.bincount(self.rows()[mask], minlength=len(self))
        return Ragged(self.values[mask], np.concatenate(([0], np.cumsum(counts))))

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
