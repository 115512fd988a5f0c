"""Lines of CSV files, for the formats that come as tables."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from sfrs.data.places.sets import PlacesError


def finite_pair(first: str | None, second: str | None) -> tuple[float, float] | None:
    """Two finite numbers, or None if one of the texts is none."""
    try:
        pair = float(first), float(second)
    except (TypeError, ValueError):
        return None
    return pair if all(map(math.isfinite, pair)) else None


def table_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, column -> text) of every line below the first, which names the columns.

    Names of columns are compared without case and spaces around them.

    Raises:
        PlacesError: there is no such file, it is no CSV in UTF-8, or one of ``columns`` is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, skipinitialspace=True)
            names = [name.strip().lower() for name in reader.fieldnames or ()]
            missing = [column for column in columns if column not in names]
            if missing:
                more = f" and optionally {', '.join(optional)}" if optional else ""
                raise PlacesError(
                    f"{path}: no column {', '.join(missing)}; its first line reads "
                    f"{', '.join(names) or 'nothing'}. Expected the columns {', '.join(columns)}{more}."
                )
            reader.fieldnames = names
            for line in reader:
                yield reader.line_num, line
    except FileNotFoundError:
        raise PlacesError(f"{path}: there is no such file.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise PlacesError(f"{path}: this is not a CSV file in UTF-8 ({error}).") from error
