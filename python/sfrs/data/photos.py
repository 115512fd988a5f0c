"""Where photographs were taken, by everything that may say it, and one coordinate system for all of them."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np

from sfrs.data.coordinates import parse_zone, to_degrees, to_metres, to_system, zone_of_band
from sfrs.data.exif import gps, taken
from sfrs.data.images import BadImageError
from sfrs.data.tables import DEGREES, METRES, PlacesError, coordinates, file_of, finite_pair, table_rows
from sfrs.data.track import Track, clock_of
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress, silent

ZONE_FIELD, BAND_FIELD, DEGREE_FIELDS, PANORAMA_FIELD, TIME_FIELD = 3, 4, slice(5, 7), 7, 13
FULL_FORM_FIELDS = 16
OPTIONAL = ("easting, northing (or latitude, longitude)", "zone")


@dataclass(frozen=True)
class Photo:
    """An image and where it was taken: UTM metres, or else degrees, or neither is known."""

    file: Path
    metres: tuple[float, float] | None = None
    zone: str = ""  # UTM zone of metres, such as "33N"; "" where it is not said
    degrees: tuple[float, float] | None = None
    unreadable: str = ""  # why the file cannot be read; "" where it can, as far as anybody looked
    panorama: str = ""  # the panorama it was cut from, by its name; "" where it is not said
    condition: str = ""  # what it was taken under, such as "night"; "" where it is not said

    @property
    def placed(self) -> bool:
        """Whether it is known where it was taken."""
        return self.metres is not None or self.degrees is not None


@dataclass(frozen=True)
class Sources:
    """What says where photographs were taken, besides their names and their EXIF."""

    # A CSV file with the columns file and easting, northing (zone), or latitude, longitude; it goes before
    # names and EXIF.
    positions: str = ""
    track: str = ""  # a GPX file, for photographs of which nothing else says it; by the time in their EXIF
    # What the camera's clock was ahead of UTC, see `sfrs.data.track.clock_of`; "": as the photographs say.
    clock: str = ""

    def __post_init__(self):
        if self.clock and not self.track:
            raise UserError("--clock says how to find photographs on a track; give --track FILE.gpx too.")


NO_SOURCES = Sources()


class Locator:
    """Says where photographs were taken: by a table, their name, their EXIF, and a track, in this order.

    Raises `UserError` if a source cannot be read.
    """

    def __init__(self, sources: Sources = NO_SOURCES) -> None:
        self.sources = sources
        self._table = read_positions(Path(sources.positions)) if sources.positions else {}
        self._track = Track(Path(sources.track)) if sources.track else None
        self._utc = clock_of(sources.clock)
        self._found = 0

    def locate(self, photo: Photo, *, lenient: bool = False) -> Photo:
        """Return the photo with its position from the table, else its own, else from EXIF or the track.

        Raises `BadImageError` if its EXIF is needed, but it is no image; if ``lenient``, it is
        `Photo.unreadable`.
        """
        if listed := self._listed(photo.file):
            self._found += 1
            return replace(photo, metres=listed.metres, zone=listed.zone, degrees=listed.degrees)
        if photo.placed:
            return photo
        try:
            degrees = gps(photo.file)
            if degrees is None and self._track is not None:
                degrees = self._on_track(photo.file, self._track)
        except BadImageError as error:
            if not lenient:
                raise
            return replace(photo, unreadable=str(error).removeprefix(f"{photo.file}: "))
        return replace(photo, degrees=degrees)

    def all(
        self, files: Sequence[Path], *, skip_bad_images: bool = False, progress: Progress = silent
    ) -> list[Photo]:
        """Locate several photographs; with ``skip_bad_images`` one may be `Photo.unreadable`.

        Raises also `UserError` if the table names none of them.
        """
        photos = []
        for i, file in enumerate(files):
            photos.append(self.locate(from_name(file), lenient=skip_bad_images))
            progress(i + 1, len(files))
        if files and self._table and not self._found:
            first = next(iter(self._table.values()))[0].file
            raise UserError(
                f"{self.sources.positions}: it names none of the {len(files):,} photographs, as {files[0]}; "
                f"its first line names {first}."
            )
        return photos

    def _listed(self, file: Path) -> Photo | None:
        """Return the line whose path the file's ends with, the longest."""
        path = Path(os.path.abspath(file))
        lines = [
            line
            for line in self._table.get(file.name, ())
            if path.parts[-len(line.file.parts) :] == line.file.parts
        ]
        return max(lines, key=lambda line: len(line.file.parts), default=None)

    def _on_track(self, file: Path, track: Track) -> tuple[float, float] | None:
        when = taken(file)
        if when is None:
            return None
        if self.sources.clock or when.tzinfo is None:
            when = self._utc(when)
        if when.tzinfo is None:
            raise UserError(
                f"{file}: its EXIF says {when:%Y-%m-%d %H:%M:%S} without an offset from UTC, which the "
                f"times of {track.path} are in. Say what the camera's clock is ahead of UTC, as --clock "
                "+02:00."
            )
        return track.at(when)


