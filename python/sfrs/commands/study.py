"""``sfrs study``: variants of the method over several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
[b]Examples[/b]

  sfrs study --out runs/study --seeds 0,1,2

  sfrs study --out /tmp/rehearsal --seeds 0,1 --size small
"""


def register(app: typer.Typer) -> None:
    app.command("study", epilog=EXAMPLES)(study)


def study(
    out: Annotated[Path, typer.Option("--out", help="Folder for cities, runs and tables.")] = Path(
        "runs/study"
    ),
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="N,N,...", help="Each is a city and a training of its own.")
    ] = "0,1,2",
    size: Annotated[str, typer.Option("--size", help="demo, or small to rehearse.")] = "demo",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads.", show_default="all cores")
    ] = None,
) -> None:
    """Compare SFRS and its variants with SARE-ind of equal length, by a paired test over seeds.

    What is done already is kept: an interrupted study goes on, and a study with more seeds reuses the others.
    """
    import torch

    from sfrs.runtime.errors import UserError
    from sfrs.runtime.terminal import progress_tasks, say, show
    from sfrs.synthetic.experiment import SCALES
    from sfrs.synthetic.study import run_study

    if size not in SCALES:
        raise UserError(f"--size is {size!r}, expected one of {', '.join(SCALES)}")
    try:
        numbers = [int(part) for part in seeds.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise UserError(f"--seeds is {seeds!r}, expected distinct whole numbers such as 0,1,2")
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_tasks() as tasks:
        run_study(
            out,
            numbers,
            scale=size,
            tasks=tasks,
            say=say,
        )
    print((out / "study.md").read_text(), end="")
    show()
    show(f"{out / 'study.json'} holds the counts")
