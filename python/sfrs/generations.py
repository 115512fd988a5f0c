"""The outer loop: generations of students, each taught by the best network of the one before (SFRS, 3.3)."""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfrs.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_momentum,
    momentum_state,
    of_prefix,
    save_checkpoint,
    with_prefix,
)
from sfrs.config import TrainConfig
from sfrs.descriptor import DescriptorNetwork, load_network, save_network
from sfrs.errors import UserError
from sfrs.evaluation import check_answerable, score
from sfrs.jitter import ColorJitter
from sfrs.mining import Miner
from sfrs.neighbourhood import Neighbourhood
from sfrs.places import Places
from sfrs.plots import recall_curves
from sfrs.preparation import (
    Trunks,
    build_network,
    build_trunks,
    check_network,
    init_clusters,
    run_device,
    training_images,
)
from sfrs.progress import Silent, TrainingProgress
from sfrs.recall import RECALL_AT
from sfrs.run_directory import GenerationResult, RunDirectory, RunResult, fingerprint
from sfrs.search import search
from sfrs.training import StepReport, train_epoch
from sfrs.trunk_cache import describe_trunk
from sfrs.tuple_losses import Generation


def train(
    config: TrainConfig,
    places_train: Places,
    places_val: Places,
    run_dir: str | Path,
    *,
    network: DescriptorNetwork | None = None,
    trunks: Trunks | None = None,
    first_generation: str | Path | None = None,
    resume: bool = False,
    progress: TrainingProgress | None = None,
) -> RunResult:
    """Train ``config.generations`` generations; with one, the baseline.

    The result depends on the configuration, the images, the network and the number of threads only. Each
    generation starts from the same initial weights and its own seed, so a generation's result depends on
    the earlier ones only through its teacher.

    Args:
        run_dir: where everything goes, see `sfrs.run_directory`.
        network: to start from, with its weights; it is copied. By default ``config.backbone`` with
            ``config.weights``. Either way ``config.init`` decides about NetVLAD's weights.
        trunks: from `build_trunks` of a network with the same trunk; by default built here.
        first_generation: directory of a run whose initial network and generation 1 are taken over, so that
            several runs can share them.
        resume: go on with the run in ``run_dir`` after its last whole epoch. ``network`` and
            ``first_generation`` are then read from there.
        progress: watches.

    Raises:
        UserError: the directory holds a run already; or, resuming, the configuration or the images differ
            from the run's; or the images cannot be trained on.
        DivergedError: a loss is not finite; the message names the tuple.
    """
    directory = RunDirectory(run_dir)
    check_answerable(places_val, config.negative_radius)
    data = {"train": fingerprint(places_train), "val": fingerprint(places_val)}
    if resume:
        _refuse_differences(directory, config, data)
        network = load_network(directory.initial)
    else:
        directory.refuse_existing()
        if first_generation is not None:
            if config.generations < 2:
                raise UserError("first_generation is given, but generations is 1, expected at least 2")
            other = RunDirectory(first_generation)
            if other.read()[1] != data:
                raise UserError(f"{first_generation}: the run was made with other images than this one")
            network = load_network(other.initial)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_network(config) if network is None else copy.deepcopy(network)
        check_network(config, network)
        run = _Run(config, places_train, places_val, directory, network, trunks, progress or Silent())
        if resume:
            run.restore()
        else:
            directory.create(config, data)
            run.start(None if first_generation is None else RunDirectory(first_generation))
        return run.finish()


