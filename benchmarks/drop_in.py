"""``python -m benchmarks.drop_in``: layers of other projects before and after ``sfrs_ext.accelerate``.

Both take turns in one process: one process with the default malloc, one with one that keeps the heap, which
is kinder to layers that write their residuals out. Counted is the CPU time of one thread, in which a machine
that is busy with other work is as fast for long calls as for short ones. A layer that is not replaced, or
whose result or gradients err against float64, is not timed, and the command fails. Writes
benchmarks/results/PROCESSOR/drop-in.json; `python -m benchmarks.report` puts it into docs/drop-in.md.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import sfrs_ext

from .foreign_layers import CASES, Case
from .record import file_of, machine, write_json
from .run import MALLOC

ROOT = Path(__file__).resolve().parents[1]
THREADS = 1
ROUNDS, FEWEST, MOST_SECONDS = 11, 3, 6.0
TOLERANCE = 1e-4
STEPS = ("forward", "forward + backward")


def forward(layer: nn.Module, x: Tensor) -> Tensor:
    """Evaluation, as descriptors are extracted."""
    with torch.no_grad():
        return layer.eval()(x)


def forward_backward(layer: nn.Module, x: Tensor) -> Tensor:
    """Training, with gradients to the features and all parameters."""
    layer.zero_grad()
    x.grad = None
    result = layer.train()(x.requires_grad_(True))
    result.backward(torch.ones_like(result).cumsum(-1) / result.shape[-1])
    return result.detach()


def results_of(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    layer, x = copy.deepcopy(layer), x.detach().clone()
    found = {"forward": forward(layer, x), "training": forward_backward(layer, x), "gradient of x": x.grad}
    return found | {f"gradient of {name}": p.grad for name, p in layer.named_parameters()}


def gate(case: Case, before: nn.Module, after: nn.Module, x: Tensor) -> float:
    """Largest error of the fused layer relative to the largest value; leaves if one is too large."""
    exact = results_of(copy.deepcopy(before).double(), x.double())
    worst = 0.0
    for label, layer in (("before", before), ("after", after)):
        for name, value in results_of(layer, x).items():
            error = ((value.double() - exact[name]).abs().max() / exact[name].abs().max()).item()
            if not error <= TOLERANCE:
                raise SystemExit(
                    f"REFUSED {case.name}: {name} {label} errs by {error:.1e} of the largest value"
                )
            worst = max(worst, error) if label == "after" else worst
    return worst


def measure(case: Case) -> dict:
    before, x = case.build()
    after = copy.deepcopy(before)
    report = sfrs_ext.accelerate(after)
    if len(report.replaced) != 1:
        raise SystemExit(f"REFUSED {case.name}: {report}")
    error = gate(case, before, after, x[:2])
    times: dict[str, dict[str, float]] = {}
    for step, function in zip(STEPS, (forward, forward_backward), strict=True):
        taken: dict[str, list[float]] = {"before": [], "after": []}
        begin = time.perf_counter()
        for round_ in range(ROUNDS):
            for label, layer in (("before", before), ("after", after)):
                start = time.process_time()
                function(layer, x)
                taken[label].append((time.process_time() - start) * 1e3)
            if round_ + 1 >= FEWEST and time.perf_counter() - begin > MOST_SECONDS:
                break
        times[step] = {label: statistics.median(values) for label, values in taken.items()}
    return {"layer": case.name, "error": error, "milliseconds": times}


def in_process(malloc: dict[str, str]) -> list[dict]:
    command = [sys.executable, "-m", "benchmarks.drop_in", "--measure"]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)} | malloc
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def record() -> dict:
    runs = {label: in_process(malloc) for label, malloc in MALLOC.items()}
    about = machine(THREADS) | {"command": "python -m benchmarks.drop_in"}
    results = [
        {
            "layer": case.name,
            "found in": case.found_in,
            "input": list(case.shape),
            "clusters": case.clusters,
            "error": max(run[index]["error"] for run in runs.values()),
            "milliseconds": {label: run[index]["milliseconds"] for label, run in runs.items()},
        }
        for index, case in enumerate(CASES)
    ]
    return {"machine": about, "results": results}


def table(recorded: dict) -> str:
    """One row per layer and step: milliseconds per batch before and after, default malloc / heap-keeping."""
    about = recorded["machine"]
    lines = [
        f"{about['cpu']}, {about['kernels']} kernels, torch {about['torch']}, "
        f"commit {about['commit']}, {about['date']}: `{about['command']}`. Median CPU milliseconds "
        "of one thread per batch, float32, with the default malloc / with one that keeps the heap. Forward "
        "is that of evaluation, backward goes to the features and all parameters.",
        "",
        "| layer, as in | batch | | before | after | |",
        "|---|---|---|---|---|---|",
    ]
    for result in recorded["results"]:
        batch = f"{'x'.join(map(str, result['input']))}, K = {result['clusters']}"
        first = f"{result['layer']} ({result['found in']}) | {batch}"
        for step in STEPS:
            ms = [run[step] for run in result["milliseconds"].values()]
            before, after = (" / ".join(f"{run[label]:.1f}" for run in ms) for label in ("before", "after"))
            ratio = " / ".join(f"{run['before'] / run['after']:.1f}x" for run in ms)
            lines.append(f"| {first} | {step} | {before} | {after} | **{ratio}** |")
            first = " | "
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drop_in", description=__doc__)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        torch.set_num_threads(THREADS)
        print(json.dumps([measure(case) for case in CASES]))
        return
    recorded = record()
    write_json(file_of("drop-in", recorded["machine"]), recorded)
    print(table(recorded))


if __name__ == "__main__":
    main()
