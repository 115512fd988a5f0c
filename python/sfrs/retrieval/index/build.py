"""Making an index, and changing one: add, describe again, remove, compact, change the kind."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from sfrs.data.coordinates import parse_zone
from sfrs.data.images import BadImageError, check_images
from sfrs.data.photos import Photo, check_inside, project, why_unreadable
from sfrs.models.model import Model
from sfrs.models.network import save_network
from sfrs.retrieval.index.checks import check_free, check_placed, check_same
from sfrs.retrieval.index.derive import derive
from sfrs.retrieval.index.opened import load_model
from sfrs.retrieval.index.rows import RowFile
from sfrs.retrieval.index.settings import new_settings
from sfrs.retrieval.index.store import LOCK, NETWORK, TABLE, WHITENING, Store, Table, locked, stamp
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Tasks

KINDS = ("exact", "float16", "pq", "ivf", "disk")
COMMIT_SECONDS = 5.0
"""Work that is lost at most when a build is killed."""
SAME_PLACE = 1e-3
"""Metres below which a position counts as unchanged."""


@dataclass
class Change:
    """What :class:`Builder` did.

    Attributes:
        added, described_again, removed, unchanged: numbers of images.
        skipped: (file, why) of images that could not be read.
    """

    added: int = 0
    described_again: int = 0
    removed: int = 0
    unchanged: int = 0
    skipped: tuple[tuple[Path, str], ...] = ()


class Builder(AbstractContextManager):
    """Makes an index or changes one, alone: holds the index's lock until it is left.

    Readers see nothing of it before :meth:`finish`. What was described before an interruption, of whatever
    sort, is kept: the same calls go on with the rest.

    Args:
        path: of the index.
        model: what describes images; None takes the one of the index.
        kind: exact, float16, pq, ivf or disk; None leaves it as it is (exact for a new index).
        regions: keep quarter VLADs for re-ranking; None leaves it as it is (no for a new index).
        zone: UTM zone of the index, and of metres that do not say theirs.
        device: for the index's own model.

    Raises:
        UserError: there is no index and no model; the model or another option is not the index's; another
            process is writing.
    """

    def __init__(
        self,
        path: str | Path,
        model: Model | None = None,
        *,
        kind: str | None = None,
        regions: bool | None = None,
        zone: str = "",
        device: str = "cpu",
    ) -> None:
        if kind is not None and kind not in KINDS:
            raise UserError(f"--kind is {kind!r}; expected one of {', '.join(KINDS)}.")
        self.path = Path(path)
        self.zone = parse_zone(zone) if zone else ""
        self.change = Change()
        self._asked = {"kind": kind, "regions": regions}
        self._model, self._device = model, device
        self._store: Store | None = None
        self._new = not (self.path / TABLE).exists()
        if self._new:
            check_free(self.path)
            if model is None:
                Store.open(self.path)  # raises: it has the one message for this

    def __enter__(self) -> "Builder":
        self._had_folder = self.path.is_dir()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.path)
        self._lock.__enter__()
        try:
            if not self._new:
                self._store = Store.open(self.path)
                self._check_options()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exception) -> None:
        try:
            if self._store is not None:
                self._store.close()
            elif not self._had_folder:
                # Nothing was begun. A folder that is not empty keeps what a failed write left, for the next.
                with suppress(OSError):
                    (self.path / LOCK).unlink()
                    self.path.rmdir()
        finally:
            self._lock.__exit__(None, None, None)

    def add(
        self,
        photos: Sequence[Photo],
        *,
        allow_unplaced: bool = False,
        skip_bad_images: bool = False,
        batch_size: int = 8,
        workers: int = 2,
        tasks: Tasks | None = None,
        prepare: Callable[[list[Path]], None] | None = None,
    ) -> None:
        """Describe photos that are new, or whose file or position changed.

        Args:
            prepare: called with the files before a new index begins, to finish its model.

        Raises:
            UserError: no position is known of a photo and ``allow_unplaced`` is not set, or positions do not
                go together with those of the index.
            BadImageError: an image cannot be read and ``skip_bad_images`` is not set.
        """
        photos, stamps = self._stamped(photos, skip_bad_images)
        positions, zone = self._project(photos)
        if not allow_unplaced:
            check_placed(photos, positions)
        if self._store is None:
            if prepare is not None:
                prepare([photo.file for photo in photos])
            self._create(zone)
        elif zone != self._store.settings["zone"]:
            table = self._store.pending()
            check_inside([Path(os.fsdecode(file)) for file in table.files], table.positions, zone)
            self._store.write(zone=zone)
        files = [os.fsencode(photo.file) for photo in photos]
        todo, replaced = self._compare(files, positions, stamps)
        if skip_bad_images:
            show = tasks("checking") if tasks else None
            bad = dict(check_images([photos[i].file for i in todo], workers=workers, progress=show))
            todo = [i for i in todo if photos[i].file not in bad]
            self.change.skipped += tuple(bad.items())
        self._describe(
            [photos[i].file for i in todo],
            lambda first, done: self._store.add(
                first,
                [files[i] for i in todo[done]],
                positions[todo[done]],
                stamps[todo[done]],
                [replaced[i] for i in todo[done] if i in replaced],
            ),
            batch_size=batch_size,
            workers=workers,
            tasks=tasks,
        )
        again = sum(i in replaced for i in todo)
        self.change.added += len(todo) - again
        self.change.described_again += again

    def remove(self, pattern: str) -> None:
        """Remove the images below a folder, or those whose path or name matches a shell pattern.

        Raises:
            UserError: no image does.
        """
        table = self._opened().pending()
        folder = os.path.join(os.path.abspath(pattern), "")
        names = [os.fsdecode(file) for file in table.files]
        chosen = [
            name.startswith(folder)
            or name == folder.rstrip(os.sep)
            or fnmatch(name, os.path.abspath(pattern))
            or fnmatch(name, pattern)
            or fnmatch(os.path.basename(name), pattern)
            for name in names
        ]
        if not any(chosen):
            raise UserError(
                f"--remove {pattern}: none of the {len(names):,} images of {self.path} lies below this "
                "folder or matches this pattern."
            )
        self._remove(table.slots[chosen])

    def remove_missing(self) -> None:
        """Remove the images whose files are gone."""
        table = self._opened().pending()
        self._remove(table.slots[[not os.path.exists(file) for file in table.files]])

    def finish(self, tasks: Tasks | None = None) -> Change:
        """Make what was added and removed, and the kind asked for, what readers see from now on."""
        derive(self._opened(), self._asked["kind"], tasks)
        return self.change

    def _opened(self) -> Store:
        if self._store is None:
            raise UserError(f"{self.path}: there is no index here yet; add images first.")
        return self._store

    @property
    def model(self) -> Model:
        """What describes images: as given, else the index's own."""
        if self._model is None:
            self._model = load_model(self.path, self._opened().settings, self._device)
        return self._model

    def _create(self, zone: str) -> None:
        save_network(self.path / NETWORK, self._model.network)
        if self._model.whitening is not None:
            self._model.whitening.to("cpu").save(self.path / WHITENING)
        settings = new_settings(self._model, self._asked["kind"] or "exact", zone, self._asked["regions"])
        self._store = Store.create(self.path, settings)

    def _check_options(self) -> None:
        settings = self._store.settings
        if self._model is not None:
            check_same(self.path, self._model, settings)
        if self._asked["kind"] == "exact" and settings["dtype"] != "float32":
            raise UserError(
                f"--kind exact: {self.path} keeps its descriptors as {settings['dtype']}. Build it anew, or "
                "take --kind float16, which compares every row as well."
            )
        if self._asked["regions"] and not settings["quarters"]:
            raise UserError(
                f"--regions: {self.path} was begun without, and its images would have to be described "
                "again. Build it anew."
            )
        if self.zone and settings["zone"] and self.zone != settings["zone"]:
            raise UserError(f"--zone is {self.zone}, but {self.path} is in UTM zone {settings['zone']}.")

    def _stamped(self, photos: Sequence[Photo], skip: bool) -> tuple[list[Photo], np.ndarray]:
        """The photos that are there, and their stamps int64 ``[n, 2]``; the others are skipped."""
        there, stamps, skipped = [], [], []
        for photo in photos:
            try:
                if photo.unreadable:
                    raise BadImageError(f"{photo.file}: {photo.unreadable}")
                found = stamp(photo.file)
            except BadImageError as error:
                if not skip:
                    raise
                skipped.append((photo.file, why_unreadable(photo.file, error)))
            else:
                there.append(photo)
                stamps.append(found)
        self.change.skipped += tuple(skipped)
        return there, np.array(stamps, dtype=np.int64).reshape(-1, 2)

    def _project(self, photos: Sequence[Photo]) -> tuple[np.ndarray, str]:
        if self._store is None:
            return project(photos, self.zone)
        stored = self._store.settings["zone"]
        positions, zone = project(photos, self.zone or stored)
        if zone and not stored and not self.zone and np.isfinite(self._store.pending().positions).any():
            raise UserError(
                f"{self.path} holds plain metres, whose UTM zone nobody said, but these images are in zone "
                f"{zone}. If those are too: --zone {zone}."
            )
        return positions, zone or stored

    def _compare(
        self, files: list[bytes], positions: np.ndarray, stamps: np.ndarray
    ) -> tuple[list[int], dict[int, int]]:
        """Numbers of the photos to describe, and the slots of those that are in the index already."""
        table: Table = self._store.pending()
        rows = {file: row for row, file in enumerate(table.files)}
        todo, replaced = [], {}
        for i, file in enumerate(files):
            row = rows.get(file)
            if row is not None:
                place, known = positions[i], table.positions[row]
                same = np.allclose(place, known, rtol=0, atol=SAME_PLACE, equal_nan=True)
                if same and (stamps[i] == table.stamps[row]).all():
                    continue
                replaced[i] = int(table.slots[row])
            todo.append(i)
        self.change.unchanged += len(files) - len(todo)
        return todo, replaced

    def _describe(
        self,
        files: list[Path],
        commit: Callable[[int, slice], None],
        *,
        batch_size: int,
        workers: int,
        tasks: Tasks | None,
    ) -> None:
        settings, first = self._store.settings, self._store.slots()
        targets = [RowFile(self.path / settings["descriptors"], settings["dtype"], (self.model.dim,), first)]
        if settings["quarters"]:
            shape = self.model.quarters_shape
            targets.append(RowFile(self.path / settings["quarters"], "float16", shape, first))
        options = dict(regions=bool(settings["quarters"]), batch_size=batch_size, workers=workers)
        progress = tasks("describing") if tasks and files else None
        written = committed = 0

        def keep() -> None:
            nonlocal committed
            if written > committed:
                for target in targets:
                    target.sync()
                commit(first + committed, slice(committed, written))
                committed = written

        last = time.monotonic()
        try:
            for rows, *batch in self.model.encode_batches(files, **options):
                for target, numbers in zip(targets, batch, strict=False):
                    target.append(numbers.cpu().numpy())
                written = rows[-1] + 1
                if time.monotonic() - last >= COMMIT_SECONDS:
                    keep()
                    last = time.monotonic()
                if progress is not None:
                    progress(written, len(files))
        finally:
            keep()
            for target in targets:
                target.close()

    def _remove(self, slots: np.ndarray) -> None:
        self._store.remove(slots)
        self.change.removed += len(slots)
