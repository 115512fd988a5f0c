"""The main job from nothing: render a city, train a baseline and a generation of SFRS, test them, show the
result; then locate real photographs with a pretrained network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import sfrs_ext
from sfrs.data.places import Places, load_places
from sfrs.models.backbones import PretrainedWeightsError
from sfrs.models.model import DEFAULT, Model
from sfrs.models.network import DescriptorNetwork, save_network
from sfrs.retrieval.evaluation import Evaluation, evaluate
from sfrs.retrieval.plots import contact_sheet, recall_curves
from sfrs.retrieval.recall import mcnemar
from sfrs.retrieval.results import sheet_rows
from sfrs.runtime.atomic_io import refuse_foreign, write_json
from sfrs.runtime.progress import Tasks
from sfrs.synthetic.experiment import (
    GRADIENT,
    SCALES,
    SOFT_NEGATIVES,
    SOFTER_TEACHER,
    Experiment,
    Stopwatch,
)
from sfrs.training.run_folder import GenerationResult

SHEET_ROWS = 10
SHEET_TOP = 5

BEFORE, BASELINE = "before training", "SARE-ind, equally long"


@dataclass(frozen=True)
class Row:
    """One network of the demonstration.

    Attributes:
        passes: how often it (with the generations that taught it) saw every training query.
        epoch: of its generation, chosen by validation recall@5.
        recalls: on the test quarter, N -> recall@N in 0..1.
        validation: the same on the validation quarter.
        seconds: of the training up to here, of this process; 0 if it was trained before.
        gain: recall@1 minus that of the equally long baseline.
        p_value: of the paired test of that difference.
    """

    label: str
    passes: int
    epoch: int
    recalls: dict[int, float]
    validation: dict[int, float]
    seconds: float
    gain: float | None
    p_value: float | None


@dataclass(frozen=True)
class Photographs:
    """Real photographs, located by the default backbone with ImageNet's weights and their own clusters.

    Attributes:
        recalls: N -> recall@N in 0..1.
    """

    name: str
    queries: int
    database: int
    recalls: dict[int, float]


@dataclass(frozen=True)
class DemoResult:
    rows: list[Row]
    seconds: dict[str, float]
    queries: int
    files: dict[str, Path]
    photographs: Photographs | None


@dataclass(frozen=True)
class _Trained:
    label: str
    passes: int
    seconds: float
    best: GenerationResult
    network: DescriptorNetwork


def run_demo(
    out: str | Path,
    *,
    scale: str = "demo",
    seed: int = 0,
    backbone: str = GRADIENT,
    photos: str | Path | None = None,
    tasks: Tasks,
    say: Callable[[str], None],
) -> DemoResult:
    """Run the demonstration in the folder `out`, or finish one that was interrupted there.

    Writes city/ and pretext/ (data sets), pretext.safetensors, one folder per training run, best.safetensors,
    results.json, recall_curve.png and contact_sheet.png, and photographs.png if there are photographs.

    Args:
        backbone: "gradient", which a pretext trains from nothing, or one with published weights, whose last
            blocks are trained.
        photos: a data set of real photographs to locate at the end; left out, with a line that says so, where
            the default backbone's weights are not installed.

    Raises:
        UserError: `out` holds a demonstration of another seed or size, or `photos` is no data set.
    """
    out, watch = Path(out), Stopwatch()
    refuse_foreign(out, "city", "pretext")
    real = None if photos is None else load_places(photos, "test")
    out.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(
        out, SCALES[scale], seed, tasks=tasks, say=say, stopwatch=watch, backbone=backbone
    )
    trained = _train_all(experiment, watch)
    results = {t.label: experiment.test(t.network) for t in trained}
    rows = [_row(t, results) for t in trained]
    with watch("plots"):
        files = _write_pictures(out, experiment, trained, results)
    best = max(trained[1:], key=lambda t: t.best.recalls[5])
    save_network(out / "best.safetensors", best.network, {**best.network.meta, "label": best.label})
    files |= {"network": out / "best.safetensors", "results": out / "results.json"}
    located = None
    if real is not None:
        with watch("real photographs"):
            located = _locate_photographs(real, out / "photographs.png", tasks, say)
    if located is not None:
        files["photographs"] = out / "photographs.png"
    result = DemoResult(rows, dict(watch.seconds), len(results[BASELINE].correct), files, located)
    _write_results(result, experiment, scale)
    return result


def _train_all(experiment: Experiment, watch: Stopwatch) -> list[_Trained]:
    epochs = experiment.epochs
    first = experiment.train("generation_1", (epochs,), label="SARE-ind")
    trained = [
        _Trained(BEFORE, 0, 0.0, first.initial, first.network(0)),
        _Trained(
            "generation 1: SARE-ind", epochs, watch.seconds["train: SARE-ind"], first.final, first.network()
        ),
    ]
    for name, short, label, changes in (
        ("sfrs", "SFRS", "generation 2: SFRS", SOFTER_TEACHER),
        ("soft_negatives", "SFRS + negatives", "generation 2: + negatives", SOFT_NEGATIVES),
    ):
        run = experiment.train(name, (epochs, epochs), label=short, after="generation_1", **changes)
        seconds = trained[1].seconds + watch.seconds[f"train: {short}"]
        trained.append(_Trained(label, 2 * epochs, seconds, run.final, run.network()))
    long = experiment.train("baseline", (2 * epochs,), label="longer SARE-ind")
    trained.append(
        _Trained(BASELINE, 2 * epochs, watch.seconds["train: longer SARE-ind"], long.final, long.network())
    )
    return trained


def _row(trained: _Trained, results: dict[str, Evaluation]) -> Row:
    result, baseline = results[trained.label], results[BASELINE]
    against = mcnemar(result.hits(1), baseline.hits(1)) if trained.label != BASELINE else None
    return Row(
        label=trained.label,
        passes=trained.passes,
        epoch=trained.best.epoch,
        recalls=result.recalls,
        validation=trained.best.recalls,
        seconds=round(trained.seconds, 1),
        gain=against.difference if against else None,
        p_value=against.p_value if against else None,
    )


def _write_pictures(
    out: Path, experiment: Experiment, trained: list[_Trained], results: dict[str, Evaluation]
) -> dict[str, Path]:
    curve, sheet = out / "recall_curve.png", out / "contact_sheet.png"
    test = experiment.places["test"]
    recall_curves(
        {label: result.curve() for label, result in results.items()},
        curve,
        title=f"{len(test.queries):,} queries of a city not seen in training",
    )
    shown = max(trained[1:], key=lambda t: t.best.recalls[5])
    result = results[shown.label]
    contact_sheet(
        sheet_rows(result, test, SHEET_ROWS, top=SHEET_TOP),
        sheet,
        title=shown.label,
        subtitle=f"test queries and the first {SHEET_TOP} found; right is within {result.radius:g} m; "
        f"recall@1 {100 * result.recalls[1]:.1f} %",
        top=SHEET_TOP,
    )
    return {"recall curve": curve, "contact sheet": sheet}


def _locate_photographs(
    places: Places, sheet: Path, tasks: Tasks, say: Callable[[str], None]
) -> Photographs | None:
    """Locate the queries among the database's photographs and draw the first found; None without weights."""
    try:
        model = Model.load(DEFAULT)
    except PretrainedWeightsError as error:
        say(f"Real photographs are left out: {error}")
        return None
    result = evaluate(model, places, tasks=tasks)
    contact_sheet(
        sheet_rows(result, places, SHEET_ROWS, top=SHEET_TOP),
        sheet,
        title=f"{places.name}: {DEFAULT}, never trained for places",
        subtitle=f"queries and the first {SHEET_TOP} found; right is within {result.radius:g} m; "
        f"recall@1 {100 * result.recalls[1]:.1f} %",
        top=SHEET_TOP,
    )
    return Photographs(places.name, len(places.queries), len(places.database), result.recalls)


def _write_results(result: DemoResult, experiment: Experiment, scale: str) -> None:
    write_json(
        result.files["results"],
        {
            "rows": [asdict(row) for row in result.rows],
            "seconds": {stage: round(seconds, 1) for stage, seconds in result.seconds.items()},
            "queries": result.queries,
            "photographs": result.photographs and asdict(result.photographs),
            "size": scale,
            "seed": experiment.seed,
            "config": experiment.config((experiment.epochs,)).to_dict(),
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "sfrs_ext": getattr(sfrs_ext, "__version__", "unknown")},
        },
    )