class _Run:
    """A run in progress."""

    def __init__(
        self,
        config: TrainConfig,
        places_train: Places,
        places_val: Places,
        directory: RunDirectory,
        initial: DescriptorNetwork,
        trunks: Trunks | None,
        progress: TrainingProgress,
    ) -> None:
        self.config, self.directory, self.progress = config, directory, progress
        self.train, self.val = places_train, places_val
        self.device = run_device(config)
        self.initial = initial.to(self.device).eval()
        self.neighbourhood = Neighbourhood.of_places(places_train, config)
        self.jitter = ColorJitter(*config.jitter, seed=config.seed) if config.jitter else None
        self.generation = self._open(1)
        self.epoch = 0  # epochs of this generation that are done
        self.best: GenerationResult | None = None  # of this generation
        self.results: list[GenerationResult] = []  # of the generations before
        self.trunks = trunks or build_trunks(
            config, initial, places_train, places_val, directory=directory.path, progress=progress
        )
        self.images = training_images(config, self.initial, places_train, self.trunks.train, self.jitter)

    def start(self, first_generation: RunDirectory | None) -> None:
        """Begin with generation 1, or behind the generation 1 of another run."""
        if first_generation is None:
            self._initialise()
            self.generation = self._open(1)
        else:
            shutil.copyfile(first_generation.initial, self.directory.initial)
            best = self.directory.best(1)
            best.parent.mkdir(exist_ok=True)
            shutil.copyfile(first_generation.best(1), best)
            self.best = GenerationResult.read(best)
            self.epoch = self.config.epochs_of(1)
            self.directory.log(
                kind="first_generation", run=str(first_generation.path), recalls=self.best.recalls
            )
        self._save()

    def finish(self) -> RunResult:
        """Train what is left."""
        while True:
            while self.epoch < self.config.epochs_of(self.generation.number):
                self._train_epoch()
            self.results.append(self.best)
            if self.generation.number == self.config.generations:
                initial = GenerationResult.read(self.directory.initial)
                result = RunResult(self.directory.path, initial, tuple(self.results))
                recall_curves(
                    {best.title: best.recalls for best in (initial, *self.results)},
                    self.directory.plot,
                    title=f"{self.val.name}, validation",
                )
                return result
            self.generation = self._open(self.generation.number + 1)
            self.epoch, self.best = 0, None

    def _initialise(self) -> None:
        if self.config.init == "kmeans":
            init_clusters(self.config, self.initial, self.images)
        recalls = self._validate(self.initial)
        self._save_network(self.directory.initial, self.initial, 0, 0, recalls)
        self.directory.log(kind="initial", recalls=recalls)

    def _open(self, number: int) -> Generation:
        """A fresh student for generation ``number``, and its teacher."""
        config = self.config
        seed = config.seed * 1_000_003 + number
        torch.manual_seed(seed)
        student = copy.deepcopy(self.initial)
        teacher = None
        if number > 1:
            teacher = load_network(self.directory.best(number - 1)).to(self.device).requires_grad_(False)
        optimizer = torch.optim.SGD(
            student.trained_parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        return Generation(number, student, teacher, optimizer, Miner(self.neighbourhood, config, seed=seed))

    def _train_epoch(self) -> None:
        number, epoch = self.generation.number, self.epoch + 1

        def on_step(report: StepReport) -> None:
            if report.step % self.config.log_every == 0:
                self.directory.log(kind="step", generation=number, epoch=epoch, **vars(report))
            self.progress.step(number, epoch, report)

        mining = self.progress.task(f"mining, generation {number} epoch {epoch}")
        report = train_epoch(
            self.generation, epoch, self.images, self.config, on_step=on_step, on_mining=mining
        )
        recalls = self._validate(self.generation.student)
        select = self.config.select_recall
        is_best = self.best is None or recalls[select] > self.best.recalls[select]
        if is_best:
            path = self.directory.best(number)
            self._save_network(path, self.generation.student, number, epoch, recalls)
            self.best = GenerationResult(number, epoch, recalls, path)
        self.directory.log(
            kind="epoch", generation=number, epoch=epoch, recalls=recalls, best=is_best, **vars(report)
        )
        self.epoch = epoch
        self._save()
        self.progress.epoch(number, epoch, report, recalls, is_best)

    def _validate(self, network: DescriptorNetwork) -> dict[int, float]:
        queries, database = len(self.val.queries), len(self.val.database)
        described = describe_trunk(
            network,
            self.trunks.val,
            torch.arange(queries + database),
            batch_size=self.config.batch_size,
            progress=self.progress.task("validation"),
        )
        described = described.cpu().numpy()
        ns = sorted({*RECALL_AT, self.config.select_recall})
        _, predictions = search(described[queries:], described[:queries], max(ns))
        return score(self.val, predictions, recalls=ns, radius=self.config.negative_radius).recalls

    def _save_network(
        self, path: Path, network: DescriptorNetwork, number: int, epoch: int, recalls: dict[int, float]
    ) -> None:
        size = [self.config.height, self.config.width]
        meta = {"generation": number, "epoch": epoch, "recalls": recalls, "image_size": size}
        save_network(path, network, meta)

    def _save(self) -> None:
        generation = self.generation
        tensors = {
            **with_prefix("student", _trained(generation.student)),
            **with_prefix("momentum", momentum_state(generation.optimizer)),
            **with_prefix("miner", generation.miner.state()),
            "random.torch": torch.get_rng_state(),
        }
        if generation.teacher is not None:
            tensors |= with_prefix("teacher", _trained(generation.teacher))
        facts = {
            "generation": generation.number,
            "epoch": self.epoch,
            "best": None if self.best is None else {"epoch": self.best.epoch, "recalls": self.best.recalls},
            "metrics_size": self.directory.metrics_size(),
        }
        save_checkpoint(self.directory.checkpoint, tensors, facts)

    def restore(self) -> None:
        """Bring the run to where its checkpoint stands."""
        tensors, facts = load_checkpoint(self.directory.checkpoint)
        number, self.epoch = facts["generation"], facts["epoch"]
        self.results = [GenerationResult.read(self.directory.best(g)) for g in range(1, number)]
        self.generation = self._open(number)
        if facts["best"] is not None:
            # The file may be of a later epoch that was not checkpointed; that epoch is trained again.
            recalls = {int(n): recall for n, recall in facts["best"]["recalls"].items()}
            self.best = GenerationResult(number, facts["best"]["epoch"], recalls, self.directory.best(number))
        _load_trained(self.generation.student, of_prefix("student", tensors))
        if self.generation.teacher is not None:
            _load_trained(self.generation.teacher, of_prefix("teacher", tensors))
        load_momentum(self.generation.optimizer, of_prefix("momentum", tensors))
        self.generation.miner.load_state(of_prefix("miner", tensors))
        torch.set_rng_state(tensors["random.torch"])
        self.directory.cut_metrics(facts["metrics_size"])


def _trained(network: DescriptorNetwork) -> dict[str, Tensor]:
    """The network's state without that of the trunk, which is frozen and part of the initial network."""
    return {
        name: value for name, value in network.state_dict().items() if not name.startswith("backbone.trunk.")
    }


def _load_trained(network: DescriptorNetwork, state: dict[str, Tensor]) -> None:
    own = _trained(network)
    if own.keys() != state.keys():
        raise CheckpointError(
            f"the checkpoint's networks have other parameters: {sorted(own.keys() ^ state.keys())}"
        )
    network.load_state_dict(state, strict=False)


def _refuse_differences(directory: RunDirectory, config: TrainConfig, data: dict[str, Any]) -> None:
    stored, stored_data = directory.read()
    differences = stored.differences(config)
    differences += [
        f"{split} images: {stored_data.get(split)} -> {data[split]}"
        for split in data
        if stored_data.get(split) != data[split]
    ]
    if differences:
        raise UserError(
            f"{directory.path}: cannot resume, the run was started otherwise:\n  " + "\n  ".join(differences)
        )
