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
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np

from sfrs.models.model import Model
from sfrs.models.network import save_network
from sfrs.models.weights_file import WeightsError
from sfrs.retrieval.index.quantised import Compressed
from sfrs.retrieval.index.rows import RowFile
from sfrs.retrieval.index.settings import FORMAT, Settings, model_settings, read_settings
from sfrs.retrieval.near import Near
from sfrs.runtime.atomic_io import lock_taken, replaced
from sfrs.runtime.errors import UserError

TABLE, LOCK = "index.sqlite", "lock"
NETWORK, WHITENING = "network.safetensors", "whitening.safetensors"
PATIENCE = 60.0  # seconds to wait for a transaction of another process, which take milliseconds
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


class Paths(Sequence[Path]):
    """Paths that are made when they are asked for: as bytes a million of them take 50 MB."""

    def __init__(self, text: bytes, lengths: np.ndarray) -> None:
        self._text, self._ends = text, np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: SupportsIndex) -> Path: ...
    @overload
    def __getitem__(self, i: slice) -> list[Path]: ...
    def __getitem__(self, i: SupportsIndex | slice) -> Path | list[Path]:
        at = range(len(self))[i]
        if isinstance(at, range):
            return [self[j] for j in at]
        return Path(os.fsdecode(self._text[self._ends[at] : self._ends[at + 1]]))


class Entry(NamedTuple):
    """An image to add, by the columns of the table, nan for NULL, and the slot of the file as it was."""

    file: bytes
    easting: float
    northing: float
    bytes: int
    modified: int
    replaces: int | None = None


@dataclass(frozen=True)
class Table:
    """The images of one generation, in the order of their slots."""

    slots: np.ndarray  # int64 [n], rows of the descriptor file, rising
    files: Paths
    positions: np.ndarray  # float64 [n, 2], easting and northing in metres; nan where nothing is known

    def within(self, near: Near, system: str, path: str | Path) -> "Table":
        """Keep the images in a circle. Raises `UserError`, which names the index, if there are none."""
        rows = np.flatnonzero(near.holds(self.positions, system))
        if len(rows) == 0:
            raise UserError(f"--near {near}: {path} holds no image in this circle.")
        files = [os.fsencode(self.files[row]) for row in rows.tolist()]
        lengths = np.fromiter(map(len, files), np.int64, len(files))
        return Table(self.slots[rows], Paths(b"".join(files), lengths), self.positions[rows])


