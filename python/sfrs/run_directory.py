"""What a training run leaves on disk, and reading it back::

config.json                     resolved configuration, and which images the run was made with
metrics.jsonl                   one JSON object a line: validation before training, steps, epochs
initial.safetensors             the network every student starts from
generation_N/best.safetensors   the best network of generation N by validation recall
checkpoints/latest.safetensors  everything needed to go on
recall.png                      validation recalls of the finished run
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import sfrs_ext
from sfrs.config import TrainConfig
from sfrs.descriptor import METADATA_KEY, DescriptorNetwork, load_network
from sfrs.errors import UserError
from sfrs.places import Places
from sfrs.results import write_json


@dataclass(frozen=True)
class GenerationResult:
    """The best network of a generation.

    Attributes:
        number: of the generation, from 1; 0 is the network before training.
        epoch: after which it was the best (0 before training).
        recalls: its validation recalls, N -> recall@N in 0..1.
        weights: its file.
    """

    number: int
    epoch: int
    recalls: dict[int, float]
    weights: Path

    @property
    def title(self) -> str:
        return f"generation {self.number}, epoch {self.epoch}" if self.number else "before training"

    @classmethod
    def read(cls, weights: Path) -> "GenerationResult":
        """From a file the run wrote. Raises `UserError` if another program wrote it."""
        with safe_open(weights, "pt") as file:
            meta = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}")).get("meta", {})
        if "generation" not in meta or "recalls" not in meta:
            raise UserError(f"{weights}: this network was not written by a training run")
        recalls = {int(n): recall for n, recall in meta["recalls"].items()}
        return cls(meta["generation"], meta["epoch"], recalls, weights)


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        initial: the network before training.
        generations: the best of each generation, in order.
    """

    run_dir: Path
    initial: GenerationResult
    generations: tuple[GenerationResult, ...]

    @property
    def final(self) -> GenerationResult:
        """The last generation's best."""
        return self.generations[-1]

    def network(self, generation: int | None = None) -> DescriptorNetwork:
        """The best network of a generation (0: before training; by default of the last one)."""
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

    def best(self, generation: int) -> Path:
        return self.path / f"generation_{generation}" / "best.safetensors"

    def refuse_existing(self) -> None:
        """Raise `UserError` if there is a run that could be resumed."""
        if self.checkpoint.exists():
            raise UserError(
                f"{self.path}: there is a run here already; resume it or choose another directory"
            )

    def create(self, config: TrainConfig, data: dict[str, Any]) -> None:
        """Begin the directory, over what a run left that stopped before its first checkpoint."""
        self.path.mkdir(parents=True, exist_ok=True)
        versions = {"torch": torch.__version__, "sfrs_ext": getattr(sfrs_ext, "__version__", "unknown")}
        write_json(self.config, {"config": config.to_dict(), "data": data, "versions": versions})
        self.metrics.write_text("")

    def read(self) -> tuple[TrainConfig, dict[str, Any]]:
        """Configuration and data of the run. Raises `UserError` if there is none."""
        try:
            stored = json.loads(self.config.read_text())
            return TrainConfig.from_dict(stored["config"]), stored["data"]
        except FileNotFoundError:
            raise UserError(f"{self.path}: there is no run here (no config.json)") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.config}: this is not the configuration of a run ({error})") from error

    def log(self, **line: Any) -> None:
        """Append a line to the metrics."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps(line) + "\n")

    def metrics_size(self) -> int:
        return self.metrics.stat().st_size

    def cut_metrics(self, size: int) -> None:
        """Drop what was logged after the checkpoint the run goes on from."""
        with open(self.metrics, "r+") as file:
            file.truncate(size)


def fingerprint(places: Places) -> dict[str, Any]:
    """What tells whether a resumed run gets the images it was started with; folders may have moved."""
    digest = hashlib.sha256()
    for images in (places.database, places.queries):
        digest.update("\n".join(file.name for file in images.files).encode())
        digest.update(images.positions.tobytes())
    return {
        "name": places.name,
        "split": places.split,
        "database": len(places.database),
        "queries": len(places.queries),
        "digest": digest.hexdigest()[:16],
    }
