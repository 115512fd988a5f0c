"""``sfrs study``: variants of the method over several seeds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfrs.commands.flags import command, option
from sfrs.runtime.errors import UserError
from sfrs.runtime.terminal import progress_tasks, say, show

if TYPE_CHECKING:
    from sfrs.synthetic.study import Variant


@dataclass(frozen=True)
class Compared:
    """Which variants."""

    variants: str = option(
        "Of paper, softer, negatives, image, regions, levels; empty: only those of --variant.",
        default="paper,softer,negatives,image",
        metavar="NAME,...",
    )
    variant: list[str] | None = option(
        "One of your own: its changes to the configuration of generations 2 and later. Repeatable.",
        metavar="'NAME: FIELD=VALUE ...'",
    )

    def parse(self) -> list[Variant]:
        """Read them. Raises `UserError` if one is not known, or is named twice."""
        from sfrs.synthetic.study import VARIANTS

        known = {each.name: each for each in VARIANTS}
        names = [name.strip() for name in self.variants.split(",") if name.strip()]
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"--variants is {self.variants!r}, {unknown[0]!r} is none of {', '.join(known)}")
        compared = [*(known[name] for name in names), *map(own_variant, self.variant or ())]
        if len({each.name for each in compared}) < len(compared):
            raise UserError("--variants and --variant name a variant twice")
        return compared


@command(
    "sfrs study --out runs/study --seeds 0,1,2",
    "sfrs study --out runs/long --generations 4 --backbone efficientnet-lite0 --variants softer,negatives",
    'sfrs study --variants negatives --variant "heavy: soft_negatives=true soft_level=image soft_weight=1"',
)
def study(
    *,
    out: Path = option("Folder for cities, runs and tables.", default=Path("runs/study")),
    seeds: str = option("Each is a city and a training of its own.", default="0,1,2", metavar="N,N,..."),
    generations: int = option("Of every variant; the first is SARE-ind.", default=2, min=2, max=20),
    backbone: str = option("gradient, or one with published weights.", default="gradient"),
    which: Compared,
    split: str = option("Quarters that are scored: test, or val to choose among variants.", default="test"),
    size: str = option("demo, or small to rehearse.", default="demo"),
    threads: int | None = option("Threads.", min=1, show_default="all cores"),
) -> None:
    """Compare SFRS and its variants with SARE-ind of equal length, generation by generation.

    Each row is tested against SARE-ind of as many passes on the same queries; the differences of single seeds
    stand beside it. On validation quarters, SARE-ind is trained for one generation only. What is done already
    is kept: an interrupted study goes on, and a study with more seeds reuses the others.
    """
    import torch

    from sfrs.synthetic.experiment import SCALES
    from sfrs.synthetic.study import Study, run_study

    if size not in SCALES:
        raise UserError(f"--size is {size!r}, expected one of {', '.join(SCALES)}")
    if split not in ("test", "val"):
        raise UserError(f"--split is {split!r}, expected test or val")
    try:
        numbers = [int(part) for part in seeds.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise UserError(f"--seeds is {seeds!r}, expected distinct whole numbers such as 0,1,2")
    compared = which.parse()
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_tasks() as tasks:
        run_study(Study(out, numbers, compared, generations, size, backbone, split), tasks=tasks, say=say)
    print((out / "study.md").read_text(), end="")
    show()
    show(f"{out / 'study.json'} holds the counts, {out / 'study.png'} draws them")


def own_variant(text: str) -> Variant:
    """Read ``NAME: FIELD=VALUE ...``, fields as `sfrs train` has them. Raises `UserError` if it is none."""
    from sfrs.synthetic.study import Variant
    from sfrs.training.config import TrainConfig, parse_flag

    label, colon, rest = text.partition(":")
    pairs = [part.partition("=") for part in rest.split()]
    name = re.sub(r"\W+", "_", label.strip())
    if not colon or not name.strip("_") or not all(equals for _, equals, _ in pairs):
        raise UserError(f"--variant is {text!r}, expected 'NAME: FIELD=VALUE ...'")
    changes = {field: parse_flag(field, value) for field, _, value in pairs}
    TrainConfig.preset("demo", **changes)
    return Variant(name, label.strip(), changes)
