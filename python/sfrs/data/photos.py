"""Photographs, where they were taken, and one coordinate system for all of them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from sfrs.data.coordinates import parse_zone, to_degrees, to_metres
from sfrs.data.exif import gps
from sfrs.data.images import IMAGE_SUFFIXES, BadImageError, images_at
from sfrs.data.places.folder import folder_splits, zone_of_name
from sfrs.data.places.tables import METRES, coordinates, file_of, finite_pair, lines_of_split, role_of
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress

DEGREES = ("latitude", "longitude")
OPTIONAL = ("easting, northing (or latitude, longitude)", "zone", "role", "split")


@dataclass(frozen=True)
class Photo:
    """An image (absolute path) and where it was taken: UTM metres, or else degrees, or neither is known.

    Attributes:
        zone: UTM zone of ``metres``, such as "33N"; "" where it is not said.
        unreadable: why the file cannot be read; "" where it can, as far as anybody looked.
    """

    file: Path
    metres: tuple[float, float] | None = None
    zone: str = ""
    degrees: tuple[float, float] | None = None
    unreadable: str = ""


def photo_of(file: str | Path) -> Photo:
    """Read where a photograph was taken, by its ``@easting@northing@...`` name, else by EXIF.

    Raises `UserError` if its name says a zone that does not exist, or its EXIF is needed, but it is no image.
    """
    return _with_exif(_from_name(Path(os.path.abspath(file))))


def read_photos(
    path: str | Path,
    split: str = "test",
    *,
    skip_bad_images: bool = False,
    progress: Progress | None = None,
) -> list[Photo]:
    """Read the images of a folder (any depth), of a place folder's database, or of a CSV manifest.

    Positions come from ``@easting@northing@...`` names, of which the full form also says the zone, else from
    EXIF; in a manifest from the columns easting and northing (optionally zone) or latitude and longitude,
    where these are empty as in a folder. Lines of a manifest whose role is query or whose split is another
    are passed over.

    Args:
        split: of a place folder (``images/SPLIT/database``), or of a manifest with a split column.
        skip_bad_images: keep a photo whose EXIF is needed and cannot be read, as :attr:`Photo.unreadable`.

    Raises:
        UserError: nothing is there, or it holds no image; a line of the manifest is wrong, or a name says a
            UTM zone that does not exist; a file whose EXIF is needed is no image.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES:
        photos = _read_manifest(path, split)
    else:
        splits = folder_splits(path)
        folder = path / "images" / split / "database" if splits else path
        if splits and split not in splits:
            raise UserError(f"{folder}: there is no such folder. {path} has the splits {', '.join(splits)}.")
        photos = [_from_name(Path(os.path.abspath(file))) for file in images_at(folder)]
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
    """Return the error's message without the file it begins with."""
    return str(error).removeprefix(f"{file}: ")


def project(photos: Sequence[Photo], zone: str = "") -> tuple[np.ndarray, str]:
    """Bring all photos into one coordinate system: float64 ``[n, 2]`` metres, and its UTM zone.

    Positions are nan where nothing is known of a photo; the zone is "" for plain metres.

    Args:
        zone: the system to use, and the zone of metres that do not say theirs; "": the zone of the first
            photo that has one, or plain metres of nobody knows which zone if none has.

    Raises:
        UserError: there are plain metres and positions that do have a zone, and ``zone`` is ""; or a photo,
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
        zone = first.zone or _naming_photo(
            lambda point: to_metres(point)[1], [first.file], [first.degrees or ()]
        )
    rows_of: dict[str | None, list[int]] = {}  # zone of the metres, or None for degrees -> photos
    for i, photo in enumerate(photos):
        if photo.metres is not None:
            rows_of.setdefault(photo.zone or zone, []).append(i)
        elif photo.degrees is not None:
            rows_of.setdefault(None, []).append(i)
    positions = np.full((len(photos), 2), np.nan)
    for source, rows in rows_of.items():
        files = [photos[i].file for i in rows]
        points = np.array([photos[i].metres or photos[i].degrees for i in rows])
        degrees = points
        if source:
            degrees = _naming_photo(partial(to_degrees, zone=source), files, points)
        if source != zone:
            points = _naming_photo(lambda points: to_metres(points, zone)[0], files, degrees)
        positions[rows] = points
    return positions, zone


def check_inside(files: Sequence[Path], positions: np.ndarray, zone: str) -> None:
    """Raise :class:`UserError` that names the first file whose metres ``[n, 2]`` cannot lie in the zone."""
    _naming_photo(partial(to_degrees, zone=zone), files, positions)


def _naming_photo(convert: Callable, files: Sequence[Path], points: Sequence[Sequence[float]] | np.ndarray):
    """Return ``convert(points)``; an error names the file of the first point that is refused by itself."""
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


def _from_name(file: Path) -> Photo:
    fields = file.name.split("@")
    metres = finite_pair(*fields[1:3]) if len(fields) > 2 and not fields[0] else None
    if metres is None:
        return Photo(file)
    return Photo(file, metres, zone_of_name(file))


def _with_exif(photo: Photo) -> Photo:
    known = photo.metres is not None or photo.degrees is not None
    return photo if known else replace(photo, degrees=gps(photo.file))


def _read_manifest(path: Path, split: str) -> list[Photo]:
    photos: dict[Path, Photo] = {}
    lines_of: dict[Path, str] = {}
    lines, others = lines_of_split(path, split, ("file",), OPTIONAL)
    for where, line in lines:
        if role_of(where, line, default="database") == "queries":
            continue
        file = Path(os.path.abspath(path.parent / file_of(where, line)))
        if file in photos:
            raise UserError(f"{where}: {file} is on {lines_of[file]} too.")
        photos[file], lines_of[file] = _from_line(where, line, file), where.rpartition(", ")[2]
    if not photos:
        raise UserError(f"{path}: no image to index in the split {split}.{others}")
    return list(photos.values())


def _from_line(where: str, line: dict[str, str], file: Path) -> Photo:
    def given(names: Sequence[str]) -> bool:
        return any((line.get(name) or "").strip() for name in names)

    if not given(METRES) and given(DEGREES):
        return Photo(file, degrees=coordinates(where, line, DEGREES))
    metres, zone = coordinates(where, line) if given(METRES) else None, (line.get("zone") or "").strip()
    with _naming(where):
        if metres is None:
            return _from_name(file)
        return Photo(file, metres, parse_zone(zone) if zone else "")
