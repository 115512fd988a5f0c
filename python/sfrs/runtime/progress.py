"""The callbacks by which long work shows how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # takes (done, total) as work goes on
Tasks = Callable[[str], Progress]  # opens a display of progress by its name


def silent(done: int, total: int) -> None:
    """Show nothing."""


def quiet(name: str) -> Progress:
    """Open no display."""
    return silent
