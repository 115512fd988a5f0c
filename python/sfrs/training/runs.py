"""What training runs have come to, read from their directories while they go on, or later."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sfrs.runtime.errors import UserError
from sfrs.training.config import TrainConfig
from sfrs.training.run_folder import RunDirectory

DEPTH = 3
"""How many levels below a folder its runs are looked for."""

FINISHED, RUNNING, INTERRUPTED = "finished", "running", "interrupted"


@dataclass(frozen=True)
class Best:
    """The best network of a generation so far.

    Attributes:
        generation: 0 for the network before training.
        epoch: 0 for that, and for a generation that was taken from another run.
        recalls: N -> recall@N in 0..1.
    """

    generation: int
    epoch: int
    recalls: dict[int, float]


@dataclass(frozen=True)
class Point:
    """A value at a moment of a run.

    Attributes:
        generation: it belongs to.
        passes: epochs trained before that moment over all generations, with a fraction within an epoch.
    """

    generation: int
    passes: float
    value: float


class Run:
    """A run's configuration and what it has logged.

    Args:
        config: field values; those that an older version did not know have today's defaults.
        lines: of ``metrics.jsonl``.
        held: a process is training it now.
    """

    def __init__(self, path: Path, config: dict[str, Any], lines: list[dict], *, held: bool) -> None:
        self.path, self.config, self.held = path, {**TrainConfig().to_dict(), **config}, held
        self.lines = lines
        self.steps = [line for line in lines if line["kind"] == "step"]
        self.epochs = [line for line in lines if line["kind"] == "epoch"]
        self.starts = [line for line in lines if line["kind"] == "start"]

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Raises `UserError` if ``path`` is not the directory of a run."""
        directory = RunDirectory(path)
        try:
            config = json.loads(directory.config.read_text("utf-8"))["config"]
        except FileNotFoundError:
            raise UserError(f"{path}: there is no run here (no config.json)") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{directory.config}: this is not the configuration of a run ({error})"
            ) from error
        if not isinstance(config, dict):
            raise UserError(f"{directory.config}: this is not the configuration of a run")
        return cls(Path(path), config, read_metrics(directory.metrics), held=directory.is_held())

    @property
    def generations(self) -> int:
        return self.config["generations"]

    def epochs_of(self, generation: int) -> int:
        """Epochs of ``generation`` (counted from 1)."""
        epochs = self.config["epochs"]
        return epochs[min(generation, len(epochs)) - 1]

    @property
    def state(self) -> str:
        """Finished, running or interrupted."""
        if self.held:
            return RUNNING
        last = self.generations, self.epochs_of(self.generations)
        done = any((line["generation"], line["epoch"]) == last for line in self.epochs)
        return FINISHED if done else INTERRUPTED

    @property
    def position(self) -> tuple[int, int]:
        """Generation and epoch of what was logged last; (0, 0) before training."""
        logged = [line for line in self.lines if line["kind"] in ("step", "epoch", "first_generation")]
        if not logged:
            return 0, 0
        return logged[-1].get("generation", 1), logged[-1].get("epoch", self.epochs_of(1))

    @property
    def latest(self) -> dict[str, Any]:
        """The last line that has a loss; empty before training."""
        return next((line for line in reversed(self.lines) if line["kind"] in ("step", "epoch")), {})

    @property
    def best(self) -> list[Best]:
        """Before training, and of every generation that has one, in order."""
        found: dict[int, Best] = {}
        for line in self.lines:
            if line["kind"] == "initial":
                found[0] = Best(0, 0, _recalls(line))
            elif line["kind"] == "first_generation":
                found[1] = Best(1, 0, _recalls(line))
            elif line["kind"] == "epoch" and line["best"]:
                found[line["generation"]] = Best(line["generation"], line["epoch"], _recalls(line))
        return [found[generation] for generation in sorted(found)]

    @property
    def seconds(self) -> float | None:
        """Time spent on what is logged, without the time between a stop and going on; None where lines have
        no time."""
        spent, began, last = 0.0, None, None
        for line in self.lines:
            if "time" not in line:
                return None
            if line["kind"] == "start" or began is None:
                spent += 0.0 if began is None else last - began
                began = line.get("began", line["time"])
            last = line["time"]
        return None if began is None else spent + last - began

    def losses(self, kind: str = "epoch", part: str = "total") -> list[Point]:
        """Means of the epochs, in their middle; or with ``kind`` "step" the losses of single steps.

        Args:
            part: "hard", "soft" or "total".
        """
        lines = self.steps if kind == "step" else self.epochs
        return [
            Point(
                line["generation"],
                self._before(line) + (line["done"] / line["of"] if kind == "step" else 0.5),
                line[part],
            )
            for line in lines
        ]

    def recalls(self, n: int) -> list[Point]:
        """Validation recall@n after every epoch, where it was measured."""
        return [
            Point(line["generation"], self._before(line) + 1.0, _recalls(line)[n])
            for line in self.epochs
            if n in _recalls(line)
        ]

    def starts_at(self, generation: int) -> int:
        """Epochs of all generations before ``generation``."""
        return sum(self.epochs_of(g) for g in range(1, generation))

    def _before(self, line: dict[str, Any]) -> int:
        return self.starts_at(line["generation"]) + line["epoch"] - 1


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; one that is half written (or no line of ours) is left out."""
    if not file.exists():
        return []
    lines = []
    for text in file.read_text("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "kind" in line:
            lines.append(line)
    return lines


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The directories of runs among ``paths`` and, for folders that are none, below them.

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
    """A key by which seed_10 comes after seed_2."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]


def labels(runs: Sequence[Run]) -> list[str]:
    """The last parts of the runs' paths, as few as tell them apart."""
    paths = [run.path.resolve().parts for run in runs]
    count = 1
    while len({path[-count:] for path in paths}) < len(paths):
        count += 1
    return ["/".join(path[-count:]) for path in paths]


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Configuration fields in which runs differ -> their values, in the order of the runs.

    Fields that decide no result are left out, except for the paths of data.
    """
    free = {f.name for f in fields(TrainConfig) if not f.metadata["compare"]} - {"data", "val_data"}
    names = dict.fromkeys(name for run in runs for name in run.config if name not in free)
    values = {name: [run.config.get(name) for run in runs] for name in names}
    return {name: of for name, of in values.items() if any(value != of[0] for value in of)}


def _recalls(line: dict[str, Any]) -> dict[int, float]:
    return {int(n): recall for n, recall in line["recalls"].items()}
