"""``python -m benchmarks.fine_tuning [--places DIR] [--seeds 0,1,2]``: SFRS on real photographs.

Trains the last blocks of EfficientNet-Lite0 from ImageNet's weights on floors of the building ``tower``,
SARE-ind and SFRS with equal passes, validates them on floors that they do not see and tests them on others;
every seed has other floors. ``corridor`` and ``lund`` are sets of other people, searched with the clusters
that were learned and with clusters from their own photographs. The learning rate is chosen on the validation
floors of the first seed.

Figures go to benchmarks/results/fine-tuning.json, piece by piece: an interrupted run goes on where it
stopped. `make report` puts what is recorded into docs/photographs.md.
"""

import argparse
import copy
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from sfrs.data.places import Places, load_places
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork, pretrained_network
from sfrs.retrieval.evaluation import Scoring, evaluate
from sfrs.runtime.terminal import messages, progress_tasks
from sfrs.synthetic.experiment import SOFT_NEGATIVES, SOFTER_TEACHER, Watch
from sfrs.synthetic.study import RECALLS, Score, markdown, summarise
from sfrs.training.config import TrainConfig
from sfrs.training.preparation import RunFeatures, build_features
from sfrs.training.run_folder import RunDirectory, RunResult
from sfrs.training.trainer import train

from .photographs import ROOT, SETS
from .record import RESULTS, command, machine, write_json

FILE = RESULTS / "fine-tuning.json"
TRAINED_ON = "tower"
UNSEEN = tuple(name for name in SETS if name != TRAINED_ON)
FLOOR, FOLDS = 5000.0, 5  # metres between two floors of the set's made-up coordinates
SEEDS = (0, 1, 2)
SIZE = (192, 336)
EPOCHS = 3
RATES = (0.003, 0.01)
BASELINE = "SARE-ind"
VARIANTS = {  # label -> epochs of each generation, changes to the configuration
    BASELINE: ((2 * EPOCHS,), {}),
    "SFRS, softer teacher": ((EPOCHS, EPOCHS), SOFTER_TEACHER),
    "SFRS with soft negatives (ours)": ((EPOCHS, EPOCHS), SOFT_NEGATIVES),
}


