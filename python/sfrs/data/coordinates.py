"""Between UTM metres and degrees of latitude and longitude, both on WGS 84 (pyproj)."""

import re
from functools import cache

import numpy as np
from pyproj import Transformer

from sfrs.runtime.errors import UserError

SOUTHERN_BANDS, NORTHERN_BANDS = "CDEFGHJKLM", "NPQRSTUVWX"
FURTHEST = 1_000_000.0
"""Metres from a zone's central meridian beyond which its metres are more than 1 % off."""


def parse_zone(text: str) -> str:
    """A UTM zone as people write it -> "33N" or "33S", north or south of the equator.

    Takes ``33N``, ``33 n`` and ``EPSG:32633``. "S" means south here; the letters of image names are
    latitude bands, in which S lies in the north: those go through :func:`zone_of_band`.

    Raises:
        UserError: it is no UTM zone.
    """
    found = re.fullmatch(r"\s*(?:0?([1-9]|[1-5]\d|60)\s*([NS])|EPSG:32([67])(\d\d))\s*", text, re.IGNORECASE)
    number = int(found[1] or found[4]) if found else 0
    if not 1 <= number <= 60:
        raise UserError(
            f"{text!r} is no UTM zone; expected its number from 1 to 60 and N or S for north or south of "
            "the equator, as 33N, or its EPSG code, as EPSG:32633."
        )
    return f"{number}{found[2].upper() if found[2] else 'NS'[found[3] == '7']}"


def zone_of_band(number: int | str, letter: str) -> str:
    """Zone number and latitude band, the fields 3 and 4 of image names -> zone: (54, "S") -> "54N".

    Raises:
        UserError: the number is not 1 to 60 or the letter not a band, C to X without I and O.
    """
    band = letter.strip().upper()
    if not re.fullmatch(r"\s*\d{1,2}\s*", str(number)) or not 1 <= int(number) <= 60:
        raise UserError(f"{str(number)!r} is no UTM zone; expected its number from 1 to 60.")
    if len(band) != 1 or band not in SOUTHERN_BANDS + NORTHERN_BANDS:
        raise UserError(
            f"{letter!r} is no latitude band of UTM; expected a letter from C to X without I and O."
        )
    return f"{int(number)}{'N' if band in NORTHERN_BANDS else 'S'}"


def zone_at(latitude: float, longitude: float) -> str:
    """The zone a point lies in, with the exceptions of south-western Norway (32V) and Svalbard (31X to 37X).

    Raises:
        UserError: UTM does not reach there (north of 84 or south of 80 degrees), or these are no degrees.
    """
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


def to_degrees(positions: np.ndarray, zone: str) -> np.ndarray:
    """UTM easting and northing in metres, ``[n, 2]`` -> latitude and longitude in degrees, ``[n, 2]``.

    Rows that are not finite, positions nobody knows, become nan.

    Raises:
        UserError: ``zone`` is no UTM zone, or a position cannot lie in it.
    """
    positions = np.asarray(positions, dtype=np.float64).reshape(-1, 2)
    known = np.isfinite(positions).all(axis=1)
    longitude, latitude = _projection(parse_zone(zone)).transform(*positions[known].T, direction="INVERSE")
    degrees = np.full_like(positions, np.nan)
    degrees[known] = np.column_stack([latitude, longitude])
    expected = "easting and then northing, in metres"
    _check_inside(zone, positions[known], degrees[known], positions[known], expected)
    return degrees


def to_metres(degrees: np.ndarray, zone: str | None = None) -> tuple[np.ndarray, str]:
    """Latitude and longitude in degrees, ``[n, 2]`` -> (easting and northing in metres ``[n, 2]``, zone).

    All points are projected into one zone, so that distances between them are distances: ``zone``, or the
    zone of the first known point. Rows that are not finite become nan.

    Raises:
        UserError: no point is known and no zone given; a point is none on earth, or lies so far outside of
            the zone (:data:`FURTHEST`) that its metres would be wrong.
    """
    degrees = np.asarray(degrees, dtype=np.float64).reshape(-1, 2)
    known = np.isfinite(degrees).all(axis=1)
    if zone is None:
        if not known.any():
            raise UserError("None of the points is known, so there is no UTM zone to take; give one, as 33N.")
        zone = zone_at(*degrees[known][0])
    zone = parse_zone(zone)
    latitude, longitude = degrees[known].T
    for row in degrees[known][(np.abs(latitude) > 90) | (longitude < -180) | (longitude > 360)]:
        zone_at(*row)  # raises: it has the one message for this
    metres = np.full_like(degrees, np.nan)
    metres[known] = np.column_stack(_projection(zone).transform(longitude, latitude))
    _check_inside(zone, metres[known], degrees[known], degrees[known], "points of one region")
    return metres, zone


@cache
def _projection(zone: str) -> Transformer:
    code = f"EPSG:32{'6' if zone[-1] == 'N' else '7'}{int(zone[:-1]):02d}"
    return Transformer.from_crs("EPSG:4326", code, always_xy=True)


def _check_inside(
    zone: str, metres: np.ndarray, degrees: np.ndarray, given: np.ndarray, expected: str
) -> None:
    finite = np.isfinite(metres).all(axis=1) & np.isfinite(degrees).all(axis=1)
    wrong = ~finite | (np.abs(metres[:, 0] - 500_000.0) > FURTHEST)
    if wrong.any():
        first = given[wrong][0]
        raise UserError(
            f"{first[0]:.10g}, {first[1]:.10g} lies outside of UTM zone {zone}, more than 1,000 km from its "
            f"middle; expected {expected}."
        )
