"""``python -m benchmarks.jitter``: what keeping N jittered variants of every image costs in recall.

``sfrs train --trunk-cache jitter=N`` draws the colour jitter of an image from N variants that were computed
once, instead of anew in every step. On the rendered city of each seed the same short job (generation 1) is
trained without jitter, with the paper's jitter drawn anew, and from 1, 4 and 8 variants; everything else, the
initial network and the order of tuples included, is the same. The epoch is chosen on the validation quarter;
recall is counted on the test quarter, and each way is compared with fresh jitter on the same queries.

Cities and the network to start from are those of ``sfrs study`` (``runs/study``). A run that was interrupted
goes on where it stopped; ``--status`` says how far it is.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

from sfrs.data.places import Places, load_places
from sfrs.features.cache import CachePlan, FeatureCache
from sfrs.features.filling import build_cache
from sfrs.features.on_the_fly import OnTheFlyFeatures
from sfrs.features.source import describe_features
from sfrs.models.network import DescriptorNetwork, load_network
from sfrs.retrieval.evaluation import Scoring, score
from sfrs.retrieval.recall import mcnemar
from sfrs.retrieval.search import search
from sfrs.training.config import TrainConfig
from sfrs.training.preparation import RunFeatures, build_features
from sfrs.training.progress import StepReport, TrainingProgress
from sfrs.training.run_folder import RunDirectory
from sfrs.training.trainer import train

from .pages import show
from .record import RESULTS, machine, write_json

ROOT = Path(__file__).resolve().parents[1]
RECORDED = RESULTS / "jitter.json"
MARK = "jitter"
RECALLS = (1, 5, 10)
EPOCHS = 4
PAPER = TrainConfig().jitter
FRESH = "fresh jitter"
VARIANTS = 8
WAYS: dict[str, dict] = {
    "no jitter": {"jitter": ()},
    FRESH: {"jitter": PAPER},
    "jitter=1": {"jitter": PAPER, "trunk_cache": "ram,jitter=1"},
    "jitter=4": {"jitter": PAPER, "trunk_cache": "ram,jitter=4"},
    "jitter=8": {"jitter": PAPER, "trunk_cache": "ram,jitter=8"},
}
"""Name -> changes to the preset "demo"."""


def configuration(seed: int, way: str, epochs: int, **settings) -> TrainConfig:
    changes = {**settings, **WAYS[way], "generations": 1, "epochs": (epochs,)}
    return TrainConfig.preset("demo", seed=seed, device="cpu", workers=1, **changes)


def of_variants(cache: FeatureCache, variants: int) -> FeatureCache:
    """The first variants of every image of a complete cache, as a cache built with so many holds them."""
    plan, images = cache.plan, cache.plan.images
    assert plan.rows == plan.wanted
    if not variants:
        return FeatureCache(cache.features[:images], cache.device)
    rows = torch.arange(images * plan.variants).view(images, plan.variants)[:, :variants].flatten() + images
    kept = cache.features.permute(0, 2, 3, 1)
    features = torch.cat((kept[:images], kept.index_select(0, rows))).permute(0, 3, 1, 2)
    return FeatureCache(features, cache.device, plan=CachePlan(images, variants, images, images))


class Seed:
    """A city and what training on it needs."""

    def __init__(self, seed: int, study: Path, epochs: int, **settings) -> None:
        self.seed, self.epochs, self.settings = seed, epochs, settings
        self.places = {
            split: load_places(study / f"seed_{seed}/city", split) for split in ("train", "val", "test")
        }
        self.network = load_network(study / "pretext/pretext.safetensors")
        self.features: RunFeatures | None = None
        self.test_features: FeatureCache | None = None

    def prepare(self) -> None:
        """Compute frozen features of all images, and of the training images' variants."""
        changes = {**self.settings, "jitter": PAPER, "trunk_cache": f"ram,jitter={VARIANTS}"}
        config = TrainConfig.preset("demo", seed=self.seed, device="cpu", workers=1, **changes)
        places = self.places
        self.features = build_features(
            config, self.network, (places["train"], places["val"]), progress=Lines("")
        )
        files = places["test"].queries.files + places["test"].database.files
        source = OnTheFlyFeatures(self.network, files, (config.height, config.width), workers=1)
        self.test_features = build_cache(source)

    def run(self, way: str, directory: Path) -> dict:
        """Train one way, or go on with it, and count what it finds on the test quarter."""
        if self.features is None:
            self.prepare()
        config = configuration(self.seed, way, self.epochs, **self.settings)
        features = RunFeatures(of_variants(self.features.train, config.cache.variants), self.features.val)
        began = time.perf_counter()
        result = train(
            (self.places["train"], self.places["val"]),
            config,
            directory,
            network=self.network,
            features=features,
            resume=RunDirectory(directory).checkpoint.exists(),
            progress=Lines(f"seed {self.seed}, {way}"),
        )
        best = result.generations[0]
        hits = self.test(result.network(1))
        return {
            "epoch": best.epoch,
            "validation": {str(n): best.recalls[n] for n in RECALLS},
            "hits": {str(n): "".join("01"[int(hit)] for hit in found) for n, found in hits.items()},
            "seconds": round(time.perf_counter() - began, 1),
        }

    def test(self, network: DescriptorNetwork) -> dict[int, np.ndarray]:
        """N -> which test queries are right at N, bool ``[m]``."""
        places: Places = self.places["test"]
        described = describe_features(
            network, self.test_features, torch.arange(len(self.test_features))
        ).numpy()
        queries = len(places.queries)
        _, predictions = search(described[queries:], described[:queries], max(RECALLS))
        evaluation = score(places, predictions, Scoring(RECALLS))
        return {n: evaluation.hits(n)[evaluation.answerable] for n in RECALLS}


