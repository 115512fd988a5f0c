"""Finishing a generation: rows compacted or converted, their compressed copy made, old files deleted."""

from typing import Any

import numpy as np
import torch

from sfrs.models.fitting import learn_whitening
from sfrs.models.model import Model
from sfrs.retrieval.index import quantised
from sfrs.retrieval.index.quantised import Compressed
from sfrs.retrieval.index.rows import RowFile, map_rows
from sfrs.retrieval.index.store import WHITENING, Store
from sfrs.runtime.progress import Tasks, quiet

COMPACTED_ABOVE = 0.25  # share of removed rows above which the files are written again without them
OUTGROWN = 2  # times as many rows as a compressed copy was trained for, from which on another is trained
BLOCK_BYTES = 64 * 2**20


def derive(store: Store, kind: str | None, tasks: Tasks = quiet) -> None:
    """Bring an index's files to the images in its table and to ``kind``, then show them to readers.

    Does nothing where nothing changed. All files get new names and the old ones stay until the table has
    changed over, so that an interruption leaves what was there before.
    """
    settings, table, slots = store.settings, store.pending(), store.slots()
    kind = kind or str(settings["kind"])
    kept = table.slots if slots - len(table.slots) > COMPACTED_ABOVE * slots else None
    has_copy = bool(settings["compressed"]) and (store.path / settings["compressed"]).is_file()
    needs_copy = kind in quantised.KINDS and len(table.slots) >= quantised.FEWEST
    changed = store.generation == 0 or store.changed() or kept is not None or kind != settings["kind"]
    if not changed and has_copy == needs_copy:
        return
    dtype = "float16" if kind == "float16" else settings["dtype"]
    changes = {"kind": kind, "dtype": dtype, "compressed": None, "trained": 0}
    if kept is not None or dtype != settings["dtype"]:
        changes["descriptors"] = _rewritten(store, "descriptors", dtype, kept, tasks)
    if kept is not None and settings["quarters"]:
        changes["quarters"] = _rewritten(store, "quarters", "float16", kept, tasks)
    if needs_copy:
        file = store.path / changes.get("descriptors", settings["descriptors"])
        rows = map_rows(file, dtype, (settings["dim"],), slots if kept is None else len(kept))
        extend = has_copy and kind == settings["kind"] and kept is None
        changes |= _compressed(store, kind, rows, extend, tasks)
    store.finish(kept, **changes)
    sweep(store)


def whiten(store: Store, tasks: Tasks = quiet) -> bool:
    """Whiten an index that asked for it, when its first generation is complete and large enough.

    Returns True if it did. Interrupted, the descriptors are as they were.
    """
    whiten_from, table = store.settings.get("whiten_from"), store.pending()
    if store.generation or whiten_from is None or len(table.slots) < whiten_from:
        return False
    if store.settings["digests"]["whitening"]:
        return False
    progress = tasks("whitening")
    path, dtype, shape = store.rows_of("descriptors")
    source = map_rows(path, dtype, shape, store.slots())
    whitening = learn_whitening(source, table.slots)
    model = store.load_model()
    whitened = Model(model.network, whitening, size=model.size)
    file = store.path / f"descriptors-00.{dtype}"  # generation 1 may have to write descriptors-1
    file.unlink(missing_ok=True)
    target = RowFile(file, dtype, (whitening.dim,), 0)
    step = max(1, BLOCK_BYTES // source[:1].nbytes)
    for start in range(0, len(source), step):
        block = torch.from_numpy(source[start : start + step].astype(np.float32))
        target.append(whitening.apply(block).numpy())
        progress(min(start + step, len(source)), len(source))
    target.close()
    whitening.save(store.path / WHITENING)
    digests = {"digests": whitened.digests(), "fingerprint": whitened.fingerprint()}
    store.write(descriptors=file.name, dim=whitening.dim, **digests)
    sweep(store)
    return True


def sweep(store: Store) -> None:
    """Delete files of generations that are over, and of writers that were killed."""
    current = {store.settings[name] for name in ("descriptors", "quarters", "compressed")}
    for pattern in ("descriptors-*", "quarters-*", "*.faiss", "*.faiss.partial"):
        for file in store.path.glob(pattern):
            if file.name not in current:
                file.unlink()


def _rewritten(store: Store, name: str, dtype: str, kept: np.ndarray | None, tasks: Tasks) -> str:
    """Write the slots ``kept``, or all, to a file of the coming generation; returns its name."""
    source, progress = map_rows(*store.rows_of(name), store.slots()), tasks(f"rewriting {name}")
    kept = np.arange(len(source)) if kept is None else kept
    file = store.path / f"{name}-{store.generation + 1}.{dtype}"
    file.unlink(missing_ok=True)
    target = RowFile(file, dtype, source.shape[1:], 0)
    step = max(1, BLOCK_BYTES // max(1, source[:1].nbytes))
    for start in range(0, len(kept), step):
        target.append(source[kept[start : start + step]])
        progress(min(start + step, len(kept)), len(kept))
    target.close()
    return file.name


def _compressed(store: Store, kind: str, rows: np.ndarray, extend: bool, tasks: Tasks) -> dict[str, Any]:
    """Make the compressed copy of the rows, or extend the present one if it was trained for as many."""
    settings, file = store.settings, store.path / f"{kind}-{store.generation + 1}.faiss"
    trained, fitting = settings["trained"], tasks("fitting codes")
    if extend and len(rows) < OUTGROWN * trained:
        copy = store.open_compressed(to_extend=True)
    else:
        trained, copy = len(rows), Compressed.train(kind, rows)
        fitting(1, 1)
    copy.extend(rows, tasks("compressing"))
    digest = copy.save(file)
    return {"compressed": file.name, "compressed_digest": digest, "trained": trained}
