"""What a run needs before it trains: the network to start from, and the frozen features of its images."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from sfrs.data.jitter import ColorJitter
from sfrs.data.places import Places, format_of, load_places
from sfrs.features.cache import CacheSettings, FeatureCache, JitteredFeatures
from sfrs.features.filling import build_cache
from sfrs.features.on_the_fly import FrozenTrunk, OnTheFlyFeatures
from sfrs.features.source import FeatureSource
from sfrs.models.backbones import build_backbone
from sfrs.models.fitting import init_vlad, sample_features
from sfrs.models.network import DescriptorNetwork, load_network
from sfrs.retrieval.evaluation import without_bad_images
from sfrs.runtime.distributed import Processes, processes
from sfrs.runtime.errors import UserError
from sfrs.training.config import TrainConfig
from sfrs.training.progress import TrainingProgress
from sfrs.training.step import TrainingImages


@dataclass(frozen=True)
class RunFeatures:
    """Frozen features of the training and the validation images, queries first; runs may share them."""

    train: FeatureSource
    val: FeatureSource


def load_splits(config: TrainConfig, progress: TrainingProgress) -> tuple[Places, Places]:
    """Read the images to train on and to validate on, without bad ones if ``config`` skips them."""
    path, reading = config.val_data or config.data, config.reading()
    train = load_places(config.data, "train", reading)
    if config.val_data and format_of(path).name != "photo folder":
        reading = replace(reading, hold_out="")  # it is for folders of photographs
    splits = train, load_places(path, "val", reading)
    if not config.skip_bad_images:
        return splits
    (train, bad), (val, more) = (without_bad_images(split, tasks=progress.task) for split in splits)
    for file, why in (*bad, *more):
        progress.message(f"Skipped {file}: {why}")
    return train, val


def build_network(config: TrainConfig) -> DescriptorNetwork:
    """Build the network of a configuration: from ``config.weights``, else from the weights published for its
    backbone, else random from torch's generator.

    With ``init`` kmeans the weights' NetVLAD may have another number of clusters; it is replaced anyway.
    """
    if not config.weights:
        backbone = build_backbone(config.backbone)
        if backbone.published is not None:
            backbone.load_pretrained()
        return DescriptorNetwork(backbone, config.clusters)
    network = load_network(config.weights, ignore_keys=config.ignore_keys)
    if config.init == "kmeans" and network.vlad.num_clusters != config.clusters:
        bias = network.vlad.conv.bias is not None
        network = DescriptorNetwork(network.backbone, config.clusters, bias=bias)
    check_network(config, network)
    return network


def random_network(config: TrainConfig) -> DescriptorNetwork:
    """Build the network of a configuration with random weights, of which ``config.seed`` decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return DescriptorNetwork(build_backbone(config.backbone), config.clusters)


def check_network(config: TrainConfig, network: DescriptorNetwork) -> None:
    """Raise `UserError` if ``network`` is another one than ``config`` says, or needs larger images."""
    for name, value in (("backbone", network.backbone.name), ("clusters", network.vlad.num_clusters)):
        if value != getattr(config, name):
            raise UserError(f"{name} is {getattr(config, name)}, but the network given has {value}")
    stride = network.backbone.stride
    if min(config.height, config.width) < stride:
        size = f"height and width are {config.height} and {config.width}"
        raise UserError(f"{size}, but {config.backbone} needs {stride} pixels each way")


def check_processes(joined: Processes, config: TrainConfig, data: dict[str, Any]) -> None:
    """Raise `UserError` if processes of a run were started differently, or are too many for its images."""
    values = config.to_dict()
    joined.agree("configuration", {f.name: values[f.name] for f in fields(config) if f.metadata["compare"]})
    joined.agree("images", data)
    fewest = min(found[role] for found in data.values() for role in ("database", "queries"))
    if fewest < joined.count:
        raise UserError(
            f"there are {joined.count} processes, but only {fewest} images in a set, expected as many"
        )


