"""Reader of CSV manifests: one line per image.

Columns: ``file`` (relative to the manifest's folder, or absolute), ``role`` (``database`` or ``query``),
``easting`` and ``northing`` in metres; optionally ``split``, ``panorama`` and ``condition``. Other columns
are ignored.
"""

from pathlib import Path

from sfrs.data.places.assembly import Shot, make_places
from sfrs.data.places.sets import Places, PlacesError
from sfrs.data.places.tables import finite_pair, table_rows

COLUMNS = ("file", "role", "easting", "northing")
OPTIONAL = ("split", "panorama", "condition")
ROLES = {"database": "database", "gallery": "database", "query": "queries", "queries": "queries"}


def manifest_splits(path: Path) -> list[str]:
    """The splits that the split column has, in the order of their first lines; none without it."""
    found = dict.fromkeys(line.get("split") or "" for _, line in table_rows(path, COLUMNS, OPTIONAL))
    return [split for split in found if split]


def read_manifest(path: Path, split: str) -> Places:
    """Read the lines of ``split`` (all lines if there is no split column), in the file's order.

    Raises:
        PlacesError: a column is missing, a line is wrong (named by its number), or a role has no image.
    """
    shots = {"database": [], "queries": []}
    splits = set()
    for number, line in table_rows(path, COLUMNS, OPTIONAL):
        splits.add(line.get("split") or split)
        if (line.get("split") or split) == split:
            role, shot = _parse_line(path, number, line)
            shots[role].append(shot)
    for role, found in shots.items():
        if not found:
            known = f" The split column has {', '.join(sorted(splits))}." if splits - {split} else ""
            raise PlacesError(f"{path}: no {role} in the split {split}.{known}")
    return make_places(path.stem, split, shots["database"], shots["queries"])


def _parse_line(path: Path, number: int, line: dict[str, str]) -> tuple[str, Shot]:
    role = ROLES.get((line["role"] or "").strip().lower())
    if role is None:
        raise PlacesError(f"{path}, line {number}: role is {line['role']!r}; expected database or query.")
    if not line["file"]:
        raise PlacesError(f"{path}, line {number}: the file column is empty.")
    position = finite_pair(line["easting"], line["northing"])
    if position is None:
        raise PlacesError(
            f"{path}, line {number}: easting is {line['easting']!r} and northing {line['northing']!r}; "
            "expected metres."
        )
    more = (line.get("panorama") or "", line.get("condition") or "")
    return role, Shot(path.parent / line["file"], *position, *more)
