"""From rows of images, as the formats list them, to :class:`sfrs.data.places.Places`."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from sfrs.data.places.sets import CoordinatesWarning, ImageSet, Places


class Shot(NamedTuple):
    """One image as a data set lists it; what its format does not know is "".

    Attributes:
        easting, northing: metres.
        panorama: names the recording it was cut from.
        condition: what it was taken under, such as "night".
        time_stamp: see :class:`sfrs.data.places.ImageSet`.
    """

    file: Path
    easting: float
    northing: float
    panorama: str = ""
    condition: str = ""
    time_stamp: str = ""


def make_places(name: str, split: str, database: Sequence[Shot], queries: Sequence[Shot]) -> Places:
    """Build :class:`Places` in the order of the rows.

    Warns:
        CoordinatesWarning: the coordinates look like degrees.
    """
    panoramas: dict[tuple, int] = {}
    stamps: dict[str, int] = {}
    sets = []
    for role, shots in (("database", database), ("queries", queries)):
        positions = np.array([shot[1:3] for shot in shots], dtype=np.float64).reshape(-1, 2)
        conditions = tuple(shot.condition for shot in shots)
        sets.append(
            ImageSet(
                tuple(shot.file for shot in shots),
                positions,
                number_places(role, shots, panoramas),
                conditions if any(conditions) else (),
                _number_stamps(shots, stamps),
            )
        )
    _warn_if_degrees(name, sets[0].positions)
    return Places(name, split, *sets)


def number_places(role: str, shots: Sequence[Shot], numbers: dict[tuple, int]) -> np.ndarray:
    """Number the panoramas the images were cut from, int64 ``[n]``.

    Two images share an id if they were taken at one position and carry the same panorama id, or none.
    A query shares an id with a database image only if both name the panorama: standing at the same spot
    on another day is no reason to exclude an image from the positives, being the same recording is.

    Args:
        numbers: ids given so far, extended in place, so that database and queries are numbered together.
    """
    keys = [(shot.easting, shot.northing, shot.panorama or f"({role})") for shot in shots]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _number_stamps(shots: Sequence[Shot], numbers: dict[str, int]) -> np.ndarray | None:
    """Time stamps as numbers, equal where the stamps are; None where the format has none."""
    if not any(shot.time_stamp for shot in shots):
        return None
    return np.array([numbers.setdefault(shot.time_stamp, len(numbers)) for shot in shots], dtype=np.int64)


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
