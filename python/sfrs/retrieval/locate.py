"""Locating photographs with an index: describe, search, re-rank, estimate the position."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from sfrs.data.coordinates import to_degrees
from sfrs.data.exif import gps
from sfrs.data.images import BadImageError, check_images
from sfrs.data.photos import NO_SOURCES, Locator, Photo, Sources, project
from sfrs.data.tables import PlacesError
from sfrs.models.model import Photograph
from sfrs.retrieval.found import Found, Match
from sfrs.retrieval.location import CONSIDERED, REGION_TEMPERATURE, TEMPERATURE, Place, estimate, places
from sfrs.retrieval.quarters import RememberedQuarters
from sfrs.retrieval.region_rerank import Reranked, Reranking
from sfrs.retrieval.region_rerank import rerank as rerank_by_regions
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Tasks

if TYPE_CHECKING:
    from sfrs.retrieval.index import Index


def locate(
    index: "Index",
    photos: Sequence[Photograph],
    *,
    top: int = 5,
    rerank: Reranking | Literal["regions"] | None = None,
    sources: Sources = NO_SOURCES,
    batch_size: int = 8,
    workers: int = 2,
    tasks: Tasks | None = None,
) -> list[Found]:
    """Say where photographs were taken, files or images in memory.

    Args:
        top: how many matches to return; the estimate weighs `CONSIDERED` in any case.
        rerank: order the first images found by their regions; "regions" is ``Reranking()``. At least ``top``
            and `CONSIDERED` images are ordered.
        sources: what says where they were taken, besides their names and EXIF; it only shows the error.
        workers: threads that decode files.
        tasks: opens a progress display per stage.

    Raises:
        UserError: the index is empty, an option has no meaning, or re-ranking needs the files of images and
            none can be read any more.
        BadImageError: a photograph cannot be read.
    """
    if len(index) == 0:
        raise UserError(f"{index.path}: this index holds no image to compare with.")
    if rerank == "regions":
        rerank = Reranking()
    if rerank is not None and not isinstance(rerank, Reranking):
        raise UserError(f"rerank is {rerank!r}; expected regions.")
    depth, locator = reranked_depth(rerank, top), Locator(sources)
    order = RegionOrder(index, depth, rerank.score) if rerank else None
    clock = [time.perf_counter()]
    progress = tasks("describing") if tasks else None
    descriptors = index.model.encode(photos, batch_size=batch_size, workers=workers, progress=progress)
    clock.append(time.perf_counter())
    similarities, rows = index.search(descriptors, depth)
    clock.append(time.perf_counter())
    shares = dict(zip(("describe", "search"), 1000 * np.diff(clock) / max(1, len(photos)), strict=True))
    progress = tasks("re-ranking") if tasks and rerank else None
    founds = []
    for i, photo in enumerate(photos):
        ranked = Reranked(rows[i][rows[i] >= 0], similarities[i][rows[i] >= 0])
        left_out, spent = (), {name: float(share) for name, share in shares.items()}
        if order is not None:
            started = time.perf_counter()
            ranked, left_out = order(index.model.quarters([photo]), ranked.rows)
            spent["rerank"] = 1000 * (time.perf_counter() - started)
        positions = np.asarray(index.positions[ranked.rows], dtype=np.float64)
        temperature = TEMPERATURE if order is None else REGION_TEMPERATURE
        location = estimate(positions, ranked.scores, index.zone, temperature=temperature)
        named = str(photo) if isinstance(photo, (str, Path)) else f"photo {i + 1}"
        matches = _matches(index, ranked, positions, top)
        truth = _truth(photo, index.zone, locator)
        founds.append(Found(named, location, matches, spent, photo, index.zone, truth, left_out))
        if progress is not None:
            progress(i + 1, len(photos))
    return founds


def reranked_depth(rerank: Reranking | None, top: int) -> int:
    """Count the candidates to order: those shown and those weighed need a score as well."""
    return max(rerank.depth if rerank else 0, top, CONSIDERED)


class RegionOrder:
    """Orders candidates by how their regions match the photograph's.

    Where the index keeps no regions, they are computed from the images' files. What cannot be read any more
    is left out: it has no score to be compared by.
    """

    def __init__(self, index: "Index", depth: int, score: str):
        self.index, self.depth, self.score = index, depth, score
        self._quarters = index.quarters if index.has_regions else RememberedQuarters(index.quarters)
        self._unreadable: set[int] = set()

    def __call__(self, query: Tensor, rows: np.ndarray) -> tuple[Reranked, tuple[int, ...]]:
        """Order the first :attr:`depth` rows by the query's quarter VLADs ``[1, 4, K, D]``, drop the others.

        Returns:
            (the rows in their order, those of them that were left out).
        """
        first = rows[: self.depth]
        while True:
            readable = ~np.isin(first, list(self._unreadable))
            if len(first) and not readable.any():
                raise UserError(
                    f"{self.index.path}: none of the {len(first)} images to re-rank can be read any more, as "
                    f"{self.index.files[first[0]]}. An index built with --regions re-ranks without the files."
                )
            try:
                found = rerank_by_regions(query, first[readable], self._quarters, self.score)
                return found, tuple(first[~readable].tolist())
            except BadImageError:
                if not self._find_unreadable(first[readable]):
                    raise

    def _find_unreadable(self, rows: np.ndarray) -> bool:
        files = [self.index.files[row] for row in rows]
        bad = {file for file, _ in check_images(files)}
        self._unreadable.update(int(row) for row, file in zip(rows, files, strict=True) if file in bad)
        return bool(bad)


def _matches(index: "Index", ranked: Reranked, positions: np.ndarray, top: int) -> list[Match]:
    pairs = [None] * top if ranked.pairs is None else map(tuple, ranked.pairs[:top].tolist())
    shown = places(positions[:top], index.zone)
    found = zip(shown, ranked.rows.tolist(), ranked.scores.tolist(), pairs, strict=False)
    return [
        Match(**vars(place), file=index.files[row], similarity=score, row=row, regions=pair)
        for place, row, score, pair in found
    ]


def _truth(photo: Photograph, zone: str, locator: Locator) -> Place | None:
    if isinstance(photo, Tensor):
        return None
    try:
        said = Photo(Path(), degrees=gps(photo)) if isinstance(photo, Image.Image) else locator(photo)
    except PlacesError:  # its name says no zone there is: where the photograph was taken is not known
        return None
    if not zone:
        return places(np.array([said.metres]), "")[0] if said.metres else None
    if not said.placed:
        return None
    try:
        positions, system = project([said], zone)
    except UserError:  # the metres of its name lie in no zone
        return None
    if system == zone:
        return places(positions, zone)[0]
    # In another part of the world, which the index's zones do not reach.
    return Place(math.nan, math.nan, *to_degrees(positions, system)[0].tolist())
