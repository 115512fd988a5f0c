"""What a run needs before it trains: the network to start from, and the trunk outputs of its images."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sfrs.backbones import build_backbone
from sfrs.clusters import init_vlad, sample_features
from sfrs.config import TrainConfig
from sfrs.descriptor import DescriptorNetwork, load_network
from sfrs.errors import UserError
from sfrs.jitter import ColorJitter
from sfrs.places import Places
from sfrs.progress import Silent, TrainingProgress
from sfrs.trunk_cache import FreshTrunk, TrunkCache, TrunkSource
from sfrs.tuple_losses import TrainingImages


@dataclass(frozen=True)
class Trunks:
    """Trunk outputs of the training and the validation images, queries first; several runs may share them."""

    train: TrunkSource
    val: TrunkSource


def build_network(config: TrainConfig) -> DescriptorNetwork:
    """The network of a configuration, from ``config.weights`` or random from torch's generator.

    With ``init`` kmeans the weights' NetVLAD may have another number of clusters; it is replaced anyway.
    """
    if not config.weights:
        return DescriptorNetwork(build_backbone(config.backbone), config.clusters)
    network = load_network(config.weights)
    if config.init == "kmeans" and network.vlad.num_clusters != config.clusters:
        bias = network.vlad.conv.bias is not None
        network = DescriptorNetwork(network.backbone, config.clusters, bias=bias)
    check_network(config, network)
    return network


def check_network(config: TrainConfig, network: DescriptorNetwork) -> None:
    """Raise `UserError` if ``network`` is another one than ``config`` says."""
    for name, value in (("backbone", network.backbone.name), ("clusters", network.vlad.num_clusters)):
        if value != getattr(config, name):
            raise UserError(f"{name} is {getattr(config, name)}, but the network given has {value}")


def build_trunks(
    config: TrainConfig,
    network: DescriptorNetwork,
    places_train: Places,
    places_val: Places,
    *,
    directory: Path | None = None,
    progress: TrainingProgress | None = None,
) -> Trunks:
    """Trunk outputs of all images as ``config.trunk_cache`` says; a disk cache goes to ``directory``."""
    device, size = run_device(config), (config.height, config.width)
    sources = []
    for places in (places_train, places_val):
        files = places.queries.files + places.database.files
        if config.trunk_cache == "off":
            sources.append(FreshTrunk(network, files, size, device=device, threads=config.workers))
            continue
        if config.trunk_cache == "disk" and directory is None:
            raise ValueError("build_trunks: trunk_cache is disk, but there is no directory")
        source = TrunkCache.build(
            network,
            files,
            size,
            dtype=getattr(torch, config.cache_dtype),
            device=device,
            file=directory / f"trunk_{places.split}.bin" if config.trunk_cache == "disk" else None,
            batch_size=config.batch_size,
            threads=config.workers,
            progress=(progress or Silent()).task(f"trunk outputs, {places.split}"),
        )
        sources.append(source)
    return Trunks(*sources)


def run_device(config: TrainConfig) -> torch.device:
    """``config.device``, with auto resolved."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def training_images(
    config: TrainConfig,
    network: DescriptorNetwork,
    places: Places,
    trunk: TrunkSource,
    jitter: ColorJitter | None,
) -> TrainingImages:
    """The training images: from ``trunk``, and for training steps from the files if there is ``jitter``."""
    files = places.queries.files + places.database.files
    steps = trunk
    if jitter is not None:
        size, device = (config.height, config.width), run_device(config)
        steps = FreshTrunk(network, files, size, jitter=jitter, device=device, threads=config.workers)
    names = tuple(str(file) for file in files)
    return TrainingImages(len(places.queries), len(places.database), steps, trunk, names)


def init_clusters(config: TrainConfig, network: DescriptorNetwork, images: TrainingImages) -> None:
    """Set the network's NetVLAD from k-means of local features of random training images."""
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(images.names), generator=generator)[: config.init_images].sort().values
    trunks = (images.mining(part) for part in chosen.split(config.batch_size))
    per_image = -(-config.init_features // len(chosen))
    init_vlad(network, sample_features(network, trunks, per_image, generator), seed=config.seed)
