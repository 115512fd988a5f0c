"""Milvus, by what an index needs of it: collections of vectors, texts and numbers, by key.

``milvus:FILE.db`` is Milvus Lite, in this process and a file of its own; ``milvus://HOST:PORT/COLLECTION`` a
server, which is given the token in the environment variable `TOKEN`. An error of either is a `UserError`.
"""

import hashlib
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfrs.runtime.errors import UserError

WIDEST = 32_768  # numbers of a vector that Milvus takes
TEXT = 65_535  # bytes of a text that Milvus takes
PAGE, QUERIES = 1_000, 100  # rows that one request names, and queries it asks
ANSWER = 16 * 2**20  # bytes of vectors that one request asks for; servers send 64 MB at most
MOST = 16_384  # rows that Milvus answers at most
ATTEMPTS, TIMEOUT, PAUSE = 3, 60.0, 1.0
"""Times to connect; seconds within which a request is repeated that does not reach the engine, and seconds in
between."""
UNREACHABLE = (2, "UNAVAILABLE")
"""Codes of a connection that fails, for which pymilvus gives up at once: its own, which is also that of a
server that is not ready, and gRPC's."""
TOKEN = "SFRS_MILVUS_TOKEN"
"""Variable of the environment with USER:PASSWORD or a key, which so stands in no history, message or log."""
_USERS: Counter[str] = Counter()  # connections of this process that are open, by URI


def on_engine(path: str | Path) -> bool:
    """Return True if a path is the address of an index in Milvus."""
    return str(path).startswith("milvus:")


def on_server(path: str | Path) -> bool:
    """Return True if a path is the address of an index on a server, to which several processes can write."""
    return on_engine(path) and "://" in _address(path)[0]


def _address(path: str | Path) -> tuple[str, str]:
    """Read an address, which `Path` may have shortened by a slash, as (URI, collection)."""
    text = str(path).removeprefix("milvus:")
    if text.endswith(".db"):
        return text, "images"
    if "@" in text:
        raise UserError(
            f"an address in Milvus is not the place of a user and a password, which messages and logs would "
            f"show; expected milvus://HOST:PORT/COLLECTION, and USER:PASSWORD in {TOKEN} in the environment."
        )
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
        self._new, (self._uri, self.name) = not self.there(path), _address(path)
        self.lite, self._closed = "://" not in self._uri, False
        self.path = str(path) if self.lite else f"{self._uri.replace('http', 'milvus')}/{self.name}"
        self._client = _connect(self.path, self._uri)
        self.collections = set(self._ask(self._client.list_collections))

    @staticmethod
    def there(path: str | Path) -> bool:
        """Return False if ``path`` is a file that does not exist: opening it would make it."""
        uri = _address(path)[0]
        return "://" in uri or os.path.exists(uri)

    def load(self, names: Sequence[str]) -> None:
        """Have the engine open collections that are there."""
        for name in self.collections.intersection(names):
            self._ask(self._client.load_collection, name)

    def drop(self, names: Sequence[str]) -> None:
        """Delete collections, those that are there."""
        for name in names:
            self._ask(self._client.drop_collection, name)

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
        form = dict(schema=schema, index_params=indices, consistency_level="Strong")
        self._ask(self._client.create_collection, name, **form)

    def upsert(self, name: str, rows: list[dict]) -> None:
        """Write rows, in place of those with the same keys."""
        self._ask(self._client.upsert, name, rows)

    def delete(self, name: str, keys: Sequence[int]) -> None:
        for start in range(0, len(keys), PAGE):
            self._ask(self._client.delete, name, ids=keys[start : start + PAGE])

    def get(self, name: str, keys: Sequence[int], columns: Sequence[str], page: int = PAGE) -> Iterator[dict]:
        """Yield the rows with these keys that are there, in any order; ``page`` is how many one asks for."""
        for start in range(0, len(keys), page):
            part = [int(key) for key in keys[start : start + page]]
            yield from self._ask(self._client.get, name, ids=part, output_fields=["id", *columns])

    def vectors(self, name: str, keys: Sequence[int], columns: Sequence[str], dim: int) -> np.ndarray:
        """Read vectors, float32 ``[keys, columns, dim]``."""
        page = min(PAGE, max(1, ANSWER // (4 * dim * len(columns))))
        found = {row["id"]: row for row in self.get(name, list(dict.fromkeys(keys)), columns, page)}
        if missing := [key for key in keys if int(key) not in found]:
            raise UserError(f"{self.path}: {len(missing):,} images have been removed since it was opened.")
        return np.array([[_numbers(found[int(key)][name]) for name in columns] for key in keys], np.float32)

    def rows(self, name: str, columns: Sequence[str], condition: str = "") -> Iterator[dict]:
        """Yield the rows, all or by a condition, in any order."""
        form = dict(filter=condition, output_fields=["id", *columns])
        pages = self._ask(self._client.query_iterator, name, MOST, **form)
        while page := self._ask(lambda timeout: pages.next()):
            yield from page

    def search(self, name: str, queries: np.ndarray, k: int, condition: str) -> list[list[tuple[int, float]]]:
        """Find the k rows most similar to each query, (key, similarity), best first."""
        found = []
        for start in range(0, len(queries), QUERIES):
            part = list(queries[start : start + QUERIES])
            hits = self._ask(self._client.search, name, part, condition, limit=min(k, MOST))
            found += [[(hit["id"], hit["distance"]) for hit in one] for one in hits]
        return found

    def _ask(self, request: Callable, *arguments: Any, **options: Any) -> Any:
        """Make a request; while the engine cannot be reached, again and again for `TIMEOUT` seconds.

        Raises `UserError` where it does not answer or refuses it.
        """
        from pymilvus.exceptions import MilvusException

        until = time.monotonic() + TIMEOUT
        while True:
            try:
                return request(*arguments, timeout=TIMEOUT, **options)
            except MilvusException as error:
                if getattr(error.code, "name", error.code) not in UNREACHABLE:
                    raise UserError(f"{self.path}: Milvus says: {error.message}") from error
                if time.monotonic() > until:
                    raise UserError(
                        f"{self.path}: Milvus has not answered for {TIMEOUT:.0f} seconds ({error.message})."
                    ) from error
                time.sleep(PAUSE)


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
            client = MilvusClient(uri, token="" if uri.endswith(".db") else os.environ.get(TOKEN, ""))
            _USERS[uri] += 1
            return client
        except MilvusException as error:
            code, why = _cause(error)
            if code == "UNAUTHENTICATED":
                raise UserError(f"{path}: the server refuses {TOKEN} in the environment ({why}).") from error
            if attempt + 1 == ATTEMPTS:
                one = " A file is open in one process at a time." if "://" not in uri else ""
                raise UserError(f"{path}: this cannot be opened ({why}).{one}") from error
            time.sleep(2**attempt)


def _cause(error: Any) -> tuple[Any, str]:
    """Return the code and the words of an error; gRPC's, where pymilvus only says that it cannot connect."""
    call = error.__cause__
    return (call.code().name, call.details()) if hasattr(call, "details") else (error.code, error.message)


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
