"""The images of an index in Milvus: one collection of them, one of their quarters, one that describes both.

``milvus:FILE.db`` is Milvus Lite, in this process and a file of its own; ``milvus://HOST:PORT/COLLECTION`` a
server. An image's primary key is a digest of its path, so that writing it twice changes nothing and several
writers never meet. The collection ``NAME_record`` holds texts: the settings, the model in pieces, the
self-test. Readers refuse the images until the settings name the fingerprint of a finished build.
"""

import base64
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from sfrs.data.images import Size
from sfrs.data.photos import time_of
from sfrs.models.model import Digests, Model
from sfrs.models.weights_file import WeightsError
from sfrs.retrieval.index.store import Entry, Paths, Table
from sfrs.runtime.errors import UserError
from sfrs.runtime.records import Natural, Positive, as_record, parse_json

FORMAT = 1
WIDEST = 32_768
"""Numbers of a vector that Milvus takes."""
TEXT = 65_535
"""Bytes of a text that Milvus takes."""
PIECE = 48_000
"""Bytes of the model in one text; base64 makes a third more of them."""
BATCH_BYTES = 16 * 2**20
PAGE = 1_000
"""Rows that one request names or answers."""
MOST = 16_384
"""Rows that Milvus answers at most."""
ATTEMPTS, TIMEOUT = 3, 60.0
"""Times to connect, and seconds within which a request is repeated where the engine does not answer."""
_USERS: Counter[str] = Counter()
"""Stores of this process that are open, by URI."""
COLUMNS = ("file", "easting", "northing", "bytes", "modified")


class EngineSettings(TypedDict):
    """The settings of an index in Milvus."""

    format: int
    generation: Natural  # finished ones
    kind: str
    zone: str
    size: Size
    dim: Positive
    dtype: str
    digests: Digests
    fingerprint: str
    quarters_shape: tuple[Positive, Positive, Positive]
    quarters: bool
    pieces: Positive  # of the model
    changing: bool  # a writer has changed images since the last finished generation
    complete: str  # the fingerprint when the first build is finished, "" before


def on_engine(path: str | Path) -> bool:
    """Return True if a path is the address of an index in Milvus."""
    return str(path).startswith("milvus:")


def _address(path: str | Path) -> tuple[str, str]:
    """Read an address, which `Path` may have shortened by a slash, as (URI, collection)."""
    text = str(path).removeprefix("milvus:")
    if text.endswith(".db"):
        return text, "images"
    found = re.fullmatch(r"/{1,2}([^/\s]+:\d+)/([A-Za-z_]\w*)", text)
    if found is None:
        raise UserError(
            f"{path} is no address of an index in Milvus; expected milvus:FILE.db, or "
            "milvus://HOST:PORT/COLLECTION."
        )
    return f"http://{found[1]}", found[2]


def key_of(file: bytes) -> int:
    """Return the primary key of a path: 63 bits of its digest."""
    return int.from_bytes(hashlib.blake2b(file, digest_size=8).digest()) >> 1