class Lines(TrainingProgress):
    """One line an epoch, for a log."""

    def __init__(self, label: str) -> None:
        self.label = label

    def epoch(
        self, generation: int, epoch: int, report: StepReport, recalls: dict[int, float], best: bool
    ) -> None:
        recall = " ".join(f"{100 * recalls[n]:.1f}" for n in RECALLS)
        print(f"{self.label}: epoch {epoch}, loss {report.total:.3f}, validation {recall}", flush=True)


def run_all(out: Path, study: Path, seeds: list[int], epochs: int, **settings) -> dict[str, list[dict]]:
    """Every way for every seed, or those that are missing in ``out``: way -> one result a seed."""
    results: dict[str, list[dict]] = {way: [] for way in WAYS}
    for seed in seeds:
        city = None
        for way in WAYS:
            folder = out / f"seed_{seed}" / way.replace(" ", "_").replace("=", "_")
            file = folder.with_suffix(".json")
            if not file.exists():
                city = city or Seed(seed, study, epochs, **settings)
                write_json(file, city.run(way, folder))
            results[way].append(json.loads(file.read_text()))
            print(f"seed {seed}, {way}: test recall {percent(results[way][-1:])}", flush=True)
    return results


def found(results: list[dict], n: int) -> np.ndarray:
    """Hits of all seeds' test queries, bool."""
    return np.array([bit == "1" for result in results for bit in result["hits"][str(n)]])


def percent(results: list[dict]) -> str:
    """Recall@1/5/10, the mean of the seeds."""
    means = [np.mean([found([result], n).mean() for result in results]) for n in RECALLS]
    return " / ".join(f"{100 * mean:.1f}" for mean in means)


def table(recorded: dict) -> str:
    """One row per way."""
    about, results = recorded["machine"], recorded["results"]
    queries = len(found(results[FRESH], 1))
    lines = [
        f"Recall on the test quarters of {len(recorded['seeds'])} rendered cities in %, {queries:,} queries "
        f"in all, behind {recorded['epochs']} epochs of generation 1 with the small backbone; jitter "
        f"{', '.join(map(str, recorded['jitter']))}. Commit {about['commit']}, {about['date']}: "
        f"`{about['command']}`.",
        "",
        "| training images | validation @1 | recall@1 / 5 / 10 | @1 against fresh jitter | by seed | p |",
        "|---|---|---|---|---|---|",
    ]
    for way, of_seeds in results.items():
        validation = np.mean([result["validation"]["1"] for result in of_seeds])
        row = f"| {way} | {100 * validation:.1f} | {percent(of_seeds)} |"
        if way == FRESH:
            lines.append(f"{row} | | |")
            continue
        against = mcnemar(found(of_seeds, 1), found(results[FRESH], 1))
        each = [
            found([ours], 1).mean() - found([theirs], 1).mean()
            for ours, theirs in zip(of_seeds, results[FRESH], strict=True)
        ]
        lines.append(
            f"{row} {100 * against.difference:+.1f} | {', '.join(f'{100 * d:+.1f}' for d in each)} "
            f"| {against.p_value:.1g} |"
        )
    lines += [
        "",
        "p: exact McNemar test on the pooled queries, two-sided, not corrected for the number of rows.",
    ]
    return "\n".join(lines)


def status(out: Path, seeds: list[int]) -> str:
    """A line for every result there is."""
    lines = [
        f"seed {seed}, {file.stem.replace('_', ' ')}: {percent([result])}, best epoch {result['epoch']}, "
        f"{result['seconds']:.0f} s"
        for seed in seeds
        for file in sorted((out / f"seed_{seed}").glob("*.json"))
        for result in [json.loads(file.read_text())]
    ]
    return "\n".join([*lines, f"{len(lines)} of {len(WAYS) * len(seeds)} runs done"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jitter", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/jitter")
    parser.add_argument("--study", type=Path, default=ROOT / "runs/study", help="folder of `sfrs study`")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--status", action="store_true", help="say how far it is, and do nothing")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.status:
        print(status(arguments.out, seeds))
        return
    torch.set_num_threads(arguments.threads)
    results = run_all(arguments.out, arguments.study, seeds, arguments.epochs)
    about = machine(arguments.threads) | {"command": "python -m benchmarks.jitter"}
    facts = {"machine": about, "seeds": seeds, "epochs": arguments.epochs, "jitter": list(PAPER)}
    write_json(RECORDED, facts | {"results": results})
    if os.path.exists(page := ROOT / "docs/training.md"):
        show(page, MARK, table(json.loads(RECORDED.read_text())))


if __name__ == "__main__":
    main()
