"""``sfrs runs``: training runs compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from sfrs.retrieval.plots import RunCurves
    from sfrs.training.runs import Run

EXAMPLES = """
[b]Examples[/b]

  sfrs runs runs/sfrs

  sfrs runs runs/study --plot runs.png

  sfrs runs runs/a runs/b --json
"""
SHOWN = (1, 5, 10)


def register(app: typer.Typer) -> None:
    app.command("runs", epilog=EXAMPLES)(runs)


def runs(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Directories of sfrs train, or folders of them.")
    ],
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="X.png", help="Draw losses and validation recalls.", show_default=False
        ),
    ] = None,
    recall_at: Annotated[int, typer.Option("--recall-at", min=1, help="N of the recall that is drawn.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show training runs together: how far they are, losses, best recalls, and in what they differ.

    Runs may be going on meanwhile. The time does not count pauses between a stop and --resume.
    """
    import json

    from sfrs.runtime.errors import UserError
    from sfrs.runtime.terminal import plain, say
    from sfrs.training.runs import Run, find_runs, labels

    if plot is not None and plot.suffix != ".png":
        raise UserError(f"--plot is {plot}, expected a name that ends in .png")
    read = [Run.read(path) for path in find_runs(paths)]
    names = list(map(plain, labels(read)))
    if as_json:
        print(json.dumps([_facts(run) for run in read], indent=2))
    else:
        _show(read, names)
    if plot is not None:
        _draw(read, names, plot, recall_at)
        say(f"Plot: {plot}")


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
    from rich.console import Console

    console = Console(markup=False, emoji=False)  # names of folders are text
    console.print(_states(runs, names))
    console.print(_bests(runs, names))
    if len(runs) > 1:
        console.print(_differences(runs, names))


def _states(runs: Sequence[Run], names: Sequence[str]) -> Table:
    from sfrs.runtime.terminal import duration

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
    from sfrs.runtime.terminal import plain

    text = ",".join(map(str, value)) if isinstance(value, list) else f"{value}"
    return plain(text) or "none"


def _table(title: str, *headings: str) -> Table:
    from rich import box
    from rich.table import Table

    look = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    table = Table(title=title, title_justify="left", title_style="bold", **look)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == "state")
    return table


def _draw(runs: Sequence[Run], names: Sequence[str], path: Path, recall_at: int) -> None:
    from sfrs.retrieval.plots import training_curves
    from sfrs.runtime.errors import UserError

    if not any(run.of_kind("epoch", "step") for run in runs):
        raise UserError("--plot: none of the runs has trained yet, there is nothing to draw")
    curves = {name: run_curves(run, recall_at) for run, name in zip(runs, names, strict=True)}
    starts = {tuple(run.starts_at(g) for g in range(2, run.generations + 1)) for run in runs}
    training_curves(curves, path, n=recall_at, generations=starts.pop() if len(starts) == 1 else ())


def run_curves(run: Run, n: int) -> RunCurves:
    """Collect what `training_curves` draws: losses of steps, means of epochs in their middle, recalls@n."""
    from sfrs.retrieval.plots import RunCurves

    steps, means, recalls = ({g: [] for g in range(1, run.generations + 1)} for _ in range(3))
    for line in run.of_kind("step", "epoch"):
        generation, before = line["generation"], run.starts_at(line["generation"]) + line["epoch"] - 1
        if line["kind"] == "step":
            steps[generation].append((before + line["done"] / line["of"], line))
            continue
        means[generation].append((before + 0.5, line))
        if n in line["recalls"]:
            recalls[generation].append((before + 1.0, line["recalls"][n]))
    bests = {best.number: best for best in run.best if n in best.recalls}
    for generation, points in recalls.items():
        if points and 0 in bests:  # every student starts from the initial network
            points.insert(0, (float(run.starts_at(generation)), bests[0].recalls[n]))
    rings = [(run.starts_at(g) + best.epoch, best.recalls[n]) for g, best in bests.items() if best.epoch]
    return RunCurves(_losses(steps), _losses(means), list(filter(None, recalls.values())), rings)


def _losses(generations: dict[int, list]) -> dict[str, list[list[tuple[float, float]]]]:
    curves = {}
    for part in ("hard", "soft"):
        found = ([(x, line[part]) for x, line in points] for points in generations.values())
        curves[part] = [curve for curve in found if any(y for _, y in curve)]  # generation 1 has no soft loss
    return curves
