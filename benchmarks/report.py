"""``python -m benchmarks.report [--check]``: the README's benchmark table from benchmarks/results/cpu.json.

With ``--check`` nothing is written; the command fails if the README does not show the recorded results.
"""

import argparse
import json
import os
from pathlib import Path

from .cases import OURS

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    recorded = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())
    readme = ROOT / "README.md"
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(f"README.md lacks the lines {BEGIN} and {END}")
    head, rest = text.split(BEGIN)
    expected = f"{head}{BEGIN}\n{table(recorded)}\n{END}{rest.split(END)[1]}"
    if check and expected != text:
        raise SystemExit("README.md does not show benchmarks/results/cpu.json; run `make report`")
    if not check:
        partial = readme.with_suffix(".partial")
        partial.write_text(expected)
        os.replace(partial, readme)


if __name__ == "__main__":
    main()
