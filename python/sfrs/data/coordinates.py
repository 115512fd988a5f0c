"""Positions on earth: UTM metres and degrees, both on WGS 84 (pyproj), and distances between them.

A system is a UTM zone, "33N", or several, "33N+54N", for photographs of several parts of the world: metres of
the k-th zone (from 0) have k times `SHIFT` added to their easting, so that they lie beside each other.
What is no zone, or cannot be where it says, raises `UserError`.
"""

import re
from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from pyproj import Geod, Transformer
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from sfrs.data.ragged import Ragged
from sfrs.runtime.errors import UserError

SOUTHERN_BANDS, NORTHERN_BANDS = "CDEFGHJKLM", "NPQRSTUVWX"
FURTHEST = 1_000_000.0  # metres from a zone's central meridian beyond which its metres are more than 1 % off
_ELLIPSOID = Geod(ellps="WGS84")
APART = 1_000.0  # metres that cities have to lie apart, and photographs to be no neighbours
SHIFT = 2 * FURTHEST  # metres between the zones of a system, and that a city is moved eastwards
EARTH_RADIUS = 6_371_000.0


def parse_zone(text: str) -> str:
    """Read a UTM zone as people write it, ``33N``, ``33 n`` or ``EPSG:32633`` -> "33N".

    "S" means south of the equator; the letters of image names are latitude bands, in which S lies in the
    north: those go through `zone_of_band`.
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

    Rows that are not finite become nan; a position that cannot lie in ``zone``, a zone or a system, raises
    `UserError`.
    """
    expected = "easting and then northing, in metres"
    zones = [parse_zone(name) for name in zone.split("+")]
    if len(zones) == 1:
        return _transformed(positions, zones[0], "INVERSE", expected)
    positions = np.asarray(positions, dtype=np.float64).reshape(-1, 2)
    numbers = _numbers(positions, zone)
    degrees = np.full_like(positions, np.nan)
    for number in np.unique(numbers).tolist():
        rows = numbers == number
        own = positions[rows] - [number * SHIFT, 0.0]
        degrees[rows] = _transformed(own, zones[number], "INVERSE", expected)
    return degrees


def in_own_zone(position: tuple[float, float], system: str) -> tuple[float, float, str]:
    """Return easting and northing of a position of a system in its own zone, and that zone; nan stays nan."""
    number = int(_numbers(np.array([position]), system)[0])
    return position[0] - number * SHIFT, position[1], system.split("+")[number]


def _numbers(positions: np.ndarray, system: str) -> np.ndarray:
    """Return which zone of a system positions ``[n, 2]`` lie in, int64 ``[n]``; 0 where it is not known."""
    number = np.floor((positions[:, 0] - 500_000.0 + FURTHEST) / SHIFT)
    return np.nan_to_num(number).clip(0, system.count("+")).astype(np.int64)


def to_metres(degrees: ArrayLike, zone: str | None = None) -> tuple[np.ndarray, str]:
    """Convert latitude and longitude ``[n, 2]`` to (easting and northing in metres ``[n, 2]``, zone).

    All points are projected into one zone, so that distances between them are distances: ``zone``, or the
    zone of the first known point. Rows that are not finite become nan. Raises `UserError` if no point is
    known and no zone given; a point is none on earth, or lies so far outside of the zone (`FURTHEST`) that
    its metres would be wrong.
    """
    known = _known(degrees)
    if zone is None:
        if not len(known):
            raise UserError("None of the points is known, so there is no UTM zone to take; give one, as 33N.")
        zone = zone_at(*known[0])
    zone = parse_zone(zone)
    return _transformed(degrees, zone, "FORWARD", "points of one region"), zone


def _known(degrees: ArrayLike) -> np.ndarray:
    """Return the finite rows of degrees ``[n, 2]``; raises `UserError` of one that is no point on earth."""
    known = np.asarray(degrees, dtype=np.float64).reshape(-1, 2)
    known = known[np.isfinite(known).all(axis=1)]
    latitude, longitude = known.T
    for row in known[(np.abs(latitude) > 90) | (longitude < -180) | (longitude > 360)]:
        zone_at(*row)  # raises: it has the one message for this
    return known


