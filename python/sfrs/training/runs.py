"""Reading training runs from their directories, while they go on or later."""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypedDict

from sfrs.runtime.errors import UserError, counted
from sfrs.runtime.records import Natural, Positive, RecordError, as_record, parse_json
from sfrs.training.config import TrainConfig
from sfrs.training.run_folder import GenerationResult, RunDirectory

DEPTH = 3  # how many levels below a folder its runs are looked for
FINISHED, RUNNING, INTERRUPTED = "finished", "running", "interrupted"


class Kind(TypedDict):
    kind: str


class Logged(Kind, total=False):
    """What lines of ``metrics.jsonl`` may hold."""

    time: float  # in seconds since 1970
    began: float
    processes: Positive
    host: str
    versions: dict[str, str]
    generation: Positive
    epoch: Positive
    best: bool
    recalls: dict[int, float]
    step: Natural
    done: Natural
    of: Positive
    hard: float
    soft: float
    total: float
    learning_rate: float
    tuples_per_second: float
    images_per_second: float
    peak_bytes: Natural


LOSSES = ("generation", "epoch", "hard", "soft", "total")
NEEDED = {
    "initial": ("recalls",),
    "first_generation": ("recalls",),
    "step": (*LOSSES, "done", "of"),
    "epoch": (*LOSSES, "recalls"),
}
"""Kind of a line -> what it must hold."""


class Run:
    """A run's configuration, the lines of its ``metrics.jsonl``, and whether a process is training it now.

    Fields that an older version did not know have today's defaults, and those that this one does not know are
    as they were written.
    """

    def __init__(self, path: Path, config: dict[str, Any], lines: list[dict], *, held: bool) -> None:
        self.path, self.config, self.held = path, config, held
        self.lines, self.generations = lines, self.config["generations"]

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read a run. Raises `UserError` if ``path`` is not the directory of one."""
        directory = RunDirectory(path)
        config, lines = directory.read_config()["config"], read_metrics(directory.metrics)
        known = {f.name: config[f.name] for f in fields(TrainConfig) if f.name in config}
        config = {**config, **directory.checked(known).to_dict()}
        for line in lines:
            if line.get("generation", 1) > config["generations"]:
                raise UserError(
                    f"{directory.metrics}: a line is of generation {line['generation']}, but the run has "
                    f"{config['generations']}."
                )
        return cls(Path(path), config, lines, held=directory.is_held())

    def of_kind(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the lines of some kinds."""
        return [line for line in self.lines if line["kind"] in kinds]

    def epochs_of(self, generation: int) -> int:
        """Return the epochs of ``generation`` (counted from 1)."""
        epochs = self.config["epochs"]
        return epochs[min(generation, len(epochs)) - 1]

    @property
    def state(self) -> str:
        """Finished, running or interrupted."""
        if self.held:
            return RUNNING
        last = self.generations, self.epochs_of(self.generations)
        done = any((line["generation"], line["epoch"]) == last for line in self.of_kind("epoch"))
        return FINISHED if done else INTERRUPTED

    @property
    def position(self) -> tuple[int, int]:
        """Generation and epoch of what was logged last; (0, 0) before training."""
        logged = self.of_kind("step", "epoch", "first_generation")
        if not logged:
            return 0, 0
        return logged[-1].get("generation", 1), logged[-1].get("epoch", self.epochs_of(1))

    @property
    def latest(self) -> dict[str, Any]:
        """The last line that has a loss; empty before training."""
        return next(reversed(self.of_kind("step", "epoch")), {})

    @property
    def best(self) -> list[GenerationResult]:
        """Before training, and of every generation so far; epoch 0 also if another run trained it."""
        found: dict[int, GenerationResult] = {}
        for line in self.of_kind("initial", "first_generation", "epoch"):
            if line.get("best", True):
                generation = line.get("generation", int(line["kind"] == "first_generation"))
                weights = RunDirectory(self.path).best(generation)
                found[generation] = GenerationResult(
                    generation, line.get("epoch", 0), line["recalls"], weights
                )
        return [found[generation] for generation in sorted(found)]

    @property
    def seconds(self) -> float | None:
        """Time spent on what is logged, without that between a stop and going on; None if lines have none."""
        spent, began, last = 0.0, None, 0.0
        for line in self.lines:
            if "time" not in line:
                return None
            if line["kind"] == "start" or began is None:
                spent += 0.0 if began is None else last - began
                began = line.get("began", line["time"])
            last = line["time"]
        return None if began is None else spent + last - began


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``, or nothing if it is not there; see `read_lines`."""
    return read_lines(file.read_bytes(), file) if file.is_file() else []


def read_lines(text: bytes, file: Path) -> list[dict[str, Any]]:
    """Read lines of ``metrics.jsonl``, each as `Logged`.

    The last one may be half written. A warning counts other lines that are damaged, which are left out.
    """
    lines, bad = [], []
    whole, _, rest = text.rpartition(b"\n")
    for number, line in enumerate([*whole.split(b"\n"), rest], start=1):
        try:
            found = as_record(parse_json(line, number), Logged, number)
            if missing := [name for name in NEEDED.get(found["kind"], ()) if name not in found]:
                raise RecordError(f"{number}: no {', '.join(missing)} in it.")
            lines.append(found)
        except RecordError as error:
            bad += [str(error)] if line and line is not rest else []
    if bad:
        lost = counted(len(bad), "damaged line is", "damaged lines are")
        warnings.warn(f"{file}: {lost} left out, the first is line {bad[0]}", stacklevel=2)
    return lines


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Find the directories of runs among ``paths`` and, for folders that are none, below them.

    Raises `UserError` naming a path that is no folder or holds no run.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path}: there is no such directory; expected a run, or a folder of runs")
        below = _runs_below(path, DEPTH)
        if not below:
            raise UserError(f"{path}: there is no run here or up to {DEPTH} folders below (no config.json)")
        found += [run for run in below if run not in found]
    return found


def _runs_below(folder: Path, depth: int) -> list[Path]:
    if (folder / "config.json").is_file():
        return [folder]
    if depth == 0 or (folder / "images").is_dir():  # a data set, which holds files by the thousand
        return []
    children = sorted((child for child in folder.iterdir() if child.is_dir()), key=_natural)
    return [run for child in children for run in _runs_below(child, depth - 1)]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Return a key by which seed_10 comes after seed_2."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]


def labels(runs: Sequence[Run]) -> list[str]:
    """Return the last parts of the runs' paths, as few as tell them apart."""
    paths = [run.path.resolve().parts for run in runs]
    count = 1
    while len({path[-count:] for path in paths}) < len(paths):
        count += 1
    return ["/".join(path[-count:]) for path in paths]


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return configuration fields in which runs differ -> their values, in the order of the runs.

    Fields that decide no result are left out, except for the paths of data.
    """
    free = {f.name for f in fields(TrainConfig) if not f.metadata["compare"]} - {"data", "val_data"}
    names = dict.fromkeys(name for run in runs for name in run.config if name not in free)
    values = {name: [run.config.get(name) for run in runs] for name in names}
    return {name: of for name, of in values.items() if any(value != of[0] for value in of)}
