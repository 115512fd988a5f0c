"""``sfrs runs``: training runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from sfrs.retrieval.plots import RunCurves
    from sfrs.training.runs import Point, Run

EXAMPLES = """
[b]Examples[/b]

  sfrs runs runs/sfrs

  sfrs runs runs/study --plot runs.png

  sfrs runs runs/a runs/b --json
"""
SHOWN = (1, 5, 10)
SIDE_BY_SIDE = 4
"""Up to so many runs have a column each in the table of differences."""
CURVE = 24
"""Characters of a curve on the terminal."""
BLOCKS = "▁▂▃▄▅▆▇█"


def register(app: typer.Typer) -> None:
    app.command("runs", epilog=EXAMPLES)(runs)


def runs(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Directories of sfrs train, or folders of them."),
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
    """Show training runs side by side: how far they are, losses, validation recalls, and in what they differ.

    Runs may be going on meanwhile. The time does not count pauses between a stop and --resume.
    """
    import json

    from sfrs.runtime.errors import UserError
    from sfrs.runtime.terminal import messages
    from sfrs.training.runs import Run, find_runs, labels

    if plot is not None and plot.suffix != ".png":
        raise UserError(f"--plot is {plot}, expected a name that ends in .png")
    read = [Run.read(path) for path in find_runs(paths)]
    names = labels(read)
    if as_json:
        print(json.dumps([_facts(run) for run in read], indent=2))
    else:
        _show(read, names, recall_at)
    if plot is not None:
        _draw(read, names, plot, recall_at)
        messages.print(f"Plot: {plot}", highlight=False, soft_wrap=True, markup=False)


def _facts(run: Run) -> dict[str, Any]:
    generation, epoch = run.position
    latest, start = run.latest, run.starts[-1] if run.starts else {}
    return {
        "path": str(run.path),
        "state": run.state,
        "generation": generation,
        "epoch": epoch,
        "generations": run.generations,
        "epochs": [run.epochs_of(g) for g in range(1, run.generations + 1)],
        "best": [vars(best) for best in run.best],
        **{name: latest.get(name) for name in ("total", "hard", "soft", "tuples_per_second", "peak_bytes")},
        "seconds": run.seconds,
        "processes": start.get("processes"),
        "host": start.get("host"),
        "versions": start.get("versions"),
        "config": run.config,
    }


def _show(runs: Sequence[Run], names: Sequence[str], recall_at: int) -> None:
    from rich.console import Console

    console = Console(markup=False, emoji=False)  # names of folders are text
    console.print(_states(runs, names))
    console.print(_bests(runs, names))
    if any(len(run.epochs) > 1 for run in runs) and "utf" in console.encoding:
        console.print(_curves(runs, names, recall_at))
    if len(runs) > 1:
        _show_differences(console, runs, names)


def _states(runs: Sequence[Run], names: Sequence[str]) -> Table:
    from rich.text import Text

    from sfrs.runtime.terminal import duration
    from sfrs.training.runs import RUNNING

    table = _table("Runs", "run", left=2)
    for heading in ("generation", "epoch", "loss", "tuples/s", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run, name in zip(runs, names, strict=True):
        (generation, epoch), latest, seconds = run.position, run.latest, run.seconds
        table.add_row(
            name,
            Text(run.state, "green" if run.state == RUNNING else ""),
            f"{generation} of {run.generations}",
            f"{epoch} of {run.epochs_of(generation)}" if generation else "",
            f"{latest['total']:.4f}" if latest else "",
            f"{latest['tuples_per_second']:.1f}" if latest else "",
            "" if seconds is None else duration(seconds),
        )
    return table


def _bests(runs: Sequence[Run], names: Sequence[str]) -> Table:
    deepest = max((best.generation for run in runs for best in run.best), default=0)
    depths = "/".join(f"{n}" for n in SHOWN)
    table = _table(f"Best validation recall@{depths} in % by generation (its epoch)", "run")
    for generation in range(deepest + 1):
        table.add_column(f"{generation}" if generation else "before", justify="right")
    for run, name in zip(runs, names, strict=True):
        cells = {
            best.generation: "/".join(f"{100 * best.recalls[n]:.1f}" for n in SHOWN if n in best.recalls)
            + (f" ({best.epoch})" if best.epoch else "")
            for best in run.best
        }
        table.add_row(name, *(cells.get(generation, "") for generation in range(deepest + 1)))
    return table


def _curves(runs: Sequence[Run], names: Sequence[str], recall_at: int) -> Table:
    table = _table("By epoch: first, course, last", "run")
    table.add_column("hard loss", no_wrap=True)
    table.add_column(f"validation recall@{recall_at}, %", no_wrap=True)
    for run, name in zip(runs, names, strict=True):
        table.add_row(
            name,
            _course(run.losses(part="hard"), "{:.3f}"),
            _course(run.recalls(recall_at), "{:.1f}", scale=100),
        )
    return table


def _course(points: Sequence[Point], text: str, scale: float = 1.0) -> str:
    values = [scale * point.value for point in points]
    if not values:
        return ""
    return f"{text.format(values[0])} {sparkline(values, CURVE)} {text.format(values[-1])}"


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as at most ``width`` blocks, each as high as the mean of its share of the values."""
    width = min(width, len(values))
    bounds = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
    low, high = min(means), max(means)
    if high == low:
        return BLOCKS[0] * width
    return "".join(BLOCKS[round((mean - low) / (high - low) * (len(BLOCKS) - 1))] for mean in means)