def to_system(degrees: ArrayLike, system: str = "") -> tuple[np.ndarray, str]:
    """Convert latitude and longitude ``[n, 2]`` to (metres ``[n, 2]`` of a system, the system).

    Points go into the first zone of ``system`` that reaches them (`FURTHEST`); for the others, the zone of
    the first of them is appended. Points that are linked by steps of less than `APART` stay together as far
    as one zone reaches, so that no border cuts through a place. Rows that are not finite become nan. Raises
    `UserError` if a point is none on earth, or beyond the latitudes of UTM.
    """
    degrees = np.asarray(degrees, dtype=np.float64).reshape(-1, 2)
    groups = _neighbourhoods(_known(degrees))
    left = np.flatnonzero(np.isfinite(degrees).all(axis=1))
    zones, result = system.split("+") if system else [], np.full_like(degrees, np.nan)
    number = 0
    while len(left):
        own = np.zeros(len(left), dtype=bool)
        if number == len(zones):
            zones.append(zone_at(*degrees[left[0]]))
            own = groups == groups[0]
        metres = np.column_stack(_projection(zones[number]).transform(*degrees[left].T))
        reached = np.abs(metres[:, 0] - 500_000.0) <= FURTHEST
        taken = reached & (own | ~np.isin(groups, groups[~reached]))
        result[left[taken]] = metres[taken] + [number * SHIFT, 0.0]
        left, groups, number = left[~taken], groups[~taken], number + 1
    return result, "+".join(zones)


def in_every_zone(latitude: float, longitude: float, system: str) -> np.ndarray:
    """Convert a point to metres of a system in every zone of it that reaches the point, ``[zones, 2]``.

    Places near the reach of a zone may be in it or in the next, see `to_system`.
    """
    found = [
        np.add(_projection(zone).transform(latitude, longitude), [number * SHIFT, 0.0])
        for number, zone in enumerate(system.split("+"))
    ]
    metres = np.reshape(found, (-1, 2))
    offsets = metres[:, 0] - SHIFT * np.arange(len(metres)) - 500_000.0
    return metres[np.abs(offsets) <= FURTHEST]


def _neighbourhoods(degrees: np.ndarray) -> np.ndarray:
    """Number the groups of points ``[n, 2]`` that lie at least `APART` from all other groups."""
    latitude, longitude = np.radians(degrees).T
    axes = np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
    cells = np.floor(np.column_stack(axes) * (EARTH_RADIUS / APART))
    cells, cell_of = np.unique(cells, axis=0, return_inverse=True)
    pairs = (
        KDTree(cells).query_pairs(1.0, p=np.inf, output_type="ndarray") if len(cells) else np.empty((0, 2))
    )
    linked = coo_array((np.ones(len(pairs)), pairs.T.astype(np.int64)), shape=(len(cells),) * 2)
    return connected_components(linked, directed=False)[1][cell_of.ravel()]


def metres_between(one: ArrayLike, other: ArrayLike, system: str = "") -> np.ndarray:
    """Return the distances between positions ``[..., 2]`` in metres, broadcast, ``[...]``.

    In metres of one zone they are those of the plane; between the zones of a ``system``, on the earth.
    """
    if "+" not in system:
        return np.hypot(*np.moveaxis(np.subtract(one, other), -1, 0))
    pair = np.broadcast_arrays(np.asarray(one, np.float64), np.asarray(other, np.float64))
    (latitude, longitude), (to_latitude, to_longitude) = (to_degrees(part, system).T for part in pair)
    return _ELLIPSOID.inv(longitude, latitude, to_longitude, to_latitude)[2].reshape(pair[0].shape[:-1])


def geodesic(one: ArrayLike, other: ArrayLike) -> float:
    """Return the distance on earth between two points (latitude, longitude), in metres."""
    (latitude, longitude), (to_latitude, to_longitude) = np.asarray(one), np.asarray(other)
    return float(_ELLIPSOID.inv(longitude, latitude, to_longitude, to_latitude)[2])


def nearest(positions: np.ndarray, others: np.ndarray, rank: int = 1) -> np.ndarray:
    """Return the metres from each of ``positions`` ``[m, 2]`` to its ``rank``-th nearest other.

    inf where there is none, or where a position is nan.
    """
    metres, known = np.full(len(positions), np.inf), np.isfinite(positions).all(axis=1)
    others = others[np.isfinite(others).all(axis=1)]
    if len(others) and known.any():
        metres[known] = KDTree(others).query(positions[known], k=[rank])[0][:, 0]  # type: ignore[arg-type]
    return metres


def within(queries: np.ndarray, database: np.ndarray, radius: float) -> Ragged:
    """List for each of m queries the database positions within ``radius`` metres, ascending; none if nan."""
    lists: list[list[int]] = [[] for _ in queries]
    asked = np.flatnonzero(np.isfinite(queries).all(axis=1))
    known = np.flatnonzero(np.isfinite(database).all(axis=1))
    if len(asked) and len(known):
        found = KDTree(database[known]).query_ball_point(queries[asked], radius, return_sorted=True)
        for query, near in zip(asked.tolist(), found, strict=True):
            lists[query] = known[near].tolist()
    return Ragged.from_lists(lists)


def eastward_shifts(positions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return how far to move each city eastwards so that none lies on another, metres.

    The same metres of two UTM zones are two places on earth. A city whose rectangle in ``positions`` (UTM,
    ``[n, 2]``) comes nearer than `APART` to an earlier one is moved.
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
