"""Which photographs to index, where they were taken, and one coordinate system for all of them."""

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfrs.errors import UserError
from sfrs.exif import gps
from sfrs.geodesy import parse_zone, to_degrees, to_metres, zone_of_band
from sfrs.images import Progress
from sfrs.places import is_place_folder
from sfrs.places.folder import FULL_FORM_FIELDS, IMAGE_SUFFIXES, image_files
from sfrs.places.manifest import ROLES

ZONE_FIELD, BAND_FIELD = 3, 4
COORDINATES = (("easting", "northing"), ("latitude", "longitude"))


@dataclass(frozen=True)
class Photo:
    """An image and what is known of where it was taken.

    Attributes:
        file: absolute path.
        metres: easting and northing, or None.
        zone: UTM zone of ``metres``, such as "33N"; "" where it is not said.
        degrees: latitude and longitude, where those are what is known; else None.
    """

    file: Path
    metres: tuple[float, float] | None = None
    zone: str = ""
    degrees: tuple[float, float] | None = None


def read_photos(path: str | Path, split: str = "test", *, progress: Progress | None = None) -> list[Photo]:
    """The images of a folder (any depth), of a place folder's database, or of a CSV manifest.

    Positions come from ``@easting@northing@...`` names, of which the full form also says the zone, else from
    EXIF; in a manifest from the columns easting and northing (optionally zone) or latitude and longitude,
    else from EXIF. Lines of a manifest whose role is query or whose split is another are passed over.

    Args:
        split: of a place folder (``images/SPLIT/database``), or of a manifest with a split column.

    Raises:
        UserError: nothing is there, or it holds no image; or a line of the manifest is wrong.
        BadImageError: a file whose EXIF is needed is no image.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES:
        photos = _read_manifest(path, split)
    else:
        photos = [_from_name(Path(os.path.abspath(file))) for file in _files(path, split)]
    for i, photo in enumerate(photos):
        if photo.metres is None and photo.degrees is None:
            photos[i] = Photo(photo.file, degrees=gps(photo.file))
        if progress is not None:
            progress(i + 1, len(photos))
    return photos


def project(photos: Sequence[Photo], zone: str = "") -> tuple[np.ndarray, str]:
    """Positions of all photos in one coordinate system, float64 ``[n, 2]`` metres, and its UTM zone.

    Args:
        zone: the system to use, and the zone of metres that do not say theirs; "": the zone of the first
            photo that has one, or plain metres of nobody knows which zone if none has.

    Returns:
        (positions, zone): nan where nothing is known of a photo; "" for plain metres.

    Raises:
        UserError: plain metres stand beside positions that do have a zone, and ``zone`` is "".
    """
    plain = [photo for photo in photos if photo.metres is not None and not photo.zone]
    located = [photo for photo in photos if photo.zone or photo.degrees is not None]
    if not zone and plain and located:
        raise UserError(
            f"{plain[0].file} has metres without a UTM zone, but {located[0].file} has a position on earth. "
            "Say which zone the metres are in: --zone 33N."
        )
    if not zone and located:
        first = located[0]
        zone = first.zone or to_metres(np.array([first.degrees]))[1]
    positions = np.full((len(photos), 2), np.nan)
    for source in {photo.zone or zone for photo in photos if photo.metres is not None}:
        rows = [i for i, p in enumerate(photos) if p.metres is not None and (p.zone or zone) == source]
        metres = np.array([photos[i].metres for i in rows])
        positions[rows] = metres if source == zone else to_metres(to_degrees(metres, source), zone)[0]
    rows = [i for i, photo in enumerate(photos) if photo.degrees is not None]
    if rows:
        positions[rows] = to_metres(np.array([photos[i].degrees for i in rows]), zone)[0]
    return positions, zone


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(
            f"{path}: there is no such file or folder. Expected a folder of photographs or a CSV manifest."
        )
    folder = path
    if is_place_folder(path):
        folder = path / "images" / split / "database"
        if not folder.is_dir():
            found = sorted(place.parent.name for place in (path / "images").glob("*/database"))
            raise UserError(f"{folder}: there is no such folder. {path} has the splits {', '.join(found)}.")
    files = image_files(folder)
    if not files:
        raise UserError(f"{folder}: no {', '.join(IMAGE_SUFFIXES)} in this folder.")
    return files


def _from_name(file: Path) -> Photo:
    fields = file.name.split("@")
    if len(fields) < 3 or fields[0]:
        return Photo(file)
    metres = _numbers(fields[1], fields[2])
    if metres is None:
        return Photo(file)
    named = len(fields) == FULL_FORM_FIELDS and fields[ZONE_FIELD].strip() and fields[BAND_FIELD].strip()
    return Photo(file, metres, zone_of_band(fields[ZONE_FIELD], fields[BAND_FIELD]) if named else "")


def _numbers(first: str | None, second: str | None) -> tuple[float, float] | None:
    try:
        pair = float(first or ""), float(second or "")
    except ValueError:
        return None
    return pair if math.isfinite(pair[0]) and math.isfinite(pair[1]) else None


def _read_manifest(path: Path, split: str) -> list[Photo]:
    photos: list[Photo] = []
    lines_of: dict[Path, int] = {}
    splits = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, skipinitialspace=True)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            if "file" not in reader.fieldnames:
                found = ", ".join(reader.fieldnames) or "nothing"
                raise UserError(
                    f"{path}: no column file; its first line reads {found}. "
                    "Expected the columns file, easting, northing (or latitude, longitude), and optionally "
                    "zone, role, split."
                )
            for line in reader:
                splits.add(line.get("split") or split)
                if (line.get("split") or split) != split or _is_query(path, reader.line_num, line):
                    continue
                photo = _parse_line(path, reader.line_num, line)
                if photo.file in lines_of:
                    raise UserError(
                        f"{path}, line {reader.line_num}: {photo.file} is on line {lines_of[photo.file]} too."
                    )
                lines_of[photo.file] = reader.line_num
                photos.append(photo)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: this is not a CSV file in UTF-8 ({error}).") from error
    if not photos:
        known = f" The split column has {', '.join(sorted(splits))}." if splits - {split} else ""
        raise UserError(f"{path}: no image to index in the split {split}.{known}")
    return photos


def _is_query(path: Path, number: int, line: dict[str, str]) -> bool:
    role = (line.get("role") or "database").strip().lower()
    if role not in ROLES:
        raise UserError(f"{path}, line {number}: role is {line['role']!r}; expected database or query.")
    return ROLES[role] == "queries"


def _parse_line(path: Path, number: int, line: dict[str, str]) -> Photo:
    if not line["file"]:
        raise UserError(f"{path}, line {number}: the file column is empty.")
    file = Path(os.path.abspath(path.parent / line["file"]))
    for names in COORDINATES:
        given = [(line.get(name) or "").strip() for name in names]
        if not any(given):
            continue
        pair = _numbers(*given)
        if pair is None:
            raise UserError(
                f"{path}, line {number}: {names[0]} is {given[0]!r} and {names[1]} {given[1]!r}; "
                f"expected {'metres' if names is COORDINATES[0] else 'degrees'}."
            )
        if names is COORDINATES[1]:
            return Photo(file, degrees=pair)
        zone = (line.get("zone") or "").strip()
        return Photo(file, pair, parse_zone(zone) if zone else "")
    return Photo(file)
