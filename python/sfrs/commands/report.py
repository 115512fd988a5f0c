"""``sfrs report``: an evaluation, or an index's self-test, as one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfrs.commands import options
from sfrs.commands.flags import argument, command, option
from sfrs.runtime.errors import UserError
from sfrs.runtime.terminal import progress_tasks, say, show


@dataclass(frozen=True)
class Moved:
    """What the user says of things that are not where the folder says."""

    data: Path | None = option("Where the data set is, if it has moved.", "Where things are")
    weights: Path | None = option(
        "Where the network is, if it has moved; of a training run, which one to evaluate.", "Where things are"
    )
    split: str | None = option("Of a training run: the split to evaluate. Default: test.", "Where things are")


@command(
    "sfrs report runs/lund --out runs/lund/report",
    "sfrs report runs/demo --out report --cases 24",
    "sfrs report runs/sfrs --out report --data pitts30k --split val",
    "sfrs report city.index --out report",
)
def report(
    *,
    source: Path = argument(
        "Folder written by sfrs evaluate --out, sfrs train, sfrs demo or sfrs index.",
        metavar="RUN_EVAL_OR_INDEX",
    ),
    out: Path = option("Folder for index.html.", default=..., metavar="FOLDER"),
    moved: Moved,
    running: options.Running,
    cases: int = option(
        "How many failures and how many successes to show; of an index, look-alikes.", default=12, min=0
    ),
) -> None:
    """Write one HTML page that shows how often, where and why a network or an index is right or wrong.

    Recall, errors and training as curves, all queries on a map, and the worst and the best cases with what
    was found for them, which of their regions match, and the clusters of their features. The page holds all
    its images and opens without a server or a network.

    Of a training run the best network of its last generation is evaluated first; the result is kept in the
    folder, so that writing the page again does not take that time. Of an index the page shows what its
    self-test says, with a map of places that look alike and of places that want photographs.
    """
    if not source.is_dir() and not str(source).startswith("milvus:"):
        raise UserError(
            f"{source}: there is no such folder. Expected one of sfrs evaluate --out, sfrs train or sfrs "
            "index."
        )
    device = running.on_device()

    from sfrs.retrieval.index import Index, builder_class
    from sfrs.web.report import Overrides, Running, read_subject, write_index_report, write_report

    if builder_class(source).begun(source):
        if moved != Moved():
            raise UserError(f"{source} is an index; leave out --data, --weights and --split.")
        _written(write_index_report(Index.open(source), out, pairs=cases))
        return
    with progress_tasks() as tasks:
        how = Running(**running.begin(), device=device, tasks=tasks)
        subject = read_subject(source, out, Overrides(moved.data, moved.weights, moved.split), how)
        page = write_report(subject, out, cases=cases, device=device, tasks=tasks)
    if subject.unexplained:
        say(("Without regions and clusters:", "yellow"), f" {subject.unexplained}")
    _written(page)


def _written(page: Path) -> None:
    show(f"{page}: {page.stat().st_size / 1e6:.1f} MB, nothing outside it is needed")
