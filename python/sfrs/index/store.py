"""The directory of an index: a table of images and files of numbers, which change together or not at all.

An image has a slot, its row in the descriptor file. The table says in which generation an image was added
and in which it was removed; a finished change raises the generation by one, in one transaction. So readers
see the last finished generation while a writer, who alone holds the lock, prepares the next, and a writer
that was killed has changed nothing but what the next one goes on with.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from sfrs.errors import UserError
from sfrs.images import BadImageError

FORMAT = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16}
TABLE, LOCK = "index.sqlite", "lock"
PATIENCE = 60.0
"""Seconds to wait for a transaction of another process, which take milliseconds."""

SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE images (
    slot INTEGER PRIMARY KEY,   -- row of the descriptor file
    file BLOB NOT NULL,         -- absolute path, in the bytes of the file system
    easting REAL,               -- metres; NULL where nothing is known
    northing REAL,
    bytes INTEGER NOT NULL,     -- size and time of change in ns of the file that was described
    modified INTEGER NOT NULL,
    born INTEGER NOT NULL,      -- first generation that has the image
    died INTEGER                -- first generation that has it no longer
);
CREATE INDEX images_by_file ON images (file);
"""


@dataclass(frozen=True)
class Table:
    """The images of one generation, in the order of their slots.

    Attributes:
        slots: int64 ``[n]``, rows of the descriptor file, rising.
        files: n paths as bytes.
        positions: float64 ``[n, 2]``, easting and northing in metres; nan where nothing is known.
        stamps: int64 ``[n, 2]``, size in bytes and time of change in ns of the files.
    """

    slots: np.ndarray
    files: list[bytes]
    positions: np.ndarray
    stamps: np.ndarray


