"""``python -m benchmarks.measure CASE THREADS time|memory``: one case in this process, one JSON object.

Called by ``benchmarks.run``, which sets the malloc of the process.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from .cases import CASES, OURS, Case

ROUNDS, FEWEST, MOST_SECONDS = 15, 5, 15.0


def functions_of(case: Case) -> dict:
    return {
        name: torch.compile(function) if name.endswith("compile") else function
        for name, function in case.functions.items()
    }


def gate(case: Case, functions: dict, inputs: dict) -> dict[str, float]:
    """Largest relative error of every peer against the float64 oracle.

    A peer that is not the same function leaves ``functions``, so that no time is taken of it; raises if it
    is ours.
    """
    exact = case.compute(case.oracle, {name: t.double() for name, t in inputs.items()})
    errors = {}
    for name, function in list(functions.items()):
        results = case.compute(function, inputs)
        errors[name] = max(
            ((r.double() - e).abs().max() / e.abs().max()).item() for r, e in zip(results, exact, strict=True)
        )
        if errors[name] <= case.tolerance:
            continue
        message = f"REFUSED {case.name}: {name} errs by {errors[name]:.1e} of the largest value"
        if name == OURS:
            raise SystemExit(message)
        print(message, file=sys.stderr)
        del functions[name]
    return errors


def times(case: Case, functions: dict, inputs: dict) -> dict[str, list[float]]:
    """Milliseconds per call; the peers take turns, so that they share the machine's moods."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    for round_ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            case.compute(function, inputs)
            taken[name].append((time.perf_counter() - start) * 1e3)
        if round_ + 1 >= FEWEST and time.perf_counter() - begin > MOST_SECONDS:
            break
    return taken


def peak_bytes(case: Case, function, inputs: dict) -> int | None:
    """Growth of resident memory during one call, results included; None where Linux does not tell.

    Scratch that a first call leaves behind for the next ones is not in it.
    """
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def field(name: str) -> int:
        return next(
            int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(name)
        )

    try:
        clear.write_text("5")  # resets the high-water mark
    except OSError:
        return None
    before = field("VmRSS")
    results = case.compute(function, inputs)
    peak = field("VmHWM") - before
    del results
    return max(peak, 0)


def prepare(name: str, threads: int):
    torch.set_num_threads(threads)
    case = CASES[name]
    inputs = case.inputs(torch.Generator().manual_seed(0))
    functions = functions_of(case)
    return case, functions, inputs, gate(case, functions, inputs)


def measure_time(name: str, threads: int) -> dict:
    case, functions, inputs, errors = prepare(name, threads)
    return {
        peer: {
            "median_ms": statistics.median(values),
            "min_ms": min(values),
            "rounds": len(values),
            "error": errors[peer],
        }
        for peer, values in times(case, functions, inputs).items()
    }


def measure_memory(name: str, threads: int) -> dict:
    case, functions, inputs, _ = prepare(name, threads)
    return {peer: peak_bytes(case, function, inputs) for peer, function in functions.items()}


if __name__ == "__main__":
    case_name, thread_count, what = sys.argv[1:]
    print(json.dumps({"time": measure_time, "memory": measure_memory}[what](case_name, int(thread_count))))
