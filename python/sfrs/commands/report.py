"""``sfrs report``: an evaluation as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfrs.commands import network as shared
from sfrs.runtime.errors import UserError

EXAMPLES = """
[b]Examples[/b]

  sfrs report runs/lund --out runs/lund/report

  sfrs report runs/demo --out report --cases 24

  sfrs report runs/sfrs --out report --data pitts30k --split val
"""


def register(app: typer.Typer) -> None:
    app.command("report", epilog=EXAMPLES)(report)


def report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_EVAL",
            help="Folder written by sfrs evaluate --out, sfrs train or sfrs demo.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for index.html.", metavar="FOLDER", show_default=False)
    ],
    cases: Annotated[
        int, typer.Option("--cases", min=0, help="How many failures and how many successes to show.")
    ] = 12,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Where the data set is, if it has moved.",
            rich_help_panel="Where things are",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="Where the network is, if it has moved; of a training run, which one to evaluate.",
            rich_help_panel="Where things are",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="Of a training run: the split to evaluate. Default: test.",
            rich_help_panel="Where things are",
            show_default=False,
        ),
    ] = None,
    batch_size: shared.BatchSize = 8,
    workers: shared.Workers = None,
    device: shared.Device = "auto",
) -> None:
    """Write one HTML page that shows how often, where and why a network is right or wrong.

    Recall, errors and training as curves, all queries on a map, and the worst and the best cases with what
    was found for them, which of their regions match, and the clusters of their features. The page holds all
    its images and opens without a server or a network.

    Of a training run the best network of its last generation is evaluated first; the result is kept in the
    folder, so that writing the page again does not take that time.
    """
    if not source.is_dir():
        raise UserError(
            f"{source}: there is no such folder. Expected one of sfrs evaluate --out or sfrs train."
        )
    device = shared.parse_device(device)

    from rich.text import Text

    from sfrs.runtime.terminal import messages, progress_tasks
    from sfrs.web.report import Overrides, Running, read_subject, write_report

    with progress_tasks() as tasks:
        running = Running(batch_size, shared.decoding_workers(workers), device, tasks)
        subject = read_subject(source, out, Overrides(data, weights, split), running)
        page = write_report(subject, out, cases=cases, device=device, tasks=tasks)
    if subject.unexplained:
        messages.print(
            Text.assemble(("Without regions and clusters:", "yellow"), f" {subject.unexplained}"),
            soft_wrap=True,
        )
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, nothing outside it is needed")
