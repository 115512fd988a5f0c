"""An index whose images an engine holds (`engine_store`): built, opened and summed up."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfrs.data.images import check_images
from sfrs.data.photos import Photo
from sfrs.models.fitting import WHITENED_BY, learn_whitening
from sfrs.models.model import Model
from sfrs.retrieval.index.adding import Adding, Change
from sfrs.retrieval.index.build import Builder
from sfrs.retrieval.index.engine_store import EngineStore
from sfrs.retrieval.index.milvus import WIDEST, Milvus
from sfrs.retrieval.index.opened import Index
from sfrs.retrieval.index.settings import facts_of
from sfrs.retrieval.near import Near
from sfrs.retrieval.tested import SelfTest
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Tasks

KINDS = ("exact", "float16")


class EngineBuilder(Builder):
    """Makes or changes an index in Milvus, see `Builder`.

    An image that is added is whole, and is seen by readers who open the index afterwards; a new index is
    seen when it is finished.
    """

    _store: EngineStore | None  # type: ignore[assignment]  # it takes the place of a folder

    kinds = KINDS

    def _check_place(self) -> None:
        if self.model is None:
            EngineStore.open(self.path).close()  # raises: it has the one message for this

    @staticmethod
    def begun(path: str | Path) -> bool:
        if not Milvus.there(path):
            return False
        with closing(EngineStore(path)) as store:
            return store.settings is not None

    def __enter__(self) -> "EngineBuilder":
        self._engine = EngineStore(self.path)
        try:
            if self._engine.settings is not None:
                self._store = self._engine
                self._check_options()
                if self._kind not in (None, kind := self._engine.settings["kind"]):
                    raise UserError(f"--kind {self._kind}: {self.path} is {kind}. Build a new one.")
        except BaseException:
            self._engine.close()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._engine.close()

    def finish(self) -> Change:
        """Make a new index readable, and what was changed a generation of its own."""
        self._opened().finish()
        return self.change

    def _opened(self) -> Any:
        return super()._opened()

    def _stamped(self, photos: Sequence[Photo], adding: Adding) -> tuple[list[Photo], list[tuple[int, int]]]:
        why = "its name is no text in UTF-8, which Milvus expects."
        known = [photo if _is_text(photo.file) else replace(photo, unreadable=why) for photo in photos]
        return super()._stamped(known, adding)

    def _begin(
        self, photos: Sequence[Photo], zone: str, regions: bool, whiten_from: int | None, adding: Adding
    ) -> None:
        assert self.model is not None
        kind = self._kind or "exact"
        if kind == "float16" and self._engine.milvus.lite:
            raise UserError("--kind float16: Milvus Lite keeps float32 only; leave it out, or use a server.")
        whiten_from = None if whiten_from is None or len(photos) < whiten_from else whiten_from
        if whiten_from is not None:
            self.model = _whitened(self.model, photos, adding, self._tasks)
        quarter = int(np.prod(self.model.quarters_shape[1:]))
        widest = max(self.model.dim, quarter if regions else 0)
        if widest > WIDEST:
            raise UserError(
                f"{self.path}: descriptors have {self.model.dim:,} numbers and quarters {quarter:,}; Milvus "
                f"takes {WIDEST:,}. Expected a whitening that shortens them, or --no-regions."
            )
        self._engine.create(self.model, kind, zone, regions, whiten_from)
        self._store = self._engine


class EngineIndex(Index):
    """An index in Milvus, opened to be searched, see `Index`.

    Keys, paths and positions are in memory, some 200 bytes per image; descriptors stay with the engine.
    """

    def __init__(self, path: str | Path, device: str, near: Near | None = None) -> None:
        self.path, self.near = Path(path), near
        self._engine = EngineStore.open(path)
        try:
            self._read(device, near)
        except BaseException:
            self._engine.close()
            raise

    def _read(self, device: str, near: Near | None) -> None:
        settings: Any = self._engine.settings
        self.generation = settings["generation"]
        if settings["complete"] != settings["fingerprint"]:
            raise UserError(
                f"{self._engine.path}: this index is not finished. The command that began it goes on where "
                "it stopped."
            )
        self.kind, self.zone, self.fingerprint = settings["kind"], settings["zone"], settings["fingerprint"]
        table = self._engine.pending("" if near is None else self._box(near))
        self._there = len(table.files)  # of which the circle holds a part
        table = table if near is None else table.within(near, self.zone, self._engine.path)
        self.files, self.positions, self._slots = table.files, table.positions, table.slots
        self.model = self._engine.load_model(device)
        self._regions = settings["quarters"]
        test = _self_test(self._engine, len(self.files) if near is None else None)
        self.self_test = test and test.within(near)

    @property
    def has_regions(self) -> bool:
        return self._regions

    def descriptors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        found = self._engine.descriptors(self._keys(rows))
        if not np.isfinite(found).all():
            raise self._damaged("one holds values that are not finite")
        return found

    def quarters(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        if not self._regions:
            return self.model.quarters([self.files[row] for row in rows])
        return torch.from_numpy(self._engine.quarters(self._keys(rows)))

    def close(self) -> None:
        self._engine.close()

    def _keys(self, rows: Sequence[int] | np.ndarray) -> list[int]:
        return self._slots[np.asarray(rows, dtype=np.int64)].tolist()

    def _find(self, queries: np.ndarray, k: int, near: Near | None) -> tuple[np.ndarray, np.ndarray]:
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        circles = [circle for circle in (self.near, near) if circle is not None]
        condition = " and ".join(map(self._box, circles))
        inside = np.ones(len(self), bool) if near is None else self.within(near)
        wanted, enough = k, min(k, int(inside.sum()))
        while True:
            found = self._engine.search(queries, min(wanted, self._there), condition)
            for i, hits in enumerate(found):
                at = np.searchsorted(self._slots, [key for key, _ in hits]).clip(max=len(self) - 1)
                known = self._slots[at] == [key for key, _ in hits]  # not added since it was opened
                known &= inside[at]
                count = min(k, int(known.sum()))
                rows[i, :count] = at[known][:count]
                scores[i, :count] = np.array([score for _, score in hits])[known][:count]
            # The box holds more than the circle in it, and images that were added since.
            if ((rows >= 0).sum(axis=1) >= enough).all() or wanted >= self._there:
                return scores, rows
            wanted *= 2

    def _box(self, near: Near) -> str:
        """The condition by which the engine keeps to the square around a circle."""
        boxes = []
        for center in near.centers(self.zone):
            low, high = center - near.radius, center + near.radius
            sides = zip(("easting", "northing"), low.tolist(), high.tolist(), strict=True)
            sides = (f"{name} >= {least!r} and {name} <= {most!r}" for name, least, most in sides)
            boxes.append(f"({' and '.join(sides)})")
        return f"({' or '.join(boxes)})" if boxes else "id < 0"  # which no key is

    def _keep(self, test: SelfTest) -> None:
        self._engine.keep("self-test", test.to_json())


def summarise(path: str | Path) -> dict[str, Any]:
    """Say what is in an index in Milvus, and what its self-test says, as JSON takes it."""
    with closing(EngineStore.open(path)) as store:
        settings: Any = store.settings
        table = store.pending()
        test, sizes = _self_test(store, len(table.files)), store.milvus.sizes()
    return facts_of(store.path, settings, table.positions, sizes) | {"self_test": test and test.summary()}


def _self_test(store: EngineStore, images: int | None) -> SelfTest | None:
    settings, text = store.settings, store.read("self-test")
    if settings is None or settings["changing"] or not text:
        return None
    return SelfTest.from_json(text, store.path, settings["generation"], settings["fingerprint"], images)


def _whitened(model: Model, photos: Sequence[Photo], adding: Adding, tasks: Tasks) -> Model:
    """Learn a whitening from at most `WHITENED_BY` of the photographs, before all are described with it."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(photos))[:WHITENED_BY])
    files = [photos[i].file for i in chosen]
    if adding.skip_bad_images:
        bad = {file for file, _ in check_images(files, workers=adding.workers)}
        files = [file for file in files if file not in bad]
    reading: dict[str, Any] = dict(batch_size=adding.batch_size, workers=adding.workers)
    sample = model.encode(files, progress=tasks("whitening"), **reading)
    return Model(model.network, learn_whitening(sample), size=model.size).to(model.device)


def _is_text(file: Path) -> bool:
    try:
        return bool(str(file).encode())
    except UnicodeEncodeError:
        return False