def floors(places: Places, seed: int) -> tuple[Places, Places, Places]:
    """Split a building: of five floors one is for testing, the next for validation, three for training."""
    of = {role: (images.positions[:, 1] // FLOOR).astype(int) for role, images in _roles(places).items()}
    numbers = np.unique(np.concatenate(list(of.values())))
    fold = {number: i % FOLDS for i, number in enumerate(numbers)}
    test, validation = seed % FOLDS, (seed + 1) % FOLDS

    def part(split: str, wanted: set[int]) -> Places:
        images = {
            role: found.subset(np.array([fold[floor] in wanted for floor in of[role]]))
            for role, found in _roles(places).items()
        }
        return Places(places.name, split, **images)

    others = set(range(FOLDS)) - {test, validation}
    return part("train", others), part("val", {validation}), part("test", {test})


def _roles(places: Places) -> dict:
    return {"database": places.database, "queries": places.queries}


class Trial:
    """The trainings of one seed."""

    def __init__(self, out: Path, places: Places, seed: int, rate: float, tasks) -> None:
        self.out, self.seed, self.rate, self.tasks = out / f"seed_{seed}", seed, rate, tasks
        self.train, self.val, self.test = floors(places, seed)
        self.network = pretrained_network("efficientnet-lite0")
        self.features: RunFeatures | None = None

    def config(self, epochs: tuple[int, ...], **changes) -> TrainConfig:
        settings = {
            "backbone": "efficientnet-lite0",
            "clusters": self.network.vlad.num_clusters,
            "height": SIZE[0],
            "width": SIZE[1],
            "jitter": (),
            "generations": len(epochs),
            "epochs": epochs,
            "tuples_per_step": 8,
            "learning_rate": self.rate,
            "lr_schedule": "linear",
            "seed": self.seed,
            "workers": 2,
            "device": "cpu",
        }
        return TrainConfig(**(settings | changes))

    def run(self, name: str, epochs: tuple[int, ...], after: str | None = None, **changes) -> RunResult:
        """Train, or go on; ``after`` names a run whose first generation is taken over."""
        config, folder = self.config(epochs, **changes), self.out / name
        resume = RunDirectory(folder).checkpoint.exists()
        if self.features is None:
            self.features = build_features(self.config((1,)), self.network, (self.train, self.val))
        return train(
            (self.train, self.val),
            config,
            folder,
            network=None if resume else self.network,
            features=self.features,
            first_generation=self.out / after if after and not resume else None,
            resume=resume,
            progress=Watch(self.tasks, messages.print, f"seed {self.seed}, {name}"),
        )


def scored(
    label: str, passes: int, network: DescriptorNetwork, test: Places, unseen: dict[str, Places]
) -> dict:
    """Hits on the test floors, and recall@1 on the sets never seen, as one row of the record."""
    model, scoring = Model(network, size=SIZE), Scoring(RECALLS)
    found = evaluate(model, test, scoring=scoring)
    hits = {n: found.hits(n)[found.answerable].astype(int).tolist() for n in RECALLS}
    elsewhere = {}
    for name, places in unseen.items():
        model = Model(copy.deepcopy(network), size=SIZE[0])
        learned = evaluate(model, places, scoring=scoring).recalls[1]
        model.fit_clusters(places.database.files)
        elsewhere[name] = [learned, evaluate(model, places, scoring=scoring).recalls[1]]
    return {"label": label, "passes": passes, "hits": hits, "elsewhere": elsewhere}


def choose_rate(out: Path, places: Places, done: dict, tasks) -> float:
    """Return the learning rate of the best validation recall@1 after one generation of the first seed."""
    rates = done.setdefault("rates", {})
    for rate in RATES:
        if str(rate) not in rates:
            result = Trial(out / f"rate_{rate}", places, SEEDS[0], rate, tasks).run("sare", (EPOCHS,))
            rates[str(rate)] = [kept.recalls[1] for kept in (result.initial, *result.generations)]
            write_json(_unfinished(), done)
    return float(max(rates, key=lambda rate: rates[rate][-1]))


def measure(out: Path, places: dict[str, Places], seeds: list[int], done: dict, tasks) -> None:
    """Fill ``done["seeds"]``: seed -> rows, writing as it goes."""
    building = places[TRAINED_ON]
    unseen = {name: places[name] for name in UNSEEN}
    rate = done["rate"] = choose_rate(out, building, done, tasks)
    for seed in seeds:
        rows = done.setdefault("seeds", {}).setdefault(str(seed), [])
        trial = Trial(out, building, seed, rate, tasks)

        def keep(label: str, passes: int, result: RunResult, generation: int, trial=trial, rows=rows) -> None:
            row = scored(label, passes, result.network(generation), trial.test, unseen)
            row["validation"] = (result.initial, *result.generations)[generation].recalls[1]
            rows.append(row)
            write_json(_unfinished(), done)

        first = trial.run("sare", (EPOCHS,))
        if len(rows) < 2:
            rows.clear()
            keep("before training", 0, first, 0)
            keep(BASELINE, EPOCHS, first, 1)
        for label, (epochs, changes) in list(VARIANTS.items())[len(rows) - 2 :]:
            after = "sare" if len(epochs) > 1 else None
            result = trial.run(label.split(" (")[0].replace(" ", "_"), epochs, after, **changes)
            keep(label, sum(epochs), result, len(epochs))


def _unfinished() -> Path:
    return FILE.with_name("fine-tuning.unfinished.json")


def table(recorded: dict) -> str:
    """The floors never seen, with paired tests, and the sets never seen."""
    seeds, about = recorded["seeds"], recorded["machine"]
    scores = [
        [Score(row["label"], row["passes"], _hits(row), row["validation"], seconds=0.0) for row in rows]
        for rows in seeds.values()
    ]
    queries = sum(len(rows[0].hits[1]) for rows in scores)
    rates = ", ".join(f"{rate}: {100 * recalls[-1]:.1f}" for rate, recalls in recorded["rates"].items())
    lines = [
        f"`{recorded['command']}`, commit {about['commit']}, {about['date']}. Learning rate "
        f"{recorded['rate']}, chosen by validation recall@1 of the first seed ({rates}).",
        "",
        f"Recall on floors never seen, in %; {queries} queries of {len(seeds)} of {len(SEEDS)} seeds.",
        "",
        *markdown(summarise(scores), [], queries).splitlines()[2:],
        "",
        "Recall@1 in % on sets never seen, mean of the seeds, with the clusters that were learned / with "
        "clusters from the set's own database:",
        "",
        f"| | query passes | {' | '.join(UNSEEN)} |",
        "|---|---|" + "---|" * len(UNSEEN),
    ]
    for of_seeds in zip(*seeds.values(), strict=True):
        means = [np.mean([row["elsewhere"][name] for row in of_seeds], axis=0) for name in UNSEEN]
        cells = [f"{100 * learned:.1f} / {100 * own:.1f}" for learned, own in means]
        lines.append(f"| {of_seeds[0]['label']} | {of_seeds[0]['passes']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _hits(row: dict) -> dict[int, np.ndarray]:
    return {int(n): np.array(hits, dtype=bool) for n, hits in row["hits"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fine_tuning", description=__doc__)
    parser.add_argument("--places", type=Path, default=ROOT.parent / "shared/places")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/fine_tuning")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    places = {name: load_places(given.places / name, "test") for name in SETS}
    done = json.loads(_unfinished().read_text("utf-8")) if _unfinished().exists() else {}
    with progress_tasks() as tasks:
        measure(given.out, places, seeds, done, tasks)
    said = command("benchmarks.fine_tuning", ["--seeds", given.seeds])
    about = {"command": said, "machine": machine(torch.get_num_threads())}
    settings = asdict(Trial(given.out, places[TRAINED_ON], SEEDS[0], done["rate"], None).config((EPOCHS,)))
    done["seeds"] = {str(seed): done["seeds"][str(seed)] for seed in seeds}
    write_json(FILE, about | {"settings": settings} | done)
    _unfinished().unlink()


if __name__ == "__main__":
    main()
