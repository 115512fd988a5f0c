"""Evaluating a network on a data set: describe, search, recall@N."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from sfrs.data.images import Size, check_images
from sfrs.data.neighbourhood import right_images
from sfrs.data.places import ImageSet, Places
from sfrs.models.network import DescriptorNetwork, describe
from sfrs.models.whitening import Whitening
from sfrs.retrieval.recall import (
    NMS_DEPTH,
    RECALL_AT,
    SAME_TIME_DEPTH,
    correct,
    recall_at,
    spatial_nms,
    without_same_time,
)
from sfrs.retrieval.search import search
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Tasks

RADIUS = 25.0
"""Metres within which a database image is right for a query."""


@dataclass(frozen=True)
class Evaluation:
    """What a network finds for every query.

    Attributes:
        recalls: N -> recall@N in 0..1, over the queries that have a positive.
        predictions: database indices int64 ``[m, max N]``, best first; -1 past the end.
        correct: bool ``[m, max N]``, whether the prediction is within ``radius`` metres.
        num_positives: int64 ``[m]``, database images within ``radius`` of each query.
        radius: metres.
        seconds: of describing and of searching.
    """

    recalls: dict[int, float]
    predictions: np.ndarray
    correct: np.ndarray
    num_positives: np.ndarray
    radius: float
    seconds: dict[str, float]

    @property
    def answerable(self) -> np.ndarray:
        """Queries that have a positive, bool ``[m]``; only they are counted."""
        return self.num_positives > 0

    def hits(self, n: int) -> np.ndarray:
        """Whether one of the first n predictions is right, bool ``[m]`` (for paired tests)."""
        return self.correct[:, :n].any(axis=1)

    def curve(self) -> dict[int, float]:
        """Recall@N for every N from 1 to the largest asked for."""
        found = self.correct[self.answerable].cumsum(axis=1) > 0
        return {n + 1: float(recall) for n, recall in enumerate(found.mean(axis=0))}

    def recalls_of(self, queries: np.ndarray) -> dict[int, float]:
        """Recall@N of some of the queries (bool ``[m]``) that have a positive; NaN if none has."""
        counted = self.answerable & queries
        return {n: float(self.hits(n)[counted].mean()) if counted.any() else np.nan for n in self.recalls}


def evaluate(
    network: DescriptorNetwork,
    places: Places,
    *,
    size: Size = None,
    query_size: Size | Literal["same"] = "same",
    recalls: Sequence[int] = RECALL_AT,
    radius: float = RADIUS,
    nms: bool = False,
    whitening: Whitening | None = None,
    batch_size: int = 8,
    threads: int = 2,
    device: str | torch.device = "cpu",
    tasks: Tasks | None = None,
) -> Evaluation:
    """Describe database and queries with ``network`` and score the search.

    Args:
        size: of the images, see :data:`sfrs.data.images.Size`; unequal images are described one by one.
        query_size: of the queries where it differs (Tokyo 24/7: shorter side 640); "same" otherwise.
        recalls: the N of recall@N.
        radius: metres within which a database image is right.
        nms: keep one image per panorama (:func:`sfrs.retrieval.recall.spatial_nms`).
        tasks: opens a progress display per stage.

    Raises:
        UserError: no query has a database image within ``radius``.
        BadImageError: an image cannot be read.
    """
    database, queries = places.database, places.queries
    check_answerable(places, radius)
    started = time.perf_counter()
    options = dict(batch_size=batch_size, threads=threads, device=device, whitening=whitening)
    described = [
        describe(network, images.files, size=images_size, progress=tasks(role) if tasks else None, **options)
        for role, images, images_size in (
            ("database", database, size),
            ("queries", queries, size if query_size == "same" else query_size),
        )
    ]
    between = time.perf_counter()
    _, predictions = search(*described, search_depth(places, max(recalls), nms=nms))
    seconds = {"describe": between - started, "search": time.perf_counter() - between}
    return score(places, predictions, recalls=recalls, radius=radius, nms=nms, seconds=seconds)


def search_depth(places: Places, n: int, *, nms: bool = False) -> int:
    """How many predictions `score` needs for recall@n."""
    if nms and places.queries.time_stamps is not None:
        raise UserError(
            f"{places.name}/{places.split}: --nms keeps one image per panorama, but this data set drops the "
            "query's own time stamp instead; leave --nms out."
        )
    stamped = places.queries.time_stamps is not None
    return n * (NMS_DEPTH if nms else SAME_TIME_DEPTH if stamped else 1)


def score(
    places: Places,
    predictions: np.ndarray,
    *,
    recalls: Sequence[int] = RECALL_AT,
    radius: float = RADIUS,
    nms: bool = False,
    seconds: dict[str, float] | None = None,
) -> Evaluation:
    """Score predictions that were made already: database indices ``[m, k]``, best first.

    Of images with time stamps those of the query's own are neither right nor counted as predictions.

    Args:
        predictions: as many per query as `search_depth` says.
    """
    positives = right_images(places, radius)
    n = max(recalls)
    if nms:
        predictions = spatial_nms(predictions, places.database.place_ids, n)
    if places.queries.time_stamps is not None:
        predictions = without_same_time(
            predictions, places.queries.time_stamps, places.database.time_stamps, n
        )
    predictions = predictions[:, :n]
    short = n - predictions.shape[1]
    predictions = np.pad(predictions, ((0, 0), (0, short)), constant_values=-1)
    return Evaluation(
        recalls=recall_at(predictions, positives, recalls),
        predictions=predictions,
        correct=correct(predictions, positives),
        num_positives=positives.counts(),
        radius=radius,
        seconds=seconds or {},
    )


def check_answerable(places: Places, radius: float) -> None:
    """Raise :class:`UserError` if no query has a database image within ``radius`` metres."""
    if right_images(places, radius).values.size == 0:
        raise UserError(
            f"{places.name}/{places.split}: none of the {len(places.queries)} queries has a database image "
            f"within {radius:g} m, so there is no recall to compute. Are both in one coordinate system, "
            "in metres?"
        )


def without_bad_images(
    places: Places, *, threads: int = 2, tasks: Tasks | None = None
) -> tuple[Places, list[tuple]]:
    """The data set without the images that cannot be read, and (file, reason) of those.

    Raises:
        UserError: no image of a role can be read.
    """
    kept, bad = [], []
    for role, images in (("database", places.database), ("queries", places.queries)):
        found = check_images(
            images.files, workers=threads, progress=tasks(f"checking {role}") if tasks else None
        )
        names = {file for file, _ in found}
        left: ImageSet = images.subset(np.array([file not in names for file in images.files], dtype=bool))
        if len(left) == 0:
            raise UserError(
                f"{places.name}/{places.split}: none of the {len(images)} images of {role} can be read."
            )
        kept.append(left)
        bad += found
    return Places(places.name, places.split, *kept), bad
