"""``sfrs data``: look at data sets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sfrs.commands import data_options, options
from sfrs.commands.flags import argument, command, option
from sfrs.commands.options import decoding_workers
from sfrs.runtime.terminal import plain, progress_tasks, show

if TYPE_CHECKING:
    from sfrs.data.check import SplitCheck


@dataclass(frozen=True)
class Rules:
    """What a split is held to."""

    positive_radius: float = option("Metres within which training takes positives.", "Rules", 10.0, min=0)
    negative_radius: float = option(
        "Metres beyond which training takes negatives, and within which an answer is right.",
        "Rules",
        25.0,
        min=0,
    )
    tuple_negatives: int = option("Negatives in a tuple.", "Rules", default=10, min=1)


@command(
    "sfrs data check datasets/pitts30k",
    "sfrs data check datasets/pitts30k_val.mat --decode",
    "sfrs data check MSLS --split val --json",
    "sfrs data check photos/ --hold-out time",
    "sfrs data check walks/2023 --queries walks/2024",
)
def check(
    *,
    path: Path = argument(
        "A folder with images/SPLIT/{database,queries}, .mat files of Pittsburgh or Tokyo, the root of MSLS "
        "or GSV-Cities, a CSV manifest, or photographs of your own."
    ),
    rules: Rules,
    said: data_options.DataSaid,
    coordinates: data_options.Coordinates,
    split: list[str] | None = option("A split to check; may be repeated. All by default."),
    decode: bool = option("Read every image whole, not only the beginning of its file.", default=False),
    as_json: bool = option("Print JSON instead of a table.", "Output", default=False, flag="--json"),
    workers: int | None = options.WORKERS,
) -> None:
    """Say what a data set holds and what is wrong with it.

    Leaves with exit code 1 if something was found at which training or evaluation would stop.
    """  # fmt: skip
    from sfrs.data.check import Rules as Checked
    from sfrs.data.check import check_data, serves

    held_to = Checked(**vars(rules))
    settings: dict = dict(decode=decode, workers=decoding_workers(workers), reading=said.reading(coordinates))
    with progress_tasks() as tasks:
        kind, checks = check_data(path, split or (), held_to, tasks=tasks, **settings)
    ok = all(found.ok for found in checks)
    if as_json:
        splits = [found.to_dict() for found in checks]
        facts = {"path": str(path), "format": kind, "ok": ok, "splits": splits, "serves": serves(checks)}
        print(json.dumps(facts, indent=2))
    else:
        _show(f"{path}: {kind}", checks)
    raise typer.Exit(0 if ok else 1)


def _show(title: str, checks: list[SplitCheck]) -> None:
    table = Table()
    table.add_column("split")
    for found in checks:
        table.add_column(Text(plain(found.split)), justify="right")
    facts = {
        "database images": lambda found: f"{found.database:,}",
        "places": lambda found: f"{found.places:,}",
        "queries": lambda found: f"{found.queries:,}",
        "positives within": lambda found: f"{found.radius:g} m",
        "queries without a positive": lambda found: f"{found.without_positive:,}",
        "positives of the others, median": lambda found: f"{found.median_positives:g}",
        "images without a position": lambda found: f"{found.unplaced:,}",
        "missing files": lambda found: f"{found.missing:,}",
        "unreadable files": lambda found: f"{found.unreadable:,}",
    }
    for name, text in facts.items():
        table.add_row(name, *(text(found) if found.database else "-" for found in checks))
    console = Console()
    show(title)
    console.print(table)
    for found in checks:
        for finding in found.findings:
            mark = ("Stops", "bold red") if finding.stops else ("Note", "yellow")
            console.print(Text.assemble(mark, plain(f" {found.split}: {finding.text}")), soft_wrap=True)
    for line in _serves(checks):
        console.print(line, soft_wrap=True)


def _serves(checks: list[SplitCheck]) -> list[Text]:
    """Say what the data set is good for."""
    from sfrs.data.check import ANY, serves

    able = serves(checks)
    purposes = {
        "sfrs evaluate": able["evaluate"],
        "sfrs train": able["train"] if able["validate"] else [],
        "sfrs train, with --val-data of another": [] if able["validate"] else able["train"],
        "sfrs index": able["index"],
    }
    lines = []
    for name, splits in purposes.items():
        if splits:
            named = "" if splits == [ANY] else f": {', '.join(splits)}"
            lines.append(Text(f"Serves {name}{named}.", "green"))
    if not able["train"]:
        lines.append(Text("Does not serve sfrs train: that needs the splits train and val.", "yellow"))
    stops = [found.split for found in checks if not found.ok]
    if not stops:
        what = "training or evaluation" if able["train"] else "evaluation" if able["evaluate"] else "indexing"
        lines.append(Text(f"Nothing found at which {what} would stop.", "green"))
    return lines
