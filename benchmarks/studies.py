"""``python -m benchmarks.studies NAME [--seeds N,N] [--out DIR]``: studies that are recorded.

Each goes on where it stopped. ``generations`` and ``gradient`` are the tables of three cities, by the two
backbones; ``choice`` is the search among losses on validation quarters that docs/research.md describes.

Figures go to benchmarks/results/NAME.json; `make report` puts them into docs/study.md and docs/research.md.
"""

import argparse
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfrs.retrieval.recall import Paired, mcnemar
from sfrs.runtime.terminal import progress_tasks, say
from sfrs.synthetic.experiment import GRADIENT, SOFT_NEGATIVES
from sfrs.synthetic.study import VARIANTS, Line, Study, Variant, markdown, run_study
from sfrs.training.losses import SOFT_LOSSES, region_negatives, soft_loss

from .record import RESULTS, ROOT, command, machine, write_json

REGIONS = {name: value for name, value in SOFT_NEGATIVES.items() if name != "soft_level"}
BY_LEVEL = {**REGIONS, "soft_loss": "by-level"}
OF_CHOICE = {  # label -> changes
    "by level": BY_LEVEL,
    "whole and best": {**REGIONS, "soft_loss": "whole-and-best"},
    "sharper": {**SOFT_NEGATIVES, "teacher_temperatures": (0.05,)},
    "regions by rank": REGIONS,
    "by level, sharper": {**BY_LEVEL, "teacher_temperatures": (0.05,)},
}
NAMED = {variant.name: variant for variant in VARIANTS}


@dataclass(frozen=True)
class Recorded:
    """What a study trains by default."""

    seeds: str
    variants: list[Variant]
    generations: int
    backbone: str = "efficientnet-lite0"
    split: str = "test"


STUDIES = {
    "generations": Recorded("0,1,2", [NAMED[name] for name in ("negatives", "levels")], 4),
    "gradient": Recorded("0,1,2", [NAMED["negatives"]], 4, backbone=GRADIENT),
    "choice": Recorded(
        "10,11",
        [
            NAMED["negatives"],
            *(
                Variant(label.replace(",", "").replace(" ", "_"), label, changes)
                for label, changes in OF_CHOICE.items()
            ),
        ],
        3,
        split="val",
    ),
}
ADDING = ("levels", "negatives")
PLOT = ROOT.parent / "docs/plots/generations.png"


def soft_loss_whole_and_best(
    student: Tensor, teacher: Tensor, *temperatures: float, negatives: Tensor, valid: Tensor
) -> Tensor:
    """Compute the mean of `soft_loss` for whole images and for each positive's region that fits best.

    The teacher chooses a positive's region; a negative is its region most similar to the query.
    """
    region = teacher.argmax(dim=2, keepdim=True)  # [T, P, 1]
    whole = soft_loss(
        student[:, :, :1], teacher[:, :, :1], *temperatures, negatives=negatives[:, :, :1], valid=valid
    )
    best = soft_loss(
        student.gather(2, region),
        teacher.gather(2, region),
        *temperatures,
        negatives=region_negatives(negatives)[:, :, None],
        valid=valid,
    )
    return (whole + best) / 2


SOFT_LOSSES["whole-and-best"] = soft_loss_whole_and_best


def lines(recorded: dict) -> list[Line]:
    """Read the rows of a study back."""
    return [
        Line(
            row["label"],
            row["passes"],
            {int(n): recall for n, recall in row["recalls"].items()},
            row["validation_recall@1"],
            None
            if row["difference"] is None
            else Paired(row["gained"], row["lost"], row["difference"], row["p_value"]),
            row["by_seed"],
        )
        for row in recorded["rows"]
    ]


def table(recorded: dict) -> str:
    """The study's own table below its command."""
    about, split = recorded["machine"], recorded.get("split", "test")
    said = f"`{recorded['command']}`, {about['cpu']}, commit {about['commit']}, {about['date']}."
    text = f"{said}\n\n{markdown(lines(recorded), recorded['seeds'], recorded['queries'], split).strip()}"
    if (found := recorded.get("adding")) is None:
        return text
    each = ", ".join(f"{100 * difference:+.1f}" for difference in found["by_seed"])
    return (
        f"{text}\n\nRegions by level against image labels, last generation: {100 * found['difference']:+.1f} "
        f"({each}), p {found['p_value']:.1g}."
    )


def adding(out: Path, seeds: list[int]) -> dict:
    """Compare regions by level with image labels, both with negatives, in the last generation."""
    last = STUDIES["generations"].generations
    pairs = [
        [last_hits(out / f"seed_{seed}" / f"{name}_{last}.scores.json") for name in ADDING] for seed in seeds
    ]
    paired = mcnemar(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    return asdict(paired) | {"by_seed": [float(first.mean() - second.mean()) for first, second in pairs]}


def last_hits(file: Path) -> np.ndarray:
    """Read which queries the last network of a file of scores finds at rank 1, bool ``[m]``."""
    bits = json.loads(file.read_text("utf-8"))["scores"][-1]["hits"]["1"]
    return np.array(list(bits)) == "1"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description=__doc__)
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--seeds", help="instead of those of the record")
    parser.add_argument("--out", type=Path, help="folder of the study; runs/NAME")
    parser.add_argument("--threads", type=int, default=1, help="they change the last digits of results")
    given = parser.parse_args()
    name, out = given.name, given.out or ROOT.parent / "runs" / given.name
    of = STUDIES[name]
    seeds = given.seeds or of.seeds
    torch.set_num_threads(given.threads)
    with progress_tasks() as tasks:
        study = Study(
            out,
            [int(seed) for seed in seeds.split(",")],
            of.variants,
            generations=of.generations,
            backbone=of.backbone,
            split=of.split,
        )
        run_study(study, tasks=tasks, say=say)
    recorded = json.loads((out / "study.json").read_text("utf-8"))
    said = command("benchmarks.studies", [name, "--seeds", seeds, "--threads", str(given.threads)])
    recorded = {"command": said, "machine": machine(given.threads)} | recorded
    if name == "generations":
        recorded["adding"] = adding(out, recorded["seeds"])
        shutil.copyfile(out / "study.png", PLOT)
    write_json(RESULTS / f"{name}.json", recorded)


if __name__ == "__main__":
    main()
