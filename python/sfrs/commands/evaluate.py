"""``sfrs evaluate``: recall@N of a network on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfrs.commands import network as shared
from sfrs.commands import reranking
from sfrs.runtime.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from sfrs.data.images import Size
    from sfrs.data.places import Places
    from sfrs.models.network import DescriptorNetwork
    from sfrs.retrieval.evaluation import Evaluation

EXAMPLES = """
[b]Examples[/b]

  sfrs evaluate --data places/lund --weights runs/demo/best.safetensors --out runs/lund

  sfrs evaluate --data tokyo247.mat --weights sfrs.safetensors --nms --query-shorter-side 640

  sfrs evaluate --data data/city --weights runs/demo/best.safetensors --rerank regions

  sfrs evaluate --data places/lund --json
"""
SHEET_ROWS = 12


def register(app: typer.Typer) -> None:
    app.command("evaluate", epilog=EXAMPLES)(evaluate)


def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="Folder with images/SPLIT/{database,queries}/@easting@northing@...jpg, a .mat file of "
            "Pittsburgh or Tokyo, the root of MSLS, or a CSV manifest.",
            show_default=False,
        ),
    ],
    split: Annotated[str, typer.Option("--split", help="Which split of it.")] = "test",
    weights: shared.Weights = None,
    backbone: shared.Backbone = None,
    random_weights: shared.RandomWeights = False,
    whitening: shared.WhiteningFile = None,
    image_size: shared.ImageSize = None,
    shorter_side: shared.ShorterSide = None,
    keep_size: shared.KeepSize = False,
    query_shorter_side: Annotated[
        int | None,
        typer.Option(
            "--query-shorter-side",
            metavar="N",
            min=16,
            help="Resize queries otherwise than the database (Tokyo 24/7: 640).",
            rich_help_panel="Images",
            show_default=False,
        ),
    ] = None,
    skip_bad_images: shared.SkipBadImages = False,
    recall_at: Annotated[
        str,
        typer.Option("--recall-at", metavar="N,N,...", help="Depths of recall.", rich_help_panel="Scoring"),
    ] = "1,5,10,20",
    radius: Annotated[
        float,
        typer.Option(
            "--radius", min=0, help="Metres within which an image is right.", rich_help_panel="Scoring"
        ),
    ] = 25.0,
    nms: Annotated[
        bool,
        typer.Option("--nms", help="Keep one image per panorama (Tokyo 24/7).", rich_help_panel="Scoring"),
    ] = False,
    rerank: reranking.Rerank = None,
    rerank_depth: reranking.RerankDepth = None,
    rerank_score: reranking.RerankScore = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for results.json, predictions.csv and recall.png.",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None,
    save_contact_sheet: Annotated[
        bool,
        typer.Option(
            "--save-contact-sheet",
            help="Also write contact_sheet.png: queries with their top 5.",
            rich_help_panel="Output",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON instead of a table.", rich_help_panel="Output"),
    ] = False,
    batch_size: shared.BatchSize = 8,
    workers: shared.Workers = None,
    device: shared.Device = "auto",
    seed: shared.Seed = 0,
) -> None:
    """Compute recall@N: the share of queries with a right image among the first N found.

    A database image is right if it was taken within 25 m. Queries that have none are not counted.
    """
    depths = _parse_depths(recall_at)
    options = reranking.parse_reranking(rerank, rerank_depth, rerank_score)
    if save_contact_sheet and out is None:
        raise UserError("--save-contact-sheet needs --out DIR to write to.")
    network = shared.open_network(weights, backbone, random_weights, seed)
    size = shared.parse_size(image_size, shorter_side, keep_size, network)
    device = shared.parse_device(device)
    loaded = shared.open_whitening(whitening, network, device)

    from sfrs.data.places import load_places
    from sfrs.retrieval import evaluation
    from sfrs.retrieval import region_rerank as region_reranking
    from sfrs.runtime.terminal import progress_tasks

    places = load_places(data, split)
    evaluation.check_answerable(places, radius)
    skipped: list[tuple] = []
    workers = shared.decoding_workers(workers)
    with progress_tasks() as tasks:
        if skip_bad_images:
            places, skipped = evaluation.without_bad_images(places, threads=workers, tasks=tasks)
        if network.meta.get("untrained_vlad"):
            shared.make_clusters(
                network,
                places.database.files,
                size,
                skip_bad_images=False,  # none is left
                batch_size=batch_size,
                device=device,
                seed=seed,
                tasks=tasks,
            )
        query_size = "same" if query_shorter_side is None else query_shorter_side
        search = evaluation.evaluate if options is None else region_reranking.evaluate_reranked
        result = search(
            network,
            places,
            size=size,
            query_size=query_size,
            recalls=depths,
            radius=radius,
            nms=nms,
            whitening=loaded,
            batch_size=batch_size,
            threads=workers,
            device=device,
            tasks=tasks,
            **(options or {}),
        )
    before, result = (None, result) if options is None else result
    summary = _summary(result, places, network, size, skipped)
    if options is not None:
        summary["rerank"] = {"by": rerank, **options, **_gain(before, result)}
    summary |= {
        "data": str(data.resolve()),
        "split": split,
        "nms": nms,
        "weights": str(weights.resolve())
        if weights
        else "random"
        if random_weights
        else network.meta["source"],
        "whitening": str(whitening.resolve()) if whitening else None,
        "size": size,
        "query_size": query_size,
        "seed": seed,
    }
    if out is not None:
        _write(out, summary, result, places, save_contact_sheet)
    _show(summary, skipped, out, as_json)


def _parse_depths(text: str) -> tuple[int, ...]:
    try:
        depths = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        depths = ()
    if not depths or depths[0] < 1:
        raise UserError(f"--recall-at is {text!r}; expected whole numbers from 1, as 1,5,10,20.")
    return depths


def _summary(
    result: Evaluation, places: Places, network: DescriptorNetwork, size: Size, skipped: list[tuple]
) -> dict:
    return {
        "name": places.name,
        "database": len(places.database),
        "queries": len(places.queries),
        "queries_without_positive": int((~result.answerable).sum()),
        "radius_m": result.radius,
        "backbone": network.backbone.name,
        "network": network.meta,
        "image_size": shared.describe_size(size),
        "recalls": {str(n): recall for n, recall in result.recalls.items()},
        "recalls_by_condition": _by_condition(result, places),
        "seconds": result.seconds,
        "skipped": [{"file": str(file), "reason": why} for file, why in skipped],
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
    from sfrs.runtime.atomic_io import write_json

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
    import json

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sfrs.runtime.terminal import messages

    console = Console()
    for file, why in skipped:
        messages.print(Text.assemble(("Skipped", "yellow"), f" {file}: {why}"), soft_wrap=True)
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    title = Text(f"{summary['name']}, {summary['split']}")
    table = Table(title=title, title_style="bold", title_justify="left")
    table.add_column("recall@")
    for n in summary["recalls"]:
        table.add_column(n, justify="right")
    reranked = summary.get("rerank")
    if reranked:
        _add_recalls(table, "searched", reranked["recalls_before"])
    _add_recalls(table, "re-ranked" if reranked else "%", summary["recalls"])
    for condition, recalls in summary["recalls_by_condition"].items():
        _add_recalls(table, Text(condition), recalls)
    console.print(table)
    if reranked:
        gain = f"{100 * reranked['recall_1_difference']:+.1f}, p = {reranked['p_value']:.1g}"
        console.print(
            f"Re-ranked: the first {reranked['depth']} by regions, score {reranked['score']}, "
            f"{reranked['ms_per_query']:.1f} ms per query; recall@1 {gain} (exact McNemar test)",
            highlight=False,
        )
    left = summary["queries_without_positive"]
    console.print(
        f"{summary['queries']} queries, {summary['database']} database images, "
        f"right within {summary['radius_m']:g} m; {summary['backbone']} at {summary['image_size']}"
        + (f"; {left} queries without a right image are not counted" if left else ""),
        highlight=False,
    )
    if out is not None:
        console.print(Text(f"Written to {out}"))


def _add_recalls(table: Table, name: str | Text, recalls: dict[str, float]) -> None:
    table.add_row(name, *(f"{100 * recall:.1f}" for recall in recalls.values()))
