"""Locating photographs with an index: describe, search, re-rank, estimate the position."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from sfrs.data.coordinates import to_degrees
from sfrs.data.photos import photo_of, project
from sfrs.retrieval.candidates import Candidates, RegionOrder, reranked_depth
from sfrs.retrieval.explain import REGION_NAMES
from sfrs.retrieval.index import Index
from sfrs.retrieval.location import CONSIDERED, Location, estimate
from sfrs.retrieval.region_rerank import Reranking
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Tasks

METRE_DECIMALS, DEGREE_DECIMALS = 2, 7
"""Of coordinates that are written down; both are a centimetre."""


@dataclass(frozen=True)
class Position:
    """Easting and northing in metres, and in degrees where the zone is known."""

    easting: float
    northing: float
    latitude: float | None = None
    longitude: float | None = None


@dataclass(frozen=True)
class Match:
    """An image of the index that looks like the query.

    Attributes:
        file: as the index names it.
        similarity: what matches are ordered by: of the descriptors, or the score of re-ranking.
        row: of the index.
        easting, northing: metres; nan if the image has no position.
        latitude, longitude: degrees; None where they are not known.
        regions: after re-ranking the region of the query and the one of the image that match best, indices
            into ``sfrs_ext.REGIONS``; else None.
    """

    file: Path
    similarity: float
    row: int
    easting: float
    northing: float
    latitude: float | None = None
    longitude: float | None = None
    regions: tuple[int, int] | None = None


@dataclass(frozen=True)
class Found:
    """What was found for one photograph.

    Attributes:
        query: its path, or "photo N" for the N-th image in memory.
        location: the estimate.
        matches: the best ones, best first.
        milliseconds: of describing, searching and re-ranking; those done for all photographs at once are
            divided among them.
        truth: where the photograph itself says it was taken, if it does.
        left_out: rows of the index that re-ranking could not compare, because their files cannot be read any
            more and the index keeps no regions.
    """

    query: str
    location: Location
    matches: list[Match]
    milliseconds: dict[str, float]
    truth: Position | None = None
    left_out: tuple[int, ...] = ()

    @property
    def error(self) -> float | None:
        """Metres from where the photograph says it was taken; None if it does not or nothing was found."""
        if self.truth is None or not math.isfinite(self.location.easting):
            return None
        there, here = self.truth, self.location
        return math.dist((there.easting, there.northing), (here.easting, here.northing))


def locate(
    index: Index,
    images: Sequence[str | Path | Image.Image],
    *,
    top: int = 5,
    rerank: Reranking | Literal["regions"] | None = None,
    batch_size: int = 8,
    workers: int = 2,
    tasks: Tasks | None = None,
) -> list[Found]:
    """Locate photographs, files or images in memory.

    Args:
        top: how many matches to return; the estimate weighs `CONSIDERED` in any case.
        rerank: order the first images found by their regions; "regions" is ``Reranking()``. At least ``top``
            and :data:`sfrs.retrieval.location.CONSIDERED` images are ordered.
        workers: threads that decode files.
        tasks: opens a progress display per stage.

    Raises:
        UserError: the index is empty, an option has no meaning, or re-ranking needs the files of images and
            none can be read any more.
        BadImageError: an image cannot be read.
    """
    if len(index) == 0:
        raise UserError(f"{index.path}: this index holds no image to compare with.")
    if rerank == "regions":
        rerank = Reranking()
    if rerank is not None and not isinstance(rerank, Reranking):
        raise UserError(f"rerank is {rerank!r}; expected regions.")
    depth = reranked_depth(rerank.depth, top) if rerank else 0
    started = time.perf_counter()
    descriptors = index.model.encode(
        images, batch_size=batch_size, workers=workers, progress=tasks and tasks("describing")
    )
    described = time.perf_counter()
    deepest = max(top, CONSIDERED, depth)
    similarities, rows = index.search(descriptors, deepest)
    shares = {
        "describe": 1000 * (described - started) / max(1, len(images)),
        "search": 1000 * (time.perf_counter() - described) / max(1, len(images)),
    }
    results = []
    progress = tasks("re-ranking") if tasks and rerank else None
    order = RegionOrder(index, depth, rerank.score) if rerank else None
    for i, image in enumerate(images):
        kept = rows[i] >= 0
        candidates = Candidates(rows[i][kept], similarities[i][kept])
        milliseconds = dict(shares)
        if order is not None:
            started = time.perf_counter()
            candidates = order(index.model.quarters([image]), candidates)
            milliseconds["rerank"] = 1000 * (time.perf_counter() - started)
        results.append(_found(index, image, i, candidates, top, milliseconds))
        if progress is not None:
            progress(i + 1, len(images))
    return results


def as_json(found: Found, index: Index) -> dict:
    """What was found as JSON: the form of ``--json`` and of the server. What is not known is null."""
    location = found.location
    return {
        "query": found.query,
        "zone": index.zone or None,
        "location": {
            **_coordinates(location),
            "confidence": round(location.confidence, 4),
            "spread": _rounded(location.spread, METRE_DECIMALS),
        },
        "matches": [
            {
                "rank": rank,
                "file": str(match.file),
                "row": match.row,
                "similarity": round(match.similarity, 6),
                **_coordinates(match),
                "regions": match.regions and [REGION_NAMES[region] for region in match.regions],
            }
            for rank, match in enumerate(found.matches, start=1)
        ],
        "milliseconds": {name: round(spent, 2) for name, spent in found.milliseconds.items()},
        "truth": found.truth and _coordinates(found.truth),
        "error": _rounded(found.error, METRE_DECIMALS),
        "left_out": list(found.left_out),
    }


def check_degrees(index: Index) -> None:
    """Raise :class:`UserError` if positions of this index cannot be said in degrees."""
    if not index.zone:
        raise UserError(
            f"GeoJSON needs latitude and longitude, but {index.path} has metres of an unknown UTM zone. "
            "Build it with the zone, as sfrs index PHOTOS --zone 33N."
        )


def as_geojson(founds: Sequence[Found]) -> dict:
    """All photographs as a GeoJSON feature collection (RFC 7946): points of kind ``estimate``, ``match`` and,
    where a photograph says where it was taken, ``query``; each says in ``query`` what it belongs to.
    What has no latitude and longitude is left out; see :func:`check_degrees`.
    """
    features = []
    for found in founds:
        location, query = found.location, {"query": found.query}
        about = {"confidence": round(location.confidence, 4), "spread": _rounded(location.spread, 2)}
        error = {} if found.error is None else {"error": _rounded(found.error, 2)}
        _add_point(features, location, {"kind": "estimate"} | query | about | error)
        for rank, match in enumerate(found.matches, start=1):
            about = {"rank": rank, "similarity": round(match.similarity, 6), "file": str(match.file)}
            _add_point(features, match, {"kind": "match"} | query | about)
        if found.truth is not None:
            _add_point(features, found.truth, {"kind": "query"} | query)
    return {"type": "FeatureCollection", "features": features}


def summary(founds: Sequence[Found]) -> dict | None:
    """Errors over all photographs that say where they were taken; None if none does.

    A photograph for which no position was found counts as located nowhere.
    """
    own = [found for found in founds if found.truth is not None]
    if not own:
        return None
    errors = np.array([math.inf if found.error is None else found.error for found in own])
    return {
        "queries": len(own),
        "within": {f"{metres} m": float((errors <= metres).mean()) for metres in (5, 25, 100)},
        "median_error": _rounded(float(np.median(errors)), METRE_DECIMALS),
        "mean_confidence": round(float(np.mean([found.location.confidence for found in own])), 4),
    }


def _found(
    index: Index, image, number: int, candidates: Candidates, top: int, milliseconds: dict[str, float]
) -> Found:
    rows, similarities = candidates.rows, candidates.similarities
    positions = np.asarray(index.positions[rows], dtype=np.float64)
    location = estimate(positions, similarities, index.zone, temperature=candidates.temperature)
    degrees = to_degrees(positions[:top], index.zone) if index.zone else np.full((top, 2), np.nan)
    matches = [
        Match(
            index.files[row],
            float(similarities[i]),
            int(row),
            *positions[i].tolist(),
            *(None if math.isnan(value) else float(value) for value in degrees[i]),
            regions=None if candidates.pairs is None else tuple(candidates.pairs[i].tolist()),
        )
        for i, row in enumerate(rows[:top])
    ]
    named = f"photo {number + 1}" if isinstance(image, Image.Image) else str(image)
    return Found(named, location, matches, milliseconds, _truth(index, image), candidates.left_out)


def _truth(index: Index, image) -> Position | None:
    """Where the photograph says it was taken, by its name or EXIF, in the index's coordinates."""
    if isinstance(image, Image.Image):
        return None
    try:
        photo = photo_of(image)
        if photo.metres is None and photo.degrees is None:
            return None
        if not index.zone:  # both in plain metres, as far as anybody knows
            return None if photo.metres is None else Position(*photo.metres)
        positions, _ = project([photo], index.zone)
        return Position(*positions[0].tolist(), *to_degrees(positions, index.zone)[0].tolist())
    except UserError:
        # Its name says no zone there is, or it lies in another part of the world, where the index's zone
        # does not reach.
        return None


def _add_point(features: list[dict], place: Position | Match | Location, properties: dict) -> None:
    degrees = _coordinates(place)
    if degrees["latitude"] is not None:
        point = {"type": "Point", "coordinates": [degrees["longitude"], degrees["latitude"]]}
        features.append({"type": "Feature", "geometry": point, "properties": properties})


def _coordinates(place: Position | Match | Location) -> dict:
    return {
        "easting": _rounded(place.easting, METRE_DECIMALS),
        "northing": _rounded(place.northing, METRE_DECIMALS),
        "latitude": _rounded(place.latitude, DEGREE_DECIMALS),
        "longitude": _rounded(place.longitude, DEGREE_DECIMALS),
    }


def _rounded(value: float | None, decimals: int) -> float | None:
    """None also for what is not finite, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else round(value, decimals)
