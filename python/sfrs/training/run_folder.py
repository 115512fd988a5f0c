"""What a training run leaves on disk, and reading it back:

config.json                     resolved configuration, and which images the run was made with
metrics.jsonl                   one JSON object a line: validation before training, steps, epochs
initial.safetensors             the network every student starts from
generation_N/best.safetensors   the best network of generation N by validation recall
generation_N/last.safetensors   the network of its last epoch, if the configuration's teacher is last
checkpoints/latest.safetensors  everything needed to go on
recall.png                      validation recalls of the finished run
run.lock                        empty; locked by the process that trains here
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from typing_extensions import NotRequired, TypedDict

import sfrs_ext
from sfrs.data.places import Places
from sfrs.models.network import DescriptorNetwork, load_network
from sfrs.models.weights_file import METADATA_KEY
from sfrs.runtime.atomic_io import explained, lock_taken, write_json
from sfrs.runtime.errors import UserError
from sfrs.runtime.records import Natural, as_record, read_record
from sfrs.runtime.tensor_files import read_description
from sfrs.training.checkpoint import Best, load_checkpoint
from sfrs.training.config import ConfigError, TrainConfig

LOCK_SECONDS = 1.0  # how long to try for the lock, since a look at who holds it takes it for a moment


class BestMeta(Best):
    """What of a network's description a run adds."""

    generation: Natural


class Described(TypedDict):
    meta: BestMeta


class Start(TypedDict, total=False):
    """What a run needs that begins, see `run_start`."""

    resume: bool
    first_generation: str | None
    network_given: bool


class Stored(TypedDict):
    """The content of config.json: the configuration, and of each split the fingerprint of its images."""

    config: dict[str, Any]
    data: dict[str, dict[str, Any]]
    start: NotRequired[Start]
    versions: NotRequired[dict[str, str]]


class GenerationResult(NamedTuple):
    """The best network of a generation; the network before training is of generation 0 and epoch 0."""

    number: int  # of the generation
    epoch: int  # after which it was the best
    recalls: dict[int, float]  # of the validation images: N -> recall@N in 0..1
    weights: Path

    @property
    def title(self) -> str:
        return f"generation {self.number}, epoch {self.epoch}" if self.number else "before training"

    @classmethod
    def read(cls, weights: Path) -> "GenerationResult":
        """Read a file the run wrote. Raises `UserError` if it is missing, or another program wrote it."""
        where = f"{weights}: this network was not written by a training run"
        meta = as_record(read_description(weights, METADATA_KEY), Described, where)["meta"]
        return cls(meta["generation"], meta["epoch"], meta["recalls"], weights)


class RunResult(NamedTuple):
    """A finished run: the network before training, and the best of each generation in order."""

    run_dir: Path
    initial: GenerationResult
    generations: tuple[GenerationResult, ...]

    @property
    def final(self) -> GenerationResult:
        """The last generation's best."""
        return self.generations[-1]

    def network(self, generation: int | None = None) -> DescriptorNetwork:
        """Load the best network of a generation (0: before training; by default of the last one)."""
        results = (self.initial, *self.generations)
        return load_network(results[-1 if generation is None else generation].weights)


