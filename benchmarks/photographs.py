"""``python -m benchmarks.photographs [--places DIR] [--demonstration FILE]``: recall on real photographs.

Sets of photographs times ways to describe them: a gradient histogram and a colour histogram, which nobody
trained; the network that ``sfrs demo --out runs/gradient`` trained on rendered streets; and EfficientNet-Lite
with ImageNet's weights and clusters from the database's own photographs, as ``sfrs evaluate`` without
``--weights`` takes it, also re-ranked by regions and whitened. The size of the photographs is chosen on one
set and used for all.

Figures go to benchmarks/results/photographs.json, piece by piece: an interrupted run goes on where it
stopped. `make report` puts what is recorded into README and docs/photographs.md.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from sfrs.data.places import Places, load_places
from sfrs.models.fitting import learn_whitening
from sfrs.models.model import Model
from sfrs.models.whitening import Whitening
from sfrs.retrieval.evaluation import Evaluation, Scoring, score
from sfrs.retrieval.region_rerank import DEPTH, KeptQuarters, Reranking, rerank_all, temporary_quarters
from sfrs.retrieval.search import search
from sfrs.runtime.progress import Tasks
from sfrs.runtime.terminal import messages, progress_tasks

from .record import RESULTS, command, machine, write_json

ROOT = Path(__file__).resolve().parents[1]
FILE = RESULTS / "photographs.json"
SETS = ("corridor", "tower", "lund")
CHOSEN_ON, SIZES = "tower", (160, 192, 240, 320)
RECALLS = (1, 5, 10)
NETWORKS = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
DEMONSTRATION = "gradient network of sfrs demo"
WHITENED = 512
REGIONS, PLAIN, SHRUNK = "re-ranked by regions", "whitened", "whitened with shrinkage"
"""Ways to search by a network; with shrinkage as `sfrs index` does it where there are many photographs."""


def gradient_histogram(file: Path, *, width: int = 64, height: int = 48, cell: int = 8) -> np.ndarray:
    """Histogram of oriented gradients (Dalal & Triggs, CVPR 2005): 9 unsigned directions per cell, unit norm
    over 2 x 2 cells."""
    grey = _opened(file).convert("L").resize((width, height), Image.Resampling.BOX)
    dy, dx = np.gradient(np.asarray(grey, dtype=np.float32))
    strength, angle = np.hypot(dx, dy), np.arctan2(dy, dx) % np.pi
    bins = np.minimum((angle * 9 / np.pi).astype(int), 8)
    votes = np.where(bins[..., None] == np.arange(9), strength[..., None], 0)
    cells = votes.reshape(height // cell, cell, width // cell, cell, 9).sum((1, 3))
    blocks = np.concatenate([cells[:-1, :-1], cells[:-1, 1:], cells[1:, :-1], cells[1:, 1:]], axis=2)
    return _unit(blocks / (np.linalg.norm(blocks, axis=2, keepdims=True) + 1e-6))


def colour_histogram(file: Path, *, bins: int = 8) -> np.ndarray:
    """Square roots of the shares of 8 x 8 x 8 colours, whose inner product is Bhattacharyya's coefficient."""
    pixels = np.asarray(_opened(file).convert("RGB").resize((160, 120), Image.Resampling.BOX)).reshape(-1, 3)
    counts = np.bincount((pixels // (256 // bins)) @ [bins * bins, bins, 1], minlength=bins**3)
    return _unit(np.sqrt(counts))


HAND_MADE = {"gradient histogram (HOG)": gradient_histogram, "colour histogram": colour_histogram}


def _opened(file: Path) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(file))


def _unit(values: np.ndarray) -> np.ndarray:
    flat = values.ravel().astype(np.float32)
    return flat / (np.linalg.norm(flat) + 1e-12)


def searched(places: Places, database: np.ndarray, queries: np.ndarray) -> dict:
    """Recalls of the search alone."""
    return recalls(score(places, search(database, queries, DEPTH)[1], Scoring(RECALLS)))


def recalls(evaluation: Evaluation) -> dict:
    return {"queries": int(evaluation.answerable.sum()), "recalls": [evaluation.recalls[n] for n in RECALLS]}


def by_hand(places: Places, describe: Callable[[Path], np.ndarray]) -> dict:
    """Recalls of a descriptor that is a function of the file."""
    database, queries = (
        np.stack([describe(file) for file in images.files]) for images in (places.database, places.queries)
    )
    return searched(places, database, queries)


def by_network(places: Places, model: Model, tasks: Tasks) -> dict[str, dict]:
    """Recalls of a network: of its search, re-ranked by regions, and whitened by the database in two ways."""
    if not model.has_clusters:
        model.fit_clusters(places.database.files, progress=tasks("k-means for NetVLAD"))
    roles = (("database", places.database), ("queries", places.queries))
    with temporary_quarters(model, len(places.database) + len(places.queries)) as kept:
        parts = np.split(kept, [len(places.database)])
        database, queries = (
            model.encode(images.files, quarters=part, progress=tasks(f"{places.name}, {role}"))
            for (role, images), part in zip(roles, parts, strict=True)
        )
        found = search(database, queries, DEPTH)[1]
        give, ask = map(KeptQuarters, parts)
        reranked = rerank_all(
            ask, found, give, score=Reranking().score, depth=DEPTH, progress=tasks("regions")
        )
        del give, ask, parts
    length = database.shape[1]
    whitenings = {
        PLAIN: Whitening.fit(database, min(WHITENED, length)),
        SHRUNK: learn_whitening(database),
    }
    whitened = {
        name: [whitening.apply(torch.from_numpy(part)).numpy() for part in (database, queries)]
        for name, whitening in whitenings.items()
    }
    return {
        "": searched(places, database, queries),
        REGIONS: recalls(score(places, reranked, Scoring(RECALLS))),
        **{name: searched(places, *parts) for name, parts in whitened.items()},
    }


def choose_size(places: Places, done: dict, tasks: Tasks) -> int:
    """Return the shorter side of photographs with the best recall@1 of the set that it is chosen on."""
    sizes = done.setdefault("sizes", {})
    for size in SIZES:
        if str(size) not in sizes:
            sizes[str(size)] = by_network(places, Model.load(NETWORKS[0], size=size), tasks)[""]
            write_json(_unfinished(), done)
    return int(max(sizes, key=lambda size: sizes[size]["recalls"][0]))


def _unfinished() -> Path:
    return FILE.with_name("photographs.unfinished.json")


def measure(places: dict[str, Places], demonstration: Path, done: dict, tasks: Tasks) -> None:
    """Fill ``done["sets"]``: set -> way to describe -> recalls, writing as it goes."""
    size = done["size"] = choose_size(places[CHOSEN_ON], done, tasks)
    for name, of in places.items():
        rows = done.setdefault("sets", {}).setdefault(name, {})

        def keep(row: str, found: dict, rows: dict = rows) -> None:
            rows[row] = found
            write_json(_unfinished(), done)

        for row, describe in HAND_MADE.items():
            if row not in rows:
                keep(row, by_hand(of, describe))
        for row in (DEMONSTRATION, *NETWORKS):
            if f"{row}, {SHRUNK}" not in rows:
                messages.print(f"{name}: {row}")
                trained = row == DEMONSTRATION
                model = Model.load(demonstration) if trained else Model.load(row, size=size)
                for way, found in by_network(of, model, tasks).items():
                    keep(f"{row}, {way}" if way else row, found)


def table(recorded: dict) -> str:
    """Recall@1 and @5 of every way on every set, in Markdown."""
    sets, about = recorded["sets"], recorded["machine"]
    counts = [f"{name}, {next(iter(rows.values()))['queries']}" for name, rows in sets.items()]
    lines = [f"| recall@1 / @5, % | {' | '.join(counts)} |", "|---|" + "---|" * len(sets)]
    for row in next(iter(sets.values())):
        recalls = [rows[row]["recalls"] for rows in sets.values()]
        cells = [" / ".join(f"{100 * recall:.1f}" for recall in of[:2]) for of in recalls]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    sizes = ", ".join(f"{size}: {100 * of['recalls'][0]:.1f}" for size, of in recorded["sizes"].items())
    text = (
        f"`{recorded['command']}`, commit {about['commit']}, {about['date']}; {about['kernels']} kernels. "
        "With each set stands its number of queries that have an answer within 25 m. The shorter side of "
        f"photographs, {recorded['size']}, was chosen on {CHOSEN_ON} by recall@1 of {NETWORKS[0]} ({sizes}); "
        "the gradient network has its own size."
    )
    return "\n".join([text, "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__)
    parser.add_argument("--places", type=Path, default=ROOT.parent / "shared/places")
    parser.add_argument("--demonstration", type=Path, default=ROOT / "runs/gradient/best.safetensors")
    given = parser.parse_args()
    places = {name: load_places(given.places / name, "test") for name in SETS}
    done = json.loads(_unfinished().read_text("utf-8")) if _unfinished().exists() else {}
    with progress_tasks() as tasks:
        measure(places, given.demonstration, done, tasks)
    about = {"command": command("benchmarks.photographs"), "machine": machine(torch.get_num_threads())}
    write_json(FILE, about | done)
    _unfinished().unlink()


if __name__ == "__main__":
    main()
