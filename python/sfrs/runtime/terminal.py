"""What commands show on the terminal: progress with rates and time left, warnings, errors.

Everything here goes to standard error, so that a command's result can be piped.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

messages = Console(stderr=True)


class RateColumn(ProgressColumn):
    """Items per second, or seconds per item where that reads better."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("", style="progress.data.speed")
        return Text(
            f"{speed:,.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="progress.data.speed"
        )


@contextmanager
def progress_tasks() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Open a display of progress bars; yields a function that opens one bar by its name.

    A bar is called with (done, total)::

        with progress_tasks() as tasks:
            describe(network, files, progress=tasks("database"))
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=messages) as progress:

        def open_task(name: str) -> Callable[[int, int], None]:
            task = progress.add_task(name, total=1, visible=False)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total, visible=True)

            return show

        yield open_task


def duration(seconds: float) -> str:
    """``1:05``, ``2:03:09`` or ``3 d 4:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_error(error: Exception) -> None:
    """Print a :class:`sfrs.runtime.errors.UserError` as one message."""
    messages.print(Text("Error: ", style="bold red") + Text(str(error), style="default"), soft_wrap=True)


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Print warnings as messages, without the line of code that raised them."""

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        messages.print(
            Text("Warning: ", style="bold yellow") + Text(str(message), style="default"), soft_wrap=True
        )

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
