"""A training run on the terminal: bars and figures that follow it, or a line now and then where nobody can
see a bar move (a log file, a batch system).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from sfrs.data.images import Progress as Report
from sfrs.runtime.host import resident_bytes
from sfrs.runtime.terminal import RateColumn, duration, messages
from sfrs.training.config import TrainConfig
from sfrs.training.epoch_state import StepReport
from sfrs.training.progress import TrainingProgress
from sfrs.training.run_estimate import Remaining, RunEstimate

SECONDS_BETWEEN_LINES = 30.0


class TrainingDisplay(TrainingProgress):
    """What bars and lines have in common: the estimate, and a few lines for every epoch."""

    def __init__(self, config: TrainConfig, console: Console, clock: Callable[[], float]) -> None:
        self.config, self.console, self.clock = config, console, clock
        self.estimate = RunEstimate(config, clock)
        self._epoch_began: float | None = None

    def task(self, name: str) -> Report:
        show = self.shown(name)

        def told(done: int, total: int) -> None:
            self.estimate.task(name, done, total)
            if name.startswith("mining") and self._epoch_began is None:
                self._epoch_began = self.clock()
            show(done, total)

        return told

    def shown(self, name: str) -> Report:
        """How the display shows a longer piece of work."""
        raise NotImplementedError

    def message(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def step(self, generation: int, epoch: int, report: StepReport) -> None:
        self.estimate.step(generation, epoch, report.done, report.of)

    def epoch(
        self, generation: int, epoch: int, report: StepReport, recalls: dict[int, float], best: bool
    ) -> None:
        self.estimate.validated()
        now = self.clock()
        seconds, self._epoch_began = now - (self._epoch_began or now), None
        depths = "/".join(f"{n}" for n in recalls)
        shown = "/".join(f"{100 * recall:.1f}" for recall in recalls.values())
        text = Text(f"generation {generation}, epoch {epoch}: {self.losses(report)}\n")
        text.append(f"  validation recall@{depths} {shown} %")
        text.append(", best so far" if best else "", style="green")
        text.append(f"; {duration(seconds)}")
        self.console.print(text, soft_wrap=True, highlight=False)

    def losses(self, report: StepReport) -> str:
        if report.soft == 0:
            return f"loss {report.total:.4f} (hard)"
        weight = f"{self.config.soft_weight:g}"
        return f"loss {report.total:.4f} = hard {report.hard:.4f} + {weight} x soft {report.soft:.4f}"

    def whole_run(self) -> str:
        where = f"epoch {self.estimate.epoch_of_run} of {self.estimate.epochs}"
        left = self.estimate.run_left()
        return f"whole run: {where}, {_left(left)}" if left else f"whole run: {where}"


class TrainingBars(TrainingDisplay):
    """Bars, and below them the figures of the last step."""

    def __init__(self, config: TrainConfig, console: Console, clock: Callable[[], float]) -> None:
        super().__init__(config, console, clock)
        self.last: StepReport | None = None
        self.bar: TaskID | None = None  # of the epoch
        self.bars = _Bars(self, console)

    def shown(self, name: str) -> Report:
        bar: TaskID | None = None

        def show(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = self.bars.add_task(name, total=total)
            self.bars.update(bar, completed=done, total=total)
            if done >= total:
                self.bars.remove_task(bar)
                bar = None

        return show

    def step(self, generation: int, epoch: int, report: StepReport) -> None:
        super().step(generation, epoch, report)
        self.last = report
        if self.bar is None:
            name = f"generation {generation}, epoch {epoch}"
            self.bar = self.bars.add_task(name, total=report.of, estimate=self.estimate)
        self.bars.update(self.bar, completed=report.done)

    def epoch(
        self, generation: int, epoch: int, report: StepReport, recalls: dict[int, float], best: bool
    ) -> None:
        if self.bar is not None:
            self.bars.remove_task(self.bar)
            self.bar = None
        super().epoch(generation, epoch, report, recalls, best)

    def figures(self) -> str:
        """Two lines under the bars, at most 80 columns wide for losses below 100."""
        if self.last is None:
            return ""
        losses = f"  {self.losses(self.last)}, learning rate {self.last.learning_rate:.2g}"
        return f"{losses}\n  {_speed(self.last)}\n  {self.whole_run()}"


class _Bars(Progress):
    def __init__(self, display: TrainingBars, console: Console) -> None:
        self.display = display
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            _RateOfTask(table_column=Column(no_wrap=True)),
            _LeftColumn(table_column=Column(no_wrap=True)),
            console=console,
            get_time=display.clock,
            expand=True,
            transient=True,  # what stays are the lines of the epochs
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.display.figures(), no_wrap=True, overflow="ellipsis")


class _RateOfTask(RateColumn):
    """Not of epochs: their steps and refreshes differ, and the speed stands below."""

    def render(self, task: Task) -> Text:
        return Text() if "estimate" in task.fields else super().render(task)


class _LeftColumn(ProgressColumn):
    """Time left: of an epoch from the estimate, of other work from its rate."""

    def __init__(self, table_column: Column) -> None:
        super().__init__(table_column)
        self._by_rate = TimeRemainingColumn(compact=True)

    def render(self, task: Task) -> Text:
        estimate = task.fields.get("estimate")
        if estimate is None:
            return self._by_rate.render(task) + Text(" left")
        left = estimate.epoch_left()
        return Text(_left(left) if left else "", style="progress.remaining")


class TrainingLines(TrainingDisplay):
    """A line every `SECONDS_BETWEEN_LINES`, without any control character."""

    def __init__(self, config: TrainConfig, console: Console, clock: Callable[[], float]) -> None:
        super().__init__(config, console, clock)
        self._shown = clock()

    def shown(self, name: str) -> Report:
        began = first = None

        def show(done: int, total: int) -> None:
            nonlocal began, first
            now = self.clock()
            if began is None:
                began, first = now, done
            rate = (done - first) / (now - began) if now > began else 0.0
            left = f", {rate:,.1f}/s, {duration((total - done) / rate)} left" if rate else ""
            self._line(f"{name}: {done:,} of {total:,}{left}")
            if done >= total:
                began = None

        return show

    def step(self, generation: int, epoch: int, report: StepReport) -> None:
        super().step(generation, epoch, report)
        left = self.estimate.epoch_left()
        where = f"generation {generation}, epoch {epoch}: {report.done:,} of {report.of:,}"
        where += f", {_left(left)}" if left else ""
        figures = f"{self.losses(report)}, learning rate {report.learning_rate:.2g}; {_speed(report)}"
        self._line(f"{where}; {self.whole_run()}; {figures}")

    def _line(self, text: str) -> None:
        if self.clock() - self._shown >= SECONDS_BETWEEN_LINES:
            self.console.print(text, soft_wrap=True, highlight=False, markup=False)
            self._shown = self.clock()


def _left(left: Remaining) -> str:
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
) -> Iterator[TrainingProgress]:
    """Open the display for as long as the context lasts: bars on a terminal, lines anywhere else."""
    if not console.is_terminal:
        yield TrainingLines(config, console, clock)
        return
    display = TrainingBars(config, console, clock)
    with display.bars:
        yield display
