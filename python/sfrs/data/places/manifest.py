"""Reader of CSV manifests: one line per image.

Columns: ``file`` (relative to the manifest's folder, or absolute), ``role`` (``database`` or ``query``),
``easting`` and ``northing`` in metres; optionally ``split``, ``panorama`` and ``condition``. Other columns
are ignored.
"""

from pathlib import Path

from sfrs.data.places.sets import Places, PlacesError, Shot, Shots, make_places
from sfrs.data.places.tables import coordinates, file_of, lines_of_split, role_of, table_rows

COLUMNS = ("file", "role", "easting", "northing")
OPTIONAL = ("split", "panorama", "condition")


def manifest_splits(path: Path) -> list[str]:
    """List the splits of the split column, in the order of their first lines; none without it."""
    found = dict.fromkeys(line.get("split") or "" for _, line in table_rows(path, COLUMNS, OPTIONAL))
    return [split for split in found if split]


def read_manifest(path: Path, split: str) -> Places:
    """Read the lines of ``split`` (all lines if there is no split column), in the file's order."""
    lines, others = lines_of_split(path, split, COLUMNS, OPTIONAL)
    shots: Shots = {"database": [], "queries": []}
    for where, line in lines:
        role, file = role_of(where, line), file_of(where, line)
        names = (line.get("panorama") or "", line.get("condition") or "")
        shots[role].append(Shot(path.parent / file, *coordinates(where, line), *names))
    for role, found in shots.items():
        if not found:
            raise PlacesError(f"{path}: no {role} in the split {split}.{others}")
    return make_places(path.stem, split, shots)
