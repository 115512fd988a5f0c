"""``python -m benchmarks.reranking [--study runs/study] [--places DIR]``: does re-ranking help?

Networks and cities are those of ``sfrs study``. The validation quarters are what a score is chosen on; test
quarters and photographs are only reported. Figures go to benchmarks/results/reranking.json, piece by piece:
an interrupted run goes on where it stopped. `make report` puts what is recorded into
docs/reranking.md.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.pages import show
from benchmarks.record import machine, write_json
from benchmarks.reranking_tables import tables
from sfrs.data.coordinates import within
from sfrs.data.images import Size
from sfrs.data.places import Places, load_places
from sfrs.models.model import Model
from sfrs.models.network import load_network
from sfrs.models.whitening import Whitening
from sfrs.retrieval.recall import correct
from sfrs.retrieval.region_rerank import (
    DEFAULT_SCORE,
    DEPTH,
    SCORES,
    KeptQuarters,
    region_matches,
    temporary_quarters,
)
from sfrs.retrieval.search import search
from sfrs.runtime.terminal import messages, progress_tasks

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/reranking.json"
SEEDS = (0, 1, 2)
NETWORKS = {  # name in the tables -> file below runs/study/seed_N
    "SARE-ind": "sare_2/generation_1/best.safetensors",
    "SFRS, softer teacher": "softer/generation_2/best.safetensors",
    "SFRS with soft negatives": "negatives/generation_2/best.safetensors",
}
BEST = "SFRS with soft negatives"
PHOTOGRAPHS = ("lund", "corridor", "tower")
DEPTHS = (1, 5, 10)
WHITENED = 512


def measure(model: Model, places: Places, tasks) -> dict:
    """Recall of the search and of every score on the same queries, and what re-ranking costs."""
    count, queries = len(places.database), places.queries
    positives = within(queries.positions, places.database.positions, 25.0)
    counted = positives.counts() > 0
    with temporary_quarters(model, count + len(queries)) as kept:
        parts = kept[:count], kept[count:]
        options = dict(batch_size=16, workers=1)
        name = f"{places.name}, {places.split}"
        described = [
            model.encode(images.files, quarters=part, progress=tasks(name), **options)
            for images, part in zip((places.database, queries), parts, strict=True)
        ]
        _, found = search(*described, DEPTH)
        database, asked = map(KeptQuarters, parts)
        ranked = {name: np.empty_like(found) for name in SCORES}
        seconds = 0.0
        for query, rows in enumerate(found):
            one = asked(np.array([query]))
            started = time.process_time()
            matches = region_matches(one, database(rows))[0]
            orders = {DEFAULT_SCORE: SCORES[DEFAULT_SCORE](matches).argsort(descending=True, stable=True)}
            seconds += time.process_time() - started
            orders |= {name: f(matches).argsort(descending=True, stable=True) for name, f in SCORES.items()}
            for name, order in orders.items():
                ranked[name][query] = rows[order.numpy()]
        del database, asked, parts
    hits = {
        name: [correct(rows[:, :n], positives)[counted].any(axis=1) for n in DEPTHS]
        for name, rows in ({"searched": found} | ranked).items()
    }
    before = hits["searched"][0]
    return {
        "queries": int(counted.sum()),
        "database": count,
        "candidates": found.shape[1],
        "quarters": list(kept.shape[1:]),
        "cpu_ms_per_query": 1000 * seconds / len(queries),
        "recalls": {
            n: {str(d): float(h.mean()) for d, h in zip(DEPTHS, hs, strict=True)} for n, hs in hits.items()
        },
        "gained": {name: int((hs[0] & ~before).sum()) for name, hs in hits.items()},
        "lost": {name: int((before & ~hs[0]).sum()) for name, hs in hits.items()},
    }


def pieces(study: Path, photographs: Path, tasks) -> dict[str, Callable[[], dict]]:
    """Everything that is measured, by name, as functions that measure it."""
    found = {}

    def piece(data: Path, split: str, name: str, seed: int, size: Size, whitened: bool = False) -> None:
        def run() -> dict:
            root = study / f"seed_{seed}"
            network = load_network(root / NETWORKS[name])
            whitening = None
            if whitened:
                files = load_places(root / "city", "train").database.files
                options = dict(batch_size=16, workers=1, progress=tasks("train, to whiten"))
                whitening = Whitening.fit(Model(network, size=size).encode(files, **options), WHITENED)
            about = {"network": name, "seed": seed, "data": data.name, "split": split, "whitened": whitened}
            return about | measure(Model(network, whitening, size=size), load_places(data, split), tasks)

        found[f"{data.name} {split}, seed {seed}, {name}{', whitened' if whitened else ''}"] = run

    for seed in SEEDS:
        size = (128, 160)
        city = study / f"seed_{seed}/city"
        for split in ("val", "test"):
            for name in NETWORKS:
                piece(city, split, name, seed, size)
            piece(city, split, BEST, seed, size, whitened=True)
    for data in PHOTOGRAPHS:
        piece(photographs / data, "test", BEST, 0, None)
    found["cost at K = 64, D = 512"] = lambda: cost(64, 512)
    return found


def cost(clusters: int, dim: int, images: int = 400, queries: int = 20) -> dict:
    """CPU milliseconds per query of the steps of re-ranking, one thread, on made-up quarters."""
    torch.manual_seed(0)
    kept = KeptQuarters(torch.randn(images, 4, clusters, dim).half().numpy())
    asked = torch.randn(queries, 1, 4, clusters, dim)
    candidates = torch.randint(images, (queries, DEPTH)).numpy()
    fresh = torch.from_numpy(kept.kept.numpy()).float()
    steps = {
        "from float16 into the buffer": lambda query: kept(candidates[query]),
        "compared and ordered": lambda query: SCORES[DEFAULT_SCORE](
            region_matches(asked[query], kept.buffer)
        ).argsort(),
        "gathered afresh from float32": lambda query: fresh[torch.from_numpy(candidates[query])],
        "all pairs, per 100 images": lambda query: region_matches(asked[query], fresh),
    }
    took = {}
    for name, step in steps.items():
        step(0)
        started = time.process_time()
        for query in range(queries):
            step(query)
        per_image = images / DEPTH if name.startswith("all pairs") else 1
        took[name] = 1000 * (time.process_time() - started) / queries / per_image
    return {"quarters": [4, clusters, dim], "candidates": DEPTH, "cpu_ms": took}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reranking", description=__doc__)
    parser.add_argument("--study", type=Path, default=ROOT / "runs/study")
    parser.add_argument("--places", type=Path, default=ROOT.parent / "shared/places")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    partial = RESULTS.with_name("reranking.unfinished.json")
    done = json.loads(partial.read_text()) if partial.exists() else {}
    with progress_tasks() as tasks:
        for name, run in pieces(arguments.study, arguments.places, tasks).items():
            if name not in done:
                messages.print(name)
                done[name] = run()
                write_json(partial, done)
    about = machine(1) | {"command": "python -m benchmarks.reranking"}
    write_json(RESULTS, {"machine": about, "score": DEFAULT_SCORE, "pieces": done})
    partial.unlink()
    show(ROOT / "docs/reranking.md", "reranking", tables(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
