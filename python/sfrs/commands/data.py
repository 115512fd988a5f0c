"""``sfrs data``: look at data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfrs.commands import options

if TYPE_CHECKING:
    from rich.table import Table

    from sfrs.data.check import SplitCheck

EXAMPLES = """
[b]Examples[/b]

  sfrs data check datasets/pitts30k

  sfrs data check datasets/pitts30k_val.mat --decode

  sfrs data check MSLS --split val --json
"""


def register(app: typer.Typer) -> None:
    data = typer.Typer(no_args_is_help=True, help="Look at data sets.", rich_markup_mode="rich")
    data.command("check", epilog=EXAMPLES)(check)
    data.callback()(_data)
    app.add_typer(data, name="data")


def _data() -> None:
    """Look at data sets."""


def check(
    path: Annotated[
        Path,
        typer.Argument(
            help="A folder with images/SPLIT/{database,queries}, .mat files of Pittsburgh or Tokyo, the root "
            "of MSLS or GSV-Cities, or a CSV manifest.",
            show_default=False,
        ),
    ],
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split", help="A split to check; may be repeated. All by default.", show_default=False
        ),
    ] = None,
    decode: Annotated[
        bool,
        typer.Option("--decode", help="Read every image whole, not only the beginning of its file."),
    ] = False,
    positive_radius: Annotated[
        float,
        typer.Option(
            "--positive-radius",
            min=0,
            help="Metres within which training takes positives.",
            rich_help_panel="Rules",
        ),
    ] = 10.0,
    negative_radius: Annotated[
        float,
        typer.Option(
            "--negative-radius",
            min=0,
            rich_help_panel="Rules",
            help="Metres beyond which training takes negatives, and within which an answer is right.",
        ),
    ] = 25.0,
    tuple_negatives: Annotated[
        int,
        typer.Option("--tuple-negatives", min=1, help="Negatives in a tuple.", rich_help_panel="Rules"),
    ] = 10,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON instead of a table.", rich_help_panel="Output"),
    ] = False,
    workers: options.Workers = None,
) -> None:
    """Say what a data set holds and what is wrong with it.

    Leaves with exit code 1 if something was found at which training or evaluation would stop.
    """  # fmt: skip
    from sfrs.data.check import check_data
    from sfrs.runtime.terminal import progress_tasks
    from sfrs.training.config import TrainConfig

    config = TrainConfig(
        positive_radius=positive_radius, negative_radius=negative_radius, tuple_negatives=tuple_negatives
    )
    with progress_tasks() as tasks:
        kind, checks = check_data(
            path,
            split or (),
            config=config,
            decode=decode,
            threads=options.decoding_workers(workers),
            tasks=tasks,
        )
    if as_json:
        _print_json(path, kind, checks)
    else:
        _show(path, kind, checks)
    if not all(found.ok for found in checks):
        raise typer.Exit(1)


def _print_json(path: Path, kind: str, checks: list[SplitCheck]) -> None:
    import json

    ok = all(found.ok for found in checks)
    splits = [found.to_dict() for found in checks]
    print(json.dumps({"path": str(path), "format": kind, "ok": ok, "splits": splits}, indent=2))


def _show(path: Path, kind: str, checks: list[SplitCheck]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(_table(f"{path}: {kind}", checks))
    for found in checks:
        for finding in found.findings:
            mark = ("Stops", "bold red") if finding.stops else ("Note", "yellow")
            console.print(Text.assemble(mark, f" {found.split}: {finding.text}"), soft_wrap=True)
    if all(found.ok for found in checks):
        console.print(Text("Nothing found at which training or evaluation would stop.", "green"))


def _table(title: str, checks: list[SplitCheck]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_style="bold", title_justify="left")
    table.add_column("split")
    for found in checks:
        table.add_column(Text(found.split), justify="right")
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
    return table
