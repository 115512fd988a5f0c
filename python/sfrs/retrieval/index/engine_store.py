"""The images of an index in Milvus: one collection of them, one of their quarters, one that describes both.

An image's primary key is a digest of its path, so that writing it twice changes nothing and several writers
never meet. The collection ``NAME_record`` holds texts: the settings, the model in pieces, the self-test.
Readers refuse the images until the settings name the fingerprint of a finished build.
"""

import base64
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfrs.data.photos import time_of
from sfrs.models.model import Model
from sfrs.models.weights_file import WeightsError
from sfrs.retrieval.index.milvus import Milvus, key_of
from sfrs.retrieval.index.settings import ModelSettings, model_settings
from sfrs.retrieval.index.store import Entry, Paths, Table
from sfrs.runtime.errors import UserError
from sfrs.runtime.records import Natural, Positive, as_record, parse_json

FORMAT = 1
PIECE, PIECES = 60_000, 100
"""Characters of a long text in one row, below what Milvus takes, and rows that are written at once."""
COLUMNS = ("file", "easting", "northing", "bytes", "modified")
QUARTERS = ("quarter0", "quarter1", "quarter2", "quarter3")


class EngineSettings(ModelSettings):
    """The settings of an index in Milvus."""

    format: int
    generation: Natural  # finished ones
    kind: str
    zone: str
    dtype: str
    quarters: bool
    changing: bool  # a writer has changed images since the last finished generation
    whiten_from: Positive | None  # photographs from which on whitening was learned; None: it was not
    complete: str  # the fingerprint when the first build is finished, "" before


