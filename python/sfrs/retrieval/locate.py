"""Locating photographs with an index: describe, search, re-rank, estimate the position."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from sfrs.data.coordinates import to_degrees
from sfrs.data.exif import gps
from sfrs.data.images import BadImageError, Photograph, check_images
from sfrs.data.photos import NO_SOURCES, Locator, Photo, Sources, from_name, project
from sfrs.data.tables import PlacesError
from sfrs.retrieval.confidence import sameness
from sfrs.retrieval.found import Found, Match
from sfrs.retrieval.location import (
    CONSIDERED,
    REGION_TEMPERATURE,
    TEMPERATURE,
    Location,
    Place,
    estimate,
    locate_weighed,
    places,
)
from sfrs.retrieval.matches import Matches, weigh_matches
from sfrs.retrieval.near import Near
from sfrs.retrieval.region_rerank import DEFAULT_SCORE, RememberedQuarters, Reranked, Reranking
from sfrs.retrieval.region_rerank import rerank as rerank_by_regions
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress, Tasks, quiet, silent

if TYPE_CHECKING:
    from sfrs.retrieval.index import Index


def locate(
    index: "Index",
    photos: Sequence[Photograph],
    *,
    top: int = 5,
    rerank: Reranking | Literal["regions", "none"] | None = None,
    near: Near | None = None,
    sources: Sources = NO_SOURCES,
    tasks: Tasks = quiet,
    **reading: Any,
) -> list[Found]:
    """Say where photographs were taken, files or images in memory.

    Args:
        top: how many matches to return; the estimate weighs `CONSIDERED` in any case.
        rerank: order the first images found by their regions; "regions" is ``Reranking()``. At least ``top``
            and `CONSIDERED` images are ordered. None does so where the index's self-test recommends it.
        near: compare with the images within this circle alone.
        sources: what says where they were taken, besides their names and EXIF; it only shows the error.
        reading: ``batch_size`` and ``workers``, see `sfrs.models.model.Model.encode`.

    Raises:
        UserError: the index is empty, an option has no meaning, or re-ranking needs the files of images and
            none can be read any more.
        BadImageError: a photograph cannot be read.
    """
    if len(index) == 0:
        raise UserError(f"{index.path}: this index holds no image to compare with.")
    if near is not None:
        index.within(near)  # before photographs are described in vain
    rerank = chosen_reranking(index, rerank)
    depth, locator = reranked_depth(rerank, top), Locator(sources)
    order = RegionOrder(index, depth, rerank.score) if rerank else None
    clock = [time.perf_counter()]
    progress = tasks("describing")
    descriptors, alike = _described(index, photos, progress, **reading)
    clock.append(time.perf_counter())
    similarities, rows = index.search(descriptors, depth, near)
    clock.append(time.perf_counter())
    shares = dict(zip(("describe", "search"), 1000 * np.diff(clock) / max(1, len(photos)), strict=True))
    progress = tasks("re-ranking") if rerank else silent
    judge = Judge(index, rerank)
    founds = []
    for i, photo in enumerate(photos):
        matches, pairs = Matches.searched(similarities[i], rows[i]), None
        left_out, spent = (), {name: float(share) for name, share in shares.items()}
        if order is not None:
            started = time.perf_counter()
            ranked, left_out = order(index.model.quarters([photo]), matches.rows)
            matches, pairs = matches.ordered(ranked.rows, ranked.scores), ranked.pairs
            spent["rerank"] = 1000 * (time.perf_counter() - started)
        location, known = judge(matches, alike[i])
        named = str(photo) if isinstance(photo, (str, Path)) else f"photo {i + 1}"
        shown = _shown(index, matches, pairs, top)
        truth = _truth(photo, index.zone, locator)
        founds.append(Found(named, location, shown, spent, photo, index.zone, truth, left_out, known))
        progress(i + 1, len(photos))
    return founds


def chosen_reranking(
    index: "Index", rerank: Reranking | Literal["regions", "none"] | None
) -> Reranking | None:
    """Return the re-ranking asked for; with None the one that the index's self-test recommends, if any.

    Raises `UserError` if it is none of these.
    """
    if rerank == "none":
        return None
    if rerank is None:
        recommended = index.self_test is not None and index.self_test.recommends_regions
        return Reranking() if recommended and index.has_regions else None
    if rerank == "regions":
        return Reranking()
    if not isinstance(rerank, Reranking):
        raise UserError(f"rerank is {rerank!r}; expected regions or none.")
    return rerank


class Judge:
    """Says where matches place a photograph, how likely that is, and whether the index has the place.

    By the index's self-test where it has one for this way of ordering, else by the share of the matches'
    weight.
    """

    def __init__(self, index: "Index", rerank: Reranking | None) -> None:
        self.index, self.way = index, "regions" if rerank else "search"
        tested = index.self_test if rerank is None or rerank.score == DEFAULT_SCORE else None
        self.calibration = tested.calibration(self.way) if tested else None
        self.temperature = REGION_TEMPERATURE if rerank else TEMPERATURE

    def __call__(self, matches: Matches, sameness: float) -> tuple[Location, bool | None]:
        """Return (the location; whether the place may be in the index, None where that is not known)."""
        calibration = self.calibration
        if calibration is None:
            positions = np.asarray(self.index.positions[matches.rows], dtype=np.float64)
            return estimate(positions, matches.scores, self.index.zone, temperature=self.temperature), None
        found = weigh_matches(self.index, matches, calibration, sameness)
        if found is None:
            return Location(math.nan, math.nan, None, None, 0.0, math.nan), None
        location = locate_weighed(found.weighed, found.positions, self.index.zone)
        confidence = calibration.confidence(found.evidence, self.way)
        return replace(location, confidence=confidence), calibration.knows(found.evidence)


def _described(
    index: "Index", photos: Sequence[Photograph], progress: Progress, **reading: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of photographs, and how alike the quarters of each are, nan where nobody asks."""
    descriptors = np.empty((len(photos), index.model.dim), np.float32)
    alike = np.full(len(photos), np.nan)
    described = index.model.encode_batches(photos, regions=index.self_test is not None, **reading)
    for rows, found, quarters in described:
        descriptors[rows] = found.cpu().numpy()
        if quarters is not None:
            alike[rows] = sameness(quarters)
        progress(rows[-1] + 1, len(photos))
    return descriptors, alike


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
        """Order the first `depth` rows by the query's quarter VLADs ``[1, 4, K, D]``, drop the others.

        Returns (the rows in their order, those of them that were left out).
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


def _shown(index: "Index", matches: Matches, pairs: np.ndarray | None, top: int) -> list[Match]:
    regions = [None] * top if pairs is None else map(tuple, pairs[:top].tolist())
    positions = np.asarray(index.positions[matches.rows[:top]], dtype=np.float64)
    found = zip(
        places(positions, index.zone), matches.rows.tolist(), matches.scores.tolist(), regions, strict=False
    )
    return [
        Match(**vars(place), file=index.files[row], similarity=score, row=row, regions=pair)
        for place, row, score, pair in found
    ]


def _truth(photo: Photograph, zone: str, locator: Locator) -> Place | None:
    if isinstance(photo, Tensor):
        return None
    try:
        said = (
            Photo(Path(), degrees=gps(photo))
            if isinstance(photo, Image.Image)
            else locator.locate(from_name(Path(photo)))
        )
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
