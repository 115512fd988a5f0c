"""What a build refuses, told before anything is written."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfrs.data.photos import Photo
from sfrs.models.model import Model
from sfrs.retrieval.index.store import LOCK, NETWORK, TABLE, WHITENING
from sfrs.runtime.errors import UserError

NAMED = 3
"""Images that an error about many of them names."""


def check_free(path: Path) -> None:
    """Raise :class:`UserError` if ``path`` is something else than an index that was hardly begun."""
    if path.exists() and not path.is_dir():
        raise UserError(f"--out is {path}, which is a file; an index is a directory.")
    ours = (NETWORK, WHITENING, LOCK, TABLE)
    foreign = [name for name in os.listdir(path) if not name.startswith(ours)] if path.is_dir() else []
    if foreign:
        raise UserError(
            f"--out is {path}, a folder that holds {sorted(foreign)[0]} and no index. Expected a new folder."
        )


def check_placed(photos: Sequence[Photo], positions: np.ndarray) -> None:
    """Raise :class:`UserError` that names the first photos without a position, nan."""
    unknown = [photo.file for photo, place in zip(photos, positions, strict=True) if np.isnan(place).any()]
    if unknown:
        listed = ", ".join(str(file) for file in unknown[:NAMED]) + (", ..." if len(unknown) > NAMED else "")
        raise UserError(
            f"{len(unknown):,} of {len(photos):,} images say nowhere where they were taken: {listed}. "
            "Expected names such as @0386531.34@6174119.45@.jpg, EXIF GPS, or a CSV manifest with "
            "coordinates; --allow-unplaced indexes them all the same."
        )


def check_same(path: Path, model: Model, settings: dict[str, Any]) -> None:
    """Raise :class:`UserError` that names the first part in which the model is not the index's."""
    ours, theirs = model.digests(), settings["digests"]
    names = {
        "architecture": lambda digest: "K = {2}, {0} {1}".format(*json.loads(digest)),
        "weights": lambda digest: digest[:12],
        "whitening": lambda digest: digest[:12] or "none",
        "size": lambda digest: "own size" if digest == "null" else digest.strip("[]").replace(", ", "x"),
    }
    for part, name in names.items():
        if ours[part] != theirs[part]:
            raise UserError(
                f"{path}: the {part} of this index: {name(theirs[part])}; of these options: "
                f"{name(ours[part])}. Their descriptors could not be compared. Leave the options out to go "
                "on with the index's own network, or choose another --out."
            )