class EngineStore:
    """An index in Milvus, as `Store` is one in a folder; ``settings`` are None while nothing is begun."""

    def __init__(self, path: str | Path) -> None:
        self.settings: EngineSettings | None = None
        self.milvus = Milvus(path)
        self.path = self.milvus.path
        self._images = self.milvus.name
        self._record, self._regions = f"{self._images}_record", f"{self._images}_quarters"
        try:
            self.milvus.load([self._images, self._record, self._regions])
            if self._record in self.milvus.collections:
                self._read_settings()
        except BaseException:
            self.milvus.close()
            raise

    @classmethod
    def open(cls, path: str | Path) -> "EngineStore":
        """Open an index, finished or not. Raises `UserError` if there is none."""
        if Milvus.there(path):
            store = cls(path)
            if store.settings is not None:
                return store
            store.close()
        raise UserError(f"{path}: there is no index here. sfrs index PHOTOS --out {path} builds one.")

    def create(
        self, model: Model, kind: str, zone: str, regions: bool, whiten_from: int | None = None
    ) -> None:
        """Begin the index; the settings, which make it one, are written last."""
        there = self.milvus.collections
        if foreign := there & {self._images, self._regions} if self._record not in there else set():
            raise UserError(
                f"{self.path}: there is a collection {min(foreign)} that is no index. Expected a new name."
            )
        half, ours = kind == "float16", [self._images, self._regions, self._record]
        self.milvus.drop(ours)
        try:
            self._create_collections(model, half, regions)
        except UserError:
            self.milvus.drop(ours)  # what the engine refused, float16 say, leaves nothing
            raise
        with tempfile.TemporaryDirectory() as folder:
            model.save(file := Path(folder) / "model.safetensors")
            self.keep("model", base64.b64encode(file.read_bytes()).decode())
        self.settings = {
            "format": FORMAT,
            "generation": 0,
            "kind": kind,
            "zone": zone,
            **model_settings(model),
            "dtype": "float16" if half else "float32",
            "quarters": regions,
            "changing": False,
            "whiten_from": whiten_from,
            "complete": "",
        }
        self.write()

    def _create_collections(self, model: Model, half: bool, regions: bool) -> None:
        self.milvus.create(self._record, {"unused": 2}, half=False, texts=["text"], numbers={})
        numbers = {"easting": float, "northing": float, "taken": int, "bytes": int, "modified": int}
        self.milvus.create(
            self._images, {"descriptor": model.dim}, half=half, texts=["file"], numbers=numbers
        )
        if regions:
            quarters: dict[str, int] = dict.fromkeys(QUARTERS, int(np.prod(model.quarters_shape[1:])))
            self.milvus.create(self._regions, quarters, half=half, texts=(), numbers={})

    def close(self) -> None:
        """Close it; a file that was made for it and in which no index was begun goes."""
        self.milvus.close(begun=self.settings is not None)

    def load_model(self, device: str = "cpu") -> Model:
        """Load the index's copy of its model. Raises `WeightsError` where it is not the one of the images."""
        assert self.settings is not None
        try:
            content = base64.b64decode(self.read("model"), validate=True)
        except ValueError as error:
            raise WeightsError(f"{self.path}: its model is damaged ({error}).") from error
        with tempfile.TemporaryDirectory() as folder:
            (file := Path(folder) / "model.safetensors").write_bytes(content)
            model = Model.load(file, size=self.settings["size"])
        if model.digests() != self.settings["digests"]:
            raise WeightsError(f"{self.path}: its model is not the one it was built with; build it again.")
        return model.to(device)

    @property
    def generation(self) -> int:
        """Finished generations; 0 while the first is being built."""
        return self.settings["generation"] if self.settings else 0

    def pending(self, condition: str = "") -> Table:
        """Read keys, paths and positions of images, all or by a condition, in the order of their keys."""
        keys, files, positions = [], [], []
        for row in self.milvus.rows(self._images, COLUMNS[:3], condition):
            keys.append(row["id"])
            files.append(row["file"].encode())
            positions.append([_or_nan(row["easting"]), _or_nan(row["northing"])])
        order = np.argsort(np.array(keys, np.int64))
        files = [files[i] for i in order]
        lengths = np.fromiter(map(len, files), np.int64, len(files))
        found = np.array(positions, np.float64).reshape(-1, 2)[order]
        return Table(np.array(keys, np.int64)[order], Paths(b"".join(files), lengths), found)

    def known(self, files: Sequence[bytes]) -> Iterator[Entry | None]:
        """Yield for each file its image, with its key in ``replaces``; None if it is not there."""
        names, found = {key_of(file): file for file in files}, {}
        for row in self.milvus.get(self._images, list(names), COLUMNS):
            file = names[row["id"]]
            if row["file"].encode() != file:
                raise UserError(
                    f"{os.fsdecode(file)} and {row['file']} have the same key in {self.path}; "
                    "rename one of them."
                )
            found[file] = Entry(file, *(_or_nan(row[name]) for name in COLUMNS[1:]), replaces=row["id"])
        return map(found.get, files)

    def add(
        self, entries: Sequence[Entry], descriptors: np.ndarray, quarters: np.ndarray | None = None
    ) -> None:
        """Write images, or write them again; an image is there when its regions are."""
        self._change()
        keys = [key_of(entry.file) for entry in entries]
        if quarters is not None:
            flat = self._vectors(quarters.reshape(len(entries), 4, -1))
            named = (dict(zip(QUARTERS, four, strict=True)) for four in flat)
            rows = [{"id": key, **four} for key, four in zip(keys, named, strict=True)]
            self.milvus.upsert(self._regions, rows)
        rows = []
        for key, entry, vector in zip(keys, entries, self._vectors(descriptors), strict=True):
            taken = time_of(Path(entry.file.decode()))
            row = {
                name: None if value != value else value
                for name, value in zip(COLUMNS, entry[:5], strict=True)
            }
            when = int(taken.timestamp()) if taken else None
            rows.append({"id": key, **row, "file": entry.file.decode(), "taken": when, "descriptor": vector})
        self.milvus.upsert(self._images, rows)

    def remove(self, keys: Iterable[int]) -> None:
        """Remove images."""
        keys = [int(key) for key in keys]
        if keys:
            self._change()
            self.milvus.delete(self._images, keys)
            if self.settings and self.settings["quarters"]:
                self.milvus.delete(self._regions, keys)

    def write(self, **settings: Any) -> None:
        """Change settings."""
        assert self.settings is not None
        self.settings |= settings  # type: ignore[assignment]  # pyright does not know their names
        self._upsert_texts({"settings": json.dumps(self.settings)})

    def finish(self) -> None:
        """Show readers what was changed."""
        assert self.settings is not None
        if self.settings["changing"] or not self.settings["complete"]:
            generation = self.settings["generation"] + 1
            self.write(generation=generation, changing=False, complete=self.settings["fingerprint"])

    def search(self, queries: np.ndarray, k: int, condition: str = "") -> list[list[tuple[int, float]]]:
        """Find the k most similar images of each query, (key, similarity), best first."""
        return self.milvus.search(self._images, self._vectors(queries), k, condition)

    def descriptors(self, keys: Sequence[int]) -> np.ndarray:
        """Read descriptors, float32 ``[n, dim]``."""
        assert self.settings is not None
        return self.milvus.vectors(self._images, keys, ["descriptor"], self.settings["dim"])[:, 0]

    def quarters(self, keys: Sequence[int]) -> np.ndarray:
        """Read quarter VLADs, float32 ``[n, 4, K, D]``."""
        assert self.settings is not None
        shape = self.settings["quarters_shape"]
        found = self.milvus.vectors(self._regions, keys, QUARTERS, int(np.prod(shape[1:])))
        return found.reshape(len(keys), *shape)

    def keep(self, name: str, text: str) -> None:
        """Write a long text to the record, in pieces, and then their number."""
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
        for start in range(0, len(pieces), PIECES):
            part = enumerate(pieces[start : start + PIECES], start)
            self._upsert_texts({f"{name} {number}": piece for number, piece in part})
        self._upsert_texts({name: str(len(pieces))})

    def read(self, name: str) -> str:
        """Read a text that `keep` wrote; "" if there is none."""
        count = self._texts([name])[0]
        if not count.isascii() or not count.isdigit():
            return ""
        names = [f"{name} {number}" for number in range(int(count))]
        parts = [self._texts(names[start : start + PIECES]) for start in range(0, len(names), PIECES)]
        return "".join(piece for part in parts for piece in part)

    def _read_settings(self) -> None:
        if text := self._texts(["settings"])[0]:
            values = parse_json(text, self.path)
            if isinstance(values, dict) and values.get("format", FORMAT) != FORMAT:
                raise UserError(
                    f"{self.path}: this index has format {values['format']}; this version of sfrs reads "
                    f"format {FORMAT}. Build a new one."
                )
            self.settings = as_record(values, EngineSettings, self.path)

    def _texts(self, names: Sequence[str]) -> list[str]:
        keys = [key_of(name.encode()) for name in names]
        found = {row["id"]: row["text"] for row in self.milvus.get(self._record, keys, ["text"])}
        return [found.get(key, "") for key in keys]

    def _upsert_texts(self, texts: dict[str, str]) -> None:
        rows = [{"id": key_of(name.encode()), "text": text} for name, text in texts.items()]
        self.milvus.upsert(self._record, [row | {"unused": [0.0, 0.0]} for row in rows])

    def _change(self) -> None:
        if self.settings and not self.settings["changing"]:
            self.write(changing=True)

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        assert self.settings is not None
        return rows.astype(self.settings["dtype"])


def _or_nan(value: Any) -> Any:
    return np.nan if value is None else value
