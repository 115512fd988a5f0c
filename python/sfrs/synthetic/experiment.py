"""One rendered city with all that training on it takes; shared by the demonstration and the study.

The situation is that of Pittsburgh -> Tokyo: a training quarter with easy queries, a validation and a test
quarter with hard ones. All settings were chosen on validation quarters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from sfrs.data.places import Places, load_places
from sfrs.features.cache import FeatureCache
from sfrs.features.filling import build_cache
from sfrs.features.on_the_fly import OnTheFlyFeatures
from sfrs.features.source import describe_features
from sfrs.models.network import DescriptorNetwork, load_network, save_network
from sfrs.retrieval.evaluation import Evaluation, score
from sfrs.retrieval.recall import RECALL_AT
from sfrs.retrieval.search import search
from sfrs.runtime.progress import Progress, Tasks
from sfrs.synthetic.city.write import IMAGE_SIZE, city_config, pretext_config, write_city
from sfrs.synthetic.pretext import pretrain, view_pairs
from sfrs.training.config import TrainConfig
from sfrs.training.preparation import RunFeatures, build_features, build_network
from sfrs.training.progress import StepReport, TrainingProgress
from sfrs.training.run_folder import RunDirectory, RunResult
from sfrs.training.trainer import train

Say = Callable[[str], None]


@dataclass(frozen=True)
class Scale:
    """How large an experiment is.

    Attributes:
        city: size of the city, see `sfrs.synthetic.city.write.SIZES`.
        epochs: of one generation; every generation and every variant gets the same.
        settings: changes to the preset "demo".
        pretext_steps: fixed in number, never in time, so that results do not depend on the machine.
    """

    city: str
    epochs: int
    pretext_steps: int
    settings: dict = field(default_factory=dict)


SCALES = {
    "demo": Scale("demo", epochs=TrainConfig.preset("demo").epochs[0], pretext_steps=250),
    "small": Scale(
        "small", epochs=2, pretext_steps=12, settings={"init_images": 60, "negative_pool": 40, "clusters": 8}
    ),
}

GRADIENT = "gradient"
PUBLISHED_RATE, PUBLISHED_SHARE = 0.01, 0.5
"""Learning rate of heads that begin with published weights, and the share of the epochs that they take."""

PAPER_TEMPERATURES = {"teacher_temperatures": TrainConfig().teacher_temperatures}
SOFTER_TEACHER = {"teacher_temperatures": TrainConfig.preset("demo").teacher_temperatures}
IMAGE_LABELS = {"soft_level": "image", "soft_ranks": (2, 8), "teacher_temperatures": (0.15,)}
SOFT_NEGATIVES = {**IMAGE_LABELS, "soft_negatives": True, "region_negatives": False}
REGIONS_BY_LEVEL = {**SOFT_NEGATIVES, "soft_level": "region", "soft_loss": "by-level"}
REGIONS_AND_NEGATIVES = {**SOFTER_TEACHER, "soft_negatives": True}


class Stopwatch:
    """Seconds by stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


