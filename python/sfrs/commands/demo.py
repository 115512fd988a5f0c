"""``sfrs demo``: the main job from nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console

from sfrs.commands.flags import command, option
from sfrs.runtime.errors import UserError
from sfrs.runtime.terminal import progress_tasks, say, show, table

if TYPE_CHECKING:
    from sfrs.synthetic.demo import DemoResult


@command(
    "sfrs demo --out runs/demo",
    "sfrs demo --out runs/seed1 --seed 1",
    "sfrs demo --out /tmp/quick --size small --photos places/corridor",
)
def demo(
    *,
    out: Path = option("Folder for everything the demonstration makes.", default=Path("runs/demo")),
    seed: int = option("Of the city and of the training.", default=0, min=0),
    size: str = option("demo, or small: a run of seconds that proves only that all works.", default="demo"),
    backbone: str = option(
        "gradient, trained from nothing, or one with published weights, as efficientnet-lite0.",
        default="gradient",
        metavar="NAME",
    ),
    photos: Path | None = option(
        "Data set of real photographs to locate at the end with a network pretrained on ImageNet."
    ),
    threads: int | None = option("Threads.", min=1, show_default="all cores"),
) -> None:
    """Render a city, train SARE-ind and SFRS on it, test both on another city, and show the result.

    An interrupted demonstration goes on after its last whole epoch, a finished one is only tested again.
    """
    began = time.perf_counter()

    import torch

    from sfrs.synthetic.demo import run_demo
    from sfrs.synthetic.experiment import SCALES

    if size not in SCALES:
        raise UserError(f"--size is {size!r}, expected one of {', '.join(SCALES)}")
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_tasks() as tasks:
        result = run_demo(out, scale=size, seed=seed, backbone=backbone, photos=photos, tasks=tasks, say=say)
    _show(result, time.perf_counter() - began)


def _show(result: DemoResult, total: float) -> None:
    console = Console()
    title = f"Recall@N on {result.queries:,} test queries, in %"
    numbers = ("passes", "@1", "@5", "@10", "vs SARE", "p", "s")
    shown = table(title, "network", numbers, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for row in result.rows:
        shown.add_row(
            row.label,
            f"{row.passes}",
            *[f"{100 * row.recalls[n]:.1f}" for n in (1, 5, 10)],
            "" if row.gain is None else f"{100 * row.gain:+.1f}",
            "" if row.p_value is None else f"{row.p_value:.1g}",
            f"{row.seconds:.0f}" if row.seconds else "",
        )
    console.print(shown)
    console.print(
        "passes: how often every training query was used; s: seconds of training, generation 1 included.\n"
        "vs SARE: recall@1 against the equally long SARE-ind; p: exact McNemar test on the same queries.",
        highlight=False,
        soft_wrap=True,
    )
    show(_photographs(result))
    stages = table("Where the time went", "stage", ["s"], box=box.SIMPLE, show_header=False)
    for stage, seconds in result.seconds.items():
        stages.add_row(stage, f"{seconds:.1f}")
    stages.add_row("everything else", f"{total - sum(result.seconds.values()):.1f}")
    stages.add_row("total", f"{total:.1f}")
    console.print(stages)
    for what, file in result.files.items():
        show(f"{what}: {file}")


def _photographs(result: DemoResult) -> str:
    located = result.photographs
    if located is None:
        return "Real photographs: sfrs demo --photos FOLDER locates a data set of them, sfrs index your own."
    recalls = ", ".join(f"@{n} {100 * located.recalls[n]:.1f}" for n in (1, 5, 10))
    return (
        f"Real photographs, {located.name}: {located.queries:,} queries among {located.database:,}, by a "
        f"network pretrained on ImageNet and never trained for places: recall {recalls} %"
    )
