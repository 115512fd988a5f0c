"""Split a folder of photographs into queries and database, for evaluation and for training.

Each rule takes a fifth of the photographs as the queries of ``test``, whose database are all others; of
those a fifth as the queries of ``val``, whose database are the rest; and of that rest half as the queries of
``train``. So no photograph is a query twice, and no query of ``test`` or ``val`` is trained on.

``time``: queries are the newest photographs, by the time in their EXIF (or in names of the full form).
``every:N``: queries are every N-th photograph in the order of the names. ``area``: the three splits are three
strips of the area along its longer side, none within `BORDER` of another, so that ``val`` and ``test``
are places that were not trained on; in each of them queries are chosen by time, where it is known, else every
fifth.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from sfrs.data.photo_files import LeftOutWarning
from sfrs.data.photos import time_of
from sfrs.data.tables import PlacesError
from sfrs.runtime.errors import UserError

SPLITS = ("train", "val", "test")
FIFTH, HALF = 5, 2
SHARES = (0.6, 0.8)  # shares of the photographs at which an area is cut into train, val and test
BORDER = 50.0  # metres on both sides of a cut in which photographs are left out
EXPECTED = "expected time, area, or every:N with N from 2"

Chooser = Callable[[np.ndarray, int], np.ndarray]
"""(rows in their order, N) -> which of them are queries, bool, one of N."""


def held_out(
    files: Sequence[Path], positions: np.ndarray, rule: str, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of (database, queries) of ``split``, int64, of photographs in the order of their names.

    Raises `UserError` if the rule or the split is none, a time is missing, or there are too few photographs.
    """
    if split not in SPLITS:
        raise PlacesError(f"--split is {split!r}; a folder that is split has {', '.join(SPLITS)}.")
    every = re.fullmatch(r"every:(\d+)", rule)
    if rule not in ("time", "area") and (every is None or int(every[1]) < 2):
        raise UserError(f"--hold-out is {rule!r}; {EXPECTED}.")
    rows = np.arange(len(files))
    if rule == "area":
        rows = _strip(files, positions, split)
        times = [_time(files[row]) for row in rows]
        known = [time for time in times if time is not None]
        choose = _newest(known) if len(known) == len(times) else _every_nth
        queries = choose(np.arange(len(rows)), HALF if split == "train" else FIFTH)
        return _checked(files, rows[~queries], rows[queries], split)
    choose = _every_nth if every else _newest(_times(files))
    share, queries = int(every[1]) if every else FIFTH, np.zeros(len(files), bool)
    for n in {"test": (share,), "val": (share, share), "train": (share, share, HALF)}[split]:
        rows = rows[~queries]
        queries = choose(rows, n)
    return _checked(files, rows[~queries], rows[queries], split)


def _checked(files: Sequence[Path], database: np.ndarray, queries: np.ndarray, split: str) -> tuple:
    if not (len(database) and len(queries)):
        raise PlacesError(f"{len(files)} photographs are too few to hold out queries for {split}.")
    return database, queries


def _every_nth(rows: np.ndarray, n: int) -> np.ndarray:
    return np.arange(len(rows)) % n == n - 1


def _newest(times: Sequence[datetime]) -> Chooser:
    rank = np.empty(len(times), dtype=np.int64)
    rank[sorted(range(len(times)), key=times.__getitem__)] = np.arange(len(times))

    def choose(rows: np.ndarray, n: int) -> np.ndarray:
        newest = rows[np.argsort(rank[rows])][len(rows) - len(rows) // n :]
        return np.isin(rows, newest)

    return choose


def _times(files: Sequence[Path]) -> list[datetime]:
    times = {file: _time(file) for file in files}
    unknown = [file for file, time in times.items() if time is None]
    if unknown:
        raise PlacesError(
            f"{unknown[0]}: {len(unknown):,} of {len(files):,} photographs do not say when they were taken; "
            "--hold-out every:5 or area needs no time."
        )
    return [time for time in times.values() if time is not None]


def _time(file: Path) -> datetime | None:
    when = time_of(file)
    return when and when.replace(tzinfo=None)


def _strip(files: Sequence[Path], positions: np.ndarray, split: str) -> np.ndarray:
    along = positions[:, int(np.argmax(np.ptp(positions, axis=0)))]
    cuts = np.quantile(along, SHARES)
    near = (np.abs(along[:, None] - cuts) < BORDER).any(axis=1)
    if near.any():
        warnings.warn(
            f"{near.sum():,} of {len(files):,} photographs lie within {BORDER:g} m of a border between the "
            "areas of train, val and test and are left out.",
            LeftOutWarning,
            stacklevel=4,
        )
    return np.flatnonzero((np.searchsorted(cuts, along) == SPLITS.index(split)) & ~near)
