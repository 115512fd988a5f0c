"""Finishing a generation: rows compacted or converted, their compressed copy made, old files deleted."""

from pathlib import Path

import numpy as np

from sfrs.evaluation import Tasks
from sfrs.images import Progress
from sfrs.index import quantised
from sfrs.index.quantised import Compressed
from sfrs.index.store import RowFile, Store, map_rows

COMPACTED_ABOVE = 0.25
"""Share of removed rows above which the files are written anew without them."""
OUTGROWN = 2
"""Times as many rows as a compressed copy was trained for that it is trained anew for."""
BLOCK_BYTES = 64 * 2**20


def derive(store: Store, kind: str | None, tasks: Tasks | None = None) -> None:
    """Bring an index's files to the images in its table and to ``kind``, then show them to readers.

    Does nothing where nothing changed. All files get new names and the old ones stay until the table has
    changed over, so that an interruption leaves what was there before.
    """
    settings, table = store.settings, store.pending()
    kind = kind or settings["kind"]
    slots, coming = store.slots(), store.generation + 1
    compact = slots - len(table.slots) > COMPACTED_ABOVE * slots
    convert = kind == "float16" and settings["dtype"] != "float16"
    compressed = kind in quantised.KINDS and len(table.slots) >= quantised.FEWEST
    present = settings["compressed"] and (store.path / settings["compressed"]).is_file()
    if not (coming == 1 or store.changed() or compact or convert or kind != settings["kind"]):
        if bool(present) == compressed:
            return
    changes = {"kind": kind, "compressed": None, "trained": 0}
    kept = table.slots if compact else np.arange(slots)
    if compact or convert:
        changes["dtype"] = "float16" if convert else settings["dtype"]
        changes["descriptors"] = f"descriptors-{coming}.{changes['dtype']}"
        progress = tasks("compacting" if compact else "converting") if tasks else None
        source = map_rows(store.path / settings["descriptors"], settings["dtype"], (settings["dim"],), slots)
        _rewrite(store.path / changes["descriptors"], changes["dtype"], source, kept, progress)
        if compact and settings["quarters"]:
            changes["quarters"] = f"quarters-{coming}.float16"
            shape = tuple(settings["quarters_shape"])
            source = map_rows(store.path / settings["quarters"], "float16", shape, slots)
            _rewrite(store.path / changes["quarters"], "float16", source, kept, None)
    if compressed:
        current = settings | changes
        rows = map_rows(store.path / current["descriptors"], current["dtype"], (settings["dim"],), len(kept))
        old = None
        if present and kind == settings["kind"] and not compact and slots < OUTGROWN * settings["trained"]:
            old = store.path / settings["compressed"]
            changes["trained"] = settings["trained"]
        changes["trained"] = changes["trained"] or len(rows)
        changes["compressed"] = f"{kind}-{coming}.faiss"
        _compress(store.path / changes["compressed"], kind, rows, old, tasks)
    store.finish(table.slots if compact else None, **changes)
    sweep(store)


def sweep(store: Store) -> None:
    """Delete files of generations that are over, and of writers that were killed."""
    current = {store.settings[name] for name in ("descriptors", "quarters", "compressed")}
    for pattern in ("descriptors-*", "quarters-*", "*.faiss", "*.faiss.partial"):
        for file in store.path.glob(pattern):
            if file.name not in current:
                file.unlink()


def _rewrite(path: Path, dtype: str, source: np.ndarray, kept: np.ndarray, progress: Progress | None) -> None:
    path.unlink(missing_ok=True)
    target = RowFile(path, dtype, source.shape[1:], 0)
    step = max(1, BLOCK_BYTES // (source[:1].nbytes or 1))
    for start in range(0, len(kept), step):
        target.append(source[kept[start : start + step]])
        if progress is not None:
            progress(min(start + step, len(kept)), len(kept))
    target.sync()
    target.close()


def _compress(path: Path, kind: str, rows: np.ndarray, old: Path | None, tasks: Tasks | None) -> None:
    if old is not None:
        copy = Compressed.open(old, kind, rows.shape[1], to_extend=True)
    else:
        fitting = tasks("fitting codes") if tasks else None
        copy = Compressed.train(kind, rows)
        if fitting is not None:
            fitting(1, 1)
    copy.extend(rows, tasks("compressing") if tasks else None)
    copy.save(path)
