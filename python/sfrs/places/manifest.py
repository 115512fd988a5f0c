"""Reader of CSV manifests: one line per image.

Columns: ``file`` (relative to the manifest's folder, or absolute), ``role`` (``database`` or ``query``),
``easting`` and ``northing`` in metres; optionally ``split`` and ``panorama``. Other columns are ignored.
"""

import csv
import math
from pathlib import Path

from sfrs.places.sets import Places, PlacesError, make_places

COLUMNS = ("file", "role", "easting", "northing")
ROLES = {"database": "database", "gallery": "database", "query": "queries", "queries": "queries"}


def read_manifest(path: Path, split: str) -> Places:
    """Read the lines of ``split`` (all lines if there is no split column), in the file's order.

    Raises:
        PlacesError: a column is missing, a line is wrong (named by its number), or a role has no image.
    """
    rows = {"database": [], "queries": []}
    splits = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, skipinitialspace=True)
            names = [name.strip().lower() for name in reader.fieldnames or ()]
            missing = [column for column in COLUMNS if column not in names]
            if missing:
                raise PlacesError(
                    f"{path}: no column {', '.join(missing)}; its first line reads "
                    f"{', '.join(names) or 'nothing'}. "
                    f"Expected the columns {', '.join(COLUMNS)} and optionally split, panorama."
                )
            reader.fieldnames = names
            for line in reader:
                splits.add(line.get("split") or split)
                if (line.get("split") or split) == split:
                    role, row = _parse_line(path, reader.line_num, line)
                    rows[role].append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise PlacesError(f"{path}: this is not a CSV file in UTF-8 ({error}).") from error
    for role, found in rows.items():
        if not found:
            known = f" The split column has {', '.join(sorted(splits))}." if splits - {split} else ""
            raise PlacesError(f"{path}: no {role} in the split {split}.{known}")
    return make_places(path.stem, split, rows["database"], rows["queries"])


def _parse_line(path: Path, number: int, line: dict[str, str]) -> tuple[str, tuple[Path, float, float, str]]:
    role = ROLES.get((line["role"] or "").strip().lower())
    if role is None:
        raise PlacesError(f"{path}, line {number}: role is {line['role']!r}; expected database or query.")
    if not line["file"]:
        raise PlacesError(f"{path}, line {number}: the file column is empty.")
    try:
        easting, northing = float(line["easting"]), float(line["northing"])
        if not (math.isfinite(easting) and math.isfinite(northing)):
            raise ValueError
    except (TypeError, ValueError):
        raise PlacesError(
            f"{path}, line {number}: easting is {line['easting']!r} and northing {line['northing']!r}; "
            "expected metres."
        ) from None
    return role, (path.parent / line["file"], easting, northing, line.get("panorama") or "")
