"""Image sets with positions, and how readers make them of the rows that formats list."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfrs.data.coordinates import eastward_shifts, metres_between, nearest


class CoordinatesWarning(UserWarning):
    """The coordinates can be read but hardly mean metres."""


@dataclass(frozen=True)
class ImageSet:
    """Images and where they were taken.

    Attributes:
        files: n paths.
        positions: float64 ``[n, 2]``, easting and northing in metres; nan where nothing is known.
        place_ids: int64 ``[n]``; images of one panorama share one id (see `number_places`).
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
        stamps = self.time_stamps
        if stamps is not None and stamps.shape != (n,):
            raise ValueError(f"ImageSet: {n} files, but time_stamps {stamps.shape}; expected ({n},)")

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, keep: np.ndarray) -> "ImageSet":
        """Return the images at ``keep`` (indices or a boolean mask ``[n]``), in that order."""
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
    """One split of a data set: queries to be located among the images of a database.

    Attributes:
        unit: of positions and distances between them: "m", or "frames" of sets that are aligned by frame.
        zone: system of the positions (`sfrs.data.coordinates`); "" where it is not known.
    """

    name: str
    split: str
    database: ImageSet
    queries: ImageSet
    unit: str = "m"
    zone: str = ""

    def metres(self, queries: Any, database: Any) -> np.ndarray:
        """Return how far queries are from database images (rows, broadcast)."""
        return metres_between(self.queries.positions[queries], self.database.positions[database], self.zone)


class Shot(NamedTuple):
    """One image as a data set lists it; a text that its format does not know is ""."""

    file: Path
    easting: float
    northing: float
    panorama: str = ""
    condition: str = ""
    time_stamp: str = ""


Shots = dict[str, list[Shot]]  # the images of the roles "database" and "queries"


def make_places(name: str, split: str, shots: Shots, unit: str = "m", zone: str = "") -> Places:
    """Build `Places` in the order of the rows; warns (`CoordinatesWarning`) of degrees."""
    panoramas: dict[tuple, int] = {}
    stamps: dict[str, int] = {}
    sets = {}
    for role in ("database", "queries"):
        rows = shots[role]
        conditions = tuple(shot.condition for shot in rows)
        numbers = [stamps.setdefault(shot.time_stamp, len(stamps)) for shot in rows]
        sets[role] = ImageSet(
            tuple(shot.file for shot in rows),
            positions_of(rows),
            number_places(role, rows, panoramas),
            conditions if any(conditions) else (),
            np.array(numbers, dtype=np.int64) if any(shot.time_stamp for shot in rows) else None,
        )
    _warn_if_degrees(name, sets["database"].positions)
    return Places(name, split, **sets, unit=unit, zone=zone)


def number_places(role: str, shots: Sequence[Shot], numbers: dict[tuple, int]) -> np.ndarray:
    """Number the panoramas the images were cut from, int64 ``[n]``.

    Two images share an id if they were taken at one position and carry the same panorama id, or none.
    A query shares an id with a database image only if both name the panorama: standing at the same spot
    on another day is no reason to exclude an image from the positives, being the same recording is. Ids given
    so far are ``numbers``, extended in place, so that database and queries are numbered together.
    """
    keys = [(shot.easting, shot.northing, shot.panorama or f"({role})") for shot in shots]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def join_cities(cities: dict[str, Shots]) -> Shots:
    """Put the images of several cities together, those that overlap moved apart (`eastward_shifts`)."""
    shifts = eastward_shifts(
        {name: positions_of(shots["database"] + shots["queries"]) for name, shots in cities.items()}
    )
    return {
        role: [s._replace(easting=s.easting + shifts[name]) for name in cities for s in cities[name][role]]
        for role in ("database", "queries")
    }


def positions_of(shots: Sequence[Shot]) -> np.ndarray:
    return np.array([shot[1:3] for shot in shots], dtype=np.float64).reshape(-1, 2)


def _warn_if_degrees(name: str, positions: np.ndarray) -> None:
    # Neighbouring photographs lie metres apart, which is 1e-5 to 1e-3 in degrees: with those every image
    # would be within 25 "metres" of every query and every recall 100 %.
    distinct = np.unique(positions[np.isfinite(positions).all(axis=1)], axis=0)
    if len(distinct) < 2 or np.abs(distinct).max() > 180:
        return
    apart = np.median(nearest(distinct, distinct, rank=2))
    if apart < 0.01:
        warnings.warn(
            f"{name}: the coordinates look like degrees (first: {positions[0, 0]:g}, {positions[0, 1]:g}; "
            f"neighbours {apart:.1g} apart). Expected easting and northing in metres (UTM): "
            "with degrees every database image counts as right.",
            CoordinatesWarning,
            stacklevel=4,
        )
