"""What a report is about: an evaluation read back from its folder, or made now of a training run."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from sfrs.data.places import Reading, load_places
from sfrs.data.places.formats import PLAIN
from sfrs.models.model import Model
from sfrs.models.weights_file import network_file
from sfrs.retrieval.evaluation import evaluate
from sfrs.retrieval.results import write_predictions
from sfrs.runtime.atomic_io import write_json
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Tasks, quiet
from sfrs.runtime.records import read_record
from sfrs.training.run_folder import RunDirectory
from sfrs.training.runs import read_metrics
from sfrs.web.report.recorded import (
    PREDICTIONS,
    RESULTS,
    Overrides,
    Recalls,
    Subject,
    find_path,
    read_evaluation,
)


class Row(TypedDict):
    label: str
    recalls: Recalls


class Demonstrated(TypedDict):
    """What of a demonstration's results.json a report needs."""

    rows: list[Row]


@dataclass(frozen=True)
class Running:
    """How a network is run, see `sfrs.retrieval.evaluation.evaluate`."""

    batch_size: int = 8
    workers: int = 2
    device: str = "cpu"
    tasks: Tasks = quiet


def read_subject(source: Path, out: Path, overrides: Overrides, running: Running) -> Subject:
    """Read an evaluation, or evaluate the best network of a training run.

    Args:
        source: a folder of ``sfrs evaluate --out``, of ``sfrs train`` or of ``sfrs demo``.
        out: where an evaluation made now is kept, so that the next report of this run finds it.

    Raises:
        UserError: the folder is none of these, or what it refers to has moved.
    """
    if (source / PREDICTIONS).is_file() and (source / RESULTS).is_file():
        if overrides.split:
            raise UserError(f"{source}: this is an evaluation already; --split is for training runs.")
        return read_evaluation(source, overrides)
    if (source / "config.json").is_file():
        run = RunDirectory(source)
        weights = overrides.weights or network_file(source)
        config = run.read()[0]
        data = overrides.data or find_path(config.data, source, "--data")
        subject = _evaluate_run(weights, data, out, overrides, running, config.reading())
        return replace(subject, histories={source.name: read_metrics(run.metrics)})
    if (source / "best.safetensors").is_file() and (source / "city").is_dir():
        return _demonstration(source, out, overrides, running)
    raise UserError(
        f"{source}: nothing to report on. Expected a folder written by sfrs evaluate --out ({RESULTS}, "
        f"{PREDICTIONS}), by sfrs train (config.json), by sfrs demo (best.safetensors, city), or an index."
    )


def _demonstration(source: Path, out: Path, overrides: Overrides, running: Running) -> Subject:
    weights, data = overrides.weights or source / "best.safetensors", overrides.data or source / "city"
    subject = _evaluate_run(weights, data, out, overrides, running)
    histories = {path.parent.name: read_metrics(path) for path in sorted(source.glob("*/metrics.jsonl"))}
    rows = read_record(source / RESULTS, Demonstrated)["rows"] if (source / RESULTS).is_file() else []
    compared = {row["label"]: row["recalls"] for row in rows}
    return replace(subject, histories=histories, compared=compared)


def _evaluate_run(
    weights: Path,
    data: Path,
    out: Path,
    overrides: Overrides,
    running: Running,
    reading: Reading = PLAIN,
) -> Subject:
    """Evaluate ``weights``, unless ``out`` holds this evaluation already."""
    weights = network_file(weights)
    model = Model.load(weights, device=running.device)
    folder = out / "evaluation"  # its own, so that out may be the folder of the run
    known = {
        "data": str(data.resolve()),
        "split": overrides.split or "test",
        "reading": reading.given(),
        "weights": str(weights.resolve()),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    kept = folder / RESULTS
    if not kept.is_file() or not known.items() <= read_record(kept, dict[str, Any]).items():
        places = load_places(data, overrides.split or "test", reading)
        result = evaluate(
            model, places, batch_size=running.batch_size, workers=running.workers, tasks=running.tasks
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_predictions(folder / PREDICTIONS, result, places)
        recalls = {str(n): recall for n, recall in result.recalls.items()}
        summary = {"name": places.name, "backbone": model.network.backbone.name, "radius_m": result.radius}
        write_json(kept, known | summary | {"size": model.size, "recalls": recalls})
    return read_evaluation(folder, Overrides())
