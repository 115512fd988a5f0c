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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfrs.data.images import BadImageError
from sfrs.runtime.atomic_io import replaced
from sfrs.runtime.errors import UserError

FORMAT = 1
TABLE, LOCK = "index.sqlite", "lock"
NETWORK, WHITENING = "network.safetensors", "whitening.safetensors"
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


class Paths(Sequence[bytes]):
    """Paths one after the other in one string of bytes: a million of them take 50 MB."""

    def __init__(self, text: bytes, lengths: np.ndarray) -> None:
        self._text, self._ends = text, np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"path {i} of {len(self)}")
        i %= len(self)
        return self._text[self._ends[i] : self._ends[i + 1]]


@dataclass(frozen=True)
class Table:
    """The images of one generation, in the order of their slots.

    Attributes:
        slots: int64 ``[n]``, rows of the descriptor file, rising.
        files: n paths.
        positions: float64 ``[n, 2]``, easting and northing in metres; nan where nothing is known.
        stamps: int64 ``[n, 2]``, size in bytes and time of change in ns of the files.
    """

    slots: np.ndarray
    files: Paths
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
        with replaced(path / TABLE) as partial:
            partial.with_name(partial.name + "-journal").unlink(missing_ok=True)
            with _connect(partial, "rwc") as database:
                database.executescript(SCHEMA)
                with database:
                    _write(database, {"format": FORMAT, **settings})
            database.close()
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
        def select(columns: str) -> sqlite3.Cursor:
            condition = "born <= ?1 AND (died IS NULL OR died > ?1) ORDER BY slot"
            return self._database.execute(f"SELECT {columns} FROM images WHERE {condition}", (generation,))

        # Column by column into arrays: rows of Python objects would take six times the memory.
        numbers = "slot, LENGTH(file), IFNULL(easting, 9e999), IFNULL(northing, 9e999), bytes, modified"
        found = np.fromiter(select(numbers), dtype="i8,i8,f8,f8,i8,i8")
        slots, lengths, easting, northing, sizes, times = (found[name] for name in found.dtype.names)
        positions = np.column_stack([easting, northing])
        positions[np.isinf(positions)] = np.nan  # what NULL was made, because an array takes no None
        files = Paths(b"".join(file for (file,) in select("file")), lengths)
        return Table(slots.copy(), files, positions, np.column_stack([sizes, times]))

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
