"""``python -m benchmarks.scaling [--threads N] [--out FILE]``: speed by shape.

One of the four changes at a time, the others stay at the size of a conv5 map of a 480x640 image. Powers of
two and odd values beside them, since tiles of registers and caches fit the former. Ours and the two-GEMM form
in eager torch take turns, float32, forward and with backward, under the malloc that keeps the heap, which is
kinder to the latter. Every point passes the float64 gate first. Writes
benchmarks/results/PROCESSOR/scaling.json.
"""

import argparse
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from . import roof
from .cases import OURS, Case, Sizes, netvlad_case
from .measure import Contender, contender, gate
from .record import command, file_of, machine, processor, write_json
from .run import MALLOC

EAGER = "two-GEMM"
DIRECTIONS = ("forward", "forward + backward")
BASE = {"P": 1200, "D": 512, "K": 64, "B": 8}
AXES = {
    "P": (1, 2, 4, 7, 8, 16, 32, 48, 49, 64, 128, 256, 512, 1024, 1200, 2048, 4096),
    "D": (64, 100, 128, 256, 512, 1024, 2048),
    "K": (8, 16, 32, 63, 64, 65, 128, 256),
    "B": (1, 2, 4, 8, 16),
}
ROUNDS, FEWEST = 11, 3
TURN_SECONDS, MOST_SECONDS = 0.004, 1.5  # least of one turn; of all turns of a peer


def case_of(shape: dict[str, int], *, backward: bool) -> Case:
    """The netvlad case of these shapes, on maps of one row, by ours and the eager two-GEMM form only."""
    sizes = Sizes(batch=shape["B"], dim=shape["D"], height=1, width=shape["P"], clusters=shape["K"])
    name = " ".join(f"{axis}={value}" for axis, value in shape.items())
    case = netvlad_case(name, sizes, backward=backward)
    return replace(case, peers={peer: case.peers[peer] for peer in (OURS, EAGER)})


def milliseconds(case: Case, one: Contender, calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        case.compute(one.function, one.inputs)
    return (time.perf_counter() - begin) * 1e3 / calls


def measure(case: Case) -> dict:
    """Median milliseconds per call and error of both; short calls are repeated within a turn."""
    inputs = case.inputs(torch.Generator().manual_seed(0))
    contenders = {name: contender(peer, inputs) for name, peer in case.peers.items()}
    errors, _ = gate(case, contenders, inputs)
    if EAGER not in contenders:
        raise SystemExit(f"REFUSED {case.name}: {EAGER} errs by {errors[EAGER]:.1e}")
    first = {name: milliseconds(case, one, 1) for name, one in contenders.items()}
    calls = {name: max(1, round(TURN_SECONDS * 1e3 / ms)) for name, ms in first.items()}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    begin = time.perf_counter()
    while len(taken[OURS]) < ROUNDS:
        for name, one in contenders.items():
            taken[name].append(milliseconds(case, one, calls[name]))
        if len(taken[OURS]) >= FEWEST and time.perf_counter() - begin > MOST_SECONDS * len(contenders):
            break
    return {
        name: {"median_ms": statistics.median(values), "min_ms": min(values), "error": errors[name]}
        for name, values in taken.items()
    }


def curves() -> list[dict]:
    """Every point of every axis in both directions; the base, which lies on all axes, on each of them."""
    points = []
    for axis, values in AXES.items():
        for backward, direction in enumerate(DIRECTIONS):
            for value in values:
                case = case_of(BASE | {axis: value}, backward=bool(backward))
                peers = measure(case)
                points.append(
                    {
                        "axis": axis,
                        "value": value,
                        "direction": direction,
                        "flops": case.flops,
                        "images": case.images,
                        "peers": peers,
                    }
                )
                ours, eager = (peers[name]["median_ms"] / case.images for name in (OURS, EAGER))
                about = f"{direction:18} {axis} = {value:5}  {ours:8.3f} ms per image"
                print(f"{about}, {EAGER} {eager / ours:.2f}x", flush=True)
    return points


def table(recorded: dict) -> str:
    """How many times longer the eager form takes, by axis: least, median and most, and where."""
    about = recorded["machine"]
    base = ", ".join(f"{axis} = {value:,}" for axis, value in recorded["base"].items())
    lines = [
        f"{about['cpu']}, {about['threads']} threads, {about['kernels']} kernels, torch {about['torch']}, "
        f"commit {about['commit']}, {about['date']}: `{about['command']}`. Of {base} one changes at a time; "
        "hollow points are no powers of two.",
        "",
        f"![Speed against positions, dimensions, clusters and batch](plots/{processor(about)}/scaling.png)",
        "",
        f"| | points | `{OURS}`, ms per image | {EAGER} takes: least | median | most |",
        "|---|---|---|---|---|---|",
    ]
    for axis in AXES:
        for direction in DIRECTIONS:
            points = [p for p in recorded["points"] if (p["axis"], p["direction"]) == (axis, direction)]
            ratios = [p["peers"][EAGER]["median_ms"] / p["peers"][OURS]["median_ms"] for p in points]
            each = [p["peers"][OURS]["median_ms"] / p["images"] for p in points]

            def where(ratio: float, points=points, ratios=ratios, axis=axis) -> str:
                return f"{ratio:.1f}x at {axis} = {points[ratios.index(ratio)]['value']:,}"

            values = f"{axis} = {points[0]['value']:,} to {points[-1]['value']:,}, {direction}"
            lines.append(
                f"| {values} | {len(points)} | {each[0]:.3f} to {each[-1]:.3f} | {where(min(ratios))} | "
                f"{statistics.median(ratios):.1f}x | {where(max(ratios))} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/PROCESSOR/scaling.json")
    arguments = parser.parse_args()
    wanted = MALLOC["keeps the heap"]
    if not wanted.items() <= os.environ.items():  # malloc reads its settings when a process begins
        again = [sys.executable, "-m", "benchmarks.scaling", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | wanted)
    torch.set_num_threads(arguments.threads)
    about = machine(arguments.threads) | {
        "command": command("benchmarks.scaling", [f"--threads {arguments.threads}"]),
        "roof": roof.measure(arguments.threads),
    }
    out = arguments.out or file_of("scaling", about)
    write_json(out, {"machine": about, "base": BASE, "points": curves()})
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
