"""``python -m benchmarks.million [--images N] [--kind NAME ...]``: an index of a million descriptors.

Every kind of index is built from the same descriptors and searched in a process of its own: seconds to
build, bytes on disk, memory, milliseconds per query, and what it finds of what comparing every row finds.

The descriptors are made up: a million photographs of places are not at hand. Their statistics are those of
the test photographs of `sfrs demo`'s city under its best network: a mean that holds a quarter of the squared
length, and around it variances that fall with the 0.87th power of their rank, in directions that are no axes
of the descriptor. A place is a draw from them, its eight photographs share 60 % of their variance, and a
query shares 10 to 50 % with the photographs of its place. Places form no larger clusters, unlike real ones,
which is the hardest case for inverted lists.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

from sfrs.models.backbones import build_backbone
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork
from sfrs.retrieval.index import Index
from sfrs.retrieval.index.build import KINDS
from sfrs.retrieval.index.derive import derive
from sfrs.retrieval.index.rows import RowFile
from sfrs.retrieval.index.store import Entry, Store

from .pages import show
from .record import RESULTS, machine, write_json

EXPONENT, MEAN_SHARE = 0.87, 0.25
VIEWS, VIEW_SHARE, QUERY_SHARE = 8, 0.6, (0.1, 0.5)
BLOCK_PLACES = 1_024
QUERIES, SINGLE, BATCH = 256, 24, 64
MOST_SECONDS = 60.0
"""Of single queries, of which three are asked at least."""
PLACE_METRES = 10.0


class Photographs:
    """Draws descriptors of places, of their photographs, and of queries."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        self.dim, self.side = dim, 2 ** (dim.bit_length() // 2)
        self.random = torch.Generator().manual_seed(seed)
        variance = torch.arange(1, dim + 1, dtype=torch.float32) ** -EXPONENT
        variance = variance[torch.randperm(dim, generator=self.random)]
        self.scale = ((1 - MEAN_SHARE) * variance / variance.sum()).sqrt()
        mean = torch.randn(dim, generator=self.random)
        self.mean = MEAN_SHARE**0.5 * mean / mean.norm()
        # Two small rotations of a grid, rows and columns: as good as a large one, and 32 times cheaper.
        sides = self.side, dim // self.side
        self.left, self.right = (torch.linalg.qr(torch.randn(n, n, generator=self.random))[0] for n in sides)

    def places(self, n: int) -> Tensor:
        return torch.randn(n, self.dim, generator=self.random).mul_(self.scale)

    def views(self, places: Tensor, share: Tensor) -> Tensor:
        """One unit descriptor of each place; ``share`` of its variance is the place's."""
        share = share.view(-1, 1)
        drawn = self.places(len(places)).mul_((1 - share).sqrt()).addcmul_(places, share.sqrt())
        rows = drawn.view(-1, len(self.right)) @ self.right
        columns = rows.view(-1, self.side, len(self.right)).transpose(1, 2) @ self.left
        return torch.nn.functional.normalize(columns.flatten(1).add_(self.mean), dim=1)

    def blocks(self, images: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(places, their photographs, `VIEWS` after `VIEWS`) until there are ``images``."""
        for start in range(0, images, BLOCK_PLACES * VIEWS):
            places = self.places(min(BLOCK_PLACES, (images - start) // VIEWS))
            share = torch.full((VIEWS * len(places),), VIEW_SHARE)
            yield places, self.views(places.repeat_interleave(VIEWS, 0), share)


def network_of(dim: int) -> Model:
    """Return a model whose descriptors have ``dim`` numbers."""
    network = DescriptorNetwork(build_backbone("gradient"), 64)
    if network.dim != dim:
        network = DescriptorNetwork(build_backbone("gradient"), dim // network.vlad.dim)
    return Model(network.eval(), size=(480, 640))


def fill(path: Path, images: int, dim: int, kind: str) -> dict[str, float]:
    """Begin an index at ``path`` and write its descriptors, as a build does, and the queries beside it."""
    model, drawn = network_of(dim), Photographs(dim)
    path.mkdir(parents=True)
    store = Store.create(path, model, kind)
    target = RowFile(*store.rows_of("descriptors"), 0)
    first, chosen, rows, drawing = 0, [], [], 0.0
    every = max(1, images // VIEWS // QUERIES)
    started = last = time.perf_counter()
    for places, views in drawn.blocks(images):
        drawing += time.perf_counter() - last
        numbers = first // VIEWS + torch.arange(len(places))
        chosen.append(places[numbers % every == 0])
        rows.append(numbers[numbers % every == 0])
        target.append(views.numpy())
        target.sync()
        eastings = np.repeat(numbers * PLACE_METRES, VIEWS).tolist()
        rows_of = enumerate(eastings, start=first)
        store.add(first, [Entry(b"/made/up/%09d.jpg" % row, east, 0.0, 0, 0) for row, east in rows_of])
        first += len(views)
        last = time.perf_counter()
    target.close()
    places, rows = torch.cat(chosen)[:QUERIES], torch.cat(rows)[:QUERIES]
    low, high = QUERY_SHARE
    share = low + (high - low) * torch.rand(len(places), generator=drawn.random)
    queries = drawn.views(places, share).numpy()
    np.savez(path.with_suffix(".queries.npz"), queries=queries, places=rows.numpy())
    seconds = {"drawing": drawing, "writing": time.perf_counter() - started - drawing}
    started = time.perf_counter()
    derive(store, None)
    store.close()
    return seconds | {"finishing": time.perf_counter() - started}


def change(path: Path, kind: str) -> dict[str, float]:
    """Make an index one of another kind, as ``sfrs index --kind`` does."""
    store = Store.open(path)
    started = time.perf_counter()
    derive(store, kind)
    store.close()
    return {"finishing": time.perf_counter() - started}


def resident() -> dict[str, int]:
    """Bytes of this process: its own, and of files that are mapped, which the system may drop."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    return {name: 1024 * int(values[name].split()[0]) for name in ("RssAnon", "RssFile")}


def measure(path: Path) -> None:
    """Search the index in this process; prints one JSON object and leaves what was found beside it."""
    before = resident()
    started = time.perf_counter()
    index = Index.open(path)
    opening = time.perf_counter() - started
    queries = np.load(path.with_suffix(".queries.npz"))["queries"]
    singles = []
    for query in queries[:SINGLE]:
        started = time.perf_counter()
        index.search(query[None], 10)
        singles.append(1e3 * (time.perf_counter() - started))
        if len(singles) >= 3 and sum(singles) > MOST_SECONDS * 1e3:
            break
    found, batches = [], []
    for start in range(0, len(queries), BATCH):
        started = time.perf_counter()
        found.append(index.search(queries[start : start + BATCH], 10)[1])
        batches.append(1e3 * (time.perf_counter() - started) / len(found[-1]))
    np.save(path.with_suffix(".found.npy"), np.concatenate(found))
    memory = resident()
    result = {
        "open_s": opening,
        "first_query_ms": singles[0],
        "query_ms": statistics.median(singles[1:] or singles),
        "batch_query_ms": statistics.median(batches),
        "own_bytes": memory["RssAnon"] - before["RssAnon"],
        "mapped_bytes": memory["RssFile"] - before["RssFile"],
    }
    print(json.dumps(result))


def scores(path: Path, exact: np.ndarray) -> dict[str, float]:
    """Share of what comparing every row finds, and of queries whose place is found."""
    found = np.load(path.with_suffix(".found.npy"))
    places = np.load(path.with_suffix(".queries.npz"))["places"]
    right = found // VIEWS == places[:, None]
    same = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)])
    return {
        "agree_at_1": float((found[:, 0] == exact[:, 0]).mean()),
        "agree_at_10": float(same),
        "place_at_1": float(right[:, 0].mean()),
        "place_at_10": float(right.any(axis=1).mean()),
    }


