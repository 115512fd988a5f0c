"""``python -m benchmarks.confidence [--study runs/study] [--places DIR]``: is the confidence of
``sfrs locate`` the share of right answers?

The temperatures of `location` are chosen on the validation quarters of the cities of ``sfrs
study``; test quarters and photographs are only reported. Figures go to benchmarks/results/confidence.json,
piece by piece: an interrupted run goes on where it stopped. `make report` puts what is recorded
into docs/locate.md.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.pages import show
from benchmarks.record import machine, write_json
from benchmarks.reranking import BEST, NETWORKS, ROOT, SEEDS
from sfrs.data.images import Size
from sfrs.data.places import ImageSet, load_places
from sfrs.models.model import Model
from sfrs.retrieval.location import CONSIDERED, RADIUS, REGION_TEMPERATURE, TEMPERATURE, estimate
from sfrs.retrieval.quarters import KeptQuarters, temporary_quarters
from sfrs.retrieval.region_rerank import DEPTH, rerank
from sfrs.retrieval.search import search
from sfrs.runtime.terminal import messages, progress_tasks

RESULTS = ROOT / "benchmarks/results/confidence.json"
PAGE = ROOT / "docs/locate.md"
CHOSEN = {"search": TEMPERATURE, "regions": REGION_TEMPERATURE}
GRID = (0.01, 0.0125, 0.015, 0.0175, 0.02, 0.0225, 0.025, 0.03, 0.04)
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


def measure(network_file: Path, database: ImageSet, queries: ImageSet, size: Size, tasks) -> dict:
    """By way of searching: how many estimates are right, by confidence, and what other temperatures give."""
    model = Model.load(network_file, whiten=False, size=size)
    with temporary_quarters(model, len(database) + len(queries)) as kept:
        parts = kept[: len(database)], kept[len(database) :]
        options = dict(batch_size=16, workers=1)
        described = [
            model.encode(images.files, quarters=part, progress=tasks(role), **options)
            for role, images, part in zip(("database", "queries"), (database, queries), parts, strict=True)
        ]
        similarities, rows = search(*described, DEPTH)
        ranked = {"search": (similarities[:, :CONSIDERED], rows[:, :CONSIDERED])}
        give, ask = map(KeptQuarters, parts)
        reranked = [rerank(ask(np.array([query])), found, give) for query, found in enumerate(rows)]
        ranked["regions"] = tuple(
            np.stack([getattr(one, name)[:CONSIDERED] for one in reranked]) for name in ("scores", "rows")
        )
        del give, ask, parts
    result = {"queries": len(queries), "first": {}, "right": {}, "confidence": {}, "bins": {}, "grid": {}}
    for way, (scores, found) in ranked.items():
        positions = database.positions[found]
        away = np.linalg.norm(positions[:, 0] - queries.positions, axis=1)
        result["first"][way] = int((away <= RADIUS).sum())
        for temperature in GRID:
            confidence, right = _estimates(positions, scores, queries.positions, temperature)
            result["grid"].setdefault(way, {})[str(temperature)] = {
                "right": right.mean(),
                "log_loss": -np.log(np.where(right, confidence, 1 - confidence).clip(1e-6)).mean(),
            }
        confidence, right = _estimates(positions, scores, queries.positions, CHOSEN[way])
        result["confidence"][way], result["right"][way] = float(confidence.sum()), int(right.sum())
        inside = np.digitize(confidence, BINS[1:-1])
        result["bins"][way] = [
            [int((inside == b).sum()), int(right[inside == b].sum())] for b in range(len(BINS) - 1)
        ]
    return result


def _estimates(positions, scores, truth, temperature) -> tuple[np.ndarray, np.ndarray]:
    found = [estimate(p, s, temperature=temperature) for p, s in zip(positions, scores, strict=True)]
    there = np.array([(one.easting, one.northing) for one in found])
    return np.array([one.confidence for one in found]), np.linalg.norm(there - truth, axis=1) <= RADIUS


def grid_table(pieces: list[dict]) -> list[str]:
    """Right estimates and log loss of the confidence by temperature, mean of the validation quarters."""
    lines = ["| temperature | " + " | ".join(f"{t:g}" for t in GRID) + " |", "|---|" + "---|" * len(GRID)]
    for way in CHOSEN:
        for name, text in (("right", "right, %"), ("log_loss", "log loss")):
            means = [np.mean([piece["grid"][way][str(t)][name] for piece in pieces]) for t in GRID]
            cells = [f"{100 * mean:.1f}" if name == "right" else f"{mean:.3f}" for mean in means]
            lines.append(f"| {way}: {text} | {' | '.join(cells)} |")
    return lines


def reliability_table(rows: list[tuple[str, list[dict]]]) -> list[str]:
    """Share of right estimates per bin of confidence, and of how many queries."""
    bins = list(zip(BINS[:-1], BINS[1:], strict=True))
    lines = [
        "| | first match right | estimate right | mean confidence | "
        + " | ".join(f"{low:g} to {high:g}" for low, high in bins)
        + " |",
        "|---|---|---|---|" + "---|" * len(bins),
    ]
    for name, pieces in rows:
        for way in CHOSEN:
            queries = sum(piece["queries"] for piece in pieces)
            cells = [
                f"{100 * sum(piece[key][way] for piece in pieces) / queries:.1f} %"
                for key in ("first", "right", "confidence")
            ]
            for asked, right in np.sum([piece["bins"][way] for piece in pieces], axis=0).tolist():
                cells.append(f"{100 * right / asked:.0f} % of {asked:,}" if asked else "none")
            lines.append(f"| {name}, {way} | {' | '.join(cells)} |")
    return lines


def tables(recorded: dict) -> str:
    pieces, about = recorded["pieces"], recorded["machine"]
    chosen = {name: [p for key, p in pieces.items() if key.startswith(name)] for name in ("val", "test")}
    rows = [("validation", chosen["val"]), ("test", chosen["test"])]
    rows += [(name, [piece]) for name, piece in pieces.items() if not name.startswith(("val", "test"))]
    return "\n".join(
        [
            f"{about['cpu']}, torch {about['torch']}, commit {about['commit']}, {about['date']}: "
            "`python -m benchmarks.confidence`.",
            "",
            *grid_table(chosen["val"]),
            "",
            *reliability_table(rows),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.confidence", description=__doc__)
    parser.add_argument("--study", type=Path, default=ROOT / "runs/study")
    parser.add_argument("--places", type=Path, default=ROOT.parent / "shared/places")
    arguments = parser.parse_args()
    record(arguments.study, arguments.places)
    show(PAGE, "confidence", tables(json.loads(RESULTS.read_text())))


def record(study: Path, photographs: Path) -> None:
    torch.set_num_threads(1)
    partial = RESULTS.with_name("confidence.unfinished.json")
    done = json.loads(partial.read_text()) if partial.exists() else {}
    size = (128, 160)
    networks = {seed: study / f"seed_{seed}" / NETWORKS[BEST] for seed in SEEDS}
    cities = {seed: study / f"seed_{seed}/city" for seed in SEEDS}
    jobs = [
        (f"{split}, seed {s}", networks[s], cities[s], cities[s], split, size)
        for split in ("val", "test")
        for s in SEEDS
    ]
    jobs += [
        (name, networks[0], photographs / name, photographs / name, "test", None)
        for name in ("corridor", "tower")
    ]
    jobs += [
        (
            "photographs of another place (corridor in the city)",
            networks[0],
            cities[0],
            photographs / "corridor",
            "test",
            size,
        )
    ]
    with progress_tasks() as tasks:
        for name, network, data, asked, split, resized in jobs:
            if name not in done:
                messages.print(name)
                sets = load_places(data, split).database, load_places(asked, split).queries
                done[name] = measure(network, *sets, resized, tasks)
                write_json(partial, done)
    about = machine(1) | {"command": "python -m benchmarks.confidence"}
    write_json(RESULTS, {"machine": about, "temperatures": CHOSEN, "pieces": done})
    partial.unlink()


if __name__ == "__main__":
    main()
