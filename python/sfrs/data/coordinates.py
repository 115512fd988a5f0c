"""Positions on earth: UTM metres and degrees, both on WGS 84 (pyproj), and distances between them.

What is no zone, or cannot be where it says, raises `UserError`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from pyproj import Geod, Transformer
from scipy.spatial import KDTree

from sfrs.data.ragged import Ragged
from sfrs.runtime.errors import UserError

SOUTHERN_BANDS, NORTHERN_BANDS = "CDEFGHJKLM", "NPQRSTUVWX"
FURTHEST = 1_000_000.0
"""Metres from a zone's central meridian beyond which its metres are more than 1 % off."""
_ELLIPSOID = Geod(ellps="WGS84")
APART = 1_000.0
"""Metres that cities have to lie apart."""
SHIFT = 2_000_000.0
"""Metres a city is moved eastwards; a UTM zone is less than half as wide."""


def parse_zone(text: str) -> str:
    """Read a UTM zone as people write it, ``33N``, ``33 n`` or ``EPSG:32633`` -> "33N".

    "S" means south of the equator; the letters of image names are latitude bands, in which S lies in the
    north: those go through :func:`zone_of_band`.
    """
    found = re.fullmatch(r"\s*(?:0?([1-9]|[1-5]\d|60)\s*([NS])|EPSG:32([67])(\d\d))\s*", text, re.IGNORECASE)
    number = int(found[1] or found[4]) if found else 0
    if found is None or not 1 <= number <= 60:
        raise UserError(
            f"{text!r} is no UTM zone; expected its number from 1 to 60 and N or S for north or south of "
            "the equator, as 33N, or its EPSG code, as EPSG:32633."
        )
    return f"{number}{found[2].upper() if found[2] else 'NS'[found[3] == '7']}"


def zone_of_band(number: int | str, letter: str) -> str:
    """Return the zone of the fields 3 and 4 of image names, number and latitude band: (54, "S") -> "54N"."""
    band = letter.strip().upper()
    if not re.fullmatch(r"\s*\d{1,2}\s*", str(number)) or not 1 <= int(number) <= 60:
        raise UserError(f"{str(number)!r} is no UTM zone; expected its number from 1 to 60.")
    if len(band) != 1 or band not in SOUTHERN_BANDS + NORTHERN_BANDS:
        raise UserError(
            f"{letter!r} is no latitude band of UTM; expected a letter from C to X without I and O."
        )
    return f"{int(number)}{'N' if band in NORTHERN_BANDS else 'S'}"