class Store:
    """An index directory as it lies on disk.

    Attributes:
        path: of the directory.
        settings: the table's settings, as they were last read or written.
    """

    def __init__(self, path: Path, database: sqlite3.Connection, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self._database = database

    @classmethod
    def create(cls, path: Path, settings: dict[str, Any]) -> "Store":
        """Make the table of a new index; ``path`` is a directory and holds everything else already."""
        partial = path / (TABLE + ".partial")
        for leftover in (partial, partial.with_name(partial.name + "-journal")):
            leftover.unlink(missing_ok=True)
        with _connect(partial, "rwc") as database:
            database.executescript(SCHEMA)
            with database:
                _write(database, {"format": FORMAT, **settings})
        database.close()
        os.replace(partial, path / TABLE)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open an index, finished or not.

        Raises:
            UserError: it is no index, or of a format this version does not read.
        """
        path = Path(path)
        if not (path / TABLE).is_file():
            what = "this folder is no index" if path.is_dir() else "there is no index here"
            raise UserError(f"{path}: {what} (no {TABLE}). sfrs index PHOTOS --out {path} builds one.")
        # Opened for writing although readers never write: after a crash SQLite has to roll back.
        database = _connect(path / TABLE, "rw")
        try:
            settings = {name: json.loads(value) for name, value in database.execute("SELECT * FROM settings")}
            version = settings["format"]
        except (sqlite3.DatabaseError, ValueError, KeyError) as error:
            database.close()
            raise UserError(f"{path / TABLE}: this is not the table of an index ({error}).") from error
        if version != FORMAT:
            database.close()
            raise UserError(
                f"{path}: this index has format {version}; this version of sfrs reads format {FORMAT}. "
                "Build it anew."
            )
        return cls(path, database, settings)

    def close(self) -> None:
        self._database.close()

    @property
    def generation(self) -> int:
        """Finished generations; 0 while the first is being built."""
        return self.settings["generation"]

    def snapshot(self) -> Table:
        """The images of the last finished generation, and its settings into :attr:`settings`."""
        with self._database:
            self._database.execute("BEGIN")
            self.settings = dict(
                (name, json.loads(value)) for name, value in self._database.execute("SELECT * FROM settings")
            )
            return self._images(self.generation)

    def pending(self) -> Table:
        """The images of the generation that is being built."""
        return self._images(self.generation + 1)

    def _images(self, generation: int) -> Table:
        found = self._database.execute(
            "SELECT slot, file, easting, northing, bytes, modified FROM images "
            "WHERE born <= ? AND (died IS NULL OR died > ?) ORDER BY slot",
            (generation, generation),
        ).fetchall()
        slots, files, *numbers = zip(*found, strict=True) if found else ((),) * 6
        positions = np.array(numbers[:2], dtype=np.float64).reshape(2, -1).T  # None becomes nan
        stamps = np.array(numbers[2:], dtype=np.int64).reshape(2, -1).T
        return Table(np.array(slots, dtype=np.int64), list(files), positions, stamps)

    def slots(self) -> int:
        """Rows the descriptor file must have; what lies beyond is of a writer that was killed."""
        return self._database.execute("SELECT COALESCE(MAX(slot) + 1, 0) FROM images").fetchone()[0]

    def changed(self) -> bool:
        """Whether something is added or removed that no finished generation knows of."""
        query = "SELECT EXISTS (SELECT 1 FROM images WHERE born > ?1 OR died > ?1)"
        return bool(self._database.execute(query, (self.generation,)).fetchone()[0])

    def add(
        self,
        first: int,
        files: Iterable[bytes],
        positions: np.ndarray,
        stamps: np.ndarray,
        replaced: Iterable[int] = (),
    ) -> None:
        """Add images to the generation being built, in slots from ``first`` on; leave ``replaced`` out."""
        rows = [
            (first + i, file, *_known(position), int(size), int(modified), self.generation + 1)
            for i, (file, position, (size, modified)) in enumerate(zip(files, positions, stamps, strict=True))
        ]
        with self._database:
            self._database.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", rows)
            self._leave_out(replaced)

    def remove(self, slots: Iterable[int]) -> None:
        """Leave images out of the generation being built."""
        with self._database:
            self._leave_out(slots)

    def _leave_out(self, slots: Iterable[int]) -> None:
        coming = self.generation + 1
        rows = [(coming, int(slot)) for slot in slots]
        self._database.executemany("UPDATE images SET died = ? WHERE slot = ?", rows)
        # What no finished generation ever had needs no tombstone.
        self._database.execute("DELETE FROM images WHERE born = ? AND died = ?", (coming, coming))

    def write(self, **settings: Any) -> None:
        """Change settings in one transaction."""
        with self._database:
            _write(self._database, settings)
        self.settings |= settings

    def finish(self, compacted: np.ndarray | None = None, **settings: Any) -> None:
        """Make the generation being built the one that readers see, in one transaction.

        Args:
            compacted: the slots of its images, rising, if they became the slots 0, 1, 2, ...
            settings: that change with it.
        """
        settings["generation"] = self.generation + 1
        with self._database:
            if compacted is not None:
                self._database.execute("DELETE FROM images WHERE died IS NOT NULL")
                moves = ((new, int(old)) for new, old in enumerate(compacted) if new != old)
                self._database.executemany("UPDATE images SET slot = ? WHERE slot = ?", moves)
            _write(self._database, settings)
        self.settings |= settings


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the index at ``path``, which goes with the process, however it ends.

    Raises:
        UserError: another process holds it.
    """
    with open(path / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another sfrs index is writing here; wait until it has ended.") from None
        yield


class RowFile:
    """A file of equally long rows of numbers, appended to in batches.

    Args:
        first: row to write next; what the file holds beyond is overwritten.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...], first: int) -> None:
        self.dtype, self.shape = np.dtype(dtype), shape
        self._file: BinaryIO = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self._file.seek(first * self.row_bytes)

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape))

    def append(self, rows: np.ndarray) -> None:
        """Write rows ``[b, *shape]``."""
        # By torch, which rounds to float16 and back five times as fast as numpy.
        rows = torch.from_numpy(np.ascontiguousarray(rows)).to(DTYPES[self.dtype.name]).numpy()
        self._file.write(rows.reshape(-1).view(np.uint8))

    def sync(self) -> None:
        """Return when everything appended is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def map_rows(path: Path, dtype: str, shape: tuple[int, ...], rows: int) -> np.ndarray:
    """The first ``rows`` rows of a row file, ``[rows, *shape]``, mapped and not read.

    Raises:
        UserError: the file is missing or too short.
    """
    expected = rows * np.dtype(dtype).itemsize * int(np.prod(shape))
    size = path.stat().st_size if path.is_file() else -1
    if size < expected:
        what = "is missing" if size < 0 else f"has {size:,} bytes"
        raise UserError(f"{path}: this file {what}; expected {expected:,} bytes. The index is damaged.")
    if rows == 0:
        return np.empty((0, *shape), dtype)
    # Copy on write, although nothing writes: torch warns of arrays that are read-only.
    return np.memmap(path, dtype=dtype, mode="c", shape=(rows, *shape))


def stamp(file: str | Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns: a file that has them unchanged is not described again.

    Raises:
        BadImageError: there is no such file, or it may not be read.
    """
    try:
        found = os.stat(file)
    except OSError as error:
        raise BadImageError(f"{file}: this image cannot be read ({error.strerror}).") from error
    return found.st_size, found.st_mtime_ns


def _known(position: np.ndarray) -> tuple[float | None, float | None]:
    return (None, None) if np.isnan(position).any() else (float(position[0]), float(position[1]))


def _write(database: sqlite3.Connection, settings: dict[str, Any]) -> None:
    rows = [(name, json.dumps(value)) for name, value in settings.items()]
    database.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    try:
        database = sqlite3.connect(uri, uri=True, timeout=PATIENCE, check_same_thread=False)
        database.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error as error:
        raise UserError(f"{path}: this file cannot be opened ({error}).") from error
    return database
