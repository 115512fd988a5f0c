"""Finishing a generation: rows compacted or converted, their compressed copy made, old files deleted."""

from pathlib import Path
from typing import Any

import numpy as np

from sfrs.retrieval.index import quantised
from sfrs.retrieval.index.quantised import Compressed
from sfrs.retrieval.index.rows import RowFile, map_rows
from sfrs.retrieval.index.store import Store
from sfrs.runtime.progress import Progress, Tasks

COMPACTED_ABOVE = 0.25
"""Share of removed rows above which the files are written again without them."""
OUTGROWN = 2
"""Times as many rows as a compressed copy was trained for, from which on another is trained."""
BLOCK_BYTES = 64 * 2**20


def derive(store: Store, kind: str | None, tasks: Tasks = lambda name: None) -> None:
    """Bring an index's files to the images in its table and to ``kind``, then show them to readers.

    Does nothing where nothing changed. All files get new names and the old ones stay until the table has
    changed over, so that an interruption leaves what was there before.
    """
    settings, table, slots = store.settings, store.pending(), store.slots()
    kind = kind or settings["kind"]
    compact = slots - len(table.slots) > COMPACTED_ABOVE * slots
    has_copy = bool(settings["compressed"]) and (store.path / settings["compressed"]).is_file()
    needs_copy = kind in quantised.KINDS and len(table.slots) >= quantised.FEWEST
    changed = store.generation == 0 or store.changed() or compact or kind != settings["kind"]
    if not changed and has_copy == needs_copy:
        return
    kept = table.slots if compact else None
    changes = _rewritten(store, kept, kind == "float16", tasks)
    changes |= {"kind": kind, "compressed": None, "trained": 0}
    if needs_copy:
        described = settings | changes
        rows = (described["dtype"], (settings["dim"],), len(table.slots) if compact else slots)
        extend = has_copy and kind == settings["kind"] and not compact
        changes |= _compressed(
            store, kind, map_rows(store.path / described["descriptors"], *rows), extend, tasks
        )
    store.finish(kept, **changes)
    sweep(store)


def sweep(store: Store) -> None:
    """Delete files of generations that are over, and of writers that were killed."""
    current = {store.settings[name] for name in ("descriptors", "quarters", "compressed")}
    for pattern in ("descriptors-*", "quarters-*", "*.faiss", "*.faiss.partial"):
        for file in store.path.glob(pattern):
            if file.name not in current:
                file.unlink()


def _rewritten(store: Store, kept: np.ndarray | None, to_float16: bool, tasks: Tasks) -> dict[str, Any]:
    """Write only the slots ``kept``, or all as float16; returns the settings that change by it."""
    settings, slots, coming = store.settings, store.slots(), store.generation + 1
    dtype = "float16" if to_float16 else settings["dtype"]
    if kept is None and dtype == settings["dtype"]:
        return {}
    files = {"descriptors": (settings["dtype"], dtype, (settings["dim"],))}
    if kept is not None and settings["quarters"]:
        files["quarters"] = ("float16", "float16", tuple(settings["quarters_shape"]))
    changes = {"dtype": dtype}
    for name, (old, new, shape) in files.items():
        changes[name] = f"{name}-{coming}.{new}"
        progress = tasks(f"rewriting {name}")
        source = map_rows(store.path / settings[name], old, shape, slots)
        _write_rows(
            store.path / changes[name], new, source, np.arange(slots) if kept is None else kept, progress
        )
    return changes


def _write_rows(
    path: Path, dtype: str, source: np.ndarray, kept: np.ndarray, progress: Progress | None
) -> None:
    path.unlink(missing_ok=True)
    target = RowFile(path, dtype, source.shape[1:], 0)
    step = max(1, BLOCK_BYTES // max(1, source[:1].nbytes))
    for start in range(0, len(kept), step):
        target.append(source[kept[start : start + step]])
        if progress is not None:
            progress(min(start + step, len(kept)), len(kept))
    target.sync()
    target.close()


def _compressed(store: Store, kind: str, rows: np.ndarray, extend: bool, tasks: Tasks) -> dict[str, Any]:
    """Make the compressed copy of the rows, or extend the present one if it was trained for as many."""
    trained = store.settings["trained"]
    if extend and len(rows) < OUTGROWN * trained:
        copy = Compressed.open(store.path / store.settings["compressed"], kind, rows.shape[1], to_extend=True)
    else:
        fitting, trained = tasks("fitting codes"), len(rows)
        copy = Compressed.train(kind, rows)
        if fitting is not None:
            fitting(1, 1)
    copy.extend(rows, tasks("compressing"))
    name = f"{kind}-{store.generation + 1}.faiss"
    copy.save(store.path / name)
    return {"compressed": name, "trained": trained}