def zone_at(latitude: float, longitude: float) -> str:
    """Return the zone of a point, with the exceptions of Norway (32V) and Svalbard (31X to 37X)."""
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 360):
        raise UserError(
            f"{latitude:g}, {longitude:g} is no point on earth; expected latitude -90 to 90 and longitude "
            "-180 to 180 in degrees."
        )
    if not -80 <= latitude <= 84:
        raise UserError(f"{latitude:g}, {longitude:g}: UTM ends at 80 degrees south and 84 degrees north.")
    longitude = (longitude + 180) % 360 - 180
    number = int((longitude + 180) // 6) + 1
    if 56 <= latitude < 64 and 3 <= longitude < 12:
        number = 32
    elif latitude >= 72 and 0 <= longitude < 42:
        number = 31 + 2 * int((longitude + 3) // 12)
    return f"{number}{'N' if latitude >= 0 else 'S'}"


def to_degrees(positions: ArrayLike, zone: str) -> np.ndarray:
    """Convert easting and northing in metres ``[n, 2]`` to latitude and longitude in degrees ``[n, 2]``.

    Rows that are not finite become nan; a position that cannot lie in ``zone`` raises `UserError`.
    """
    return _transformed(positions, parse_zone(zone), "INVERSE", "easting and then northing, in metres")


def to_metres(degrees: ArrayLike, zone: str | None = None) -> tuple[np.ndarray, str]:
    """Convert latitude and longitude ``[n, 2]`` to (easting and northing in metres ``[n, 2]``, zone).

    All points are projected into one zone, so that distances between them are distances: ``zone``, or the
    zone of the first known point. Rows that are not finite become nan.

    Raises:
        UserError: no point is known and no zone given; a point is none on earth, or lies so far outside of
            the zone (:data:`FURTHEST`) that its metres would be wrong.
    """
    known = np.asarray(degrees, dtype=np.float64).reshape(-1, 2)
    known = known[np.isfinite(known).all(axis=1)]
    if zone is None:
        if not len(known):
            raise UserError("None of the points is known, so there is no UTM zone to take; give one, as 33N.")
        zone = zone_at(*known[0])
    zone = parse_zone(zone)
    latitude, longitude = known.T
    for row in known[(np.abs(latitude) > 90) | (longitude < -180) | (longitude > 360)]:
        zone_at(*row)  # raises: it has the one message for this
    return _transformed(degrees, zone, "FORWARD", "points of one region"), zone


def metres_between(one: ArrayLike, other: ArrayLike) -> np.ndarray:
    """Return the distances between positions ``[..., 2]`` in metres of one zone, broadcast, ``[...]``."""
    return np.hypot(*np.moveaxis(np.subtract(one, other), -1, 0))


def geodesic(one: ArrayLike, other: ArrayLike) -> float:
    """Return the distance on earth between two points (latitude, longitude), in metres."""
    (latitude, longitude), (to_latitude, to_longitude) = np.asarray(one), np.asarray(other)
    return float(_ELLIPSOID.inv(longitude, latitude, to_longitude, to_latitude)[2])


def one_system(positions: np.ndarray, zones: Sequence[str]) -> np.ndarray:
    """Bring UTM metres ``[n, 2]`` of several zones into one system, in which distances are distances.

    Metres of the first zone, and of no zone (""), stay as they are. Zones within reach of it are projected
    into it; those farther away, which are no neighbours of it, are moved aside by :data:`SHIFT` and more.
    """
    named = [zone for zone in dict.fromkeys(zones) if zone]
    result, systems = positions.copy(), named[:1]
    for zone in named[1:]:
        rows = np.array([own == zone for own in zones])
        degrees = to_degrees(positions[rows], zone)
        near = [number for number, system in enumerate(systems) if _reaches(system, degrees)]
        if not near:
            near, systems = [len(systems)], [*systems, zone]
        result[rows] = to_metres(degrees, systems[near[0]])[0] + [near[0] * SHIFT, 0.0]
    return result


def _reaches(zone: str, degrees: np.ndarray) -> bool:
    try:
        to_metres(degrees, zone)
    except UserError:
        return False
    return True


def nearest(positions: np.ndarray, others: np.ndarray, rank: int = 1) -> np.ndarray:
    """Return the metres from each of ``positions`` ``[m, 2]`` to its ``rank``-th nearest other."""
    return KDTree(others).query(positions, k=[rank])[0][:, 0]  # type: ignore[arg-type]


def within(queries: np.ndarray, database: np.ndarray, radius: float) -> Ragged:
    """List for each of m queries the database positions within ``radius`` metres, ascending."""
    if len(queries) == 0 or len(database) == 0:
        return Ragged(np.zeros(0, np.int64), np.zeros(len(queries) + 1, np.int64))
    return Ragged.from_lists(KDTree(database).query_ball_point(queries, radius, return_sorted=True))


def eastward_shifts(positions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return how far to move each city so that none lies on another, metres.

    The same metres of two UTM zones are two places on earth. Cities whose rectangles in ``positions`` (UTM,
    ``[n, 2]``) come nearer than `APART` would have neighbours in each other: the later one is moved. Others
    stay where they are.
    """
    placed: list[tuple[np.ndarray, np.ndarray]] = []
    shifts = {}
    for city, points in positions.items():
        low, high = points.min(axis=0) - APART, points.max(axis=0)
        move = np.zeros(2)
        while any((low + move <= top).all() and (bottom <= high + move).all() for bottom, top in placed):
            move[0] += SHIFT
        placed.append((low + move, high + move))
        shifts[city] = float(move[0])
    return shifts


@cache
def _projection(zone: str) -> Transformer:
    return Transformer.from_crs("EPSG:4326", f"EPSG:32{'6' if zone[-1] == 'N' else '7'}{int(zone[:-1]):02d}")


def _transformed(points: ArrayLike, zone: str, direction: str, expected: str) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    known, result = np.isfinite(points).all(axis=1), np.full_like(points, np.nan)
    result[known] = np.column_stack(_projection(zone).transform(*points[known].T, direction=direction))
    easting = (result if direction == "FORWARD" else points)[:, 0]
    fits = np.isfinite(result).all(axis=1) & (np.abs(easting - 500_000.0) <= FURTHEST)
    for first in points[known & ~fits]:
        raise UserError(
            f"{first[0]:.10g}, {first[1]:.10g} lies outside of UTM zone {zone}, more than 1,000 km from its "
            f"middle; expected {expected}."
        )
    return result
