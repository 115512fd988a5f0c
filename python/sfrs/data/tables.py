"""Lines of CSV files, for the formats that come as tables."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sfrs.runtime.errors import UserError

METRES, DEGREES = ("easting", "northing"), ("latitude", "longitude")
FARTHEST = 1e9  # metres from the origin beyond which a coordinate is none; the earth's circumference is 4e7
ALIASES = {
    "lat": "latitude", "lon": "longitude", "lng": "longitude", "long": "longitude",
    "utm_east": "easting", "utm_north": "northing",
    "filename": "file", "image": "file", "path": "file",
}  # fmt: skip
"""Names that other programs give to columns -> ours."""
ROLES = {"database": "database", "gallery": "database", "query": "queries", "queries": "queries"}


class PlacesError(UserError, ValueError):
    """A data set cannot be read as it stands; the message names the file or column."""


def table_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ("FILE, line N", column -> text) of every line below the first, which names the columns.

    Names of columns are compared without case and spaces around them, and `ALIASES` are taken for ours.
    Raises `PlacesError` if there is no such file, it is no CSV in UTF-8, or one of ``columns`` is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, skipinitialspace=True)
            names = [name.strip().lower() for name in reader.fieldnames or ()]
            ours = [name if name in columns else ALIASES.get(name, name) for name in names]
            names = [name if our in names else our for name, our in zip(names, ours, strict=True)]
            missing = [column for column in columns if column not in names]
            if missing:
                more = f" and optionally {', '.join(optional)}" if optional else ""
                raise PlacesError(
                    f"{path}: no column {', '.join(missing)}; its first line reads "
                    f"{', '.join(names) or 'nothing'}. Expected the columns {', '.join(columns)}{more}."
                )
            reader.fieldnames = names
            for line in reader:
                yield f"{path}, line {reader.line_num}", line
    except FileNotFoundError:
        raise PlacesError(f"{path}: there is no such file.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise PlacesError(f"{path}: this is not a CSV file in UTF-8 ({error}).") from error


def lines_of_split(
    path: Path, split: str, columns: Sequence[str], optional: Sequence[str]
) -> tuple[list[tuple[str, dict[str, str]]], str]:
    """Return `table_rows` whose column split is ``split`` or empty, and a sentence on other splits."""
    rows, splits = [], set()
    for where, line in table_rows(path, columns, optional):
        splits.add(line.get("split") or split)
        if (line.get("split") or split) == split:
            rows.append((where, line))
    return rows, f" The split column has {', '.join(sorted(splits))}." if splits - {split} else ""


def role_of(where: str, line: dict[str, str], default: str = "") -> str:
    """Read the column role. Raises `PlacesError` if it is none of `ROLES`."""
    role = ROLES.get((line.get("role") or default).strip().lower())
    if role is None:
        raise PlacesError(f"{where}: role is {line['role']!r}; expected database or query.")
    return role


def file_of(where: str, line: dict[str, str]) -> str:
    """Read the column file. Raises `PlacesError` if it is empty, or holds what no name can."""
    if not line["file"]:
        raise PlacesError(f"{where}: the file column is empty.")
    if "\0" in line["file"]:
        raise PlacesError(f"{where}: file is {line['file']!r}; a null byte is in no file's name.")
    return line["file"]


def finite_pair(first: str | None, second: str | None) -> tuple[float, float] | None:
    """Read two numbers of at most `FARTHEST`; None if one of the texts is none."""
    try:
        pair = float(first or ""), float(second or "")
    except ValueError:
        return None
    return pair if all(abs(number) <= FARTHEST for number in pair) else None


def coordinates(where: str, line: dict[str, str], names: Sequence[str] = METRES) -> tuple[float, float]:
    """Read two columns of coordinates. Raises `PlacesError` if `finite_pair` sees none."""
    pair = finite_pair(*(line.get(name) for name in names))
    if pair is None:
        first, second = names
        raise PlacesError(
            f"{where}: {first} is {line.get(first)!r} and {second} {line.get(second)!r}; "
            f"expected {'metres' if names is METRES else 'degrees'}."
        )
    return pair


def read_npy(path: Path, mapped: bool = False) -> np.ndarray:
    """Read a ``.npy`` file, or map it. Raises `PlacesError` if it is none."""
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PlacesError(f"{path}: this .npy file cannot be read ({error}).") from error
