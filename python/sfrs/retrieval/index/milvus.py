"""Milvus, by what an index needs of it: collections of vectors, texts and numbers, by key.

``milvus:FILE.db`` is Milvus Lite, in this process and a file of its own; ``milvus://HOST:PORT/COLLECTION`` a
server. An error of either becomes a `UserError`.
"""

import hashlib
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sfrs.runtime.errors import UserError

WIDEST = 32_768  # numbers of a vector that Milvus takes
TEXT = 65_535  # bytes of a text that Milvus takes
PAGE, QUERIES = 1_000, 100  # rows that one request names, and queries it asks
MOST = 16_384  # rows that Milvus answers at most
ATTEMPTS, TIMEOUT = 3, 60.0
"""Times to connect, and seconds within which a request is repeated where the engine does not answer."""
_USERS: Counter[str] = Counter()  # connections of this process that are open, by URI


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


class Milvus:
    """A connection to the engine at an address; ``name`` is that of the collection in it, ``collections`` are
    those there are, and ``lite`` tells whether it is Milvus Lite.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._new, (self._uri, self.name) = str(path), not self.there(path), _address(path)
        self.lite, self._closed = "://" not in self._uri, False
        self._client = _connect(self.path, self._uri)
        with self._using():
            self.collections = set(self._client.list_collections(timeout=TIMEOUT))

    @staticmethod
    def there(path: str | Path) -> bool:
        """Return False if ``path`` is a file that does not exist: opening it would make it."""
        uri = _address(path)[0]
        return "://" in uri or os.path.exists(uri)

    def load(self, names: Sequence[str]) -> None:
        """Have the engine open collections that are there."""
        with self._using():
            for name in self.collections.intersection(names):
                self._client.load_collection(name, timeout=TIMEOUT)

    def drop(self, names: Sequence[str]) -> None:
        """Delete collections, those that are there."""
        with self._using():
            for name in names:
                self._client.drop_collection(name, timeout=TIMEOUT)

    def close(self, *, begun: bool = True) -> None:
        """Close it; a file that was made for it goes unless an index is ``begun`` in it."""
        if self._closed:
            return
        self._closed = True
        self._client.close()
        if self.lite:
            _leave(self._uri)
            if self._new and not begun:
                shutil.rmtree(self._uri, ignore_errors=True)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of Milvus Lite's file; a server says nothing of its own."""
        parts = Path(self._uri).rglob("*") if self.lite else ()
        return {Path(self._uri).name: sum(part.stat().st_size for part in parts)} if self.lite else {}

    def create(
        self,
        name: str,
        vectors: Mapping[str, int],
        *,
        half: bool,
        texts: Sequence[str],
        numbers: Mapping[str, type],
    ) -> None:
        """Make a collection of vectors with so many numbers, of texts, and of numbers that may lack."""
        from pymilvus import DataType

        kind = DataType.FLOAT16_VECTOR if half else DataType.FLOAT_VECTOR
        with self._using():
            schema = self._client.create_schema(auto_id=False)
            schema.add_field("id", DataType.INT64, is_primary=True)
            for column in texts:
                schema.add_field(column, DataType.VARCHAR, max_length=TEXT)
            for column, number in numbers.items():
                whole = DataType.INT64 if number is int else DataType.DOUBLE
                schema.add_field(column, whole, nullable=True)
            indices = self._client.prepare_index_params()
            for column, dim in vectors.items():
                schema.add_field(column, kind, dim=dim)
                indices.add_index(column, index_type="FLAT", metric_type="IP")
            self._client.create_collection(
                name, schema=schema, index_params=indices, consistency_level="Strong", timeout=TIMEOUT
            )

    def upsert(self, name: str, rows: list[dict]) -> None:
        """Write rows, in place of those with the same keys."""
        with self._using():
            self._client.upsert(name, rows, timeout=TIMEOUT)

    def delete(self, name: str, keys: Sequence[int]) -> None:
        for start in range(0, len(keys), PAGE):
            with self._using():
                self._client.delete(name, ids=keys[start : start + PAGE], timeout=TIMEOUT)

    def get(self, name: str, keys: Sequence[int], columns: Sequence[str]) -> Iterator[dict]:
        """Yield the rows with these keys that are there, in any order."""
        for start in range(0, len(keys), PAGE):
            part = [int(key) for key in keys[start : start + PAGE]]
            with self._using():
                yield from self._client.get(name, ids=part, output_fields=["id", *columns], timeout=TIMEOUT)

    def vectors(self, name: str, keys: Sequence[int], columns: Sequence[str]) -> np.ndarray:
        """Read vectors, float32 ``[keys, columns, dim]``."""
        found = {row["id"]: row for row in self.get(name, list(dict.fromkeys(keys)), columns)}
        if missing := [key for key in keys if int(key) not in found]:
            raise UserError(f"{self.path}: {len(missing):,} images have been removed since it was opened.")
        return np.array([[_numbers(found[int(key)][name]) for name in columns] for key in keys], np.float32)

    def rows(self, name: str, columns: Sequence[str]) -> Iterator[dict]:
        """Yield all rows, in any order."""
        with self._using():
            pages = self._client.query_iterator(name, MOST, output_fields=["id", *columns], timeout=TIMEOUT)
            while page := pages.next():
                yield from page

    def search(self, name: str, queries: np.ndarray, k: int, condition: str) -> list[list[tuple[int, float]]]:
        """Find the k rows most similar to each query, (key, similarity), best first."""
        found = []
        for start in range(0, len(queries), QUERIES):
            part = list(queries[start : start + QUERIES])
            with self._using():
                hits = self._client.search(name, part, condition, limit=min(k, MOST), timeout=TIMEOUT)
            found += [[(hit["id"], hit["distance"]) for hit in one] for one in hits]
        return found

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Run a request. Raises `UserError` where the engine does not answer or refuses it."""
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except MilvusException as error:
            raise UserError(f"{self.path}: Milvus says: {error.message}") from error


def _connect(path: str, uri: str) -> Any:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it reports its own keeping alive as errors
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


def _numbers(vector: Any) -> np.ndarray:
    """A vector as Milvus returns it: a list of numbers, or the bytes of float16, alone or in a list."""
    if isinstance(vector, list) and vector and isinstance(vector[0], bytes):
        vector = vector[0]
    return np.frombuffer(vector, np.float16) if isinstance(vector, bytes) else np.asarray(vector)
