"""Evaluating a network on a data set: describe, search, recall@N."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from sfrs.data.images import Size, check_images
from sfrs.data.neighbourhood import right_images
from sfrs.data.places import ImageSet, Places
from sfrs.models.fitting import Fitting, learn_whitening
from sfrs.models.model import Model
from sfrs.retrieval.recall import (
    NMS_DEPTH,
    RECALL_AT,
    SAME_TIME_DEPTH,
    correct,
    recall_at,
    spatial_nms,
    without_same_time,
)
from sfrs.retrieval.region_rerank import KeptQuarters, Reranking, rerank_all, temporary_quarters
from sfrs.retrieval.search import search
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Tasks, quiet

RADIUS = 25.0  # metres within which a database image is right for a query


@dataclass(frozen=True)
class Evaluation:
    """The images a network finds for every query.

    Attributes:
        recalls: N -> recall@N in 0..1, over the queries that have a positive.
        predictions: database indices int64 ``[m, max N]``, best first; -1 past the end.
        correct: bool ``[m, max N]``, whether the prediction is within ``radius`` metres.
        num_positives: int64 ``[m]``, database images within ``radius`` of each query.
        seconds: of describing, searching and re-ranking.
        before: where re-ranked, the evaluation of the search alone.
    """

    recalls: dict[int, float]
    predictions: np.ndarray
    correct: np.ndarray
    num_positives: np.ndarray
    radius: float
    seconds: dict[str, float]
    before: "Evaluation | None" = None

    @property
    def answerable(self) -> np.ndarray:
        """Mark the queries that have a positive, bool ``[m]``; only they are counted."""
        return self.num_positives > 0

    def hits(self, n: int) -> np.ndarray:
        """Mark queries with a right one among the first n predictions, bool ``[m]``, for paired tests."""
        return np.asarray(self.correct[:, :n].any(axis=1))

    def curve(self) -> dict[int, float]:
        """Compute recall@N for every N from 1 to the largest asked for."""
        found = self.correct[self.answerable].cumsum(axis=1) > 0
        return {n + 1: float(recall) for n, recall in enumerate(found.mean(axis=0))}

    def recalls_of_all(self) -> dict[int, float]:
        """Compute recall@N over all queries: one that has no positive counts as not found."""
        return {n: float(self.hits(n).mean()) for n in self.recalls}

    def recalls_of(self, queries: np.ndarray) -> dict[int, float]:
        """Compute recall@N of some of the queries (bool ``[m]``) that have a positive; NaN if none has."""
        counted = self.answerable & queries
        return {n: float(self.hits(n)[counted].mean()) if counted.any() else np.nan for n in self.recalls}


@dataclass(frozen=True)
class Scoring:
    """Rules of what counts as found."""

    recalls: Sequence[int] = RECALL_AT  # the N of recall@N
    radius: float = RADIUS  # metres within which a database image is right
    nms: bool = False  # keep one image per panorama (sfrs.retrieval.recall.spatial_nms)


def evaluate(
    model: Model,
    places: Places,
    *,
    scoring: Scoring | None = None,
    rerank: Reranking | None = None,
    query_size: Size | Literal["same"] = "same",
    fitting: Fitting | None = None,
    tasks: Tasks = quiet,
    **reading: Any,
) -> Evaluation:
    """Describe database and queries and score the search.

    A model without clusters gets them from the database, and a whitening too if that is large enough: it is
    changed in place, and describes as an index of the same photographs does.

    Args:
        rerank: order the first images found by their regions as well; `Evaluation.before` is then the
            evaluation of the search alone. Quarter VLADs of all images lie in a temporary file meanwhile,
            ``8 K D`` bytes per image.
        query_size: of the queries where it differs (Tokyo 24/7: shorter side 640); "same" otherwise.
        fitting: how the model is fitted to the database.
        tasks: opens a progress display per stage.
        reading: ``batch_size`` and ``workers``, see `sfrs.models.model.Model.encode`.

    Raises:
        UserError: no query has a database image within the radius, the temporary file does not fit, or a
            whitening is to be learned and the model has one.
        BadImageError: an image cannot be read.
    """
    scoring = scoring or Scoring()
    check_answerable(places, scoring.radius)
    whiten_from = (fitting or Fitting()).make_clusters(model, places.database.files, tasks)
    count = len(places.database) + len(places.queries)
    clock = [time.perf_counter()]
    with nullcontext() if rerank is None else temporary_quarters(model, count) as rows:
        kept = (None, None) if rows is None else np.split(rows, [len(places.database)])
        of_database = model.encode(
            places.database.files, progress=tasks("database"), quarters=kept[0], **reading
        )
        if whiten_from is not None and len(of_database) >= whiten_from:
            model.whitening = whitening = learn_whitening(of_database)
            of_database = whitening.apply(torch.from_numpy(of_database)).numpy()
        sized = model if query_size == "same" else model.at(query_size)
        of_queries = sized.encode(
            places.queries.files, progress=tasks("queries"), quarters=kept[1], **reading
        )
        clock.append(time.perf_counter())
        deepest = search_depth(places, max(scoring.recalls), nms=scoring.nms)
        reranked = None
        _, found = search(of_database, of_queries, deepest if rerank is None else max(deepest, rerank.depth))
        clock.append(time.perf_counter())
        if rerank is not None:
            give, ask = (KeptQuarters(part, model.device) for part in kept if part is not None)
            progress = tasks("re-ranking")
            reranked = rerank_all(ask, found, give, score=rerank.score, depth=rerank.depth, progress=progress)
            clock.append(time.perf_counter())
    return score_stages(places, found[:, :deepest], reranked, scoring, clock)


def score_stages(
    places: Places,
    found: np.ndarray,
    reranked: np.ndarray | None,
    scoring: Scoring,
    clock: Sequence[float],
) -> Evaluation:
    """Score what a search found, ``[m, k]``, and, if it was re-ranked, the first k of that.

    ``clock`` holds the seconds at which describing began, and each stage ended.
    """
    stages = ("describe", "search", "rerank")
    seconds: dict[str, float] = dict(zip(stages, np.diff(clock).tolist(), strict=False))
    before = score(places, found, scoring, seconds)
    if reranked is None:
        return before
    return replace(score(places, reranked[:, : found.shape[1]], scoring, seconds), before=before)


def search_depth(places: Places, n: int, *, nms: bool = False) -> int:
    """Count the predictions that `score` needs for recall@n."""
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
    scoring: Scoring | None = None,
    seconds: dict[str, float] | None = None,
) -> Evaluation:
    """Score predictions that were made already: database indices ``[m, k]``, k as `search_depth` says.

    Of images with time stamps those of the query's own are neither right nor counted as predictions.
    """
    scoring = scoring or Scoring()
    positives = right_images(places, scoring.radius)
    n = max(scoring.recalls)
    if scoring.nms:
        predictions = spatial_nms(predictions, places.database.place_ids, n)
    stamps, database_stamps = places.queries.time_stamps, places.database.time_stamps
    if stamps is not None and database_stamps is not None:
        predictions = without_same_time(predictions, stamps, database_stamps, n)
    short = max(0, n - predictions.shape[1])
    predictions = np.pad(predictions[:, :n], ((0, 0), (0, short)), constant_values=-1)
    return Evaluation(
        recalls=recall_at(predictions, positives, scoring.recalls),
        predictions=predictions,
        correct=correct(predictions, positives),
        num_positives=positives.counts(),
        radius=scoring.radius,
        seconds=seconds or {},
    )


def check_answerable(places: Places, radius: float) -> None:
    """Raise `UserError` if no query has a database image within ``radius`` metres."""
    if right_images(places, radius).values.size == 0:
        raise UserError(
            f"{places.name}/{places.split}: none of the {len(places.queries)} queries has a database image "
            f"within {radius:g} {places.unit}, so there is no recall to compute. Are both in one coordinate "
            "system, in metres?"
        )


def without_bad_images(
    places: Places,
    *,
    roles: Sequence[str] = ("database", "queries"),
    workers: int = 2,
    tasks: Tasks = quiet,
) -> tuple[Places, list[tuple]]:
    """Leave out images that cannot be read; returns (data set, (file, reason) of those left out).

    Raises `UserError` if no image of a role can be read.
    """
    kept, bad = {}, []
    for role in roles:
        images: ImageSet = getattr(places, role)
        progress = tasks(f"checking {role}")
        found = dict(check_images(images.files, workers=workers, progress=progress))
        left = images.subset(np.array([file not in found for file in images.files], dtype=bool))
        if len(left) == 0:
            raise UserError(
                f"{places.name}/{places.split}: none of the {len(images)} images of {role} can be read."
            )
        kept[role] = left
        bad += found.items()
    return replace(places, **kept), bad
