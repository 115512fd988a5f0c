"""What a run needs before it trains: the network to start from, and the trunk outputs of its images."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sfrs.data.jitter import ColorJitter
from sfrs.data.places import Places
from sfrs.features.cache import TrunkCache
from sfrs.features.frozen import FrozenTrunk
from sfrs.features.on_the_fly import FreshTrunk
from sfrs.features.source import TrunkSource
from sfrs.models.backbones import build_backbone
from sfrs.models.clusters import init_vlad, sample_features
from sfrs.models.network import DescriptorNetwork, load_network
from sfrs.runtime.distributed import Processes, processes
from sfrs.runtime.errors import UserError
from sfrs.runtime.host import usable_device
from sfrs.training.config import TrainConfig
from sfrs.training.progress import Silent, TrainingProgress
from sfrs.training.tuple_losses import TrainingImages


@dataclass(frozen=True)
class Trunks:
    """Trunk outputs of the training and the validation images, queries first; several runs may share them."""

    train: TrunkSource
    val: TrunkSource


def build_network(config: TrainConfig) -> DescriptorNetwork:
    """The network of a configuration: from ``config.weights``, else from the weights published for its
    backbone, else random from torch's generator.

    With ``init`` kmeans the weights' NetVLAD may have another number of clusters; it is replaced anyway.
    """
    if not config.weights:
        backbone = build_backbone(config.backbone)
        if backbone.has_published_weights:
            backbone.load_pretrained()
        return DescriptorNetwork(backbone, config.clusters)
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
    processes: Processes | None = None,
) -> Trunks:
    """Trunk outputs of all images as ``config.trunk_cache`` says.

    A disk cache goes to ``config.cache_dir``, or else to ``directory``; what lies there is used again if it
    fits. `Trunks.train` holds the jittered variants, too, if there are to be any.
    """
    progress = progress or Silent()
    trunk = _frozen_trunk(config, network)
    size, spec = (config.height, config.width), config.cache
    folder = Path(config.cache_dir) if config.cache_dir else directory
    if spec.place == "disk" and folder is None:
        raise ValueError("build_trunks: trunk_cache is disk, but there is no directory")
    budget = 1e9 * config.cache_gigabytes or None
    sources = []
    for places, variants in ((places_train, spec.variants), (places_val, 0)):
        files = places.queries.files + places.database.files
        if spec.place == "off":
            sources.append(FreshTrunk(trunk, files, size, threads=config.workers))
            continue
        source = TrunkCache.build(
            trunk,
            files,
            size,
            place=spec.place,
            path=folder / f"trunk_{places.split}" if spec.place == "disk" else None,
            dtype=getattr(torch, config.cache_dtype),
            variants=variants,
            jitter=_jitter(config) if variants else None,
            budget=budget,
            batch_size=config.batch_size,
            threads=config.workers,
            processes=processes,
            say=progress.message,
            progress=progress.task(f"trunk outputs, {places.split}"),
        )
        if budget is not None:
            budget = max(0.0, budget - source.bytes)
        sources.append(source)
    return Trunks(*sources)


def run_device(config: TrainConfig) -> torch.device:
    """``config.device``, with auto resolved; each of several processes has a GPU of its own.

    Raises:
        UserError: torch has no such device, or there are more processes than GPUs.
    """
    name, joined = usable_device(config.device), processes()
    if joined.count > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise UserError(
                f"device is {name}, expected cuda or auto, since torchrun gives each process its GPU"
            )
        return joined.device
    return torch.device(name)


def training_images(
    config: TrainConfig, network: DescriptorNetwork, places: Places, trunk: TrunkSource
) -> TrainingImages:
    """The training images: from ``trunk``, and for training steps jittered as ``config`` says.

    Raises:
        ValueError: ``trunk`` was built without the variants that ``config`` wants.
    """
    files = places.queries.files + places.database.files
    steps = trunk
    if config.cache.variants:
        if not isinstance(trunk, TrunkCache) or trunk.plan.variants != config.cache.variants:
            raise ValueError(
                f"training_images: trunk_cache is {config.trunk_cache}, but trunk was built otherwise"
            )
        steps = trunk.jittered(config.seed)
    elif config.jitter:
        size = (config.height, config.width)
        steps = FreshTrunk(
            _frozen_trunk(config, network), files, size, jitter=_jitter(config), threads=config.workers
        )
    names = tuple(str(file) for file in files)
    return TrainingImages(len(places.queries), len(places.database), steps, trunk, names)


def init_clusters(config: TrainConfig, network: DescriptorNetwork, images: TrainingImages) -> None:
    """Set the network's NetVLAD from k-means of local features of random training images."""
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(images.names), generator=generator)[: config.init_images].sort().values
    trunks = (images.mining(part) for part in chosen.split(config.batch_size))
    per_image = -(-config.init_features // len(chosen))
    init_vlad(network, sample_features(network, trunks, per_image, generator), seed=config.seed)


def _frozen_trunk(config: TrainConfig, network: DescriptorNetwork) -> FrozenTrunk:
    return FrozenTrunk(
        network, device=run_device(config), autocast=config.autocast, compiled=config.compile_trunk
    )


def _jitter(config: TrainConfig) -> ColorJitter:
    return ColorJitter(*config.jitter, seed=config.seed)
