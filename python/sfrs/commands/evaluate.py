"""``sfrs evaluate``: recall@N of a network on a data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sfrs.commands import options
from sfrs.commands.data_options import DataSet
from sfrs.commands.flags import command, option
from sfrs.commands.recalls import facts, gain, show_recalls, write
from sfrs.runtime.errors import UserError
from sfrs.runtime.terminal import progress_tasks

if TYPE_CHECKING:
    from sfrs.models.model import Model
    from sfrs.retrieval.evaluation import Scoring


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
    "sfrs evaluate --index city.index --queries walks/2024",
    "sfrs evaluate --descriptors database.npy queries.npy --positions database.csv --positions queries.csv",
    "sfrs evaluate --data places/lund --json",
)
def evaluate(
    *,
    on: DataSet,
    index: Path | None = option(
        "Search in an index of sfrs index, or at its address in Milvus, by its own network, in place of the "
        "database. Queries are those of --data, or the photographs of --queries.",
        metavar="X.index",
    ),
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
    if index is not None:
        if weights.given or images.given or whitening != options.LearnedWhitening():
            raise UserError(
                f"{index} has its own network, whitening and image size; leave out --weights, --backbone, "
                "--whitening, --whiten and the size."
            )
        _evaluate_index(index, on, scored, rerank, output, running)
        return
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
    summary = facts(result, places)
    if reranking is not None and result.before is not None:
        summary["rerank"] = {"by": rerank.rerank, **asdict(reranking), **gain(result.before, result)}
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
        write(output.out, summary, result, places, output.save_contact_sheet)
    show_recalls(summary, skipped, output.out, output.as_json)


def _evaluate_index(
    path: Path,
    on: DataSet,
    scored: Score,
    rerank: options.Rerank,
    output: Output,
    running: options.Running,
) -> None:
    """Score what an index finds."""
    others = on.database, on.descriptors, on.hold_out, on.frames
    if (on.data is None) == (on.queries is None) or any(others):
        raise UserError(
            "--index is the database; which queries? Give --data PATH or --queries DIR, without --database, "
            "--descriptors, --hold-out and --frames."
        )

    from sfrs.retrieval.evaluation import without_bad_images
    from sfrs.retrieval.index import Index
    from sfrs.retrieval.indexed import evaluate_index, read_queries
    from sfrs.retrieval.locate import chosen_reranking

    settings, reading = running.begin(), on.reading(on)
    index = Index.open(path, device=running.on_device())
    reranking, skipped = chosen_reranking(index, rerank.parse()), []
    places = read_queries(on.data, on.split, reading, index)
    with progress_tasks() as tasks:
        if on.skip_bad_images:
            how = dict(workers=settings["workers"], tasks=tasks)
            places, skipped = without_bad_images(places, roles=["queries"], **how)
        result = evaluate_index(
            index,
            places,
            scoring=scored.parse(),
            rerank=reranking,
            query_size=on.query_size,
            tasks=tasks,
            **settings,
        )
    summary = facts(result, places)
    if reranking is not None and result.before is not None:
        summary["rerank"] = {"by": "regions", **asdict(reranking), **gain(result.before, result)}
    summary |= {
        "index": str(index.path),
        "kind": index.kind,
        "backbone": index.model.network.backbone.name,
        "network": index.model.network.meta,
        "image_size": options.describe_size(index.model.size),
        "skipped": [{"file": str(file), "reason": why} for file, why in skipped],
        "data": str((on.data or on.queries or Path()).resolve()),
        "split": on.split,
        "nms": scored.nms,
        "weights": str(index.path),
        "whitening_learned": False,
        "query_size": on.query_size,
    }
    if output.out is not None:
        write(output.out, summary, result, places, output.save_contact_sheet)
    show_recalls(summary, skipped, output.out, output.as_json)


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
    summary = facts(result, places) | {
        "descriptors": [str(file.resolve()) for file in on.descriptors or ()],
        "dim": database.shape[1],
        "split": places.split,
        "nms": scored.nms,
    }
    if output.out is not None:
        write(output.out, summary, result, places, output.save_contact_sheet)
    show_recalls(summary, [], output.out, output.as_json)


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