class Experiment:
    """A city of one seed below `root`, rendered when first needed.

    Args:
        root: folder of the city; holds `city/`, and `pretext/` unless `shared` is given.
        shared: folder of the pretext, which is the same for all seeds.
        tasks: opens a progress display by its name.
        say: prints a line about how the training goes.
        backbone: "gradient", which the pretext trains, or one with published weights.
    """

    def __init__(
        self,
        root: str | Path,
        scale: Scale,
        seed: int,
        *,
        tasks: Tasks,
        say: Say,
        stopwatch: Stopwatch,
        shared: str | Path | None = None,
        backbone: str = GRADIENT,
    ) -> None:
        self.root, self.scale, self.seed, self.backbone = Path(root), scale, seed, backbone
        self.shared = Path(shared or root)
        self.tasks, self.say, self.stopwatch = tasks, say, stopwatch

    @property
    def epochs(self) -> int:
        """Epochs of a generation."""
        share = 1.0 if self.backbone == GRADIENT else PUBLISHED_SHARE
        return max(1, round(share * self.scale.epochs))

    def config(self, epochs: tuple[int, ...], **changes) -> TrainConfig:
        """The configuration of a run with so many epochs per generation."""
        settings = {**self.scale.settings, **changes, "generations": len(epochs), "epochs": epochs}
        settings |= {"data": str(self.city), "seed": self.seed, "workers": 2, "device": "cpu"}
        if self.backbone != GRADIENT:
            settings |= {"backbone": self.backbone, "learning_rate": PUBLISHED_RATE}
        return TrainConfig.preset("demo", **settings)

    @cached_property
    def city(self) -> Path:
        """The folder of the data set."""
        folder = self.root / "city"
        with self.stopwatch("render the city"):
            write_city(folder, city_config(self.scale.city, self.seed), self.tasks)
        return folder

    @cached_property
    def places(self) -> dict[str, Places]:
        return {split: load_places(self.city, split) for split in ("train", "val", "test")}

    @cached_property
    def pretrained(self) -> DescriptorNetwork:
        """The network before any training on the city: published, from `pretext.safetensors`, or made now."""
        if self.backbone != GRADIENT:
            return build_network(self.config((1,)))
        weights = self.shared / "pretext.safetensors"
        recipe = {"steps": self.scale.pretext_steps, "clusters": self._clusters, "size": self.scale.city}
        if weights.exists():
            network = load_network(weights)
            if network.meta.get("recipe") == recipe:
                return network
        folder = self.shared / "pretext"
        with self.stopwatch("pretext: render"):
            write_city(folder, pretext_config(self.scale.city), self.tasks)
        with self.stopwatch("pretext: train"):
            network = pretrain(
                view_pairs(load_places(folder, "pretext")),
                size=IMAGE_SIZE,
                clusters=self._clusters,
                steps=self.scale.pretext_steps,
                trunk_progress=self.tasks("pretext, frozen features"),
                progress=self.tasks("pretext, contrastive steps"),
            )
        save_network(weights, network, {"recipe": recipe, "image_size": list(IMAGE_SIZE)})
        return network

    @property
    def _clusters(self) -> int:
        return TrainConfig.preset("demo", **self.scale.settings).clusters

    @cached_property
    def features(self) -> RunFeatures:
        places, network = self.places, self.pretrained
        with self.stopwatch("trunk outputs"):
            progress = Watch(self.tasks, self.say, "")
            trained = places["train"], places["val"]
            return build_features(self.config((1,)), network, trained, progress=progress)

    @cached_property
    def test_features(self) -> FeatureCache:
        """Frozen features of the test images, queries first."""
        test, network = self.places["test"], self.pretrained
        with self.stopwatch("trunk outputs"):
            files = test.queries.files + test.database.files
            source = OnTheFlyFeatures(network, files, IMAGE_SIZE)
            return build_cache(source, progress=self.tasks("frozen features, test"))

    def train(
        self, name: str, epochs: tuple[int, ...], *, label: str = "", after: str | None = None, **changes
    ) -> RunResult:
        """Train (or go on training, or find trained) the run `name`.

        Args:
            epochs: of each generation.
            after: name of a run whose initial network and generation 1 are taken over.
            changes: to the configuration.
        """
        directory = self.root / name
        config = self.config(epochs, **changes)
        resume = RunDirectory(directory).checkpoint.exists()
        places, network, features = self.places, self.pretrained, self.features
        with self.stopwatch(f"train: {label or name}"):
            return train(
                (places["train"], places["val"]),
                config,
                directory,
                network=network,
                features=features,
                first_generation=self.root / after if after and not resume else None,
                resume=resume,
                progress=Watch(self.tasks, self.say, label or name),
            )

    def test(self, network: DescriptorNetwork, split: str = "test") -> Evaluation:
        """Score a network on the test quarter (or the validation quarter, to choose settings)."""
        places = self.places[split]
        features = self.test_features if split == "test" else self.features.val
        with self.stopwatch("test"):
            queries = len(places.queries)
            images = torch.arange(queries + len(places.database))
            descriptors = describe_features(network, features, images, batch_size=32).contiguous().numpy()
            _, predictions = search(descriptors[queries:], descriptors[:queries], max(RECALL_AT))
            return score(places, predictions)


class Watch(TrainingProgress):
    """Shows a run as progress bars, and one line an epoch."""

    def __init__(self, tasks: Tasks, say: Say, label: str) -> None:
        self._tasks, self._say, self._label = tasks, say, label
        self._bar: Progress | None = None
        self._began = time.perf_counter()

    def task(self, name: str) -> Progress:
        # Mining and validation take about a second; only the longer pieces are shown.
        return self._tasks(name) if name.startswith("frozen") else lambda done, total: None

    def step(self, generation: int, epoch: int, report: StepReport) -> None:
        if self._bar is None:
            self._bar = self._tasks(f"{self._label}, tuples of an epoch")
        self._bar(report.done, report.of)

    def epoch(
        self, generation: int, epoch: int, report: StepReport, recalls: dict[int, float], best: bool
    ) -> None:
        seconds, self._began = time.perf_counter() - self._began, time.perf_counter()
        recall = f"{100 * recalls[1]:.1f}/{100 * recalls[5]:.1f}{' (best)' if best else ''}"
        self._say(
            f"{self._label}: generation {generation}, epoch {epoch}: loss {report.total:.3f}, "
            f"validation recall@1/5 {recall}, {seconds:.1f} s"
        )
