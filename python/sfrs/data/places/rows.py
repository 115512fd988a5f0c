"""Positions of rows of descriptors: a table, an array or a list of names, a line or row for each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sfrs.data.photos import OPTIONAL, Locator, Photo, from_line
from sfrs.data.places.frames import frame_shots
from sfrs.data.places.reading import Reading, shots_of
from sfrs.data.places.sets import Places, make_places
from sfrs.data.tables import PlacesError, read_npy, table_rows
from sfrs.runtime.errors import UserError

ROLES = ("database", "queries")


def read_rows(files: Sequence[Path], counts: Sequence[int], reading: Reading) -> Places:
    """Place ``counts`` rows of the database and of the queries; frames, where ``reading`` says so.

    A file is a CSV file with the columns easting, northing (zone) or latitude, longitude, or file; a ``.txt``
    of names, one a line, as ``sfrs describe`` writes them; or a ``.npy`` ``[n, 2]`` of easting and northing
    in metres. Raises `PlacesError` if a file does not have as many, or a row says no position.
    """
    if reading.frames:
        numbered = {role: [Path(str(i)) for i in range(n)] for role, n in zip(ROLES, counts, strict=True)}
        return make_places("descriptors", "test", frame_shots(numbered, reading.frames), unit="frames")
    if len(files) != 2:
        raise UserError(
            f"{len(files)} files of --positions; expected two, of the database and of the queries, or --data."
        )
    photos = {}
    for role, path, count in zip(ROLES, files, counts, strict=True):
        photos[role] = _photos(path, reading)
        if len(photos[role]) != count:
            raise PlacesError(f"{path}: {len(photos[role])} positions for {count} descriptors of the {role}.")
    shots, zone = shots_of(photos, reading)
    return make_places("descriptors", "test", shots, zone=zone)


def _photos(path: Path, reading: Reading) -> list[Photo]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _of_array(path)
    locator = Locator(reading)
    if suffix == ".txt":
        try:
            names = path.read_text("utf-8", errors="surrogateescape").splitlines()
        except OSError as error:
            raise PlacesError(f"{path}: this file cannot be read ({error.strerror}).") from None
        lines = [(f"{path}, line {i}", {"file": name}) for i, name in enumerate(names, start=1)]
    else:
        lines = table_rows(path, (), ("file", *OPTIONAL))
    photos = [from_line(where, line, Path(line.get("file") or where)) for where, line in lines]
    return [locator.locate(photo, lenient=True) for photo in photos]


def _of_array(path: Path) -> list[Photo]:
    array = read_npy(path)
    if array.shape[1:] != (2,) or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise PlacesError(
            f"{path}: {list(array.shape)} {array.dtype}; expected finite easting and northing in metres [n, "
            "2]."
        )
    if np.abs(array).max(initial=0) <= 180:
        raise PlacesError(
            f"{path}: all numbers are within 180, so they may be degrees or metres. Write a CSV file "
            "instead, with the columns latitude and longitude, or easting and northing."
        )
    return [
        Photo(Path(f"{path}, row {i}"), metres=(x, y))
        for i, (x, y) in enumerate(array.astype(float).tolist())
    ]
