"""``python -m benchmarks.engine [--images N --dim D]``: Milvus Lite compared with a folder index.

The same made-up descriptors (`benchmarks.million`) go into both. Each is searched in a process of its own:
images written per second, memory of the process, milliseconds of single queries, and how much of what the
folder finds, which compares every row, the engine finds.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from sfrs.retrieval.index import Index
from sfrs.retrieval.index.engine_store import EngineStore
from sfrs.retrieval.index.store import Entry

from .million import Photographs, fill, measured_on, network_of, resident
from .pages import show
from .record import RESULTS, machine, write_json

SIZES = ((10_000, 4096), (100_000, 512))
QUERIES, BATCH = 100, 1_000
MEMORY = {"own": "RssAnon", "mapped": "RssFile"}


def fill_engine(path: str, images: int, dim: int) -> float:
    """Write the images that `fill` writes for the same numbers; returns the seconds of writing."""
    store, first, writing = EngineStore(path), 0, 0.0
    started = time.perf_counter()
    store.create(network_of(dim), "exact", "", regions=False)
    writing += time.perf_counter() - started
    for _, views in Photographs(dim).blocks(images):
        started = time.perf_counter()
        for start in range(0, len(views), BATCH):
            part = views[start : start + BATCH].numpy()
            rows = range(first + start, first + start + len(part))
            store.add([Entry(b"/made/up/%09d.jpg" % row, row, 0.0, 0, 0) for row in rows], part)
        first += len(views)
        writing += time.perf_counter() - started
    store.finish()
    store.close()
    return writing


def measure(path: str, folder: Path) -> None:
    """Search the index in this process; prints one JSON object and leaves what was found in ``folder``."""
    before, started = resident(), time.perf_counter()
    index = Index.open(path)
    opening = time.perf_counter() - started
    queries = np.load(folder / "folder.queries.npz")["queries"][:QUERIES]
    number = np.array([int(file.stem) for file in index.files])
    spent, found = [], []
    for query in queries:
        started = time.perf_counter()
        found.append(number[index.search(query[None], 10)[1][0]])
        spent.append(1e3 * (time.perf_counter() - started))
    np.save(folder / ("engine.found.npy" if path.startswith("milvus:") else "folder.found.npy"), found)
    memory = resident()
    p50, p95 = np.percentile(spent[1:], [50, 95])
    result = {"open_s": opening, "first_query_ms": spent[0], "p50_ms": p50, "p95_ms": p95}
    result |= {f"{name}_bytes": memory[key] - before[key] for name, key in MEMORY.items()}
    print(json.dumps(result))


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def bench(folder: Path, images: int, dim: int) -> list[dict]:
    """Both, one after the other, in one folder."""
    places = {"folder": folder / "folder.index", "milvus": folder / "engine.db"}
    seconds = {"folder": fill(places["folder"], images, dim, "exact")["writing"]}
    seconds["milvus"] = fill_engine(f"milvus:{places['milvus']}", images, dim)
    results = []
    for kind, place in places.items():
        address = f"milvus:{place}" if kind == "milvus" else str(place)
        command = [sys.executable, "-m", "benchmarks.engine", "--measure", address, "--folder", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        about = {"index": kind, "images": images, "dim": dim, "written_per_s": images / seconds[kind]}
        results.append(about | {"bytes": size_of(place)} | json.loads(done.stdout))
    exact, found = (np.load(folder / f"{name}.found.npy") for name in ("folder", "engine"))
    same = [len(set(a) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)]
    results[1]["recall_at_10"], results[0]["recall_at_10"] = float(np.mean(same)), 1.0
    return results


def table(recorded: dict) -> str:
    """The page's table: two rows per size."""
    about = recorded["machine"]
    lines = [
        f"{measured_on(about)}, pymilvus {recorded['pymilvus']}: `{about['command']}`.",
        "",
        "| images x numbers | index | written | on disk | opens in | memory: own + mapped "
        "| ms per query: p50 / p95 | of the exact first 10 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = {"folder": "folder, `exact`", "milvus": "Milvus Lite, FLAT"}
    for result in recorded["results"]:
        own, mapped = result["own_bytes"] / 1e6, result["mapped_bytes"] / 1e6
        lines.append(
            f"| {result['images']:,} x {result['dim']:,} | {names[result['index']]} "
            f"| {result['written_per_s']:,.0f} images/s | {result['bytes'] / 1e6:,.0f} MB "
            f"| {result['open_s']:.1f} s | {own:,.0f} + {mapped:,.0f} MB "
            f"| {result['p50_ms']:.1f} / {result['p95_ms']:.1f} | {100 * result['recall_at_10']:.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--images", type=int, help="a multiple of 8; default: both sizes of the page")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/sfrs-engine"), help="deleted afterwards")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        measure(options.measure, options.folder)
        return
    import pymilvus

    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the processes that search
    about = machine(options.threads)
    about["command"] = " ".join(["python -m benchmarks.engine", *sys.argv[1:]])
    about["load_before"] = os.getloadavg()[0]
    results = []
    for images, dim in [(options.images, options.dim)] if options.images else SIZES:
        options.folder.mkdir(parents=True)
        try:
            results += bench(options.folder, images, dim)
        finally:
            shutil.rmtree(options.folder)
        print(json.dumps(results[-2:], indent=2), flush=True)
    about["load_after"] = os.getloadavg()[0]
    recorded = {"machine": about, "pymilvus": pymilvus.__version__, "results": results}
    write_json(options.out or RESULTS / "engine.json", recorded)
    if options.out is None:
        show(RESULTS.parents[1] / "docs/scale.md", "engine", table(recorded))


if __name__ == "__main__":
    main()
