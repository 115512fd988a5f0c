"""``python -m benchmarks.run [--case NAME ...] [--threads N] [--out FILE]``.

Every case runs in a process of its own, once with the default malloc and once with one that keeps the heap
(page faults cost memory-hungry peers dearly, so the friendlier figure for them is shown too). No speed is
printed for a case whose correctness gate is red, and the command fails.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

import sfrs_ext
from sfrs_ext import _C

from .cases import CASES, OURS

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
MALLOC = {  # environment of a measuring process
    "default": {},
    "keeps the heap": {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"},
}
MALLOC_RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # every large buffer comes and goes by itself


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """What was measured; ``SFRS_COMMIT`` says it on a machine that has the files without their history."""
    if "SFRS_COMMIT" in os.environ:
        return os.environ["SFRS_COMMIT"]
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    if head.returncode:
        return "unknown"
    kernels = [*git, "status", "--porcelain", "--", "../csrc", "../sfrs_ext", "../benchmarks/*.py"]
    changed = subprocess.run(kernels, capture_output=True, text=True).stdout.strip()
    return head.stdout.strip() + (" with changes" if changed else "")


def machine(threads: int) -> dict:
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "kernels": _C.cpu_kernels(),
        "torch": torch.__version__,
        "sfrs_ext": sfrs_ext.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "command": "python -m benchmarks.run " + " ".join(sys.argv[1:]),
    }


def in_process(case: str, threads: int, what: str, malloc: dict[str, str]) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", case, str(threads), what],
        cwd=ROOT.parent,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)} | malloc,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1] if done.stderr else f"{case}: failed")
    for line in done.stderr.splitlines():
        if line.startswith("REFUSED"):
            print(line)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, threads: int) -> dict:
    case = CASES[name]
    return {
        "case": name,
        "about": case.about,
        "shapes": case.shapes,
        "images": case.images,
        "flops": case.flops,
        "threads": threads,
        "seed": 0,
        "times": {label: in_process(name, threads, "time", malloc) for label, malloc in MALLOC.items()},
        "peak_bytes": in_process(name, threads, "memory", MALLOC_RETURNING),
    }


def show(result: dict) -> None:
    for malloc, peers in result["times"].items():
        print(f"\n{result['about']}  [{result['threads']} threads, malloc {malloc}]")
        ours = peers[OURS]["median_ms"]
        for peer, r in sorted(peers.items(), key=lambda item: item[1]["median_ms"]):
            peak = result["peak_bytes"][peer]
            memory = "" if peak is None else f"{peak / 1e6:7.1f} MB"
            ratio = "" if peer == OURS else f"{r['median_ms'] / ours:.1f}x"
            time = f"{r['median_ms'] / result['images']:9.2f} ms"
            print(f"  {peer:24} {time} {ratio:>7} {memory}   error {r['error']:.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="measure only these")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json")
    arguments = parser.parse_args()
    results = []
    for case in arguments.case or CASES:
        results.append(measure(case, arguments.threads))
        show(results[-1])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.out.with_suffix(".partial")
    partial.write_text(
        json.dumps({"machine": machine(arguments.threads), "results": results}, indent=1) + "\n"
    )
    os.replace(partial, arguments.out)
    print(f"\nwrote {arguments.out}")


if __name__ == "__main__":
    main()
