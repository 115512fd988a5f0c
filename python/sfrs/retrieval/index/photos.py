"""Which photographs to index, where they were taken, and one coordinate system for all of them."""

import csv
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from sfrs.data.coordinates import parse_zone, to_degrees, to_metres, zone_of_band
from sfrs.data.exif import gps
from sfrs.data.images import BadImageError, Progress
from sfrs.data.places import is_place_folder
from sfrs.data.places.folder import FULL_FORM_FIELDS, IMAGE_SUFFIXES, image_files
from sfrs.data.places.manifest import ROLES
from sfrs.runtime.errors import UserError

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
        unreadable: why the file cannot be read; "" where it can, as far as anybody looked.
    """

    file: Path
    metres: tuple[float, float] | None = None
    zone: str = ""
    degrees: tuple[float, float] | None = None
    unreadable: str = ""


def photo_of(file: str | Path) -> Photo:
    """A photograph of any suffix and where it was taken, by its ``@easting@northing@...`` name, else by EXIF.

    Raises:
        UserError: its name says a UTM zone that does not exist.
        BadImageError: its EXIF is needed, but it is no image.
    """
    return _with_exif(_from_name(Path(os.path.abspath(file))))


def read_photos(
    path: str | Path,
    split: str = "test",
    *,
    skip_bad_images: bool = False,
    progress: Progress | None = None,
) -> list[Photo]:
    """The images of a folder (any depth), of a place folder's database, or of a CSV manifest.

    Positions come from ``@easting@northing@...`` names, of which the full form also says the zone, else from
    EXIF; in a manifest from the columns easting and northing (optionally zone) or latitude and longitude,
    where these are empty as in a folder. Lines of a manifest whose role is query or whose split is another
    are passed over.

    Args:
        split: of a place folder (``images/SPLIT/database``), or of a manifest with a split column.
        skip_bad_images: keep a photo whose EXIF is needed and cannot be read, as :attr:`Photo.unreadable`.

    Raises:
        UserError: nothing is there, or it holds no image; a line of the manifest is wrong, or a name says a
            UTM zone that does not exist.
        BadImageError: a file whose EXIF is needed is no image and ``skip_bad_images`` is not set.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES:
        photos = _read_manifest(path, split)
    else:
        photos = [_from_name(Path(os.path.abspath(file))) for file in _files(path, split)]
    for i, photo in enumerate(photos):
        try:
            photos[i] = _with_exif(photo)
        except BadImageError as error:
            if not skip_bad_images:
                raise
            photos[i] = replace(photo, unreadable=why_unreadable(photo.file, error))
        if progress is not None:
            progress(i + 1, len(photos))
    return photos


def why_unreadable(file: Path, error: BadImageError) -> str:
    """The error's message without the file it begins with."""
    return str(error).removeprefix(f"{file}: ")


def project(photos: Sequence[Photo], zone: str = "") -> tuple[np.ndarray, str]:
    """Positions of all photos in one coordinate system, float64 ``[n, 2]`` metres, and its UTM zone.

    Args:
        zone: the system to use, and the zone of metres that do not say theirs; "": the zone of the first
            photo that has one, or plain metres of nobody knows which zone if none has.

    Returns:
        (positions, zone): nan where nothing is known of a photo; "" for plain metres.

    Raises:
        UserError: plain metres stand beside positions that do have a zone, and ``zone`` is ""; or a photo,
            which is named, cannot be where it says.
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
        zone = first.zone or _told(lambda point: to_metres(point)[1], [first.file], [first.degrees])
    positions = np.full((len(photos), 2), np.nan)
    for source in {photo.zone or zone for photo in photos if photo.metres is not None}:
        rows = [i for i, p in enumerate(photos) if p.metres is not None and (p.zone or zone) == source]
        files, metres = [photos[i].file for i in rows], np.array([photos[i].metres for i in rows])
        if source:
            degrees = _told(partial(to_degrees, zone=source), files, metres)  # refuses what cannot be there
        positions[rows] = metres if source == zone else _metres_in(zone, files, degrees)
    rows = [i for i, photo in enumerate(photos) if photo.degrees is not None]
    if rows:
        files = [photos[i].file for i in rows]
        positions[rows] = _metres_in(zone, files, [photos[i].degrees for i in rows])
    return positions, zone


def check_inside(files: Sequence[Path], positions: np.ndarray, zone: str) -> None:
    """Raise :class:`UserError` that names the first file whose metres ``[n, 2]`` cannot lie in the zone."""
    _told(partial(to_degrees, zone=zone), files, positions)


def _metres_in(zone: str, files: Sequence[Path], degrees: Sequence[Sequence[float]]) -> np.ndarray:
    return _told(lambda points: to_metres(points, zone)[0], files, degrees)


def _told(convert: Callable, files: Sequence[Path], points: Sequence[Sequence[float]]):
    """``convert(points)``; what it refuses is told with the file of the first point it refuses by itself."""
    try:
        return convert(np.asarray(points))
    except UserError:
        for file, point in zip(files, points, strict=True):
            with _naming(file):
                convert(np.asarray([point]))
        raise


@contextmanager
def _naming(where: object) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


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
    with _naming(file):
        return Photo(file, metres, zone_of_band(fields[ZONE_FIELD], fields[BAND_FIELD]) if named else "")


def _with_exif(photo: Photo) -> Photo:
    known = photo.metres is not None or photo.degrees is not None
    return photo if known else replace(photo, degrees=gps(photo.file))


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
        with _naming(f"{path}, line {number}"):
            return Photo(file, pair, parse_zone(zone) if zone else "")
    with _naming(f"{path}, line {number}"):
        return _from_name(file)
