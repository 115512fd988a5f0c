"""The loop over generations of students, each taught by a network of the one before (SFRS, 3.3)."""

import copy
import shutil
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from sfrs.data.neighbourhood import Neighbourhood
from sfrs.data.places import Places
from sfrs.models.network import DescriptorNetwork, load_network, save_network
from sfrs.retrieval.evaluation import Scoring, check_answerable, score, search_depth
from sfrs.retrieval.plots import recall_curves
from sfrs.retrieval.recall import RECALL_AT
from sfrs.retrieval.search import search
from sfrs.runtime.atomic_io import replaced
from sfrs.runtime.distributed import Processes, processes
from sfrs.runtime.errors import UserError
from sfrs.runtime.host import host_facts
from sfrs.training import preparation
from sfrs.training.checkpoint import load_checkpoint, load_state, save_state
from sfrs.training.config import TrainConfig
from sfrs.training.epoch import Epoch, EpochState, describe_in_shares
from sfrs.training.mining import Miner
from sfrs.training.progress import StepReport, TrainingProgress
from sfrs.training.run_folder import GenerationResult, RunDirectory, RunResult, fingerprint, run_start
from sfrs.training.step import StudentTeacher, sgd


def train(
    places: str | Path | tuple[Places, Places],
    config: TrainConfig,
    out: str | Path = "runs/sfrs",
    *,
    network: DescriptorNetwork | None = None,
    features: preparation.RunFeatures | None = None,
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
        places: to train on, and to validate on; or the data set to read them from as ``config`` says.
        out: directory of the run, see `sfrs.training.run_folder`.
        network: to start from, with its weights; it is copied. By default ``config.backbone`` with
            ``config.weights``. Either way ``config.init`` decides about NetVLAD's weights.
        features: from `build_features` of a network with the same trunk; by default computed here.
        first_generation: directory of a run whose initial network and generation 1 are taken over, so that
            several runs can share them.
        resume: go on with the run in ``out`` after its last checkpoint, or from the beginning if there is
            none yet. ``network`` and ``first_generation`` are then read from there.
        progress: watches.

    Raises:
        UserError: the directory holds a run already, or another process trains there; or, resuming, the
            configuration or the images differ from the run's; or ``first_generation`` is of other images or
            not finished; or the images cannot be trained on or read.
        DivergedError: a loss is not finite; the message names the tuple.
        WriteError: the disk is full; the run can be resumed from its last checkpoint.
    """
    joined, directory = processes(), RunDirectory(out)
    watched = (joined.is_main and progress) or TrainingProgress()
    if isinstance(places, str | Path):
        config = config.changed(data=str(places))
        with warnings.catch_warnings():
            if not joined.is_main:
                warnings.simplefilter("ignore")  # the main one reads the same
            places = preparation.load_splits(config, watched)
    check_answerable(places[1], config.negative_radius)
    data = {role: fingerprint(split) for role, split in zip(("train", "val"), places, strict=True)}
    preparation.check_processes(joined, config, data)
    if resume:
        directory.read()  # before a folder is made for the lock
    elif network is not None:
        preparation.check_network(config, network)
    with directory.locked() if joined.is_main else nullcontext():
        start = None
        if joined.is_main:
            first = None if first_generation is None else str(first_generation)
            start = run_start(directory, config, data, first, resume, network is not None)
        start = joined.broadcast(start)
        first = start["first_generation"]
        if start["resume"] or first is not None:
            network = load_network((directory if first is None else RunDirectory(first)).initial)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = preparation.build_network(config) if network is None else copy.deepcopy(network)
            preparation.check_network(config, network)
            preparation.share_weights(network, joined)
            run = _Run(places, config, directory, network, features, joined, watched)
            if joined.is_main and not start["resume"]:
                directory.create(config, data, start)
            if start["resume"]:
                run.restore()
            else:
                run.start(None if first is None else RunDirectory(first))
            return run.finish()


@dataclass
class _Run:
    """A run in progress, seen from one of its processes."""

    places: tuple[Places, Places]
    config: TrainConfig
    directory: RunDirectory
    initial: DescriptorNetwork
    features: preparation.RunFeatures | None
    processes: Processes
    progress: TrainingProgress

    def __post_init__(self) -> None:
        self.began = time.time()  # before the frozen features
        self.device = self.processes.device(self.config.device)
        self.initial = self.initial.to(self.device).eval()
        radii = self.config.positive_radius, self.config.negative_radius
        self.neighbourhood = Neighbourhood.of_places(self.places[0], *radii)
        self.pair = self._open(1)
        self.epoch = 0  # epochs of this generation that are done
        self.unfinished: EpochState | None = None  # the epoch a checkpoint was written in
        self.best: GenerationResult | None = None  # of this generation; only the main process knows it

    def start(self, first_generation: RunDirectory | None) -> None:
        """Begin with generation 1, or after the generation 1 of another run."""
        self._prepare(resumed=False)
        if first_generation is None:
            self._initialise()
            self.pair = self._open(1)
        else:
            self.epoch = self.config.epochs_of(1)
            if self.processes.is_main:
                self._take_over(first_generation)
        self._save()

    def restore(self) -> None:
        """Bring the run to where its checkpoint stands."""
        tensors, facts = load_checkpoint(self.directory.checkpoint)
        number, self.epoch, best = facts["generation"], facts["epoch"], facts["best"]
        most = self.config.epochs_of(number)
        if number > self.config.generations or self.epoch > most:
            raise UserError(
                f"{self.directory.checkpoint}: it is of generation {number}, epoch {self.epoch}, but the run "
                f"has {self.config.generations} generations, this one of {most} epochs."
            )
        for earlier in range(number):  # before anything is computed
            GenerationResult.read(self.directory.best(earlier))
        if self.processes.is_main:
            self.directory.cut_metrics(facts["metrics_size"])
        if (number, self.epoch) != (self.config.generations, self.config.epochs_of(number)):
            self._prepare(resumed=True)
        self.pair = self._open(number)
        if best is not None:
            # The file may be of a later epoch that was not checkpointed; that epoch is trained again.
            file = self.directory.best(number)
            GenerationResult.read(file)
            self.best = GenerationResult(number, best["epoch"], best["recalls"], file)
        self.unfinished = load_state(self.directory.checkpoint, self.pair, tensors, facts)

    def finish(self) -> RunResult:
        """Train what is left."""
        while True:
            while self.epoch < self.config.epochs_of(self.pair.generation):
                self._train_epoch()
            self.processes.barrier()  # the main process has written what the others read
            if self.pair.generation == self.config.generations:
                return self._result()
            self.best = None
            self.pair = self._open(self.pair.generation + 1)
            self.epoch = 0

    def _prepare(self, *, resumed: bool) -> None:
        """Compute frozen features, unless they were given, and log the start."""
        self.features = self.features or preparation.build_features(
            self.config,
            self.initial,
            self.places,
            directory=self.directory.path,
            progress=self.progress,
            processes=self.processes,
        )
        self.images = preparation.training_images(
            self.config, self.initial, self.places[0], self.features.train
        )
        if self.processes.is_main:
            facts = {"processes": self.processes.count, "device": str(self.device), **host_facts()}
            self.directory.log("start", began=round(self.began, 3), resumed=resumed, **facts)

    def _initialise(self) -> None:
        if self.config.init == "kmeans" and self.processes.is_main:
            preparation.init_clusters(self.config, self.initial, self.images)
        preparation.share_weights(self.initial, self.processes)
        recalls = self._validate(self.initial)
        if recalls is not None:
            self._save_network(self.directory.initial, self.initial, recalls)
            self.directory.log("initial", recalls=recalls)

    def _take_over(self, first_generation: RunDirectory) -> None:
        files = (
            (run.initial, run.best(1), run.teacher(1, self.config.teacher))
            for run in (first_generation, self.directory)
        )
        for theirs, ours in dict(zip(*files, strict=True)).items():
            with replaced(ours, size=theirs.stat().st_size) as partial:
                shutil.copyfile(theirs, partial)
        self.best = GenerationResult.read(self.directory.best(1))
        self.directory.log("first_generation", run=str(first_generation.path), recalls=self.best.recalls)

    def _open(self, generation: int) -> StudentTeacher:
        """Make a fresh student, and its teacher: a network of the generation before, frozen."""
        config = self.config
        seed = config.seed * 1_000_003 + generation
        torch.manual_seed(seed)
        student, teacher = copy.deepcopy(self.initial), None
        if generation > 1:
            teacher = load_network(self.directory.teacher(generation - 1, config.teacher)).to(self.device)
            teacher.eval().requires_grad_(False)
        miner = Miner(self.neighbourhood, config, seed=seed)
        return StudentTeacher(generation, student, teacher, sgd(student, config), miner)

    def _train_epoch(self) -> None:
        generation, epoch = self.pair.generation, self.epoch + 1

        def on_step(report: StepReport) -> None:
            if report.step % self.config.log_every == 0:
                self.directory.log("step", generation=generation, epoch=epoch, **vars(report))
            self.progress.step(generation, epoch, report)

        is_main, (state, self.unfinished) = self.processes.is_main, (self.unfinished, None)
        report = Epoch(self.pair, epoch, self.images, self.config, self.processes, state).train(
            on_step if is_main else None,
            self.progress.task(f"mining, generation {generation} epoch {epoch}"),
            self._save if is_main else None,
        )
        recalls = self._validate(self.pair.student)
        self.epoch = epoch
        if recalls is not None:
            self._keep(report, recalls)

    def _keep(self, report: StepReport, recalls: dict[int, float]) -> None:
        """Write down an epoch that is done: its network if it is needed, its metrics, a checkpoint."""
        generation, select = self.pair.generation, self.config.select_recall
        best = self.best is None or recalls[select] > self.best.recalls[select]
        if best:
            self.best = self._save_network(self.directory.best(generation), self.pair.student, recalls)
        if self.config.teacher == "last" and self.epoch == self.config.epochs_of(generation):
            self._save_network(self.directory.teacher(generation, "last"), self.pair.student, recalls)
        facts = {"recalls": recalls, "best": best, **vars(report)}
        self.directory.log("epoch", generation=generation, epoch=self.epoch, **facts)
        self._save()
        self.progress.epoch(generation, self.epoch, report, recalls, best)

    def _validate(self, network: DescriptorNetwork) -> dict[int, float] | None:
        """Return N -> recall@N in 0..1 in the main process, None in the others, which only describe."""
        places, progress = self.places[1], self.progress.task("validation")
        assert self.features is not None  # once the run is prepared
        count = len(places.queries)
        numbers = torch.arange(count + len(places.database))
        described = describe_in_shares(
            network, self.features.val, numbers, self.config, self.processes, progress
        )
        if described is None:
            return None
        described = described.cpu().numpy()
        ns = sorted({*RECALL_AT, self.config.select_recall})
        _, predictions = search(described[count:], described[:count], search_depth(places, max(ns)))
        return score(places, predictions, Scoring(ns, self.config.negative_radius)).recalls

    def _save_network(
        self, path: Path, network: DescriptorNetwork, recalls: dict[int, float]
    ) -> GenerationResult:
        """Write the network of the epoch that is done, or (epoch 0) the initial one."""
        generation = self.pair.generation if self.epoch else 0
        size = [self.config.height, self.config.width]
        facts = {"generation": generation, "epoch": self.epoch, "recalls": recalls, "image_size": size}
        save_network(path, network, facts)
        return GenerationResult(generation, self.epoch, recalls, path)

    def _save(self, state: EpochState | None = None) -> None:
        """Write a checkpoint, between two epochs or (``state``) within one."""
        if not self.processes.is_main:
            return
        facts = {
            "generation": self.pair.generation,
            "epoch": self.epoch,
            "best": None if self.best is None else {"epoch": self.best.epoch, "recalls": self.best.recalls},
            "metrics_size": self.directory.metrics_size(),
        }
        save_state(self.directory.checkpoint, self.pair, state, facts)

    def _result(self) -> RunResult:
        numbers = range(self.config.generations + 1)
        initial, *generations = results = [GenerationResult.read(self.directory.best(n)) for n in numbers]
        if self.processes.is_main:
            curves = {result.title: result.recalls for result in results}
            recall_curves(curves, self.directory.plot, title=f"{self.places[1].name}, validation")
        return RunResult(self.directory.path, initial, tuple(generations))
