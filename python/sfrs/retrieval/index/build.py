"""Making an index, and changing one: add, describe again, remove, compact, change the kind."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from sfrs.data.coordinates import parse_zone
from sfrs.data.images import BadImageError, check_images
from sfrs.data.photos import Photo, check_inside, project
from sfrs.models.fitting import Fitting
from sfrs.models.model import Model
from sfrs.retrieval.index.adding import Adding, Change, check_placed
from sfrs.retrieval.index.derive import derive, whiten
from sfrs.retrieval.index.settings import check_same, left_to_index
from sfrs.retrieval.index.store import LOCK, NETWORK, TABLE, WHITENING, Entry, Store, locked
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress, Tasks, quiet

KINDS = ("exact", "float16", "pq", "ivf", "disk")
COMMIT_SECONDS = 5.0  # work that is lost at most when a build is killed
BATCH_BYTES = 16 * 2**20  # of descriptors and quarters that are written at once
SAME_PLACE = 1e-3  # metres below which a position counts as unchanged


class Builder:
    """Makes an index or changes one, alone: holds the index's lock until it is left.

    Readers see nothing of it before `finish`. Interrupted in any way, the same calls go on with the rest.
    Raises `UserError` if there is no index and no model; the model or another option is not the index's;
    another process is writing.

    Args:
        model: describes images; None takes the one of the index. One without clusters gets them from the
            photographs that a new index begins with.
        kind: exact, float16, pq, ivf or disk; None leaves it as it is (exact for a new index).
        regions: keep quarter VLADs for re-ranking; None leaves it as it is (for a new index: only where the
            model's clusters are made from the photographs).
        zone: UTM zone of the index, and of metres that do not say theirs.
    """

    kinds: tuple[str, ...] = KINDS

    def __init__(
        self,
        path: str | Path,
        model: Model | None = None,
        *,
        kind: str | None = None,
        regions: bool | None = None,
        zone: str = "",
        tasks: Tasks = quiet,
    ) -> None:
        if kind not in (None, *self.kinds):
            raise UserError(f"--kind is {kind!r}; expected one of {', '.join(self.kinds)}.")
        self.path, self.model, self.change = Path(path), model, Change()
        self.zone = parse_zone(zone) if zone else ""
        self._kind, self._regions = kind, regions
        self._tasks = tasks
        self._store: Store | None = None
        self._check_place()

    def _check_place(self) -> None:
        """Raise `UserError` if there is something else at the path, or nothing and no model to begin with."""
        self._new = not (self.path / TABLE).exists()
        if self._new:
            _check_free(self.path)
            if self.model is None:
                Store.open(self.path)  # raises: it has the one message for this

    @staticmethod
    def begun(path: str | Path) -> bool:
        """Return True if there is an index at ``path``, finished or not."""
        return (Path(path) / TABLE).is_file()

    def __enter__(self) -> "Builder":
        with ExitStack() as stack:
            had_folder = self.path.is_dir()
            self.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(self.path))
            stack.callback(self._close, had_folder)
            if not self._new:
                self._store = Store.open(self.path)
                self._check_options()
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._closing.close()

    def _close(self, had_folder: bool) -> None:
        if self._store is not None:
            self._store.close()
        elif not had_folder:
            # Nothing was begun. A folder that is not empty keeps what a failed write left, for the next.
            with suppress(OSError):
                (self.path / LOCK).unlink()
                self.path.rmdir()

    def add(self, photos: Sequence[Photo], adding: Adding | None = None) -> None:
        """Describe photos that are new, or whose file or position changed.

        Raises `UserError` if positions are missing or do not go together with those of the index, or
        `BadImageError`.
        """
        adding = adding or Adding()
        self.describe(self.plan(photos, adding), adding)

    def plan(self, photos: Sequence[Photo], adding: Adding) -> list[Entry]:
        """Return the images to describe, those that are new or changed; a new index is begun. See `add`."""
        if self._store is not None:
            self._check_whitening(adding.whiten)
        photos, stamps = self._stamped(photos, adding)
        positions, zone = self._project(photos)
        if not adding.allow_unplaced:
            check_placed(photos, positions)
        if self._store is None:
            self._create(photos, zone, adding)
        elif zone != self._store.settings["zone"]:
            table = self._store.pending()
            check_inside(table.files, table.positions, zone)
            self._store.write(zone=zone)
        return self._changed(photos, positions, stamps)

    def describe(self, entries: Sequence[Entry], adding: Adding, progress: Progress | None = None) -> None:
        """Describe images of a `plan`, all or some. Raises `BadImageError`."""
        if adding.skip_bad_images:
            files = [Path(os.fsdecode(entry.file)) for entry in entries]
            bad = check_images(files, workers=adding.workers, progress=self._tasks("checking"))
            self.change.skipped += bad
            unread = {os.fsencode(file) for file, _ in bad}
            entries = [entry for entry in entries if entry.file not in unread]
        self._describe(entries, adding, progress or self._tasks("describing"))
        again = sum(entry.replaces is not None for entry in entries)
        self.change.added += len(entries) - again
        self.change.described_again += again

    def remove(self, *patterns: str | Path) -> None:
        """Remove the images below folders, and those whose path or name matches shell patterns.

        Raises `UserError` if no image does so with one of them; all stay then.
        """
        files = self._opened().pending().files
        for pattern in patterns:
            if not any(_matches(pattern, file) for file in files):
                raise UserError(
                    f"--remove {pattern}: none of the {len(files):,} images of {self.path} "
                    "lies below this folder or matches this pattern."
                )
        self._remove(lambda file: any(_matches(pattern, file) for pattern in patterns))

    def remove_missing(self) -> None:
        """Remove the images whose files are gone."""
        self._remove(lambda file: not file.exists())

    def finish(self) -> Change:
        """Make what was added and removed, and the kind asked for, what readers see from now on."""
        if whiten(self._opened(), self._tasks):
            self.model = None  # it gives other descriptors than the index's from now on
        derive(self._opened(), self._kind, self._tasks)
        return self.change

    def _opened(self) -> Store:
        if self._store is None:
            raise UserError(f"{self.path}: there is no index here yet; add images first.")
        return self._store

    def _create(self, photos: Sequence[Photo], zone: str, adding: Adding) -> None:
        assert self.model is not None  # without one a new index is refused
        regions = self._regions if self.model.has_clusters else self._regions is not False
        whiten_from = Fitting(adding.whiten, adding.clusters).make_clusters(
            self.model,
            [photo.file for photo in photos],
            self._tasks,
            batch_size=adding.batch_size,
            skip_bad_images=adding.skip_bad_images,
        )
        self._begin(photos, zone, bool(regions), whiten_from, adding)

    def _begin(
        self, photos: Sequence[Photo], zone: str, regions: bool, whiten_from: int | None, adding: Adding
    ) -> None:
        assert self.model is not None
        self._store = Store.create(
            self.path, self.model, self._kind or "exact", zone=zone, regions=regions, whiten_from=whiten_from
        )

    def _check_options(self) -> None:
        settings = self._opened().settings
        if self.model is not None:
            check_same(self.path, self.model, settings)
            if left_to_index(self.model, settings):
                self.model = self._opened().load_model(str(self.model.device))
        if self._kind == "exact" and settings["dtype"] != "float32":
            raise UserError(
                f"--kind exact: {self.path} keeps its descriptors as {settings['dtype']}. Build a new one, "
                "or take --kind float16, which compares every row as well."
            )
        if self._regions and not settings["quarters"]:
            raise UserError(
                f"--regions: {self.path} was begun without, and its images would have to be described "
                "again. Build a new one."
            )
        if self.zone and settings["zone"] and self.zone != settings["zone"].split("+")[0]:
            raise UserError(f"--zone is {self.zone}, but {self.path} is in UTM zone {settings['zone']}.")

    def _check_whitening(self, asked: bool | None) -> None:
        """Raise `UserError` if the index is whitened otherwise than asked for."""
        settings = self._opened().settings
        begun = not self._opened().generation or bool(settings["digests"]["whitening"])
        learned = settings.get("whiten_from") is not None and begun
        if asked is not None and asked != learned:
            raise UserError(
                f"{'--whiten' if asked else '--no-whiten'}: {self.path} was begun with"
                f"{'out' if asked else ''} a whitening of its photographs, and all descriptors would change. "
                "Build a new one."
            )

    def _stamped(self, photos: Sequence[Photo], adding: Adding) -> tuple[list[Photo], list[tuple[int, int]]]:
        """The photos that are there, their sizes and times of change; the others are skipped."""
        there, stamps = [], []
        for photo in photos:
            why = photo.unreadable
            if adding.skip_unplaced and not (photo.placed or why):
                self.change.skipped.append((photo.file, "it says nowhere where it was taken."))
                continue
            try:
                found = os.stat(photo.file)
            except OSError as error:
                why = why or f"this image cannot be read ({error.strerror})."
            if not why:
                there.append(photo)
                stamps.append((found.st_size, found.st_mtime_ns))
            elif adding.skip_bad_images:
                self.change.skipped.append((photo.file, why))
            else:
                raise BadImageError(f"{photo.file}: {why}")
        return there, stamps

    def _project(self, photos: Sequence[Photo]) -> tuple[np.ndarray, str]:
        stored = "" if self._store is None else self._store.settings["zone"]
        positions, zone = project(photos, stored or self.zone)
        if self._store is not None and zone and not stored and not self.zone:
            if np.isfinite(self._store.pending().positions).any():
                raise UserError(
                    f"{self.path} holds plain metres, whose UTM zone nobody said, but these images are in "
                    f"zone {zone}. If those are too: --zone {zone}."
                )
        return positions, zone or stored

    def _changed(
        self, photos: Sequence[Photo], positions: np.ndarray, stamps: Sequence[tuple[int, int]]
    ) -> list[Entry]:
        """The photos to describe: those that are not in the index as they are now."""
        entries = []
        known_images = self._opened().known([os.fsencode(photo.file) for photo in photos])
        rows = zip(photos, positions.tolist(), stamps, known_images, strict=True)
        for photo, (easting, northing), stamp, known in rows:
            entry = Entry(os.fsencode(photo.file), easting, northing, *stamp)
            if known is not None:
                near = np.allclose((easting, northing), known[1:3], rtol=0, atol=SAME_PLACE, equal_nan=True)
                if near and stamp == known[3:5]:
                    self.change.unchanged += 1
                    continue
                entry = entry._replace(replaces=known.replaces)
            entries.append(entry)
        return entries

    def _describe(self, entries: Sequence[Entry], adding: Adding, progress: Progress) -> None:
        if not entries:
            return
        store = self._opened()
        if self.model is None:
            self.model = store.load_model(adding.device)
        files = [Path(os.fsdecode(entry.file)) for entry in entries]
        described = self.model.encode_batches(
            files,
            regions=bool(store.settings["quarters"]),
            batch_size=adding.batch_size,
            workers=adding.workers,
        )
        batch, done, last = [], 0, time.monotonic()

        def write() -> None:
            parts = [np.concatenate(part) for part in zip(*batch, strict=True)]
            batch.clear()  # what cannot be written is not tried again
            store.add(entries[done - len(parts[0]) : done], *parts)

        try:
            for rows, *found in described:
                batch.append([part.cpu().numpy() for part in found if part is not None])
                done, held = rows[-1] + 1, sum(part.nbytes for parts in batch for part in parts)
                if held >= BATCH_BYTES or time.monotonic() - last >= COMMIT_SECONDS:
                    write()
                    last = time.monotonic()
                progress(done, len(files))
        finally:
            if batch:
                write()

    def _remove(self, chosen: Callable[[Path], bool]) -> None:
        store = self._opened()
        table = store.pending()
        slots = [slot for slot, file in zip(table.slots, table.files, strict=True) if chosen(file)]
        store.remove(slots)
        self.change.removed += len(slots)


def _matches(pattern: str | Path, file: Path) -> bool:
    """Say whether a file lies below a folder, or its path or name matches a shell pattern."""
    folder, pattern = os.path.abspath(pattern), str(pattern)
    inside = file.is_relative_to(folder) or fnmatch(str(file), folder)
    return inside or fnmatch(str(file), pattern) or fnmatch(file.name, pattern)


def _check_free(path: Path) -> None:
    """Raise `UserError` if ``path`` is something else than an index that was hardly begun."""
    if path.exists() and not path.is_dir():
        raise UserError(f"--out is {path}, which is a file; an index is a directory.")
    ours = (NETWORK, WHITENING, LOCK, TABLE)
    foreign = [name for name in os.listdir(path) if not name.startswith(ours)] if path.is_dir() else []
    if foreign:
        raise UserError(
            f"--out is {path}, a folder that holds {min(foreign)} and no index. Expected a new folder."
        )
