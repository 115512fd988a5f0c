"""A small training job that costs per tuple and image what Pittsburgh costs, on made-up photographs."""

import copy
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfrs.data.images import load_image
from sfrs.data.jitter import ColorJitter
from sfrs.data.places import ImageSet, Places
from sfrs.features.cache import FeatureCache
from sfrs.models.network import DescriptorNetwork
from sfrs.training.config import TrainConfig
from sfrs.training.mining import Tuples
from sfrs.training.preparation import (
    RunFeatures,
    build_features,
    build_network,
    init_clusters,
    training_images,
)
from sfrs.training.step import StudentTeacher, TrainingImages, sgd

PHOTOGRAPH = (480, 640)
"""Height and width of Pittsburgh's photographs."""
NEGATIVES, DIFFICULT = 10, 10


@dataclass(frozen=True)
class Job:
    """Tuples of which no two share an image, and the networks that train on them.

    Attributes:
        tuples: one query, positive, 10 negatives and 10 difficult positives each.
        features: the cache of all images, and of one jittered variant of each.
    """

    config: TrainConfig
    places: Places
    tuples: Tuples
    network: DescriptorNetwork
    teacher: DescriptorNetwork
    features: RunFeatures

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def files(self) -> tuple[Path, ...]:
        return self.places.queries.files + self.places.database.files

    def images(self, **changes) -> TrainingImages:
        """Training images as a changed configuration wants them, from the job's own cache."""
        config = self.config.changed(**changes)
        trunk = self.features.train
        if not config.cache.variants:
            trunk = plain(trunk)
        return training_images(config, self.network, self.places, trunk)

    def generation(self, number: int) -> StudentTeacher:
        """A student as generation ``number`` begins; a miner it has not."""
        student = copy.deepcopy(self.network).train()
        teacher = None if number == 1 else self.teacher
        return StudentTeacher(number, student, teacher, sgd(student, self.config), None)

    def submit(
        self, pool: ThreadPoolExecutor, numbers: list[int], step: int | None = None
    ) -> dict[int, Future]:
        """Begin to load images: decoded, jittered for ``step`` if there is one, and normalised."""
        jitter = ColorJitter(*self.config.jitter, seed=self.config.seed) if step is not None else None
        size, backbone = (self.config.height, self.config.width), self.network.backbone
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))

        def one(number: int) -> Tensor:
            image = load_image(self.files[number], size)
            if jitter is not None:
                image = jitter(image, step, number)
            return (image - mean) / std

        return {number: pool.submit(one, number) for number in numbers}

    def loaded(self, futures: dict[int, Future]) -> dict[int, Tensor]:
        """Images on the device."""
        return {number: future.result().to(self.device) for number, future in futures.items()}


def plain(trunk: FeatureCache) -> FeatureCache:
    """A cache with variants as one that holds images as they are only."""
    return FeatureCache(trunk.features[: trunk.plan.images], trunk.device)


def write_photographs(folder: Path, count: int, seed: int = 0) -> tuple[Path, ...]:
    """JPEG files of coloured blocks with noise, as large as Pittsburgh's."""
    random, files = np.random.default_rng(seed), []
    for number in range(count):
        blocks = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(blocks.resize(PHOTOGRAPH[::-1], Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = (pixels + random.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
        files.append(folder / f"{number:04}.jpg")
        Image.fromarray(noisy).save(files[-1], quality=90)
    return tuple(files)


def build_job(folder: Path, config: TrainConfig, tuples: int) -> Job:
    """Write the photographs, build network and cache.

    Args:
        config: with ``trunk_cache`` of one variant.
        tuples: how many.
    """
    per_tuple = 1 + NEGATIVES + DIFFICULT
    files = write_photographs(folder, tuples * (1 + per_tuple), config.seed)
    queries, database = (
        ImageSet(part, np.zeros((len(part), 2)), np.arange(len(part)))
        for part in (files[:tuples], files[tuples:])
    )
    places = Places("made up", "train", database, queries)
    torch.manual_seed(config.seed)
    network = build_network(config).eval()
    none = ImageSet(files[:1], np.zeros((1, 2)), np.zeros(1, dtype=np.int64))
    features = build_features(config, network, (places, Places("made up", "val", none, none)))
    own = torch.arange(tuples * per_tuple).view(tuples, per_tuple)
    chosen = Tuples(torch.arange(tuples), own[:, 0], own[:, 1 : 1 + NEGATIVES], own[:, 1 + NEGATIVES :])
    images = training_images(config, network, places, features.train)
    init_clusters(config, network, images)
    teacher = copy.deepcopy(network).requires_grad_(False)
    with torch.no_grad():  # a teacher that is another network than the student
        for parameter in teacher.trained_parameters():
            parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
    return Job(config, places, chosen, network, teacher, features)
