"""``python -m benchmarks.studies generations|choice [--seeds N,N] [--out DIR]``: studies that are recorded.

Each is one ``sfrs study``, which goes on where it stopped: ``generations`` is the table of three cities,
``choice`` the search among losses on validation quarters that docs/research.md describes.

Figures go to benchmarks/results/NAME.json; `make report` puts them into docs/study.md and docs/research.md.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sfrs.retrieval.mcnemar import Paired, mcnemar
from sfrs.synthetic.study import Line, markdown

from .record import RESULTS, ROOT, command, machine, write_json

LITE = ["--generations", "3", "--backbone", "efficientnet-lite0"]
AS_NEGATIVES = "soft_negatives=true soft_ranks=2,8 region_negatives=false"
STUDIES = {
    "generations": [*LITE, "--variants", "negatives,regions,levels"],
    "choice": [*LITE, "--split", "val", "--variants", "negatives"],
}
SEEDS = {"generations": "0,1,2", "choice": "10,11"}
OF_CHOICE = {  # label -> changes
    "by level": f"{AS_NEGATIVES} soft_loss=by-level teacher_temperatures=0.15",
    "whole and best": f"{AS_NEGATIVES} soft_loss=whole-and-best teacher_temperatures=0.15",
    "sharper": f"{AS_NEGATIVES} soft_level=image teacher_temperatures=0.05",
    "regions by rank": f"{AS_NEGATIVES} teacher_temperatures=0.15",
    "by level, sharper": f"{AS_NEGATIVES} soft_loss=by-level teacher_temperatures=0.05",
}
ADDING = ("levels", "negatives")
PLOT = ROOT.parent / "docs/plots/generations.png"


def arguments(name: str) -> list[str]:
    """Return what ``sfrs study`` is given, but for its seeds, folder and threads."""
    of_choice = [part for item in OF_CHOICE.items() for part in ("--variant", ": ".join(item))]
    return [*STUDIES[name], *(of_choice if name == "choice" else [])]


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
    pairs = [[last_hits(out / f"seed_{seed}" / f"{name}_3.scores.json") for name in ADDING] for seed in seeds]
    paired = mcnemar(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    return asdict(paired) | {"by_seed": [float(first.mean() - second.mean()) for first, second in pairs]}


def last_hits(file: Path) -> np.ndarray:
    """Read which queries the last network of a file of scores finds at rank 1, bool ``[m]``."""
    bits = json.loads(file.read_text("utf-8"))["scores"][-1]["hits"]["1"]
    return np.array(list(bits)) == "1"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description=__doc__)
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--seeds", help=f"of {SEEDS}")
    parser.add_argument("--out", type=Path, help="folder of the study; runs/NAME")
    parser.add_argument("--threads", default="1", help="of torch; they change the last digits of results")
    given = parser.parse_args()
    out = given.out or ROOT.parent / "runs" / given.name
    asked = ["--seeds", given.seeds or SEEDS[given.name], "--threads", given.threads]
    study = [sys.executable, "-m", "sfrs", "study", *arguments(given.name), *asked, "--out", out]
    subprocess.run(study, check=True)
    recorded = json.loads((out / "study.json").read_text("utf-8"))
    said = command("benchmarks.studies", [given.name, *asked])
    recorded = {"command": said, "machine": machine(int(given.threads))} | recorded
    if given.name == "generations":
        recorded["adding"] = adding(out, recorded["seeds"])
        shutil.copyfile(out / "study.png", PLOT)
    write_json(RESULTS / f"{given.name}.json", recorded)


if __name__ == "__main__":
    main()
