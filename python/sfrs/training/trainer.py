"""The outer loop: generations of students, each taught by the best network of the one before (SFRS, 3.3)."""

import copy
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from sfrs.data.neighbourhood import Neighbourhood
from sfrs.data.places import Places
from sfrs.models.network import DescriptorNetwork, load_network, save_network
from sfrs.retrieval.evaluation import check_answerable
from sfrs.retrieval.plots import recall_curves
from sfrs.runtime.atomic_io import replaced
from sfrs.runtime.distributed import Processes, processes
from sfrs.runtime.host import host_facts
from sfrs.training.checkpoint import load_checkpoint
from sfrs.training.config import TrainConfig
from sfrs.training.epoch import sgd, train_epoch
from sfrs.training.epoch_state import EpochState, StepReport
from sfrs.training.mining import Miner
from sfrs.training.preparation import (
    Trunks,
    build_network,
    build_trunks,
    check_network,
    init_clusters,
    run_device,
    training_images,
)
from sfrs.training.progress import Silent, TrainingProgress
from sfrs.training.run_folder import GenerationResult, RunDirectory, RunResult, fingerprint
from sfrs.training.run_start import check_processes, run_start
from sfrs.training.run_state import load_state, load_trained, save_state, trained_state
from sfrs.training.tuple_losses import Generation
from sfrs.training.validation import validate


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

    The processes that torchrun started share the work; files are the main one's, and all read them. The
    result depends on the configuration, the images, the network and the number of threads only (on the number
    of processes: up to rounding). Each generation starts from the same initial weights and its own seed, so
    a generation's result depends on the earlier ones only through its teacher.

    Args:
        run_dir: where everything goes, see `sfrs.training.run_folder`.
        network: to start from, with its weights; it is copied. By default ``config.backbone`` with
            ``config.weights``. Either way ``config.init`` decides about NetVLAD's weights.
        trunks: from `build_trunks` of a network with the same trunk; by default built here.
        first_generation: directory of a run whose initial network and generation 1 are taken over, so that
            several runs can share them.
        resume: go on with the run in ``run_dir`` after its last checkpoint, or from the beginning if there is
            none yet. ``network`` and ``first_generation`` are then read from there.
        progress: watches.

    Raises:
        UserError: the directory holds a run already, or another process trains there; or, resuming, the
            configuration or the images differ from the run's; or ``first_generation`` is of other images or
            not finished; or the images cannot be trained on or read.
        DivergedError: a loss is not finite; the message names the tuple.
        WriteError: the disk is full; the run can be resumed from its last checkpoint.
    """
    joined, directory = processes(), RunDirectory(run_dir)
    check_answerable(places_val, config.negative_radius)
    data = {"train": fingerprint(places_train), "val": fingerprint(places_val)}
    check_processes(joined, config, data)
    if resume:
        directory.read()  # before a folder is made for the lock
    elif network is not None:
        check_network(config, network)
    with directory.locked() if joined.is_main else nullcontext():
        start = None
        if joined.is_main:
            first = None if first_generation is None else str(first_generation)
            start = run_start(directory, config, data, first, resume, network is not None)
        start = joined.broadcast_object(start)
        first = start["first_generation"]
        if start["resume"] or first is not None:
            network = load_network((directory if first is None else RunDirectory(first)).initial)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = build_network(config) if network is None else copy.deepcopy(network)
            check_network(config, network)
            if joined.count > 1:
                network.load_state_dict(joined.broadcast_tensors(network.state_dict()))
            run = _Run(config, places_train, places_val, directory, network, trunks, progress, joined)
            if joined.is_main and not start["resume"]:
                directory.create(config, data, start)
            if start["resume"]:
                run.restore()
            else:
                run.start(None if first is None else RunDirectory(first))
            return run.finish()


class _Run:
    """A run in progress, seen from one of its processes."""

    def __init__(
        self,
        config: TrainConfig,
        places_train: Places,
        places_val: Places,
        directory: RunDirectory,
        initial: DescriptorNetwork,
        trunks: Trunks | None,
        progress: TrainingProgress | None,
        processes: Processes,
    ) -> None:
        self.began = time.time()  # before the trunk outputs
        self.config, self.directory, self.processes = config, directory, processes
        self.progress = (processes.is_main and progress) or Silent()
        self.train, self.val = places_train, places_val
        self.device = run_device(config)
        self.initial = initial.to(self.device).eval()
        self.neighbourhood = Neighbourhood.of_places(
            places_train, config.positive_radius, config.negative_radius
        )
        self.generation = self._open(1)
        self.epoch = 0  # epochs of this generation that are done
        self.unfinished: EpochState | None = None  # the epoch a checkpoint was written in
        # Only the main process knows results.
        self.best: GenerationResult | None = None  # of this generation
        self.results: list[GenerationResult | None] = []  # of the generations before
        self.trunks = trunks

    def _prepare(self) -> None:
        """Compute trunk outputs, unless they were given."""
        self.trunks = self.trunks or build_trunks(
            self.config,
            self.initial,
            self.train,
            self.val,
            directory=self.directory.path,
            progress=self.progress,
            processes=self.processes,
        )
        self.images = training_images(self.config, self.initial, self.train, self.trunks.train)

    def start(self, first_generation: RunDirectory | None) -> None:
        """Begin with generation 1, or behind the generation 1 of another run."""
        self._prepare()
        self._log_start(resumed=False)
        if first_generation is None:
            self._initialise()
            self.generation = self._open(1)
        else:
            self.epoch = self.config.epochs_of(1)
            if self.processes.is_main:
                self._take_over(first_generation)
        self._save()

    def finish(self) -> RunResult:
        """Train what is left."""
        while True:
            while self.epoch < self.config.epochs_of(self.generation.number):
                self._train_epoch()
            self.results.append(self.best)
            if self.generation.number == self.config.generations:
                return self._result()
            self.best = None
            self.generation = self._open(self.generation.number + 1)
            self.epoch = 0

    def _initialise(self) -> None:
        if self.config.init == "kmeans" and self.processes.is_main:
            init_clusters(self.config, self.initial, self.images)
        if self.processes.count > 1:
            load_trained(self.initial, self.processes.broadcast_tensors(trained_state(self.initial)))
        recalls = self._validate(self.initial)
        if recalls is not None:
            self._save_network(self.directory.initial, self.initial, 0, 0, recalls)
            self.directory.log("initial", recalls=recalls)

    def _take_over(self, first_generation: RunDirectory) -> None:
        best = self.directory.best(1)
        best.parent.mkdir(exist_ok=True)
        for theirs, ours in (
            (first_generation.initial, self.directory.initial),
            (first_generation.best(1), best),
        ):
            with replaced(ours, size=theirs.stat().st_size) as partial:
                shutil.copyfile(theirs, partial)
        self.best = GenerationResult.read(best)
        self.directory.log("first_generation", run=str(first_generation.path), recalls=self.best.recalls)

    def _result(self) -> RunResult:
        found = None
        if self.processes.is_main:
            all_results = (GenerationResult.read(self.directory.initial), *self.results)
            recall_curves(
                {result.title: result.recalls for result in all_results},
                self.directory.plot,
                title=f"{self.val.name}, validation",
            )
            found = [(result.number, result.epoch, [*result.recalls.items()]) for result in all_results]
        initial, *generations = (
            GenerationResult(number, epoch, dict(map(tuple, recalls)), self.directory.weights(number))
            for number, epoch, recalls in self.processes.broadcast_object(found)
        )
        return RunResult(self.directory.path, initial, tuple(generations))

    def _open(self, number: int) -> Generation:
        """A fresh student for generation ``number``, and its teacher."""
        config = self.config
        seed = config.seed * 1_000_003 + number
        torch.manual_seed(seed)
        student = copy.deepcopy(self.initial)
        teacher = self._teacher(number) if number > 1 else None
        miner = Miner(self.neighbourhood, config, seed=seed)
        return Generation(number, student, teacher, sgd(student, config), miner)

    def _teacher(self, number: int) -> DescriptorNetwork:
        """The best network of the generation before ``number``, frozen."""
        if self.processes.is_main:
            teacher = load_network(self.directory.best(number - 1)).to(self.device)
        else:
            teacher = copy.deepcopy(self.initial)
        if self.processes.count > 1:
            load_trained(teacher, self.processes.broadcast_tensors(trained_state(teacher)))
        return teacher.eval().requires_grad_(False)

    def _train_epoch(self) -> None:
        number, epoch = self.generation.number, self.epoch + 1

        def on_step(report: StepReport) -> None:
            if report.step % self.config.log_every == 0:
                self.directory.log("step", generation=number, epoch=epoch, **vars(report))
            self.progress.step(number, epoch, report)

        is_main, (state, self.unfinished) = self.processes.is_main, (self.unfinished, None)
        report = train_epoch(
            self.generation,
            epoch,
            self.images,
            self.config,
            processes=self.processes,
            state=state,
            on_step=on_step if is_main else None,
            on_mining=self.progress.task(f"mining, generation {number} epoch {epoch}"),
            save=self._save if is_main else None,
        )
        recalls = self._validate(self.generation.student)
        self.epoch = epoch
        if recalls is not None:
            self._keep(report, recalls)

    def _keep(self, report: StepReport, recalls: dict[int, float]) -> None:
        """Write down an epoch that is done: its network if it is the best, its metrics, a checkpoint."""
        number, select = self.generation.number, self.config.select_recall
        is_best = self.best is None or recalls[select] > self.best.recalls[select]
        if is_best:
            path = self.directory.best(number)
            self._save_network(path, self.generation.student, number, self.epoch, recalls)
            self.best = GenerationResult(number, self.epoch, recalls, path)
        self.directory.log(
            "epoch", generation=number, epoch=self.epoch, recalls=recalls, best=is_best, **vars(report)
        )
        self._save()
        self.progress.epoch(number, self.epoch, report, recalls, is_best)

    def _validate(self, network: DescriptorNetwork) -> dict[int, float] | None:
        """Validation recalls, in the main process."""
        progress = self.progress.task("validation")
        return validate(
            network, self.val, self.trunks.val, self.config, processes=self.processes, progress=progress
        )

    def _save_network(
        self, path: Path, network: DescriptorNetwork, number: int, epoch: int, recalls: dict[int, float]
    ) -> None:
        size = [self.config.height, self.config.width]
        meta = {"generation": number, "epoch": epoch, "recalls": recalls, "image_size": size}
        save_network(path, network, meta)

    def _log_start(self, *, resumed: bool) -> None:
        if self.processes.is_main:
            facts = {"processes": self.processes.count, "device": str(self.device), **host_facts()}
            self.directory.log("start", began=round(self.began, 3), resumed=resumed, **facts)

    def _save(self, state: EpochState | None = None) -> None:
        """Write a checkpoint, between two epochs or (``state``) within one."""
        if not self.processes.is_main:
            return
        facts = {
            "generation": self.generation.number,
            "epoch": self.epoch,
            "best": None if self.best is None else {"epoch": self.best.epoch, "recalls": self.best.recalls},
            "metrics_size": self.directory.metrics_size(),
        }
        save_state(self.directory.checkpoint, self.generation, state, facts)

    def restore(self) -> None:
        """Bring the run to where its checkpoint stands."""
        is_main = self.processes.is_main
        tensors, facts = load_checkpoint(self.directory.checkpoint) if is_main else (None, None)
        tensors, facts = self.processes.broadcast_tensors(tensors), self.processes.broadcast_object(facts)
        number, self.epoch = facts["generation"], facts["epoch"]
        left = (number, self.epoch) != (self.config.generations, self.config.epochs_of(number))
        if left:
            self._prepare()
        if is_main:
            self.results = [GenerationResult.read(self.directory.best(g)) for g in range(1, number)]
        self.generation = self._open(number)
        if is_main and facts["best"] is not None:
            # The file may be of a later epoch that was not checkpointed; that epoch is trained again.
            recalls = {int(n): recall for n, recall in facts["best"]["recalls"].items()}
            self.best = GenerationResult(number, facts["best"]["epoch"], recalls, self.directory.best(number))
        self.unfinished = load_state(self.generation, tensors, facts)
        if is_main:
            self.directory.cut_metrics(facts["metrics_size"])
        if left:
            self._log_start(resumed=True)