class RunDirectory:
    """The paths of a run, and its metrics file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.plot = self.path / "recall.png"
        self.initial = self.path / "initial.safetensors"
        self.checkpoint = self.path / "checkpoints" / "latest.safetensors"
        self.lock = self.path / "run.lock"

    def best(self, generation: int) -> Path:
        """Return the file of the best network of ``generation``; of 0, the one before training."""
        return self.teacher(generation, "best") if generation else self.initial

    def teacher(self, generation: int, kind: str) -> Path:
        """Return the file of the ``best`` network of ``generation``, or of that of its ``last`` epoch."""
        return self.path / f"generation_{generation}" / f"{kind}.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run as long as this process lives. Raises `UserError` if another process trains here."""
        with explained(self.lock):
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.lock, "a")
        with file:
            patience = time.monotonic() + LOCK_SECONDS
            while not lock_taken(file, fcntl.LOCK_EX):
                if time.monotonic() > patience:
                    raise UserError(f"{self.path}: another process is training here; wait until it has ended")
                time.sleep(0.05)
            yield

    def is_held(self) -> bool:
        """Tell whether a process of this machine is training here (on some network disks: of any machine)."""
        try:
            with open(self.lock) as file:
                return not lock_taken(file, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False

    def create(self, config: TrainConfig, data: dict[str, Any], start: dict[str, Any]) -> None:
        """Begin the directory, over what a run left that stopped before its first checkpoint; ``start`` is of
        `run_start`.
        """
        versions = {"torch": torch.__version__, "sfrs_ext": getattr(sfrs_ext, "__version__", "unknown")}
        content = {"config": config.to_dict(), "data": data, "start": start, "versions": versions}
        write_json(self.config, content)
        with explained(self.metrics):
            self.metrics.write_text("")

    def read_config(self) -> Stored:
        """Read what `create` wrote. Raises `UserError` if there is none."""
        if not self.config.is_file():
            raise UserError(f"{self.path}: there is no run here (no config.json)")
        return read_record(self.config, Stored)

    def read(self) -> tuple[TrainConfig, dict[str, dict]]:
        """Read configuration and data of the run. Raises `UserError` if there is none it can read."""
        stored = self.read_config()
        return self.checked(stored["config"]), stored["data"]

    def checked(self, values: dict[str, Any]) -> TrainConfig:
        """Return field values as a configuration. Raises `ConfigError` that names this run's file."""
        try:
            return TrainConfig.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{self.config}: {error}") from error

    def log(self, kind: str, **line: Any) -> None:
        """Append a line to the metrics. Raises `WriteError` and leaves no part of it, if it does not fit."""
        text = json.dumps({"kind": kind, "time": round(time.time(), 3), **line}) + "\n"
        with explained(self.metrics, size=len(text)), open(self.metrics, "ab", buffering=0) as file:
            before, left = file.seek(0, os.SEEK_END), text.encode()
            try:
                while left:  # what does not fit is cut off first, and refused when it is tried again
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(before)
                raise

    def metrics_size(self) -> int:
        """Return the bytes of the metrics, which have reached the disk."""
        with explained(self.metrics), open(self.metrics, "rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def cut_metrics(self, size: int) -> None:
        """Drop what was logged after the checkpoint the run goes on from, and a line that is not whole."""
        with explained(self.metrics), open(self.metrics, "a+b") as file:
            file.seek(0)
            kept = file.read(size)
            file.truncate(kept.rfind(b"\n") + 1)


def run_start(
    directory: RunDirectory,
    config: TrainConfig,
    data: dict[str, Any],
    first_generation: str | None,
    resume: bool,
    network_given: bool,
) -> dict[str, Any]:
    """Decide how a run begins: whether from a checkpoint, and what it takes over.

    Returns JSON: ``resume``, whether there is a checkpoint to go on from; else ``first_generation``, the
    directory of another run or None, and ``network_given``. Raises as `sfrs.training.trainer.train` does.
    """
    path = directory.path
    if resume:
        stored, stored_data = directory.read()
        different = stored.differences(config) + _data_differences(stored_data, data)
        if different:
            lines = "\n  ".join(different)
            raise UserError(f"{path}: cannot resume, the run was started otherwise:\n  {lines}")
        if directory.checkpoint.exists():
            return {"resume": True, "first_generation": None}
        start = directory.read_config().get("start", {})
        if start.get("network_given", False) and not network_given:
            raise UserError(f"{path}: the run stopped before its first checkpoint; begin it anew")
        first_generation = start.get("first_generation", first_generation)
    elif directory.checkpoint.exists():
        raise UserError(f"{path}: there is a run here already; resume it or choose another directory")
    if first_generation is not None:
        if config.generations < 2:
            raise UserError("first_generation is given, but generations is 1, expected at least 2")
        _check_first_generation(RunDirectory(first_generation), data, config.teacher)
    return {"resume": False, "first_generation": first_generation, "network_given": network_given}


def _check_first_generation(directory: RunDirectory, data: dict[str, Any], teacher: str) -> None:
    config, its_data = directory.read()
    if its_data != data:
        raise UserError(f"{directory.path}: the run was made with other images than this one")
    finished = directory.best(1).exists()
    if finished and directory.checkpoint.exists():  # else only the networks were kept
        facts = load_checkpoint(directory.checkpoint)[1]
        finished = facts["generation"] > 1 or facts["epoch"] >= config.epochs_of(1)
    if not finished:
        raise UserError(f"{directory.path}: the run has not finished generation 1 yet")
    if not directory.teacher(1, teacher).exists():
        raise UserError(
            f"{directory.path}: teacher is {teacher}, but the run did not keep that network of generation 1"
        )


def fingerprint(places: Places) -> dict[str, Any]:
    """Collect what tells whether a resumed run gets the images it was started with.

    Of every image the file's name, the position, the place and the time stamp count, in their order; folders
    may have moved. What the images show does not: a damaged one may be repaired.
    """
    digest = hashlib.sha256()
    for images in (places.database, places.queries):
        digest.update("\n".join(file.name for file in images.files).encode(errors="surrogateescape"))
        digest.update(images.positions.tobytes())
        digest.update(images.place_ids.tobytes())
        if images.time_stamps is not None:
            digest.update(images.time_stamps.tobytes())
    return {
        "name": places.name,
        "split": places.split,
        "database": len(places.database),
        "queries": len(places.queries),
        "digest": digest.hexdigest()[:16],
    }


_DIFFERENCES = {
    "name": "data set: {} -> {}",
    "database": "database: {} -> {} images",
    "queries": "queries: {} -> {} images",
    "digest": "images: as many, but with other names, positions, places or time stamps, or in another order",
}


def _data_differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Say in words what is different between the images of two runs, each ``{split: fingerprint}``."""
    found = []
    for split, ours in given.items():
        theirs = stored.get(split, {})
        different = [key for key in _DIFFERENCES if theirs.get(key) != ours[key]]
        if len(different) > 1 and "digest" in different:  # it says no more than the others
            different.remove("digest")
        found += [f"{split} {_DIFFERENCES[key].format(theirs.get(key), ours[key])}" for key in different]
    return found
