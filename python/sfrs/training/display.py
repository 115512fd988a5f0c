"""A training run on the terminal: bars and figures that follow it, or a line now and then where nobody can
see a bar move (a log file, a batch system).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

from sfrs.runtime.host import resident_bytes
from sfrs.runtime.progress import Progress as Report
from sfrs.runtime.terminal import duration, messages, plain
from sfrs.training.config import TrainConfig
from sfrs.training.progress import StepReport, TrainingProgress
from sfrs.training.run_estimate import Remaining, RunEstimate

SECONDS_BETWEEN_LINES = 30.0


class TrainingDisplay(TrainingProgress):
    """Shows the estimate while a run goes on, and leaves two lines for every epoch. On a terminal there are
    bars, and below them the figures of the last step.
    """

    def __init__(self, config: TrainConfig, console: Console, clock: Callable[[], float]) -> None:
        self.config, self.console, self.clock = config, console, clock
        self.estimate = RunEstimate(config, clock)
        self._line_shown, self._epoch_began = clock(), None
        self._epoch_name: str | None = None  # of the one that steps are taken in
        self._last: StepReport | None = None
        self.bars = _Bars(self) if console.is_terminal else None

    def task(self, name: str) -> Report:
        first, began = 0, None
        self.estimate.begin()

        def show(done: int, total: int) -> None:
            nonlocal first, began
            self.estimate.task(name, done, total)
            now = self.clock()
            if name.startswith("mining") and self._epoch_began is None:
                self._epoch_began = now
            if began is None:
                first, began = done, now
            speed = (done - first) / (now - began) if now > began else 0.0
            left = f"{duration((total - done) / speed)} left" if speed else ""
            self._show(name, done, total, (f"{speed:,.1f}/s" if speed else "", left))
            if self.bars is not None:
                self._show_epoch()
            if done >= total:
                began = None

        return show

    def message(self, text: str) -> None:
        self.console.print(plain(text), soft_wrap=True, highlight=False, markup=False)

    def step(self, generation: int, epoch: int, report: StepReport) -> None:
        self.estimate.step(generation, epoch, report.done, report.of)
        self._epoch_name, self._last = f"generation {generation}, epoch {epoch}", report
        self._show_epoch()

    def _show_epoch(self) -> None:
        if self._epoch_name is not None and self._last is not None:
            left = _left(self.estimate.epoch_left())
            self._show(self._epoch_name, self._last.done, self._last.of, ("", left))

    def figures(self) -> tuple[str, ...]:
        """Say the losses and speed of the last step, and how far the whole run is."""
        if self._last is None:
            return ()
        losses = f"{self._losses(self._last)}, learning rate {self._last.learning_rate:.2g}"
        whole = f"whole run: epoch {self.estimate.epoch_of_run} of {self.estimate.epochs}"
        left = _left(self.estimate.run_left())
        return losses, _speed(self._last), f"{whole}, {left}" if left else whole

    def epoch(
        self, generation: int, epoch: int, report: StepReport, recalls: dict[int, float], best: bool
    ) -> None:
        self.estimate.validated()
        if self.bars is not None:
            self.bars.remove(f"generation {generation}, epoch {epoch}")
        self._epoch_name = None
        now = self.clock()
        seconds, self._epoch_began = now - (self._epoch_began or now), None
        depths = "/".join(f"{n}" for n in recalls)
        shown = "/".join(f"{100 * recall:.1f}" for recall in recalls.values())
        text = Text(f"generation {generation}, epoch {epoch}: {self._losses(report)}\n")
        text.append(f"  validation recall@{depths} {shown} %")
        text.append(", best so far" if best else "", style="green")
        text.append(f"; {duration(seconds)}")
        self.console.print(text, soft_wrap=True, highlight=False)

    def _show(self, name: str, done: int, total: int, pace: tuple[str, str]) -> None:
        """Show how far a piece of work is, with its speed and the time left."""
        if self.bars is not None:
            self.bars.show(name, done, total, pace)
        elif self.clock() - self._line_shown >= SECONDS_BETWEEN_LINES:
            self._line_shown = self.clock()
            where = ", ".join(filter(None, (f"{name}: {done:,} of {total:,}", *pace)))
            figures = self.figures() if name == self._epoch_name else ()
            self.message("; ".join((where, *figures)))

    def _losses(self, report: StepReport) -> str:
        if report.soft == 0:
            return f"loss {report.total:.4f} (hard)"
        weight = f"{self.config.soft_weight:g}"
        return f"loss {report.total:.4f} = hard {report.hard:.4f} + {weight} x soft {report.soft:.4f}"


class _Bars(Progress):
    """One bar for each piece of work that is not done, and below them figures."""

    def __init__(self, display: TrainingDisplay) -> None:
        self.display, self.tasks_by_name = display, {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            TextColumn(
                "{task.fields[speed]}", style="progress.data.speed", table_column=Column(no_wrap=True)
            ),
            TextColumn("{task.fields[left]}", style="progress.remaining", table_column=Column(no_wrap=True)),
        )
        # Bars are transient: what stays are the lines of the epochs.
        super().__init__(
            *columns, console=display.console, get_time=display.clock, expand=True, transient=True
        )

    def show(self, name: str, done: int, total: int, pace: tuple[str, str]) -> None:
        fields: dict[str, Any] = {"speed": pace[0], "left": pace[1]}
        if name not in self.tasks_by_name:
            self.tasks_by_name[name] = self.add_task(name, total=total, **fields)
        self.update(self.tasks_by_name[name], completed=done, total=total, **fields)
        if done >= total:
            self.remove(name)

    def remove(self, name: str) -> None:
        if name in self.tasks_by_name:
            self.remove_task(self.tasks_by_name.pop(name))

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        figures = "\n".join(f"  {line}" for line in self.display.figures())
        yield Text(figures, no_wrap=True, overflow="ellipsis")


def _left(left: Remaining | None) -> str:
    if left is None:
        return ""
    return f"{'' if left.whole else 'at least '}{duration(left.seconds)} left"


def _speed(report: StepReport) -> str:
    text = f"{report.tuples_per_second:,.1f} tuples/s, {report.images_per_second:,.0f} images/s; "
    text += f"memory {resident_bytes() / 1e9:.1f} GB"
    if torch.cuda.is_initialized():
        text += f", GPU {torch.cuda.memory_allocated() / 1e9:.1f} GB (peak {report.peak_bytes / 1e9:.1f})"
    return text


@contextmanager
def training_display(
    config: TrainConfig, console: Console = messages, clock: Callable[[], float] = time.monotonic
) -> Iterator[TrainingDisplay]:
    """Open the display for as long as the context lasts: bars on a terminal, lines anywhere else."""
    display = TrainingDisplay(config, console, clock)
    with display.bars or nullcontext():
        yield display
