"""How photographs are added to an index, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from sfrs.data.collection import read_photos
from sfrs.data.photos import NO_SOURCES, Photo, Sources
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Tasks

PATIENCE = timedelta(days=1)
"""Time that a process waits for another, which reads coordinates, makes clusters or describes meanwhile."""
ALONE = (
    "torchrun started several processes, which describe PHOTOS together; expected PHOTOS and no --remove. "
    "Everything else is done by one process, without torchrun."
)
NAMED = 3  # images that an error about many of them names


@dataclass(frozen=True)
class Adding:
    """The way photographs are read and described."""

    split: str = "test"  # of a place folder, or of a manifest with splits, whose database is indexed
    allow_unplaced: bool = False  # index photographs of which no position is known, too
    skip_unplaced: bool = False  # leave them out, see `Change.skipped`
    sources: Sources = NO_SOURCES  # what says where photographs were taken, besides their names and EXIF
    skip_bad_images: bool = False  # leave out images that cannot be read, see `Change.skipped`
    batch_size: int = 8
    workers: int = 2  # threads that decode files
    device: str = "cpu"  # of the index's own model, where none is given
    # Learn a whitening from the photographs a new index begins with; None: only where its clusters are made
    # from them too, and they are `sfrs.models.fitting.WHITENED_FROM` or more.
    whiten: bool | None = None
    # Options of `sfrs.models.model.Model.fit_clusters`, for a model without clusters.
    clusters: Mapping[str, Any] = field(default_factory=dict)

    def read(self, photos: Path, tasks: Tasks) -> list[Photo]:
        """Read the photographs at a path and where they were taken, see `read_photos`."""
        return read_photos(
            photos,
            self.split,
            skip_bad_images=self.skip_bad_images,
            sources=self.sources,
            progress=tasks("reading coordinates"),
        )


@dataclass
class Change:
    """Numbers of images that `Builder` changed, and (file, why) of those it could not read."""

    added: int = 0
    described_again: int = 0
    removed: int = 0
    unchanged: int = 0
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def include(self, other: "Change") -> None:
        """Add what another change did."""
        self.added += other.added
        self.described_again += other.described_again
        self.removed += other.removed
        self.unchanged += other.unchanged
        self.skipped += other.skipped


def check_placed(photos: Sequence[Photo], positions: np.ndarray) -> None:
    """Raise `UserError` that names the first photos without a position, nan."""
    unknown = [photos[i].file for i in np.flatnonzero(np.isnan(positions).any(axis=1)).tolist()]
    if unknown:
        listed = ", ".join(map(str, unknown[:NAMED])) + (", ..." if len(unknown) > NAMED else "")
        raise UserError(
            f"{len(unknown):,} of {len(photos):,} images say nowhere where they were taken: {listed}. "
            "Expected names such as @0386531.34@6174119.45@.jpg, EXIF GPS, --positions FILE.csv or --track "
            "FILE.gpx; --skip-unplaced leaves them out, --allow-unplaced indexes them all the same."
        )