def share_weights(network: DescriptorNetwork, joined: Processes) -> None:
    """Give all processes the weights that the main one has."""
    if joined.count > 1:
        state = {name: value.cpu() for name, value in network.state_dict().items()}
        network.load_state_dict(joined.broadcast(state))


def build_features(
    config: TrainConfig,
    network: DescriptorNetwork,
    places: tuple[Places, Places],
    *,
    directory: Path | None = None,
    progress: TrainingProgress | None = None,
    processes: Processes | None = None,
) -> RunFeatures:
    """Compute frozen features of all training and validation images as ``config.trunk_cache`` says.

    A disk cache goes to ``config.cache_dir``, or else to ``directory``; what lies there is used again if it
    fits. `RunFeatures.train` holds the jittered variants, too, if there are to be any.
    """
    progress = progress or TrainingProgress()
    place, folder = config.cache.place, Path(config.cache_dir) if config.cache_dir else directory
    if place == "disk" and folder is None:
        raise ValueError("build_features: trunk_cache is disk, but there is no directory")
    budget = 1e9 * config.cache_gigabytes or None
    found, trunk = [], _frozen_trunk(config, network)
    for split, variants in zip(places, (config.cache.variants, 0), strict=True):
        source = _on_the_fly(config, trunk, split, jittered=variants > 0)
        if place != "off":
            path = folder / f"trunk_{split.split}" if folder and place == "disk" else None
            dtype = getattr(torch, config.cache_dtype)
            source = build_cache(
                source,
                CacheSettings(place, path, dtype, variants, budget, config.batch_size),
                processes=processes,
                say=progress.message,
                progress=progress.task(f"frozen features, {split.split}"),
            )
            if budget is not None:
                budget = max(0.0, budget - source.features.nbytes)
        found.append(source)
    return RunFeatures(*found)


def training_images(
    config: TrainConfig, network: DescriptorNetwork, places: Places, features: FeatureSource
) -> TrainingImages:
    """Bring the training images' features together; for training steps jittered as ``config`` says.

    Raises `ValueError` if ``features`` was built without the variants that ``config`` wants.
    """
    steps = features
    if config.cache.variants:
        if not isinstance(features, FeatureCache) or features.plan.variants != config.cache.variants:
            raise ValueError(
                f"training_images: trunk_cache is {config.trunk_cache}, but features was built otherwise"
            )
        steps = JitteredFeatures(features, config.seed)
    elif config.jitter:
        steps = _on_the_fly(config, _frozen_trunk(config, network), places, jittered=True)
    names = tuple(map(str, places.queries.files + places.database.files))
    return TrainingImages(len(places.queries), len(places.database), steps, features, names)


def init_clusters(config: TrainConfig, network: DescriptorNetwork, images: TrainingImages) -> None:
    """Set the network's NetVLAD from k-means of local features of random training images."""
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(images.names), generator=generator)[: config.init_images].sort().values
    features = (images.mining(part) for part in chosen.split(config.batch_size))
    per_image = -(-config.init_features // len(chosen))
    sampled = sample_features(network, features, per_image, generator)
    init_vlad(network, sampled, iterations=config.init_iterations, seed=config.seed)


def _frozen_trunk(config: TrainConfig, network: DescriptorNetwork) -> FrozenTrunk:
    return FrozenTrunk(
        network,
        device=processes().device(config.device),
        autocast=config.autocast,
        compiled=config.compile_trunk,
    )


def _on_the_fly(
    config: TrainConfig, trunk: FrozenTrunk, places: Places, *, jittered: bool
) -> OnTheFlyFeatures:
    """Make the source of all images of ``places``, queries first."""
    files, size = places.queries.files + places.database.files, (config.height, config.width)
    jitter = ColorJitter(*config.jitter, seed=config.seed) if jittered else None
    return OnTheFlyFeatures(trunk, files, size, jitter=jitter, workers=config.workers)