class EngineStore:
    """An index in Milvus, as `sfrs.retrieval.index.store.Store` is one in a folder.

    Attributes:
        settings: as they were last read or written; None while nothing is begun.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._new, (uri, self.name) = str(path), not self.there(path), _address(path)
        self._uri, self._closed = uri, False
        self.record, self.regions = f"{self.name}_record", f"{self.name}_quarters"
        self.lite = "://" not in uri
        self._client, self._known = _connect(self.path, uri), {}
        self.settings: EngineSettings | None = None
        there = self._collections()
        with self._using():
            for name in there & {self.name, self.record, self.regions}:
                self._client.load_collection(name, timeout=TIMEOUT)
        if self.record in there and (text := self.read("settings")):
            values = parse_json(text, self.path)
            if values.get("format") != FORMAT:
                raise UserError(
                    f"{self.path}: this index has format {values.get('format')}; expected {FORMAT}."
                )
            self.settings = as_record(values, EngineSettings, self.path)

    @classmethod
    def open(cls, path: str | Path) -> "EngineStore":
        """Open an index, finished or not. Raises `UserError` if there is none."""
        if cls.there(path):
            store = cls(path)
            if store.settings is not None:
                return store
            store.close()
        raise UserError(f"{path}: there is no index here. sfrs index PHOTOS --out {path} builds one.")

    @staticmethod
    def there(path: str | Path) -> bool:
        """Return False if ``path`` is a file that does not exist: opening it would make it."""
        uri = _address(path)[0]
        return "://" in uri or os.path.exists(uri)

    def create(self, model: Model, kind: str, zone: str, regions: bool) -> None:
        """Begin the index; the settings, which make it one, are written last."""
        from pymilvus import DataType

        half = kind == "float16"
        vector = DataType.FLOAT16_VECTOR if half else DataType.FLOAT_VECTOR
        with self._using():
            for name in (self.name, self.record, self.regions):
                self._client.drop_collection(name)
        numbers = {"easting": DataType.DOUBLE, "northing": DataType.DOUBLE, "taken": DataType.INT64}
        sizes = {"bytes": DataType.INT64, "modified": DataType.INT64}
        self._create(self.name, {"descriptor": model.dim}, vector, "file", numbers | sizes)
        if regions:
            quarters = {f"quarter{i}": int(np.prod(model.quarters_shape[1:])) for i in range(4)}
            self._create(self.regions, quarters, vector)
        self._create(self.record, {"unused": 2}, DataType.FLOAT_VECTOR, "text")
        with tempfile.TemporaryDirectory() as folder:
            model.save(file := Path(folder) / "model.safetensors")
            content = file.read_bytes()
        pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
        for number, piece in enumerate(pieces):
            self._keep(f"model {number}", base64.b64encode(piece).decode())
        self.settings = {
            "format": FORMAT,
            "generation": 0,
            "kind": kind,
            "zone": zone,
            "size": model.size,
            "dim": model.dim,
            "dtype": "float16" if half else "float32",
            "digests": model.digests(),
            "fingerprint": model.fingerprint(),
            "quarters_shape": model.quarters_shape,
            "quarters": regions,
            "pieces": len(pieces),
            "changing": False,
            "complete": "",
        }
        self.write()

    def close(self) -> None:
        """Close it; a file that was made for it and in which no index was begun goes."""
        if self._closed:
            return
        self._closed = True
        self._client.close()
        if self.lite:
            _leave(self._uri)
            if self._new and self.settings is None:
                shutil.rmtree(self._uri, ignore_errors=True)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of Milvus Lite's file; a server says nothing of its own."""
        parts = Path(self._uri).rglob("*") if self.lite else ()
        return {Path(self._uri).name: sum(part.stat().st_size for part in parts)} if self.lite else {}

    def load_model(self, device: str = "cpu") -> Model:
        """Load the index's copy of its model. Raises `WeightsError` where it is not the one of the images."""
        assert self.settings is not None
        texts = [self.read(f"model {number}") for number in range(self.settings["pieces"])]
        try:
            content = b"".join(base64.b64decode(text, validate=True) for text in texts)
        except ValueError as error:
            raise WeightsError(f"{self.path}: its model is damaged ({error}).") from error
        with tempfile.TemporaryDirectory() as folder:
            (file := Path(folder) / "model.safetensors").write_bytes(content)
            model = Model.load(file, size=self.settings["size"])
        if model.digests() != self.settings["digests"]:
            raise WeightsError(f"{self.path}: its model is not the one it was built with; build it again.")
        return model.to(device)

    def pending(self) -> Table:
        """Read keys, paths and positions of all images, in the order of their keys."""
        keys, files, positions = [], [], []
        with self._using():
            count = self._client.query(self.name, "", output_fields=["count(*)"], timeout=TIMEOUT)
        for low, high in pairwise(np.linspace(0, 2**63, count[0]["count(*)"] // PAGE + 2).tolist()):
            for row in self._between(int(low), int(high)):
                keys.append(row["id"])
                files.append(row["file"].encode())
                positions.append([_or_nan(row["easting"]), _or_nan(row["northing"])])
        order = np.argsort(np.array(keys, np.int64))
        files = [files[i] for i in order]
        lengths = np.fromiter(map(len, files), np.int64, len(files))
        found = np.array(positions, np.float64).reshape(-1, 2)[order]
        return Table(np.array(keys, np.int64)[order], Paths(b"".join(files), lengths), found)

    def look_up(self, files: Sequence[bytes]) -> None:
        """Ask which of the files are there, for `find`."""
        keys = {key_of(file): file for file in files}
        self._known = {}
        for row in self._rows(self.name, list(keys), ["id", *COLUMNS]):
            if row["file"].encode() != keys[row["id"]]:
                raise UserError(
                    f"{os.fsdecode(keys[row['id']])} and {row['file']} have the same key in {self.path}; "
                    "rename one of them."
                )
            values = [_or_nan(row[name]) for name in COLUMNS[1:]]
            self._known[keys[row["id"]]] = Entry(keys[row["id"]], *values, replaces=row["id"])

    def find(self, file: bytes) -> Entry | None:
        """Find one of the files of `look_up`, with its key in ``replaces``."""
        return self._known.get(file)

    def add(
        self, entries: Sequence[Entry], descriptors: np.ndarray, quarters: np.ndarray | None = None
    ) -> None:
        """Write images, or write them again; an image is there when its regions are."""
        self._change()
        keys = [key_of(entry.file) for entry in entries]
        if quarters is not None:
            flat = self._vectors(quarters.reshape(len(entries), 4, -1))
            rows = [{"id": key, **_quarters(four)} for key, four in zip(keys, flat, strict=True)]
            self._upsert(self.regions, rows)
        rows = []
        for key, entry, vector in zip(keys, entries, self._vectors(descriptors), strict=True):
            taken = time_of(Path(entry.file.decode()))
            row = {name: _or_none(value) for name, value in zip(COLUMNS, entry[:5], strict=True)}
            when = int(taken.timestamp()) if taken else None
            rows.append({"id": key, **row, "file": entry.file.decode(), "taken": when, "descriptor": vector})
        self._upsert(self.name, rows)

    def remove(self, keys: Iterable[int]) -> None:
        """Remove images."""
        keys = [int(key) for key in keys]
        if keys:
            self._change()
        for start in range(0, len(keys), PAGE):
            with self._using():
                self._client.delete(self.name, ids=keys[start : start + PAGE], timeout=TIMEOUT)
                if self.settings and self.settings["quarters"]:
                    self._client.delete(self.regions, ids=keys[start : start + PAGE], timeout=TIMEOUT)

    def write(self, **settings: Any) -> None:
        """Change settings."""
        assert self.settings is not None
        self.settings |= settings  # type: ignore[assignment]  # pyright does not know their names
        self._keep("settings", json.dumps(self.settings))

    def finish(self) -> None:
        """Show readers what was changed."""
        assert self.settings is not None
        if self.settings["changing"] or not self.settings["complete"]:
            generation = self.settings["generation"] + 1
            self.write(generation=generation, changing=False, complete=self.settings["fingerprint"])

    def search(self, queries: np.ndarray, k: int, condition: str = "") -> list[list[tuple[int, float]]]:
        """Find the k most similar images of each query, (key, similarity), best first."""
        found = []
        for start in range(0, len(queries), PAGE // 10):
            part = list(self._vectors(queries[start : start + PAGE // 10]))
            with self._using():
                hits = self._client.search(self.name, part, condition, limit=k, timeout=TIMEOUT)
            found += [[(hit["id"], hit["distance"]) for hit in one] for one in hits]
        return found

    def descriptors(self, keys: Sequence[int]) -> np.ndarray:
        """Read descriptors, float32 ``[n, dim]``."""
        return self._fetch(self.name, keys, ["descriptor"])[:, 0]

    def quarters(self, keys: Sequence[int]) -> np.ndarray:
        """Read quarter VLADs, float32 ``[n, 4, K, D]``."""
        assert self.settings is not None
        found = self._fetch(self.regions, keys, [f"quarter{i}" for i in range(4)])
        return found.reshape(len(keys), *self.settings["quarters_shape"])

    def read(self, name: str) -> str:
        """Read a text of the record; "" if there is none."""
        with self._using():
            found = self._client.get(self.record, ids=[key_of(name.encode())], timeout=TIMEOUT)
        return found[0]["text"] if found else ""

    def keep_self_test(self, text: str) -> None:
        """Write the self-test, in pieces."""
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
        for number, piece in enumerate([*pieces, ""]):
            self._keep(f"self-test {number}", piece)

    def read_self_test(self) -> str:
        """Read the self-test; "" if there is none."""
        pieces = []
        while piece := self.read(f"self-test {len(pieces)}"):
            pieces.append(piece)
        return "".join(pieces)

    def _keep(self, name: str, text: str) -> None:
        if len(text.encode()) > TEXT:
            raise UserError(f"{self.path}: {name} is longer than the {TEXT:,} bytes that Milvus takes.")
        self._upsert(self.record, [{"id": key_of(name.encode()), "text": text, "unused": [0.0, 0.0]}])

    def _change(self) -> None:
        if self.settings and not self.settings["changing"]:
            self.write(changing=True)

    def _collections(self) -> set[str]:
        with self._using():
            return set(self._client.list_collections(timeout=TIMEOUT))

    def _create(
        self, name: str, vectors: dict[str, int], kind: Any, text: str = "", numbers: dict | None = None
    ) -> None:
        from pymilvus import DataType

        with self._using():
            schema = self._client.create_schema(auto_id=False)
            schema.add_field("id", DataType.INT64, is_primary=True)
            if text:
                schema.add_field(text, DataType.VARCHAR, max_length=TEXT)
            for column, number in (numbers or {}).items():
                schema.add_field(column, number, nullable=True)
            indices = self._client.prepare_index_params()
            for column, dim in vectors.items():
                schema.add_field(column, kind, dim=dim)
                indices.add_index(column, index_type="FLAT", metric_type="IP")
            self._client.create_collection(
                name, schema=schema, index_params=indices, consistency_level="Strong", timeout=TIMEOUT
            )

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        assert self.settings is not None
        return rows.astype(self.settings["dtype"])

    def _upsert(self, collection: str, rows: list[dict]) -> None:
        with self._using():
            self._client.upsert(collection, rows, timeout=TIMEOUT)

    def _rows(self, collection: str, keys: Sequence[int], columns: list[str]) -> Iterator[dict]:
        for start in range(0, len(keys), PAGE):
            part = [int(key) for key in keys[start : start + PAGE]]
            with self._using():
                yield from self._client.get(collection, ids=part, output_fields=columns, timeout=TIMEOUT)

    def _between(self, low: int, high: int) -> list[dict]:
        """Read key, path and position of the images of a range of keys, which are spread evenly."""
        columns, condition = ["id", "file", "easting", "northing"], f"id >= {low} and id <= {high - 1}"
        with self._using():
            rows = self._client.query(
                self.name, condition, output_fields=columns, limit=MOST, timeout=TIMEOUT
            )
        if len(rows) < MOST:
            return rows
        middle = (low + high) // 2
        return self._between(low, middle) + self._between(middle, high)

    def _fetch(self, collection: str, keys: Sequence[int], columns: list[str]) -> np.ndarray:
        found = {
            row["id"]: row for row in self._rows(collection, list(dict.fromkeys(keys)), ["id", *columns])
        }
        if missing := [key for key in keys if int(key) not in found]:
            raise UserError(f"{self.path}: {len(missing):,} images have been removed since it was opened.")
        return np.array([[_numbers(found[int(key)][name]) for name in columns] for key in keys], np.float32)

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Run a request. Raises `UserError` where the engine does not answer or refuses it."""
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except MilvusException as error:
            raise UserError(f"{self.path}: Milvus says: {error.message}") from error


def _connect(path: str, uri: str) -> Any:
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ImportError as error:
        raise UserError(f'{path} needs pymilvus ({error}): pip install "sfrs-ext[milvus]".') from error
    for name in ("pymilvus", "milvus_lite", "grpc._server"):  # they log what is raised, with tracebacks
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for attempt in range(ATTEMPTS):
        try:
            client = MilvusClient(uri)
            _USERS[uri] += 1
            return client
        except MilvusException as error:
            if attempt + 1 == ATTEMPTS:
                one = " A file is open in one process at a time." if "://" not in uri else ""
                raise UserError(f"{path}: this cannot be opened ({error.message}).{one}") from error
            time.sleep(2**attempt)


def _leave(uri: str) -> None:
    """Let other processes open a file that nothing in this one uses any more."""
    from milvus_lite.server_manager import server_manager_instance

    _USERS[uri] -= 1
    if not _USERS[uri]:
        server_manager_instance.release_server(uri)


def _quarters(four: np.ndarray) -> dict[str, np.ndarray]:
    return {f"quarter{i}": quarter for i, quarter in enumerate(four)}


def _numbers(vector: Any) -> np.ndarray:
    """A vector as Milvus returns it: a list of numbers, or the bytes of float16, alone or in a list."""
    if isinstance(vector, list) and vector and isinstance(vector[0], bytes):
        vector = vector[0]
    return np.frombuffer(vector, np.float16) if isinstance(vector, bytes) else np.asarray(vector)


def _or_nan(value: Any) -> Any:
    return np.nan if value is None else value


def _or_none(value: Any) -> Any:
    return None if value != value else value
