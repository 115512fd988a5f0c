"""``sfrs data``: look at data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfrs.commands.options import Workers, decoding_workers, option

if TYPE_CHECKING:
    from sfrs.data.check import SplitCheck

EXAMPLES = """
[b]Examples[/b]

  sfrs data check datasets/pitts30k

  sfrs data check datasets/pitts30k_val.mat --decode

  sfrs data check MSLS --split val --json
"""
DATA = (
    "A folder with images/SPLIT/{database,queries}, .mat files of Pittsburgh or Tokyo, the root of MSLS or "
    "GSV-Cities, or a CSV manifest."
)
POSITIVE = "Metres within which training takes positives."
NEGATIVE = "Metres beyond which training takes negatives, and within which an answer is right."
RADIUS = {"min": 0, "show_default": True}


def register(app: typer.Typer) -> None:
    data = typer.Typer(no_args_is_help=True, help="Look at data sets.", rich_markup_mode="rich")
    data.callback()(lambda: None)  # keeps `check` a command of its own while it is the only one
    data.command("check", epilog=EXAMPLES)(check)
    app.add_typer(data, name="data")


def check(
    path: Annotated[Path, typer.Argument(help=DATA, show_default=False)],
    split: Annotated[
        list[str] | None, option("--split", "A split to check; may be repeated. All by default.")
    ] = None,
    decode: Annotated[
        bool, option("--decode", "Read every image whole, not only the beginning of its file.")
    ] = False,
    positive_radius: Annotated[float, option("--positive-radius", POSITIVE, "Rules", **RADIUS)] = 10.0,
    negative_radius: Annotated[float, option("--negative-radius", NEGATIVE, "Rules", **RADIUS)] = 25.0,
    tuple_negatives: Annotated[
        int, option("--tuple-negatives", "Negatives in a tuple.", "Rules", min=1, show_default=True)
    ] = 10,
    as_json: Annotated[bool, option("--json", "Print JSON instead of a table.", "Output")] = False,
    workers: Workers = None,
) -> None:
    """Say what a data set holds and what is wrong with it.

    Leaves with exit code 1 if something was found at which training or evaluation would stop.
    """  # fmt: skip
    import json

    from sfrs.data.check import Rules, check_data
    from sfrs.runtime.terminal import progress_tasks

    rules = Rules(positive_radius, negative_radius, tuple_negatives)
    workers = decoding_workers(workers)
    with progress_tasks() as tasks:
        kind, checks = check_data(path, split or (), rules, decode=decode, workers=workers, tasks=tasks)
    ok = all(found.ok for found in checks)
    if as_json:
        splits = [found.to_dict() for found in checks]
        print(json.dumps({"path": str(path), "format": kind, "ok": ok, "splits": splits}, indent=2))
    else:
        _show(f"{path}: {kind}", checks)
    raise typer.Exit(0 if ok else 1)


def _show(title: str, checks: list[SplitCheck]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sfrs.runtime.terminal import plain, show

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
    if all(found.ok for found in checks):
        console.print(Text("Nothing found at which training or evaluation would stop.", "green"))
