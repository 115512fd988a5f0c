"""Reader of CSV manifests: one line per image.

Columns: ``file`` (relative to the manifest's folder, or absolute), ``role`` (``database`` or ``query``), and
``easting`` and ``northing`` in metres (optionally ``zone``) or ``latitude`` and ``longitude``; where these
are empty the image itself says it. Optionally ``split``, ``panorama`` and ``condition``. Other columns are
ignored.
"""

from dataclasses import replace
from pathlib import Path

from sfrs.data.photos import OPTIONAL as POSITION
from sfrs.data.photos import Locator, Photo, from_line
from sfrs.data.places.reading import Reading, shots_of
from sfrs.data.places.sets import Places, make_places
from sfrs.data.tables import PlacesError, file_of, lines_of_split, role_of, table_rows

COLUMNS = ("file", "role")
OPTIONAL = (*POSITION, "split", "panorama", "condition")


def manifest_splits(path: Path) -> list[str]:
    """List the splits of the split column, in the order of their first lines; none without it."""
    found = dict.fromkeys(line.get("split") or "" for _, line in table_rows(path, COLUMNS, OPTIONAL))
    return [split for split in found if split]


def read_manifest(path: Path, split: str, reading: Reading) -> Places:
    """Read the lines of ``split`` (all lines if there is no split column), in the file's order."""
    lines, others = lines_of_split(path, split, COLUMNS, OPTIONAL)
    locator = Locator(reading)
    photos: dict[str, list[Photo]] = {"database": [], "queries": []}
    for where, line in lines:
        role, file = role_of(where, line), path.parent / file_of(where, line)
        photo = locator.locate(from_line(where, line, file), lenient=True)
        panorama = line.get("panorama") or photo.panorama
        photos[role].append(replace(photo, panorama=panorama, condition=line.get("condition") or ""))
    for role, found in photos.items():
        if not found:
            raise PlacesError(f"{path}: no {role} in the split {split}.{others}")
    shots, zone = shots_of(photos, reading)
    return make_places(path.stem, split, shots, zone=zone)
