"""``sfrs evaluate``: recall@N of a network on a data set."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sfrs.commands import options
from sfrs.commands.data_options import DataSet
from sfrs.commands.flags import command, option
from sfrs.runtime.atomic_io import write_json
from sfrs.runtime.errors import UserError, counted
from sfrs.runtime.terminal import plain, progress_tasks, show, table

if TYPE_CHECKING:
    from sfrs.data.places import Places
    from sfrs.models.model import Model
    from sfrs.retrieval.evaluation import Evaluation, Scoring

SHEET_ROWS = 12


@dataclass(frozen=True)
class Score:
    """What counts as found."""

    recall_at: str = option("Depths of recall.", "Scoring", default="1,5,10,20", metavar="N,N,...")
    radius: float = option("Metres within which an image is right.", "Scoring", default=25.0, min=0)
    nms: bool = option("Keep one image per panorama (Tokyo 24/7).", "Scoring", default=False)

    def parse(self) -> Scoring:
        from sfrs.retrieval.evaluation import Scoring

        return Scoring(_parse_depths(self.recall_at), self.radius, self.nms)


@dataclass(frozen=True)
class Output:
    """Where the result goes."""

    out: Path | None = option("Folder for results.json, predictions.csv and recall.png.", "Output")
    save_contact_sheet: bool = option(
        "Also write contact_sheet.png: queries with their top 5.", "Output", default=False
    )
    as_json: bool = option("Print JSON instead of a table.", "Output", default=False, flag="--json")


@command(
    "sfrs evaluate --data places/lund --weights runs/demo/best.safetensors --out runs/lund",
    "sfrs evaluate --data tokyo247.mat --weights sfrs.safetensors --nms --query-shorter-side 640",
    "sfrs evaluate --data data/city --weights runs/demo/best.safetensors --rerank regions",
    "sfrs evaluate --database walks/2023 --queries walks/2024 --out runs/walks",
    "sfrs evaluate --data photos/ --hold-out time",
    "sfrs evaluate --descriptors database.npy queries.npy --positions database.csv --positions queries.csv",
    "sfrs evaluate --data places/lund --json",
)
def evaluate(
    *,
    on: DataSet,
    weights: options.Weights,
    whitening: options.LearnedWhitening,
    images: options.Images,
    scored: Score,
    rerank: options.Rerank,
    output: Output,
    running: options.Running,
) -> None:
    """Compute recall@N: the share of queries with a right image among the first N found.

    A database image is right if it was taken within 25 m. Queries that have none are not counted.
    """
    _parse_depths(scored.recall_at)
    reranking = rerank.parse()
    reranking = None if reranking == "none" else reranking
    if output.save_contact_sheet and output.out is None:
        raise UserError("--save-contact-sheet needs --out DIR to write to.")
    if on.descriptors is not None:
        if weights.given or reranking or whitening.whitening or whitening.whiten:
            raise UserError(
                "--descriptors are scored as they are; leave out --weights, --whitening, --whiten and "
                "--rerank."
            )
        _evaluate_saved(on, scored, output)
        return
    reading = on.reading(on)
    data = on.path(reading)
    model = options.open_model(weights, whitening, images, running)

    from sfrs.data.places import load_places
    from sfrs.models.fitting import Fitting
    from sfrs.retrieval import evaluation

    places = load_places(data, on.split, reading)
    evaluation.check_answerable(places, scored.radius)
    skipped: list[tuple] = []
    settings = running.begin()
    clusters = options.cluster_options(model, weights.seed) | {"batch_size": running.batch_size}
    with progress_tasks() as tasks:
        if on.skip_bad_images:
            places, skipped = evaluation.without_bad_images(places, workers=settings["workers"], tasks=tasks)
        result = evaluation.evaluate(
            model,
            places,
            scoring=scored.parse(),
            rerank=reranking,
            query_size=on.query_size,
            fitting=Fitting(whitening.whiten, clusters),
            tasks=tasks,
            **settings,
        )
    summary = _facts(result, places)
    if reranking is not None and result.before is not None:
        summary["rerank"] = {"by": rerank.rerank, **asdict(reranking), **_gain(result.before, result)}
    applied = whitening.file(weights.weights, model.network)
    summary |= {
        "backbone": model.network.backbone.name,
        "network": model.network.meta,
        "image_size": options.describe_size(model.size),
        "skipped": [{"file": str(file), "reason": why} for file, why in skipped],
        "data": str(data.resolve()),
        "split": on.split,
        "reading": reading.given(),
        "nms": scored.nms,
        "weights": _source(weights, model),
        "whitening": str(applied.resolve()) if applied else None,
        "whitening_learned": applied is None and model.whitening is not None,
        "size": model.size,
        "query_size": on.query_size,
        "seed": weights.seed,
    }
    if output.out is not None:
        _write(output.out, summary, result, places, output.save_contact_sheet)
    _show(summary, skipped, output.out, output.as_json)


def _evaluate_saved(on: DataSet, scored: Score, output: Output) -> None:
    """Score descriptors that another program wrote."""
    from sfrs.data.places import load_places
    from sfrs.data.places.rows import read_rows
    from sfrs.retrieval.saved import evaluate_saved, load_descriptors

    if output.save_contact_sheet and on.data is None and on.database is None:
        raise UserError("--save-contact-sheet shows images; say which with --data.")
    tables, reading = on.positions or (), on.reading(replace(on, positions=None))
    database, queries = map(load_descriptors, on.descriptors or ())
    if on.data is None and on.database is None:
        places = read_rows(tables, (len(database), len(queries)), reading)
    elif tables:
        raise UserError("--positions places the rows of --descriptors; leave it out, or --data.")
    else:
        places = load_places(on.path(reading), on.split, reading)
    result = evaluate_saved(database, queries, places, scored.parse())
    summary = _facts(result, places) | {
        "descriptors": [str(file.resolve()) for file in on.descriptors or ()],
        "dim": database.shape[1],
        "split": places.split,
        "nms": scored.nms,
    }
    if output.out is not None:
        _write(output.out, summary, result, places, output.save_contact_sheet)
    _show(summary, [], output.out, output.as_json)


def _source(weights: options.Weights, model: Model) -> str:
    from sfrs.models.published import downloaded, published

    if weights.weights is not None:
        network = published(weights.weights)
        return str(weights.weights.resolve() if network is None else downloaded(network))
    return "random" if weights.random_weights else model.network.meta["source"]


def _parse_depths(text: str) -> tuple[int, ...]:
    try:
        depths = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        depths = ()
    if not depths or depths[0] < 1:
        raise UserError(f"--recall-at is {text!r}; expected whole numbers from 1, as 1,5,10,20.")
    return depths


def _facts(result: Evaluation, places: Places) -> dict:
    """What an evaluation says, whatever made the descriptors."""
    return {
        "name": places.name,
        "database": len(places.database),
        "queries": len(places.queries),
        "queries_without_positive": int((~result.answerable).sum()),
        "radius_m": result.radius,
        "unit": places.unit,
        "recalls": {str(n): recall for n, recall in result.recalls.items()},
        "recalls_of_all": {str(n): recall for n, recall in result.recalls_of_all().items()},
        "recalls_by_condition": _by_condition(result, places),
        "seconds": result.seconds,
    }


def _by_condition(result: Evaluation, places: Places) -> dict[str, dict[str, float]]:
    """Recalls by condition, where the data set names more than one and a query of it can be answered."""
    import numpy as np

    labels = places.queries.conditions
    names = list(dict.fromkeys(labels))
    if len(names) < 2:
        return {}
    masks = {name or "unknown": np.array([label == name for label in labels]) for name in names}
    return {
        name: {str(n): recall for n, recall in result.recalls_of(mask).items()}
        for name, mask in masks.items()
        if (mask & result.answerable).any()
    }


def _gain(before: Evaluation, after: Evaluation) -> dict:
    from sfrs.retrieval.mcnemar import mcnemar

    counted = after.answerable
    paired = mcnemar(after.hits(1)[counted], before.hits(1)[counted])
    return {
        "recalls_before": {str(n): recall for n, recall in before.recalls.items()},
        "recall_1_difference": paired.difference,
        "p_value": paired.p_value,
        "ms_per_query": 1000 * after.seconds["rerank"] / len(counted),
    }


def _write(out: Path, summary: dict, result: Evaluation, places: Places, save_contact_sheet: bool) -> None:
    from sfrs.retrieval import plots, results

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", summary)
    results.write_predictions(out / "predictions.csv", result, places)
    plots.recall_curves(
        {places.name: result.curve()}, out / "recall.png", title=f"{places.name}, {places.split}"
    )
    if save_contact_sheet:
        rows = results.sheet_rows(result, places, SHEET_ROWS)
        plots.contact_sheet(
            rows,
            out / "contact_sheet.png",
            title=f"{places.name}, {places.split}",
            subtitle=f"{len(rows)} of {len(places.queries)} queries, evenly spaced, with the 5 found first",
        )


def _show(summary: dict, skipped: list[tuple], out: Path | None, as_json: bool) -> None:
    console = Console()
    options.show_skipped(skipped)
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    shown = table(f"{summary['name']}, {summary['split']}", "recall@", summary["recalls"])
    reranked = summary.get("rerank")
    if reranked:
        _add_recalls(shown, "searched", reranked["recalls_before"])
    _add_recalls(shown, "re-ranked" if reranked else "%", summary["recalls"])
    left = summary["queries_without_positive"]
    if left:
        _add_recalls(shown, "% of all queries", summary["recalls_of_all"])
    for condition, recalls in summary["recalls_by_condition"].items():
        _add_recalls(shown, Text(plain(condition)), recalls)
    console.print(shown)
    if reranked:
        gain = f"{100 * reranked['recall_1_difference']:+.1f}, p = {reranked['p_value']:.1g}"
        console.print(
            f"Re-ranked: the first {reranked['depth']} by regions, score {reranked['score']}, "
            f"{reranked['ms_per_query']:.1f} ms per query; recall@1 {gain} (exact McNemar test)",
            highlight=False,
        )
    if "backbone" in summary:
        by = f"{summary['backbone']} at {summary['image_size']}"
        by += ", whitened by the database" if summary["whitening_learned"] else ""
    else:
        by = f"saved descriptors of {summary['dim']} numbers"
    without = counted(left, "query counts", "queries count")
    console.print(
        f"{counted(summary['queries'], 'query', 'queries')}, "
        f"{counted(summary['database'], 'database image')}, "
        f"right within {summary['radius_m']:g} {summary['unit']}; {by}"
        + (f"; {without} without a right image in the row of all queries alone" if left else ""),
        highlight=False,
    )
    if out is not None:
        show(f"Written to {out}")


def _add_recalls(table: Table, name: str | Text, recalls: dict[str, float]) -> None:
    table.add_row(name, *(f"{100 * recall:.1f}" for recall in recalls.values()))
