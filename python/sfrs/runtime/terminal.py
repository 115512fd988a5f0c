"""Messages of commands on standard error, so that results can be piped: progress, warnings, errors."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from sfrs.runtime.progress import Progress, Tasks

messages = Console(stderr=True)


class RateColumn(ProgressColumn):
    """Show items per second, or seconds per item where that reads better."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0
        fast = f"{speed:,.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each" if speed else ""
        return Text(fast, style="progress.data.speed")


@contextmanager
def progress_tasks() -> Iterator[Tasks]:
    """Open a display of progress bars; yields a function that opens one bar by its name::

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
    with Bars(*columns, console=messages) as bars:

        def open_bar(name: str) -> Progress:
            bar = bars.add_task(name, total=1, visible=False)
            return lambda done, total: bars.update(bar, completed=done, total=total, visible=True)

        yield open_bar


def duration(seconds: float) -> str:
    """Write ``1:05``, ``2:03:09`` or ``3 d 4:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_error(error: Exception) -> None:
    """Print a :class:`sfrs.runtime.errors.UserError` as one message."""
    _show("Error: ", "bold red", error)


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Print warnings as messages, without the line of code that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _show("Warning: ", "bold yellow", message)
        yield


def _show(kind: str, style: str, message: object) -> None:
    messages.print(Text(kind, style=style) + Text(str(message), style="default"), soft_wrap=True)
