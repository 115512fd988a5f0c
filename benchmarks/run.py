"""``python -m benchmarks.run [--case NAME ...] [--resume] [--threads N] [--out FILE]``.

Every case runs in a process of its own, once with the default malloc and once with one that keeps the heap
(page faults cost memory-hungry peers dearly, so the friendlier figure for them is shown too). No speed is
printed for a case whose correctness gate is red, and the command fails.

The file is written after every case. ``--resume`` measures what it still lacks, ``--case`` replaces single
cases in it; both refuse a file of another machine, commit or number of threads.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from . import roof
from .cases import CASES, OURS
from .record import ROOT, command, file_of, machine, write_json

MALLOC = {  # environment of a measuring process
    "default": {},
    "keeps the heap": {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"},
}
MALLOC_RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # every large buffer comes and goes by itself
SAME = ("cpu", "cores", "threads", "kernels", "torch", "python", "commit")  # of results in one file


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
    threads = case.threads or threads
    timed = {label: in_process(name, threads, "time", malloc) for label, malloc in MALLOC.items()}
    beside = {label: found["beside"] for label, found in timed.items() if "beside" in found}
    return {
        "case": name,
        "about": case.about,
        "shapes": case.shapes,
        "images": case.images,
        "flops": case.flops,
        "bytes": timed["default"]["bytes"],
        "threads": threads,
        "seed": 0,
        "times": {label: found["peers"] for label, found in timed.items()},
        "peak_bytes": in_process(name, threads, "memory", MALLOC_RETURNING),
    } | ({"beside": beside} if beside else {})


def show(result: dict) -> None:
    for malloc, peers in result["times"].items():
        print(f"\n{result['about']}  [{result['threads']} threads, malloc {malloc}]")
        ours = peers[OURS]["median_ms"]
        for peer, r in sorted(peers.items(), key=lambda item: item[1]["median_ms"]):
            peak = result["peak_bytes"][peer]
            memory = "" if peak is None else f"{peak / 1e6:7.1f} MB"
            ratio = "" if peer == OURS else f"{r['median_ms'] / ours:.1f}x"
            time = f"{r['median_ms'] / result['images']:9.2f} ms"
            print(f"  {peer:32} {time} {ratio:>7} {memory}   error {r['error']:.0e}", flush=True)


def recorded_before(path: Path, about: dict) -> dict[str, dict]:
    """Results by case of a file that was measured here, by this commit and as many threads."""
    if not path.exists():
        return {}
    recorded = json.loads(path.read_text("utf-8"))
    other = [key for key in SAME if recorded["machine"].get(key) != about[key]]
    if other:
        found = ", ".join(f"{key} {recorded['machine'].get(key)}, not {about[key]}" for key in other)
        raise SystemExit(f"{path} was recorded with {found}; give --out another file or measure all cases")
    return {result["case"]: result for result in recorded["results"]}


def how(results: dict[str, dict], threads: int) -> str:
    """The command that makes a file of these results."""
    chosen = [] if results.keys() == CASES.keys() else [f"--case {name}" for name in results]
    return command("benchmarks.run", [*chosen, f"--threads {threads}"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="measure only these")
    parser.add_argument("--resume", action="store_true", help="measure what the file lacks")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/PROCESSOR/cpu.json")
    arguments = parser.parse_args()
    about = machine(arguments.threads)
    out = arguments.out or file_of("cpu", about)
    adding = arguments.case or arguments.resume
    done = recorded_before(out, about) if adding else {}
    about["roof"] = roof.measure(arguments.threads)
    print(roof.sentence(about["roof"], arguments.threads))
    for name in arguments.case or CASES:
        if arguments.resume and name in done:
            continue
        done[name] = measure(name, arguments.threads)
        show(done[name])
        results = {case: done[case] for case in CASES if case in done}
        about["command"] = how(results, arguments.threads)
        write_json(out, {"machine": about, "results": list(results.values())})
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