def bench(folder: Path, images: int, dim: int, kinds: list[str]) -> list[dict]:
    """All kinds, one after the other in one directory."""
    path, exact, results = folder / "million.index", None, []
    for kind in kinds:
        seconds = fill(path, images, dim, kind) if exact is None else change(path, kind)
        command = [sys.executable, "-m", "benchmarks.million", "--measure", str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        exact = np.load(path.with_suffix(".found.npy")) if exact is None else exact
        sizes = {file.name.split("-")[0]: file.stat().st_size for file in path.iterdir()}
        result = {"kind": kind, "build_s": seconds, "bytes": sizes}
        results.append(result | json.loads(done.stdout) | scores(path, exact))
        print(json.dumps(results[-1]), flush=True)
    return results


def measured_on(machine: dict) -> str:
    """The machine of a record, how busy it was, and what was measured."""
    return (
        f"{machine['cpu']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)} of "
        f"{machine['cores']} cores, load {machine['load_before']:.0f} to {machine['load_after']:.0f}, "
        f"commit {machine['commit']}, {machine['date']}"
    )


def table(recorded: dict) -> str:
    """The page's table: one row per kind."""
    machine = recorded["machine"]
    lines = [
        f"{recorded['images']:,} descriptors of {recorded['dim']:,} numbers; {measured_on(machine)}: "
        f"`{machine['command']}`.",
        "",
        "| kind | written in | on disk | of it codes | memory | ms per query | in batches of 64 "
        "| same 1st / first 10 as exact | place found at 1 / 10 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in recorded["results"]:
        build, size = result["build_s"], result["bytes"]
        seconds = build["finishing"] + build.get("writing", 0.0)
        codes = size.get(result["kind"], 0)
        lines.append(
            f"| `{result['kind']}` | {seconds:,.0f} s | {sum(size.values()) / 1e9:.1f} GB "
            f"| {f'{codes / 1e6:,.0f} MB' if codes else ''} | {result['own_bytes'] / 1e6:,.0f} MB "
            f"| {result['query_ms']:,.0f} | {result['batch_query_ms']:,.0f} "
            f"| {100 * result['agree_at_1']:.1f} / {100 * result['agree_at_10']:.1f} % "
            f"| {100 * result['place_at_1']:.1f} / {100 * result['place_at_10']:.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million", description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000, help="a multiple of 8")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--kind", action="append", choices=KINDS, help="the first one counts as exact")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/sfrs-million"), help="deleted afterwards")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the processes that search
    about = machine(options.threads)
    about["command"] = "python -m benchmarks.million " + " ".join(sys.argv[1:])
    about["load_before"] = os.getloadavg()[0]
    options.folder.mkdir(parents=True)
    try:
        results = bench(options.folder, options.images, options.dim, options.kind or list(KINDS))
    finally:
        shutil.rmtree(options.folder)
    about["load_after"] = os.getloadavg()[0]
    recorded = {"machine": about, "images": options.images, "dim": options.dim, "results": results}
    write_json(options.out or RESULTS / "million.json", recorded)
    if options.out is None:
        show(RESULTS.parents[1] / "docs/indexing.md", "million", table(recorded))


if __name__ == "__main__":
    main()
