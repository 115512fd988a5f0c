"""``python -m benchmarks.report [--check]``: the tables of README and docs from benchmarks/results.

With ``--check`` nothing is written; the command fails if a page does not show the recorded results.
"""

import argparse
import json
from pathlib import Path

from .cases import OURS
from .pages import show

ROOT = Path(__file__).resolve().parents[1]


def table(recorded: dict) -> str:
    """One row per case: ours and every peer in ms per call image, with default and heap-keeping malloc."""
    machine = recorded["machine"]
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, {machine['kernels']} kernels, "
        f"torch {machine['torch']}, commit {machine['commit']}, {machine['date']}: `{machine['command']}`. "
        "Median milliseconds per image (regions and similarities: per call) with the default malloc / with "
        f"one that keeps the heap; how many times longer than `{OURS}`; then the growth of resident "
        "memory during a call.",
        "",
        f"| computation | `{OURS}` | peer | | |",
        "|---|---|---|---|---|",
    ]
    for result in recorded["results"]:
        times, peak = result["times"], result["peak_bytes"]

        def cells(peer: str, times=times, peak=peak, images=result["images"]) -> tuple[list[float], str]:
            ms = [run[peer]["median_ms"] / images for run in times.values()]
            return ms, f"{ms[0]:.2f} / {ms[1]:.2f} ms, {peak[peer] / 1e6:.0f} MB"

        ours, text = cells(OURS)
        first = f"{result['about']} | **{text}**"
        for peer in sorted((p for p in peak if p != OURS), key=lambda p: cells(p)[0][1]):
            theirs, text = cells(peer)
            ratio = f"{theirs[0] / ours[0]:.1f}x / {theirs[1] / ours[1]:.1f}x"
            lines.append(f"| {first} | {peer} | {ratio} | {text} |")
            first = " | "
    return "\n".join(lines)


def main() -> None:
    from . import confidence, drop_in, exported, jitter, million, reranking_tables
    from .training import table as training

    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for page, mark, results, text in (
        ("README.md", "benchmarks", "cpu", table),
        ("docs/drop-in.md", "drop-in", "drop-in", drop_in.table),
        ("docs/index.md", "million", "million", million.table),
        ("docs/locate.md", "confidence", "confidence", confidence.tables),
        ("docs/reranking.md", "reranking", "reranking", reranking_tables.tables),
        ("docs/export.md", "exported", "exported", exported.table),
        ("docs/training.md", "training", "training-cpu", training.table),
        ("docs/training.md", "jitter", "jitter", jitter.table),
    ):
        file = ROOT / f"benchmarks/results/{results}.json"
        if not file.exists():
            print(f"{page} shows no table of {mark}: {file.name} is not recorded yet")
            continue
        recorded = json.loads(file.read_text("utf-8"))
        show(ROOT / page, mark, text(recorded), check=check)


if __name__ == "__main__":
    main()
