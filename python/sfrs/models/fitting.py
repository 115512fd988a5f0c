"""Fitting a model to the photographs that it searches: clusters where it has none, and a whitening.

An index does so with the photographs it begins with, an evaluation with its database: both describe alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfrs.data.images import Photographs, batches, check_images
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork
from sfrs.models.whitening import Whitening
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress, Tasks, silent

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


class TooFewFeaturesError(UserError, ValueError):
    """The images have fewer local features than there are clusters."""


def kmeans(features: Tensor, num_clusters: int, *, iterations: int = 25, seed: int = 0) -> Tensor:
    """Compute centres float32 ``[num_clusters, D]`` of ``features`` ``[n, D]`` by Lloyd's algorithm in faiss.

    Raises `TooFewFeaturesError` if there are fewer features than clusters.
    """
    if len(features) < num_clusters:
        raise TooFewFeaturesError(
            f"kmeans: {len(features)} local features for {num_clusters} clusters; expected at least as many. "
            "Use more or larger images."
        )
    points = np.ascontiguousarray(features.cpu().numpy(), dtype=np.float32)
    solver = faiss.Kmeans(
        points.shape[1],
        num_clusters,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    solver.train(points)
    return torch.from_numpy(np.array(solver.centroids))


@torch.no_grad()
def sample_features(
    network: DescriptorNetwork, trunks: Iterable[Tensor], per_image: int, generator: torch.Generator
) -> Tensor:
    """Draw L2-normalised local features ``[n, D]``, at most ``per_image`` of each image, from trunk outputs
    ``[B, Ct, Ht, Wt]``."""
    samples = []
    for trunk in trunks:
        features = F.normalize(network.features(trunk).flatten(2), dim=1)  # [B, D, P]
        for image in features.cpu():
            chosen = torch.randperm(image.shape[1], generator=generator)[:per_image]
            samples.append(image[:, chosen].T)
    return torch.cat(samples)


def init_vlad(network: DescriptorNetwork, features: Tensor, *, iterations: int = 25, seed: int = 0) -> float:
    """Set the network's NetVLAD from normalised local ``features`` ``[n, D]``; return alpha."""
    centers = kmeans(features, network.vlad.num_clusters, iterations=iterations, seed=seed)
    return network.vlad.init_from_clusters(
        centers.to(network.vlad.centroids), features.to(network.vlad.centroids)
    )


def init_vlad_from_images(
    model: Model,
    files: Sequence[Path],
    *,
    images: int = 500,
    per_image: int = 100,
    skip_bad_images: bool = False,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = silent,
) -> float:
    """Set the model's NetVLAD from ``images`` random ones of ``files``, by default the paper's 50,000
    features; return alpha.

    Raises:
        BadImageError: an image cannot be read, unless ``skip_bad_images``.
        TooFewFeaturesError: they have fewer local features than there are clusters.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = sorted(torch.randperm(len(files), generator=generator)[:images].tolist())
    taken = [files[i] for i in chosen]
    if skip_bad_images:
        bad = {file for file, _ in check_images(taken)}
        taken = [file for file in taken if file not in bad]
    network, device = model.network.eval(), model.device
    photographs = Photographs(taken, model.size, network.backbone.stride)

    def trunks() -> Iterable[Tensor]:
        for rows, batch in batches(photographs, batch_size):
            yield network.trunk((batch.to(device) - model.mean) / model.std)
            progress(rows[-1] + 1, len(taken))

    return init_vlad(network, sample_features(network, trunks(), per_image, generator), seed=seed)
