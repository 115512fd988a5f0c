"""``python -m benchmarks.labels [--study DIR] [--seed N]``: labels by generation, recall by kind of query.

Reads the cities and networks that ``sfrs study --generations 3 --variants negatives,regions`` left in DIR.
Each network of a generation labels the training queries' difficult positives as a teacher does. The rendered
city knows which way every photo looks, so it knows which positives within 10 m do not show what the query
shows: those that look more than a field of view away from it. Recall on the test quarter is split by the time
of day.

Figures go to benchmarks/results/labels.json; `make report` puts them into docs/research.md.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from sfrs.data.neighbourhood import Neighbourhood
from sfrs.data.places import ImageSet, Places
from sfrs.features.source import describe_features
from sfrs.models.network import DescriptorNetwork, load_network
from sfrs.retrieval.evaluation import Evaluation
from sfrs.runtime.terminal import messages, progress_tasks
from sfrs.synthetic.experiment import REGIONS_AND_NEGATIVES, SCALES, SOFT_NEGATIVES, Experiment, Stopwatch
from sfrs.training.mining import Miner, Tuples
from sfrs.training.preparation import training_images
from sfrs.training.step import TrainingImages, similarities

from .record import RESULTS, command, machine, write_json

ROOT = Path(__file__).resolve().parents[1]
FILE = RESULTS / "labels.json"
FIELD_OF_VIEW = 65.0  # degrees, of the training quarter's photos
PARTS = {"the whole": slice(0, 1), "halves": slice(1, 5), "quarters": slice(5, 9)}
RUNS = {
    "image labels, soft negatives": ("negatives", SOFT_NEGATIVES),
    "regions": ("regions", REGIONS_AND_NEGATIVES),
}
BASELINE = "SARE-ind"
BATCH = 16


def headings(images: ImageSet) -> np.ndarray:
    """Read where photos look, degrees ``[n]``, from the names of a rendered city's files."""
    return np.array([float(file.name.split("@")[9]) for file in images.files])