def read_positions(path: Path) -> Mapping[str, list[Photo]]:
    """Read a table of photographs and where they were taken: name of the file -> its lines.

    Raises `PlacesError` if a line is wrong.
    """
    table: dict[str, list[Photo]] = defaultdict(list)
    for where, line in table_rows(path, ("file",), OPTIONAL):
        photo = from_line(where, line, Path(file_of(where, line)))
        if not photo.placed:
            raise PlacesError(f"{where}: neither easting, northing nor latitude, longitude are given.")
        table[photo.file.name].append(photo)
    return table


def from_name(file: Path) -> Photo:
    """Read a name of the field's format, ``@easting@northing@...``, of which longer forms also say the zone.

    The full form is ``@east@north@zone@band@lat@lon@pano@tile@heading@pitch@roll@height@time@note@.jpg``.
    Raises `PlacesError` if it says a zone that there is not.
    """
    fields = file.name.split("@")
    metres = finite_pair(*fields[1:3]) if len(fields) > 2 else None
    if metres is None:
        return Photo(file)
    full = len(fields) == FULL_FORM_FIELDS
    zone, band = (fields + [""] * 2)[ZONE_FIELD : BAND_FIELD + 1]
    said = zone.strip() and band.strip() and (full or finite_pair(*(fields + ["", ""])[DEGREE_FIELDS]))
    with _naming(file):
        return Photo(
            file,
            metres,
            zone_of_band(zone, band) if said else "",
            panorama=fields[PANORAMA_FIELD] if full else "",
        )


def time_of(file: Path) -> datetime | None:
    """Read when a photograph was taken by its camera's clock, from a name of the full form or from EXIF.

    None where neither says it, or the file is gone or no image. With an offset from UTC where EXIF has one.
    """
    fields = file.name.split("@")
    if len(fields) == FULL_FORM_FIELDS:
        with suppress(ValueError):  # the field is empty, or holds something else
            return datetime.strptime(fields[TIME_FIELD], "%Y%m%d_%H%M%S")
    try:
        return taken(file)
    except BadImageError:  # whoever reads its pixels says so
        return None


def from_line(where: str, line: dict[str, str], file: Path) -> Photo:
    """Read the position in a line of a table; where its columns are empty, the name of the file."""

    def given(names: Sequence[str]) -> bool:
        return any((line.get(name) or "").strip() for name in names)

    if not given(METRES) and given(DEGREES):
        return Photo(file, degrees=coordinates(where, line, DEGREES))
    metres, zone = coordinates(where, line) if given(METRES) else None, (line.get("zone") or "").strip()
    with _naming(where):
        if metres is None:
            return from_name(file)
        return Photo(file, metres, parse_zone(zone) if zone else "")


def project(photos: Sequence[Photo], system: str = "") -> tuple[np.ndarray, str]:
    """Bring all photos into one coordinate system: float64 ``[n, 2]`` metres, nan if unknown, and the system.

    It begins with ``system``, whose first zone is that of metres that do not say theirs; with "", the zone of
    the first photo that has one, or plain metres of nobody knows which zone, "". Photographs that the zone
    does not reach get a zone of their own (`sfrs.data.coordinates.to_system`). Raises `UserError` if there
    are plain metres and positions that do have a zone, and ``system`` is ""; or a photo, which is named,
    cannot be where it says.
    """
    plain = [photo for photo in photos if photo.metres is not None and not photo.zone]
    located = [photo for photo in photos if photo.zone or photo.degrees is not None]
    if not system and plain and located:
        raise UserError(
            f"{plain[0].file} has metres without a UTM zone, but {located[0].file} has a position on earth. "
            "Say which zone the metres are in: --zone 33N."
        )
    system = system or first_zone(photos)
    main, files = system.split("+")[0], [photo.file for photo in photos]
    positions = np.full((len(photos), 2), np.nan)
    if not main:
        for i, photo in enumerate(photos):
            positions[i] = photo.metres or positions[i]
        return positions, ""
    degrees = np.array([photo.degrees or (np.nan, np.nan) for photo in photos]).reshape(-1, 2)
    rows_of: dict[str, list[int]] = defaultdict(list)
    for i, photo in enumerate(photos):
        if photo.metres is not None:
            rows_of[photo.zone or main].append(i)
            positions[i] = photo.metres
    for zone, rows in rows_of.items():
        named = [files[i] for i in rows]
        degrees[rows] = _naming_photo(partial(to_degrees, zone=zone), named, positions[rows])
    projected, system = _naming_photo(partial(to_system, system=system), files, degrees)
    kept = np.zeros(len(photos), dtype=bool)
    kept[rows_of.get(main, [])] = True  # their own metres, without the rounding of two projections
    kept &= np.abs(projected - positions).max(axis=1, initial=0) < 1e-3
    return np.where(kept[:, None], positions, projected), system


def first_zone(photos: Sequence[Photo]) -> str:
    """Return the zone of the first photo that says where on earth it was taken; "" if none does."""
    for photo in photos:
        if photo.zone:
            return photo.zone
        if photo.degrees is not None:
            return _naming_photo(lambda point: to_metres(point)[1], [photo.file], [photo.degrees])
    return ""


def check_inside(files: Sequence[Path], positions: np.ndarray, zone: str) -> None:
    """Raise `UserError` that names the first file whose metres ``[n, 2]`` cannot lie in the zone."""
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
        raise PlacesError(f"{where}: {error}") from error
