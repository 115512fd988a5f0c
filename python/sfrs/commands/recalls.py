"""What an evaluation says: as JSON, as a table, and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sfrs.commands import options
from sfrs.runtime.atomic_io import write_json
from sfrs.runtime.errors import counted
from sfrs.runtime.terminal import plain, show, table

if TYPE_CHECKING:
    from sfrs.data.places import Places
    from sfrs.retrieval.evaluation import Evaluation

SHEET_ROWS = 12


def facts(result: Evaluation, places: Places) -> dict:
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


def gain(before: Evaluation, after: Evaluation) -> dict:
    from sfrs.retrieval.recall import mcnemar

    counted = after.answerable
    paired = mcnemar(after.hits(1)[counted], before.hits(1)[counted])
    return {
        "recalls_before": {str(n): recall for n, recall in before.recalls.items()},
        "recall_1_difference": paired.difference,
        "p_value": paired.p_value,
        "ms_per_query": 1000 * after.seconds["rerank"] / len(counted),
    }


def write(out: Path, summary: dict, result: Evaluation, places: Places, save_contact_sheet: bool) -> None:
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


def show_recalls(summary: dict, skipped: list[tuple], out: Path | None, as_json: bool) -> None:
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
