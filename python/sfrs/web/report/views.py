"""What the page shows of each case: its photographs, and why the images match."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from sfrs.models.model import Model
from sfrs.retrieval.explain import (
    REGION_NAMES,
    PairExplanation,
    cluster_colours,
    explain_pair,
    strongest_clusters,
)
from sfrs.runtime.progress import Progress, silent
from sfrs.web.report.cases import Case, right_images
from sfrs.web.report.pictures import LARGE, SMALL, jpeg_uri, packed_clusters
from sfrs.web.report.recorded import Subject

ANSWERS_COMPARED = 8
"""Right images among which the most similar one is sought where no prediction is right."""

CLUSTERS_NAMED = 6


@dataclass
class Explainer:
    """Explains pairs of a subject's images; keeps the features of the last query."""

    subject: Subject
    _query: tuple[int, Tensor] | None = field(default=None, init=False)

    @property
    def model(self) -> Model:
        assert self.subject.model is not None, self.subject.unexplained
        return self.subject.model

    def query_features(self, query: int) -> Tensor:
        if self._query is None or self._query[0] != query:
            size = self.subject.query_size
            sized = self.model if size == "same" else self.model.at(size)
            self._query = (query, sized.features(self.subject.places.queries.files[query]))
        return self._query[1]

    def image_features(self, row: int) -> Tensor:
        return self.model.features(self.subject.places.database.files[row])

    def answer(self, case: Case) -> int:
        """The right image of a failure that is most like the query; -1 if it cannot be told."""
        if case.answer >= 0 or self.subject.model is None:
            return case.answer
        rows = right_images(self.subject.places, case.query, self.subject.result.radius, ANSWERS_COMPARED)
        query = self.query_features(case.query)
        alike = [explain_pair(self.model, query, self.image_features(row)).whole for row in rows]
        return rows[int(np.argmax(alike))] if rows else -1

    def pair(self, query: int, row: int) -> dict:
        """The part of a pair that needs the network: similarities, boxes, clusters."""
        features = [self.query_features(query), self.image_features(row)]
        pair = explain_pair(self.model, *features)
        maps = [packed_clusters(*strongest_clusters(self.model, x)) for x in features]
        assert pair.clusters is not None
        shares = named_clusters(pair.clusters)
        return {"regions": region_view(pair), "maps": maps, "clusters": shares}


def region_view(pair: PairExplanation) -> dict:
    """The region similarities as the page shows them."""
    row = pair.similarities[0]
    low, high = float(row.min()), float(row.max())
    cells = [
        {"name": name, "value": float(value), "share": (float(value) - low) / max(high - low, 1e-6)}
        for name, value in zip(REGION_NAMES, row, strict=True)
    ]
    i, j = pair.best_part
    return {
        "cells": cells,
        "whole": pair.whole,
        "whole_is_best": pair.best == (0, 0),
        "best": [i, j],
        "names": [REGION_NAMES[i], REGION_NAMES[j]],
        "value": float(pair.similarities[i, j]),
        "boxes": [[[round(side, 4) for side in box] for box in boxes] for boxes in _boxes(pair)],
    }


def _boxes(pair: PairExplanation) -> tuple:
    return pair.query_boxes, pair.image_boxes


def named_clusters(contributions: np.ndarray) -> list[dict]:
    """The clusters that carry most of the similarity, with what each adds to it."""
    colours = colours_of(len(contributions))
    order = np.argsort(-contributions, kind="stable")[:CLUSTERS_NAMED]
    return [{"cluster": int(k), "value": float(contributions[k]), "colour": colours[k]} for k in order]


def colours_of(count: int) -> list[str]:
    """Colours of the clusters as CSS."""
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in cluster_colours(count)]


def short_name(file: Path) -> str:
    """What tells an image from its neighbours: of @ names the panorama or the field after the coordinates."""
    fields = file.name.split("@")
    if len(fields) == 16:
        name = " ".join(part for part in fields[7:9] if part)
    elif len(fields) > 4:
        name = fields[3]
    else:
        name = file.stem
    return printable(name or file.stem)


def printable(text: object) -> str:
    """File names may hold bytes that are no text; pages may not."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def case_views(
    subject: Subject, cases: Sequence[Case], labels: Sequence[str], progress: Progress = silent
) -> list[dict]:
    """Everything the page shows of the cases, in order.

    Raises:
        BadImageError: an image cannot be read.
    """
    explainer = Explainer(subject)
    views = []
    for case in cases:
        views.append(_case_view(subject, explainer, case, labels[case.query]))
        progress(len(views), len(cases))
    return views


def _case_view(subject: Subject, explainer: Explainer, case: Case, label: str) -> dict:
    places, query = subject.places, case.query
    file = places.queries.files[query]
    pairs = [_pair_view(subject, explainer, query, case.found[0], rank=1)]
    if not case.success:
        row = explainer.answer(case)
        if row >= 0:
            pairs.append(_pair_view(subject, explainer, query, row, rank=case.answer_rank))
    return {
        "id": query,
        "success": case.success,
        "condition": label,
        "name": short_name(file),
        "file": printable(file),
        "picture": jpeg_uri(file, SMALL),
        "metres": _metres(subject, query, case.found[0]),
        "answer_rank": case.answer_rank,
        "found": [_found_view(subject, query, row, rank + 1, SMALL) for rank, row in enumerate(case.found)],
        "pairs": pairs,
    }


def _pair_view(subject: Subject, explainer: Explainer, query: int, row: int, *, rank: int) -> dict:
    view = _found_view(subject, query, row, rank, LARGE)
    view["query_picture"] = jpeg_uri(subject.places.queries.files[query], LARGE)
    if subject.model is not None:
        view |= explainer.pair(query, row)
    return view


def _found_view(subject: Subject, query: int, row: int, rank: int, longest: int) -> dict:
    file = subject.places.database.files[row]
    metres = _metres(subject, query, row)
    return {
        "row": row,
        "rank": rank,
        "right": bool(metres <= subject.result.radius),
        "metres": metres,
        "name": short_name(file),
        "file": printable(file),
        "picture": jpeg_uri(file, longest),
    }


def _metres(subject: Subject, query: int, row: int) -> float:
    return float(subject.places.metres(query, row))
