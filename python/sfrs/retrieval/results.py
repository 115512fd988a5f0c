"""Predictions of an evaluation as CSV and as rows of a contact sheet."""

import csv
from pathlib import Path

import numpy as np

from sfrs.data.places import Places
from sfrs.retrieval.evaluation import Evaluation
from sfrs.retrieval.plots import SheetRow
from sfrs.runtime.atomic_io import replaced


def write_predictions(path: Path, result: Evaluation, places: Places) -> None:
    """Write one line per query and rank: query, rank, file, metres between them, right or not (1 or 0)."""
    with (
        replaced(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as lines,
    ):
        writer = csv.writer(lines)
        writer.writerow(("query", "rank", "file", "metres", "correct"))
        for query, found in enumerate(result.predictions):
            for rank, index in enumerate(found[found >= 0]):
                metres = places.metres(query, index)
                files = places.queries.files[query], places.database.files[index]
                right = int(result.correct[query, rank])
                writer.writerow((files[0], rank + 1, files[1], f"{metres:.2f}", right))


def sheet_rows(result: Evaluation, places: Places, count: int, *, top: int = 5) -> list[SheetRow]:
    """Take evenly spaced queries that have a positive, each with its first ``top`` predictions."""
    answerable = np.flatnonzero(result.answerable)
    chosen = answerable[np.linspace(0, len(answerable) - 1, min(count, len(answerable))).round().astype(int)]
    rows = []
    for query in chosen:
        found = result.predictions[query, :top]
        files = [places.database.files[index] for index in found[found >= 0]]
        right = result.correct[query, :top][found >= 0].tolist()
        rows.append(SheetRow(places.queries.files[query], files, right))
    return rows
