"""Fitting a model to the photographs that it searches: clusters where it has none, and a whitening.

An index does so with the photographs it begins with, an evaluation with its database: both describe alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfrs.models.model import Model
from sfrs.models.whitening import Whitening
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Tasks

WHITENED_FROM = 200
"""Photographs from which on whitening is learned where nobody says otherwise; a set of 111 gains nothing by
it (`python -m benchmarks.photographs`)."""
WHITENED_DIM, WHITENED_BY, SHRINKAGE = 2048, 3000, 0.1
"""Numbers that are kept at most, photographs it is learned from at most, and its shrinkage."""


@dataclass(frozen=True)
class Fitting:
    """What a model takes from the photographs that it searches."""

    # Learn a whitening from them; None: only where clusters are made from them too, and they are
    # `WHITENED_FROM` or more.
    whiten: bool | None = None
    # Options of `sfrs.models.model.Model.fit_clusters`, for a model without clusters.
    clusters: Mapping[str, Any] = field(default_factory=dict)

    def make_clusters(self, model: Model, files: Sequence[Path], tasks: Tasks, **options: Any) -> int | None:
        """Make the clusters of a model that has none, by `clusters` and ``options`` of `Model.fit_clusters`.

        Returns the number of photographs from which on `learn_whitening` is to follow; None if it is not.
        Raises `UserError` if a whitening is to be learned and the model has one.
        """
        if self.whiten and model.whitening is not None:
            raise UserError(
                "--whiten learns a whitening from the photographs, but this network brings or was given one. "
                "Leave --whiten out, or the network's with --no-whitening."
            )
        made = not model.has_clusters
        if made:
            options = {"progress": tasks("k-means for NetVLAD"), **options, **self.clusters}
            model.fit_clusters(files, **options)
        if self.whiten is None:
            return WHITENED_FROM if made and model.whitening is None else None
        return 2 if self.whiten else None


def learn_whitening(descriptors: np.ndarray, rows: np.ndarray | None = None) -> Whitening:
    """Learn a whitening from at most `WHITENED_BY` descriptors ``[n, d]``, of ``rows`` or of all."""
    rows = np.arange(len(descriptors)) if rows is None else rows
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[:WHITENED_BY])
    dim = min(WHITENED_DIM, descriptors.shape[1])
    return Whitening.fit(descriptors[chosen], dim, shrinkage=SHRINKAGE)
