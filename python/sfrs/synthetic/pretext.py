"""Teaching a fresh head what places look like: contrastive learning on pairs of views (in place of ImageNet).

Both images of a pair show the same view in different years; the other pairs of a batch are the negatives
(InfoNCE, van den Oord et al. 2018), symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from sfrs.data.places import Places
from sfrs.features.filling import build_cache
from sfrs.features.on_the_fly import OnTheFlyFeatures
from sfrs.models.fitting import init_vlad, sample_features
from sfrs.models.gradient import GradientBackbone
from sfrs.models.network import DescriptorNetwork
from sfrs.runtime.progress import Progress, silent

PANORAMA, TILE = 7, 8  # fields of an image name in the full form


def view_pairs(places: Places) -> list[tuple[Path, Path]]:
    """(query, database image) of the same panorama and tile, by the names in the full form."""

    def view(file: Path) -> tuple[str, str]:
        fields = file.name.split("@")
        return fields[PANORAMA][1:], fields[TILE]

    database = {view(file): file for file in places.database.files}
    missing = [query for query in places.queries.files if view(query) not in database]
    if missing:
        raise ValueError(f"view_pairs: {missing[0]} shows no view of the database")
    return [(query, database[view(query)]) for query in places.queries.files]


LEARNING_RATE, TEMPERATURE = 0.002, 0.07


def pretrain(
    pairs: Sequence[tuple[Path, Path]],
    *,
    size: tuple[int, int],
    clusters: int = 32,
    steps: int = 250,
    batch: int = 48,
    seed: int = 0,
    trunk_progress: Progress = silent,
    progress: Progress = silent,
) -> DescriptorNetwork:
    """Train a network on the gradient backbone with pairs of views for a fixed number of steps.

    Args:
        pairs: files of two images of the same view.
        size: (height, width) the images are resized to.
        progress: called with (done, steps).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = GradientBackbone()
        network = DescriptorNetwork(backbone, clusters)
    files = [file for pair in pairs for file in pair]
    cache = build_cache(OnTheFlyFeatures(network, files, size), progress=trunk_progress)
    some = torch.randperm(len(files), generator=generator)[:400].sort().values
    backbone.init_pca(cache(some))
    init_vlad(network, sample_features(network, cache(some).split(32), 100, generator), seed=seed)
    network.train()
    optimizer = torch.optim.AdamW(network.trained_parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        chosen = torch.randperm(len(pairs), generator=generator)[:batch]
        descriptors = network.descriptor(cache(torch.cat([2 * chosen, 2 * chosen + 1])))
        logits = descriptors[: len(chosen)] @ descriptors[len(chosen) :].T / TEMPERATURE
        target = torch.arange(len(chosen))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, steps)
    return network.eval()