def turn(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the angle between two headings, 0 to 180 degrees."""
    return np.abs((one - other + 180) % 360 - 180)


def mined(experiment: Experiment, network: DescriptorNetwork, changes: dict) -> tuple[Tuples, TrainingImages]:
    """Find every training query's tuple by the descriptors of ``network``, as its generation would."""
    config, places = experiment.config((1, 1), **changes), experiment.places["train"]
    images = training_images(config, network, places, experiment.features.train)
    near = Neighbourhood.of_places(places, config.positive_radius, config.negative_radius)
    every = torch.arange(images.queries + images.database)
    descriptors = describe_features(network, images.mining, every, batch_size=32)
    miner = Miner(near, config, seed=experiment.seed)
    how = "ranks" if config.soft_ranks else "promoted"
    queries, database = descriptors[: images.queries], descriptors[images.queries :]
    return miner.mine(miner.queries, queries, database, difficult=how), images


def labels(experiment: Experiment, network: DescriptorNetwork, changes: dict) -> dict:
    """Describe the labels that ``network`` gives as a teacher."""
    config = experiment.config((1, 1), **changes)
    tuples, images = mined(experiment, network, changes)
    temperature, regions = config.teacher_temperature(2), config.soft_level == "region"
    weights = torch.cat(
        [_weights(part, network, images, config, regions, temperature) for part in _parts(tuples)]
    )
    places = experiment.places["train"]
    looks, shows = headings(places.queries), headings(places.database)
    difficult = tuples.difficult.numpy()
    false = torch.from_numpy(turn(looks[tuples.queries.numpy()][:, None], shows[difficult]) > FIELD_OF_VIEW)
    valid = tuples.difficult >= 0
    flat = weights.flatten(1)
    choices = valid.sum(1) * weights.shape[2]
    entropy = -(flat * flat.clamp_min(1e-12).log()).sum(1) / choices.double().log().clamp_min(1e-12)
    by_image = weights.sum(2)
    return {
        "positives": valid.sum(1).double().mean().item(),
        "false": (false & valid).sum().item() / valid.sum().item(),
        "weight_of_false": (by_image * (false & valid)).sum(1).mean().item(),
        "entropy": entropy[choices > 1].mean().item(),
        "parts": {
            name: weights[:, :, part].sum((1, 2)).mean().item() for name, part in PARTS.items() if regions
        },
    }


def _parts(tuples: Tuples) -> Iterator[Tuples]:
    for begin in range(0, len(tuples), BATCH):
        yield tuples[begin : begin + BATCH]


def _weights(
    tuples: Tuples,
    network: DescriptorNetwork,
    images: TrainingImages,
    config,
    regions: bool,
    temperature: float,
) -> torch.Tensor:
    """Labels ``[T, P, 9]`` (or 1), 0 where there is no positive."""
    gallery = tuples.difficult.clamp_min(0) + images.queries
    used, rows = torch.cat((tuples.queries[:, None], gallery), dim=1).unique(return_inverse=True)
    with torch.no_grad():
        found = similarities(network, images.mining(used), rows, config, regions=regions).double()
    logits = (found / temperature).masked_fill((tuples.difficult < 0)[:, :, None], -math.inf)
    return logits.flatten(1).softmax(dim=1).view_as(found)


def groups(places: Places) -> dict[str, np.ndarray]:
    """Return the test queries by time of day."""
    conditions = np.array([file.name.split("@")[14].partition("-")[0] for file in places.queries.files])
    return {name: conditions == name for name in sorted(set(conditions))}


def recalls(result: Evaluation, by_group: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: result.recalls_of(mask)[1] for name, mask in by_group.items()}


def measure(experiment: Experiment, generations: int) -> dict:
    """Labels by variant and generation, and recall@1 of the last generations by group of queries."""
    test = experiment.places["test"]
    by_group = groups(test)
    answerable = experiment.test(experiment.pretrained).answerable
    done: dict = {"queries": {name: int((mask & answerable).sum()) for name, mask in by_group.items()}}
    last = {BASELINE: f"sare_{generations}/generation_1"}
    done["labels"] = {}
    for label, (name, changes) in RUNS.items():
        folder = f"{name}_{generations}"
        last[label] = f"{folder}/generation_{generations}"
        rows = done["labels"][label] = []
        for generation in range(1, generations):
            network = load_network(
                experiment.root / folder / f"generation_{generation}/best.safetensors"
            ).eval()
            rows.append(labels(experiment, network, changes))
    done["recalls"] = {
        label: recalls(experiment.test(load_network(experiment.root / path / "best.safetensors")), by_group)
        for label, path in last.items()
    }
    return done


def table(recorded: dict) -> str:
    about = recorded["machine"]
    lines = [
        f"`{recorded['command']}`, commit {about['commit']}, {about['date']}; the city of seed "
        f"{recorded['seed']}. Entropy: 1 if all regions of all difficult positives weigh the same.",
        "",
        "| labels of | teacher | difficult positives | of them false | their weight | entropy | the whole / "
        "halves / quarters |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, rows in recorded["labels"].items():
        for generation, row in enumerate(rows, 1):
            parts = " / ".join(f"{100 * weight:.0f} %" for weight in row["parts"].values())
            shares = " | ".join(f"{100 * row[name]:.0f} %" for name in ("false", "weight_of_false"))
            lines.append(
                f"| {label} | generation {generation} | {row['positives']:.1f} | {shares} | "
                f"{row['entropy']:.2f} | {parts} |"
            )
    groups_of = list(recorded["queries"])
    heads = [f"{name}, {recorded['queries'][name]}" for name in groups_of]
    lines += ["", "Recall@1 on the test quarter in %, by queries:", "", f"| | {' | '.join(heads)} |"]
    lines.append("|---|" + "---|" * len(heads))
    for label, found in recorded["recalls"].items():
        lines.append(f"| {label} | {' | '.join(_percent(found[name]) for name in groups_of)} |")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labels", description=__doc__)
    parser.add_argument("--study", type=Path, default=ROOT / "runs/generations")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    settings = json.loads((given.study / "settings.json").read_text("utf-8"))
    generations = json.loads((given.study / "study.json").read_text("utf-8"))["generations"]
    with progress_tasks() as tasks:
        experiment = Experiment(
            given.study / f"seed_{given.seed}",
            SCALES[settings["size"]],
            given.seed,
            tasks=tasks,
            say=messages.print,
            stopwatch=Stopwatch(),
            shared=given.study / "pretext",
            backbone=settings["backbone"],
        )
        done = measure(experiment, generations)
    about = {
        "command": command("benchmarks.labels", ["--seed", str(given.seed)]),
        "machine": machine(torch.get_num_threads()),
        "seed": given.seed,
    }
    write_json(FILE, about | done)


if __name__ == "__main__":
    main()
