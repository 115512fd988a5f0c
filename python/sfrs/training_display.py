"""A training run on the terminal: a bar for what goes on, a line for every epoch."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sfrs.images import Progress as Report
from sfrs.terminal import RateColumn, messages
from sfrs.training import StepReport


class TrainingDisplay:
    """A `sfrs.progress.TrainingProgress` on a rich display."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.epochs: dict[tuple[int, int], TaskID] = {}

    def task(self, name: str) -> Report:
        bar: TaskID | None = None

        def show(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = self.bars.add_task(name, total=total, numbers="")
            self.bars.update(bar, completed=done, total=total)
            if done >= total:
                self.bars.remove_task(bar)
                bar = None

        return show

    def step(self, generation: int, epoch: int, report: StepReport) -> None:
        if (generation, epoch) not in self.epochs:
            name = f"generation {generation}, epoch {epoch}"
            self.epochs[generation, epoch] = self.bars.add_task(name, total=report.of, numbers="")
        self.bars.update(
            self.epochs[generation, epoch],
            completed=report.done,
            numbers=f"loss {report.total:.3f} = hard {report.hard:.3f} + soft {report.soft:.3f}",
        )

    def epoch(
        self, generation: int, epoch: int, report: StepReport, recalls: dict[int, float], best: bool
    ) -> None:
        bar = self.epochs.pop((generation, epoch), None)
        if bar is not None:
            self.bars.remove_task(bar)
        shown = "  ".join(f"{n}: {100 * recall:.1f}" for n, recall in recalls.items())
        messages.print(
            f"generation {generation}, epoch {epoch}: loss {report.total:.3f} (hard {report.hard:.3f}, "
            f"soft {report.soft:.3f}), {report.tuples_per_second:.1f} tuples/s; validation recall@ {shown} %"
            + ("  [green]best so far[/green]" if best else ""),
            highlight=False,
        )


@contextmanager
def training_display() -> Iterator[TrainingDisplay]:
    """Open the display for as long as the context lasts."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=messages) as bars:
        yield TrainingDisplay(bars)
