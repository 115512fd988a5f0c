"""An index opened to be searched."""

import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from sfrs.data.images import Photograph
from sfrs.models.model import Model
from sfrs.retrieval.found import Found
from sfrs.retrieval.index.adding import ALONE, Adding, Change
from sfrs.retrieval.index.build import Builder
from sfrs.retrieval.index.milvus import on_engine
from sfrs.retrieval.index.rows import map_rows
from sfrs.retrieval.index.settings import facts_of
from sfrs.retrieval.index.store import Store, Table
from sfrs.retrieval.locate import locate
from sfrs.retrieval.near import Near
from sfrs.retrieval.search import compare, scan
from sfrs.retrieval.self_test import SAMPLE, self_test
from sfrs.retrieval.tested import SelfTest
from sfrs.runtime.distributed import running_processes
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Tasks, quiet

LONGEST = 1.01  # length of a unit vector, at most, whose numbers were rounded to float16
ATTEMPTS = 3  # times to open an index whose files a writer replaces meanwhile


class Index:
    """Photographs, what they look like and where they were taken.

        index = sfrs.Index.build("photos", zone="33N")  # photos.index; again: adds what is new
        index = sfrs.Index.open("photos.index")
        found = index.locate("query.jpg", rerank="regions")
        found.location.latitude, found.matches[0].file

    It shows the images as they were when it was opened; what is changed later is not seen. Descriptors stay
    on disk: what the memory holds of them is the system's cache, and the compressed copy where the kind is
    pq or ivf. Searching may be done from several threads.

    Attributes:
        path: of the directory.
        model: describes images.
        fingerprint: of network, whitening and size; equal where descriptors can be compared.
        kind: exact, float16, pq, ivf or disk.
        zone: UTM zone of the positions such as "33N"; "" for plain metres, or where no image has a position.
        files: paths of the n images.
        positions: float64 ``[n, 2]``, easting and northing in metres; nan where nothing is known.
        generation: number of the finished change that it shows.
        change: how `build` changed it; None for an index that was only opened.
        self_test: what `check` found of these very photographs; None where it has not looked.
        near: the circle whose images alone it shows; None is everywhere.
    """

    change: Change | None = None

    def __init__(self, store: Store, table: Table, device: str, near: Near | None = None) -> None:
        settings, images = store.settings, len(table.files)
        self.path = store.path
        self.generation = store.generation
        self.kind: str = settings["kind"]
        self.zone: str = settings["zone"]
        self.fingerprint: str = settings["fingerprint"]
        self.near = near
        table = table if near is None else table.within(near, self.zone, self.path)
        self.files, self.positions, self._slots = table.files, table.positions, table.slots
        self.model = store.load_model(device)
        self._compressed = store.open_compressed() if settings["compressed"] else None
        slots = int(table.slots[-1]) + 1 if len(table.slots) else 0
        scattered = self._compressed is not None
        self._descriptors = map_rows(*store.rows_of("descriptors"), slots, scattered=scattered)
        # A compressed copy names rows beyond the last image as well: those that were removed at the end.
        self._row_of = np.full(max(slots, len(self._compressed or ())), -1, dtype=np.int64)
        self._row_of[table.slots] = np.arange(len(table.slots))
        self._live = self._row_of >= 0
        self._quarters = None
        if settings["quarters"]:
            self._quarters = map_rows(*store.rows_of("quarters"), slots, scattered=True)
        self._lock = threading.Lock()
        test = SelfTest.load(self.path, self.generation, self.fingerprint, images)
        self.self_test = test and test.within(near)

    @classmethod
    def build(
        cls,
        photos: str | Path | None = None,
        model: Model | None = None,
        *,
        out: str | Path | None = None,
        remove: str | Path | Sequence[str | Path] = (),
        remove_missing: bool = False,
        adding: Adding | None = None,
        tasks: Tasks = quiet,
        kind: str | None = None,
        regions: bool | None = None,
        zone: str = "",
    ) -> "Index":
        """Index photographs, or change an index: remove some, add what is new or changed; and open it.

        Interrupted at any moment, it goes on where it was when it is called again. What is new ends with
        `check`. Within `sfrs.runtime.distributed.running_together` its processes share the photographs of an
        index on a server.

        Args:
            photos: a folder, a place folder or a CSV manifest, see `sfrs.data.collection.read_photos`; None
                adds nothing.
            model: describes them; None is the index's own, and for a new index EfficientNet-Lite0 as ImageNet
                trained it, with clusters made from these photographs.
            out: directory of the index, or its address in Milvus; by default the name of ``photos``
                with ``.index`` added.
            remove: a folder, or a pattern of paths or names, or several, whose images go, see
                `Builder.remove`.
            remove_missing: images whose files are gone go, too.
            tasks: opens a progress display per stage.
            kind: of the descriptors, see `Builder`, also for what it raises.
            regions: see `Builder`.
            zone: see `Builder`.
        """
        joined, adding = running_processes(), adding or Adding()
        form: dict[str, Any] = dict(kind=kind, regions=regions, zone=zone)
        photos = None if photos is None else Path(photos)
        path = _beside(photos) if out is None else Path(out)
        if joined.count > 1:
            if photos is None or remove or remove_missing:
                raise UserError(ALONE)
            from sfrs.retrieval.index.shards import build_together

            change = build_together(joined, photos, model, out=path, how=form, adding=adding, tasks=tasks)
            joined.barrier()  # until the main one has finished it
        else:
            builder_of = builder_class(path)
            if not builder_of.begun(path):  # what is to be changed has to be there
                model = None if photos is None else model or Model.load(device=adding.device)
            found = () if photos is None else adding.read(photos, tasks)
            with builder_of(path, model, **form, tasks=tasks) as builder:
                if remove:
                    builder.remove(*([remove] if isinstance(remove, (str, Path)) else remove))
                if remove_missing:
                    builder.remove_missing()
                builder.add(found, None if photos is None else adding)
                change = builder.finish()
        index = cls.open(path, device=adding.device if model is None else str(model.device))
        index.change = change
        if index.self_test is None and joined.is_main:
            index.check(tasks=tasks)
        return index

    @classmethod
    def open(cls, path: str | Path, *, device: str = "cpu", near: Near | None = None) -> "Index":
        """Open the index at ``path``, a folder or an address in Milvus, as its last finished change left it.

        With ``near`` it is an index of the images in that circle, by rows of its own.

        Raises `UserError` if it is no index, its first build has not finished, its format is another, a
        file of it is damaged, or no image is within the circle.
        """
        if on_engine(path):
            from sfrs.retrieval.index.engine import EngineIndex

            return EngineIndex(path, device, near)
        for attempt in range(ATTEMPTS):
            with closing(Store.open(path)) as opened:
                try:
                    table = opened.snapshot()
                    if opened.generation == 0:
                        raise UserError(
                            f"{path}: this index is not finished; {len(opened.pending().files):,} images are "
                            "in it so far. The command that began it goes on where it stopped."
                        )
                    return cls(opened, table, device, near)
                except UserError:
                    # A writer that compacts puts other files in the place of those just read about.
                    if attempt + 1 == ATTEMPTS or Store.open(path).generation == opened.generation:
                        raise
        raise AssertionError("unreachable")

    def __len__(self) -> int:
        return len(self.files)

    @property
    def has_regions(self) -> bool:
        """True if `quarters` are stored."""
        return self._quarters is not None

    @overload
    def locate(self, photos: Photograph, **options) -> Found: ...

    @overload
    def locate(self, photos: Sequence[Photograph], **options) -> list[Found]: ...

    def locate(self, photos, **options):
        """Say where photographs were taken, one or several; see `sfrs.retrieval.locate.locate`."""
        one = not isinstance(photos, (list, tuple))
        found = locate(self, [photos] if one else photos, **options)
        return found[0] if one else found

    def search(
        self, descriptors: np.ndarray, k: int, near: Near | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k most similar images of each query, best first.

        Args:
            descriptors: float32 ``[m, dim]`` unit vectors, from ``model.encode``.
            near: the circle to keep to; None is everywhere.

        Returns:
            (similarities float32 ``[m, k]``, rows int64 ``[m, k]`` of `files` and `positions`);
            -inf and -1 past the end. The similarities are exact for every kind: a compressed copy only
            chooses which rows are compared.

        Raises:
            ValueError: a shape or k is wrong, or a value is not finite.
            UserError: the index holds a descriptor that is not finite, or no unit vector; or no image is
                within the circle.
        """
        queries = np.ascontiguousarray(descriptors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.model.dim or k < 1:
            raise ValueError(
                f"search: descriptors are {queries.shape} and k is {k}; expected [m, {self.model.dim}] and "
                "at least 1"
            )
        if not np.isfinite(queries).all():
            raise ValueError("search: the descriptors hold values that are not finite")
        if near is not None:
            self.within(near)
        try:
            scores, rows = self._find(queries, k, near)
        except ValueError as error:  # of values that are not finite; the queries' are
            raise self._damaged(str(error)) from error
        longest = LONGEST * np.linalg.norm(queries, axis=1, keepdims=True)
        if (np.abs(scores) > longest)[rows >= 0].any():
            raise self._damaged("they are no unit vectors")
        return scores, rows

    def _find(self, queries: np.ndarray, k: int, near: Near | None) -> tuple[np.ndarray, np.ndarray]:
        live = self._live
        if near is not None:
            live = np.zeros_like(live)
            live[self._slots] = self.within(near)
        if self._compressed is None:
            scores, slots = scan(self._descriptors, live, queries, k)
        else:
            with self._lock:  # faiss keeps in the index how many lists to read
                candidates = self._compressed.candidates(queries, k, live)
            scores, slots = compare(self._descriptors, candidates, queries, k)
        return scores, np.where(slots >= 0, self._row_of[slots], -1) if len(self) else slots

    def within(self, near: Near) -> np.ndarray:
        """Return which images are in a circle, bool ``[n]``. Raises `UserError` if none is."""
        inside = near.holds(self.positions, self.zone)
        if not inside.any():
            raise UserError(f"--near {near}: {self.path} holds no image in this circle.")
        return inside

    def descriptors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read the descriptors of images, float32 ``[len(rows), dim]``.

        Raises `UserError` if one is not finite.
        """
        found = self._descriptors[self._slots[np.asarray(rows, dtype=np.int64)]].astype(np.float32)
        if not np.isfinite(found).all():
            raise self._damaged("one holds values that are not finite")
        return found

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self.path}: its descriptors are damaged ({why}); build it again.")

    def check(self, *, sample: int = SAMPLE, seed: int = 0, tasks: Tasks = quiet) -> SelfTest:
        """Locate the index's own photographs among the others, and keep what that says in the index.

        Answers of `locate` are calibrated by it from then on. A change of the index makes it void. Arguments:
        `sfrs.retrieval.self_test.self_test`. Raises `UserError` where the index shows a circle alone.
        """
        if self.near is not None:
            raise UserError(f"{self.path} was opened near {self.near}; expected all of it for the self-test.")
        self.self_test = self_test(self, sample=sample, seed=seed, tasks=tasks)
        self._keep(self.self_test)
        return self.self_test

    def _keep(self, test: SelfTest) -> None:
        test.save(self.path)

    def quarters(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Quarter VLADs of images, float32 ``[len(rows), 4, K, D]``, compact: as stored, else from the files.

        Raises `BadImageError` if they are not stored, and a file has gone or cannot be read.
        """
        if self._quarters is None:
            return self.model.quarters([self.files[row] for row in rows])
        return torch.from_numpy(self._quarters[self._slots[np.asarray(rows, dtype=np.int64)]]).float()


def _beside(photos: Path | None) -> Path:
    """Return where the index of photographs is by default."""
    if photos is None:
        raise ValueError("Index.build: neither photos nor out is given; expected one of them at least")
    name = photos.stem if photos.is_file() else photos.absolute().name
    return photos.absolute().with_name(f"{name}.index")


def builder_class(path: str | Path) -> type[Builder]:
    """Return what builds the index at ``path``, a folder or an address in Milvus."""
    if not on_engine(path):
        return Builder
    from sfrs.retrieval.index.engine import EngineBuilder

    return EngineBuilder


def summarise(path: str | Path) -> dict[str, Any]:
    """Say what is in the index at ``path``, finished or not, and of its self-test, as JSON takes it."""
    if on_engine(path):
        from sfrs.retrieval.index import engine

        return engine.summarise(path)
    with closing(Store.open(path)) as store:
        table = store.snapshot() if store.generation else store.pending()
        settings, removed = store.settings, store.slots() - len(table.files)
    sizes = {file.name: file.stat().st_size for file in sorted(Path(path).iterdir()) if file.is_file()}
    facts = facts_of(path, settings, table.positions, sizes, removed_rows=removed)
    tested = SelfTest.load(Path(path), settings["generation"], settings["fingerprint"], len(table.files))
    return facts | {"self_test": tested and tested.summary()}
