"""What is in an index, told without opening its network."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sfrs.retrieval.index.store import Store


def summarise(path: str | Path) -> dict[str, Any]:
    """Facts about the index at ``path``, finished or not, as JSON takes them.

    Raises:
        UserError: it is no index.
    """
    store = Store.open(path)
    try:
        finished = store.generation > 0
        table = store.snapshot() if finished else store.pending()
        settings, slots = store.settings, store.slots()
    finally:
        store.close()
    placed = table.positions[np.isfinite(table.positions).all(axis=1)]
    architecture = json.loads(settings["digests"]["architecture"])
    return {
        "path": str(path),
        "finished": finished,
        "images": len(table.files),
        "without_position": len(table.files) - len(placed),
        "removed_rows": slots - len(table.files),
        "kind": settings["kind"],
        "compressed": settings["compressed"] is not None,
        "descriptor_dim": settings["dim"],
        "stored_as": settings["dtype"],
        "regions": settings["quarters"] is not None,
        "zone": settings["zone"],
        "west_south_east_north": [*placed.min(axis=0), *placed.max(axis=0)] if len(placed) else None,
        "backbone": architecture[0],
        "clusters": architecture[2],
        "whitened": settings["digests"]["whitening"] != "",
        "size": settings["size"],
        "fingerprint": settings["fingerprint"],
        "bytes": {file.name: file.stat().st_size for file in sorted(Path(path).iterdir()) if file.is_file()},
    }
