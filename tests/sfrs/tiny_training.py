"""Tiny places and a configuration to train the tiny backbone on them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sfrs.data.places import ImageSet, Places
from sfrs.features.cache import CacheSettings, FeatureCache
from sfrs.features.filling import build_cache
from sfrs.features.on_the_fly import OnTheFlyFeatures
from sfrs.models.backbones import build_backbone
from sfrs.models.network import DescriptorNetwork
from sfrs.training.config import TrainConfig

SIZE = (48, 64)


def network_of_seed(seed: int = 0, clusters: int = 4) -> DescriptorNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DescriptorNetwork(build_backbone("tiny"), clusters)


def cache_of(network, files, size=SIZE, *, jitter=None, **options) -> FeatureCache:
    """A cache of frozen features, with options of `build_cache` and `CacheSettings`."""
    own = {name: options.pop(name) for name in ("processes", "say", "progress") if name in options}
    source = OnTheFlyFeatures(network, files, size, jitter=jitter)
    return build_cache(source, CacheSettings(**options), **own)


def tiny_places(folder: Path, split: str, spots: int, seed: int, views: int = 3) -> Places:
    """``spots`` places on a line, 40 m apart, each with ``views`` database images and one query around it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    sets: dict[str, tuple[list, list]] = {"database": ([], []), "queries": ([], [])}
    for spot in range(spots):
        scene = rng.integers(0, 255, (6, 8, 3))
        for view in range(views + 1):
            noisy = np.clip(scene + rng.normal(0, 60, scene.shape), 0, 255).astype(np.uint8)
            file = folder / f"{split}_{spot}_{view}.png"
            Image.fromarray(noisy).resize(SIZE[::-1], Image.Resampling.BICUBIC).save(file)
            files, positions = sets["queries" if view == views else "database"]
            files.append(file)
            positions.append((40.0 * spot + rng.uniform(-2, 2), rng.uniform(-2, 2)))
    numbers = iter(range(10_000))
    images = {
        role: ImageSet(
            tuple(files), np.array(positions), np.array([next(numbers) for _ in files], dtype=np.int64)
        )
        for role, (files, positions) in sets.items()
    }
    return Places("tiny", split, images["database"], images["queries"])


def tiny_config(**changes) -> TrainConfig:
    values = dict(
        backbone="tiny",
        clusters=4,
        height=SIZE[0],
        width=SIZE[1],
        jitter=(),
        init_images=20,
        init_features=400,
        generations=2,
        epochs=(2, 2),
        tuples_per_step=4,
        refresh_every=7,
        tuple_negatives=3,
        negative_pool=12,
        difficult_positives=2,
        positive_pool=3,
        rerank_neighbours=4,
        learning_rate=0.01,
        device="cpu",
        workers=2,
        log_every=1,
    )
    return TrainConfig(**{**values, **changes})