class Store:
    """An index directory as it lies on disk; ``settings`` are as they were last read or written."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path, self._database = path, database
        with self._using():
            self.settings: Settings = self._read()

    @classmethod
    def create(
        cls,
        path: Path,
        model: Model,
        kind: str = "exact",
        *,
        zone: str = "",
        regions: bool = False,
        whiten_from: int | None = None,
    ) -> "Store":
        """Begin an index in the directory ``path``: write its model, then its table, which is empty.

        From ``whiten_from`` images on the first generation is whitened; None: never.
        """
        save_network(path / NETWORK, model.network)
        if model.whitening is not None:
            model.whitening.save(path / WHITENING)
        dtype = "float32" if kind == "exact" else "float16"
        settings = {
            "format": FORMAT,
            "generation": 0,
            "kind": kind,
            "zone": zone,
            **model_settings(model),
            "dtype": dtype,
            "descriptors": f"descriptors-0.{dtype}",  # generation 1 may have to write another file
            "quarters": "quarters-0.float16" if regions else None,
            "compressed": None,
            "trained": 0,
            "whiten_from": whiten_from,
        }
        with replaced(path / TABLE) as partial:
            partial.with_name(partial.name + "-journal").unlink(missing_ok=True)
            with closing(_connect(partial, "rwc")) as database, database:
                database.executescript(SCHEMA)
                _write(database, settings)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open an index, finished or not. Raises `UserError` if it is none, or of another format."""
        path = Path(path)
        if not (path / TABLE).is_file():
            what = "this folder is no index" if path.is_dir() else "there is no index here"
            raise UserError(f"{path}: {what} (no {TABLE}). sfrs index PHOTOS --out {path} builds one.")
        # Opened for writing although readers never write: after a crash SQLite has to roll back.
        database = _connect(path / TABLE, "rw")
        try:
            return cls(path, database)
        except UserError:
            database.close()
            raise

    def close(self) -> None:
        self._database.close()

    def load_model(self, device: str = "cpu") -> Model:
        """Load the index's copy of its model.

        Raises `WeightsError` if a file of it is damaged, or not the one the images were described with.
        """
        stored = self.settings["digests"]
        whitening = self.path / WHITENING if stored["whitening"] else None
        model = Model.load(self.path / NETWORK, whitening, size=self.settings["size"])
        made = {"dim": model.dim, "quarters_shape": model.quarters_shape}
        for name, value in made.items():
            if self.settings[name] != value:
                raise UserError(f"{self.path / TABLE}: {name} is {self.settings[name]}, expected {value}.")
        if changed := [part for part, digest in model.digests().items() if stored[part] != digest]:
            raise WeightsError(
                f"{self.path}: its model is not the one it was built with; {' and '.join(changed)} differ "
                f"from the digests in {TABLE}. Restore {NETWORK} and {WHITENING}, or build the index again."
            )
        return model.to(device)

    def open_compressed(self, *, to_extend: bool = False) -> Compressed:
        """Open the compressed copy of an index that has one, see `Compressed.open`."""
        settings = self.settings
        assert settings["compressed"] is not None
        file, digest = self.path / settings["compressed"], settings.get("compressed_digest")
        return Compressed.open(file, settings["kind"], settings["dim"], digest, to_extend=to_extend)

    def rows_of(self, name: str) -> tuple[Path, str, tuple[int, ...]]:
        """Return file, dtype and shape of one row, of "descriptors" or "quarters"."""
        if name == "quarters":
            assert self.settings["quarters"] is not None
            return self.path / self.settings["quarters"], "float16", self.settings["quarters_shape"]
        return self.path / self.settings["descriptors"], self.settings["dtype"], (self.settings["dim"],)

    @property
    def generation(self) -> int:
        """Finished generations; 0 while the first is being built."""
        return self.settings["generation"]

    def snapshot(self) -> Table:
        """Read the images of the last finished generation, and its settings into `settings`."""
        with self._using():
            self._database.execute("BEGIN")
            self.settings = self._read()
            return self._images(self.generation)

    def pending(self) -> Table:
        """Read the images of the generation that is being built."""
        with self._using():
            return self._images(self.generation + 1)

    def known(self, files: Iterable[bytes]) -> Iterator[Entry | None]:
        """Yield for each file its image in the generation being built, with its own slot in ``replaces``."""
        columns = "IFNULL(easting, 9e999), IFNULL(northing, 9e999), bytes, modified, slot"
        query = f"SELECT file, {columns} FROM images WHERE file = ? AND died IS NULL"
        for file in files:
            with self._using():
                row = self._database.execute(query, (file,)).fetchone()
            yield row and Entry._make(np.nan if value == np.inf else value for value in row)

    def slots(self) -> int:
        """Count the rows the descriptor file must have; what lies beyond is of a writer that was killed."""
        with self._using():
            return self._database.execute("SELECT COALESCE(MAX(slot) + 1, 0) FROM images").fetchone()[0]

    def changed(self) -> bool:
        """Return True if something is added or removed that no finished generation knows of."""
        query = "SELECT EXISTS (SELECT 1 FROM images WHERE born > ?1 OR died > ?1)"
        with self._using():
            return bool(self._database.execute(query, (self.generation,)).fetchone()[0])

    def add(
        self, entries: Sequence[Entry], descriptors: np.ndarray, quarters: np.ndarray | None = None
    ) -> None:
        """Add images, with descriptors ``[n, dim]`` and, if the index keeps regions, quarters ``[n, 4, K,
        D]``, to the generation being built, for those they replace.
        """
        first, coming = self.slots(), self.generation + 1
        for name, part in (("descriptors", descriptors), ("quarters", quarters)):
            if part is not None:  # rows reach the disk before the table names them
                with closing(RowFile(*self.rows_of(name), first)) as file:
                    file.append(part)
        rows = [(slot, *entry[:5], coming) for slot, entry in enumerate(entries, start=first)]
        with self._using():
            self._database.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", rows)
            self._leave_out(entry.replaces for entry in entries if entry.replaces is not None)

    def remove(self, slots: Iterable[int]) -> None:
        """Leave images out of the generation being built."""
        with self._using():
            self._leave_out(slots)

    def write(self, **settings: Any) -> None:
        """Change settings in one transaction."""
        with self._using():
            _write(self._database, settings)
        self.settings |= settings  # type: ignore[assignment]  # pyright does not know their names

    def finish(self, compacted: np.ndarray | None = None, **settings: Any) -> None:
        """Make the generation being built the one that readers see, in one transaction with ``settings``.

        ``compacted`` are the slots of its images, rising, if they became the slots 0, 1, 2, ...
        """
        settings["generation"] = self.generation + 1
        with self._using():
            if compacted is not None:
                self._database.execute("DELETE FROM images WHERE died IS NOT NULL")
                moves = ((new, int(old)) for new, old in enumerate(compacted) if new != old)
                self._database.executemany("UPDATE images SET slot = ? WHERE slot = ?", moves)
            _write(self._database, settings)
        self.settings |= settings  # type: ignore[assignment]  # pyright does not know their names

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Run a transaction. Raises `UserError` where the table is damaged or cannot be written."""
        try:
            with self._database:
                yield
        except UserError:
            raise
        except (sqlite3.Error, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.path / TABLE}: this table cannot be used ({error}).") from error

    def _read(self) -> Settings:
        rows = self._database.execute("SELECT name, value FROM settings").fetchall()
        return read_settings(dict(rows), self.path / TABLE)

    def _images(self, generation: int) -> Table:
        def select(columns: str) -> sqlite3.Cursor:
            condition = "born <= ?1 AND (died IS NULL OR died > ?1) ORDER BY slot"
            return self._database.execute(f"SELECT {columns} FROM images WHERE {condition}", (generation,))

        # Column by column into arrays: rows of Python objects would take six times the memory.
        numbers = select("slot, LENGTH(file), IFNULL(easting, 9e999), IFNULL(northing, 9e999)")
        found = np.fromiter(numbers, dtype="i8,i8,f8,f8")
        slots, lengths, easting, northing = (found[f"f{column}"] for column in range(4))
        if (np.diff(slots, prepend=-1) <= 0).any():
            raise ValueError("its slots are not in order")
        positions = np.column_stack([easting, northing])
        positions[np.isinf(positions)] = np.nan  # NULL became infinite, because an array takes no None
        text = b"".join(file for (file,) in select("file"))
        if len(text) != lengths.sum() or b"\0" in text:
            raise ValueError("its names of files are damaged")
        return Table(slots.copy(), Paths(text, lengths), positions)

    def _leave_out(self, slots: Iterable[int]) -> None:
        coming = self.generation + 1
        rows = [(coming, int(slot)) for slot in slots]
        self._database.executemany("UPDATE images SET died = ? WHERE slot = ?", rows)
        # What no finished generation ever had needs no tombstone.
        self._database.execute("DELETE FROM images WHERE born = ? AND died = ?", (coming, coming))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the index at ``path``, which goes with the process, however it ends."""
    with open(path / LOCK, "a") as file:
        if not lock_taken(file, fcntl.LOCK_EX):
            raise UserError(f"{path}: another sfrs index is writing here; wait until it has ended.")
        yield


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
