"""What commands print: results on standard output; progress, warnings and errors on standard error.

Names of files hold anything: what looks like markup, line breaks, escape sequences of a terminal, bytes that
are no text. Whatever is printed goes through `plain`, and has no markup.
"""

import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from sfrs.runtime.progress import Progress, Tasks, quiet

messages = Console(stderr=True)
LINE_BREAK = "\n  "  # the only break that messages have themselves: the following lines are indented


def plain(text: object) -> str:
    """Return a text as one line that every terminal shows, with control characters and lone bytes escaped."""
    return "".join(map(_visible, str(text)))


def show(text: object = "") -> None:
    """Print a line of a result."""
    print(plain(text), flush=True)


def say(*parts: str | tuple[str, str]) -> None:
    """Print a line on standard error; a part may be a pair of a text and its style."""
    shown = [plain(part) if isinstance(part, str) else (plain(part[0]), part[1]) for part in parts]
    messages.print(Text.assemble(*shown), soft_wrap=True)


def table(title: str, first: str, numbers: Iterable[str], **look: Any) -> Table:
    """Make a table of a column of texts and others of numbers, which stand to the right."""
    columns = [Column(first), *(Column(name, justify="right", no_wrap=True) for name in numbers)]
    return Table(*columns, title=Text(plain(title)), title_style="bold", title_justify="left", **look)


def encode_anything() -> None:
    """Let names be printed that the encoding of the output lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _visible(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return character.encode("unicode_escape").decode() if hidden else character


class RateColumn(ProgressColumn):
    """Show items per second, or seconds per item where that reads better."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0
        fast = f"{speed:,.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each" if speed else ""
        return Text(fast, style="progress.data.speed")


@contextmanager
def progress_tasks(*, shown: bool = True) -> Iterator[Tasks]:
    """Open a display of progress bars; yields a function that opens one bar by its name:

    with progress_tasks() as tasks:
        describe(network, files, progress=tasks("database"))

    Nothing is ``shown`` by one of several processes whose progress another shows.
    """
    if not shown:
        yield quiet
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=32),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        RateColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Bars(*columns, console=messages) as bars:

        def open_bar(name: str) -> Progress:
            bar = bars.add_task(plain(name), total=1, visible=False)
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
    """Print a `sfrs.runtime.errors.UserError` as one message."""
    _show("Error: ", "bold red", error)


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Print warnings as messages, without the line of code that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _show("Warning: ", "bold yellow", message)
        yield


def _show(kind: str, style: str, message: object) -> None:
    text = LINE_BREAK.join(map(plain, str(message).split(LINE_BREAK)))
    messages.print(Text(kind, style=style) + Text(text, style="default"), soft_wrap=True)