def _show_differences(console: Console, runs: Sequence[Run], names: Sequence[str]) -> None:
    from sfrs.training.runs import differences

    different = differences(runs)
    if not different:
        console.print("The runs have the same configuration.")
        return
    if len(runs) > SIDE_BY_SIDE:
        _show_departures(console, different, names)
        return
    table = _table("Configuration, where the runs differ", "field")
    for name in names:
        table.add_column(name, overflow="fold")
    for field, values in different.items():
        table.add_row(field, *map(_value, values))
    console.print(table)


def _show_departures(console: Console, different: dict[str, list[Any]], names: Sequence[str]) -> None:
    """Many runs: what most have, and where a run departs from it."""
    texts = {field: [_value(value) for value in values] for field, values in different.items()}
    usual = {field: max(values, key=values.count) for field, values in texts.items()}
    table = _table("Configuration, where the runs differ", "run")
    table.add_column("values", overflow="fold")
    table.add_row("most runs", ", ".join(f"{field} {value}" for field, value in usual.items()))
    for i, name in enumerate(names):
        own = [f"{field} {texts[field][i]}" for field in texts if texts[field][i] != usual[field]]
        table.add_row(name, ", ".join(own))
    console.print(table)


def _value(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else f"{value}"
    return text or "none"


def _table(title: str, first: str, left: int = 1) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in (first, "state")[:left]:
        table.add_column(heading, overflow="fold", no_wrap=heading == "state")
    return table


def _draw(runs: Sequence[Run], names: Sequence[str], path: Path, recall_at: int) -> None:
    from sfrs.retrieval.plots import training_curves
    from sfrs.runtime.errors import UserError

    if not any(run.epochs or run.steps for run in runs):
        raise UserError("--plot: none of the runs has trained yet, there is nothing to draw")
    curves = {name: _run_curves(run, recall_at) for run, name in zip(runs, names, strict=True)}
    starts = {tuple(run.starts_at(g) for g in range(2, run.generations + 1)) for run in runs}
    training_curves(curves, path, n=recall_at, generations=starts.pop() if len(starts) == 1 else ())


def _run_curves(run: Run, n: int) -> RunCurves:
    from sfrs.retrieval.plots import RunCurves

    initial = next((best.recalls.get(n) for best in run.best if best.generation == 0), None)
    recalls = _by_generation(run.recalls(n))
    for generation, points in recalls.items():
        if initial is not None:  # every student starts from the initial network
            points.insert(0, (float(run.starts_at(generation)), initial))
    best = [
        (run.starts_at(best.generation) + best.epoch, best.recalls[n])
        for best in run.best
        if best.epoch and n in best.recalls
    ]
    steps, epochs = (
        {part: _losses(run, kind, part) for part in ("hard", "soft")} for kind in ("step", "epoch")
    )
    return RunCurves(steps, epochs, [*recalls.values()], best)


def _losses(run: Run, kind: str, part: str) -> list[list[tuple[float, float]]]:
    apart = _by_generation(run.losses(kind, part))
    return [points for points in apart.values() if any(y for _, y in points)]  # generation 1 has no soft loss


def _by_generation(points: Sequence[Point]) -> dict[int, list[tuple[float, float]]]:
    apart: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        apart.setdefault(point.generation, []).append((point.passes, point.value))
    return apart
