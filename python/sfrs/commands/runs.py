"""``sfrs runs``: training runs compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from sfrs.commands.flags import argument, command, option
from sfrs.runtime.terminal import duration, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sfrs.training.runs import Run

SHOWN = (1, 5, 10)


@command("sfrs runs runs/sfrs", "sfrs runs runs/study", "sfrs runs runs/a runs/b --json")
def runs(
    *,
    paths: list[Path] = argument("Directories of sfrs train, or folders of them.", metavar="RUN..."),
    as_json: bool = option("Print JSON instead of tables.", default=False, flag="--json"),
) -> None:
    """Show training runs together: how far they are, losses, best recalls, and in what they differ.

    Runs may be going on meanwhile. The time does not count pauses between a stop and --resume. Curves are
    drawn by TensorBoard (sfrs train --tensorboard), and by sfrs report on the page about a run.
    """
    from sfrs.training.runs import Run, find_runs, labels

    read = [Run.read(path) for path in find_runs(paths)]
    names = list(map(plain, labels(read)))
    if as_json:
        print(json.dumps([_facts(run) for run in read], indent=2))
    else:
        _show(read, names)


def _facts(run: Run) -> dict[str, Any]:
    generation, epoch = run.position
    latest, start = run.latest, next(reversed(run.of_kind("start")), {})
    return {
        "path": str(run.path),
        "state": run.state,
        "generation": generation,
        "epoch": epoch,
        "generations": run.generations,
        "epochs": [run.epochs_of(g) for g in range(1, run.generations + 1)],
        "best": [
            {"generation": best.number, "epoch": best.epoch, "recalls": best.recalls} for best in run.best
        ],
        **{name: latest.get(name) for name in ("total", "hard", "soft", "tuples_per_second", "peak_bytes")},
        "seconds": run.seconds,
        **{name: start.get(name) for name in ("processes", "host", "versions")},
        "config": run.config,
    }


def _show(runs: Sequence[Run], names: Sequence[str]) -> None:
    console = Console(markup=False, emoji=False)  # names of folders are text
    console.print(_states(runs, names))
    console.print(_bests(runs, names))
    if len(runs) > 1:
        console.print(_differences(runs, names))


def _states(runs: Sequence[Run], names: Sequence[str]) -> Table:
    table = _table("Runs", "run", "state")
    for heading in ("generation", "epoch", "loss", "tuples/s", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run, name in zip(runs, names, strict=True):
        (generation, epoch), latest, seconds = run.position, run.latest, run.seconds
        table.add_row(
            name,
            run.state,
            f"{generation} of {run.generations}",
            f"{epoch} of {run.epochs_of(generation)}" if generation else "",
            f"{latest['total']:.4f}" if latest else "",
            f"{latest['tuples_per_second']:.1f}" if latest else "",
            "" if seconds is None else duration(seconds),
        )
    return table


def _bests(runs: Sequence[Run], names: Sequence[str]) -> Table:
    deepest = max((best.number for run in runs for best in run.best), default=0)
    depths = "/".join(map(str, SHOWN))
    table = _table(f"Best validation recall@{depths} in % by generation (its epoch)", "run")
    for generation in range(deepest + 1):
        table.add_column(f"{generation}" if generation else "before", justify="right")
    for run, name in zip(runs, names, strict=True):
        cells = [""] * (deepest + 1)
        for generation, epoch, recalls, _ in run.best:
            cells[generation] = "/".join(f"{100 * recalls[n]:.1f}" for n in SHOWN if n in recalls)
            cells[generation] += f" ({epoch})" if epoch else ""
        table.add_row(name, *cells)
    return table


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Table | str:
    """Show what most runs have, and where a run departs from it."""
    from sfrs.training.runs import differences

    texts = {field: [_value(value) for value in values] for field, values in differences(runs).items()}
    if not texts:
        return "The runs have the same configuration."
    usual = {field: max(values, key=values.count) for field, values in texts.items()}
    table = _table("Configuration, where the runs differ", "run", "values")
    table.add_row("most runs", ", ".join(f"{field} {value}" for field, value in usual.items()))
    for i, name in enumerate(names):
        own = (f"{field} {values[i]}" for field, values in texts.items() if values[i] != usual[field])
        table.add_row(name, ", ".join(own))
    return table


def _value(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else f"{value}"
    return plain(text) or "none"


def _table(title: str, *headings: str) -> Table:
    look = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    table = Table(title=title, title_justify="left", title_style="bold", **look)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == "state")
    return table
