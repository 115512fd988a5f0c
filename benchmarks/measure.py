"""``python -m benchmarks.measure CASE THREADS time|memory``: one case in this process, one JSON object.

Called by ``benchmarks.run``, which sets the malloc of the process.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .cases import CASES, OURS, Case, Inputs, Peer

ROUNDS, FEWEST, MOST_SECONDS = 31, 3, 2.5  # seconds of one peer
SLOW_SECONDS, SLOW_ROUNDS = 5.0, 2
VANISHED = 1e-12
"""Below it, in float64 beside the largest value, there is nothing but rounding."""


@dataclass(frozen=True)
class Contender:
    """A peer that is ready to run.

    Attributes:
        kept: bytes that it made of the inputs and keeps between calls.
    """

    function: Callable
    inputs: Inputs
    kept: int = 0


def contender(peer: Peer, inputs: Inputs) -> Contender:
    if peer.dtype is not None:
        inputs = {name: t.to(peer.dtype) for name, t in inputs.items()}
    made = peer.prepare(inputs) if peer.prepare else inputs
    given = {t.data_ptr() for t in inputs.values()}
    kept = sum(t.nbytes for t in made.values() if t.data_ptr() not in given)
    return Contender(torch.compile(peer.function) if peer.compiled else peer.function, made, kept)


def relative_errors(results: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Largest difference of every tensor over its largest exact value.

    A gradient that is zero but for the rounding of float64 (that of the weights with one position:
    normalising each cluster takes its assignment away) is compared with the largest value of all.
    """
    largest = [e.abs().max().item() for e in exact]
    sizes = [size if size > VANISHED * max(largest) else max(largest) for size in largest]
    return [
        ((r.double() - e).abs().max() / size).item() for r, e, size in zip(results, exact, sizes, strict=True)
    ]


def gate(case: Case, contenders: dict[str, Contender], inputs: Inputs) -> tuple[dict[str, float], int]:
    """Largest relative error of every peer against the float64 oracle; bytes of inputs and results of a call.

    A peer that is not the same function leaves ``contenders``, so that no time is taken of it; raises if it
    is ours.
    """
    exact = case.compute(case.oracle, {name: t.double() for name, t in inputs.items()})
    errors, moved = {}, 0
    for name, one in list(contenders.items()):
        results = case.compute(one.function, one.inputs)
        if name == OURS:
            moved = sum(t.nbytes for t in (*inputs.values(), *results))
        errors[name] = max(relative_errors(results, exact))
        if errors[name] <= case.tolerance:
            continue
        message = f"REFUSED {case.name}: {name} errs by {errors[name]:.1e} of the largest value"
        if name == OURS:
            raise SystemExit(message)
        print(message, file=sys.stderr)
        del contenders[name]
    return errors, moved


def turn(case: Case, one: Contender) -> Callable[[], float]:
    """Takes the time of one turn of a peer: milliseconds per call."""

    def milliseconds() -> float:
        start = time.perf_counter()
        for _ in range(case.calls):
            case.compute(one.function, one.inputs)
        return (time.perf_counter() - start) * 1e3 / case.calls

    return milliseconds


def times(turns: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Milliseconds per call; peers take turns, to share the machine's moods."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    while waiting := [name for name, values in taken.items() if not enough(values)]:
        for name in waiting:
            taken[name].append(turns[name]())
    return taken


def enough(values: list[float]) -> bool:
    """Whether a peer of these milliseconds has had its turns: fewer, the longer they take."""
    if len(values) < SLOW_ROUNDS:
        return False
    if min(values) > SLOW_SECONDS * 1e3:
        return True
    return len(values) >= ROUNDS or (len(values) >= FEWEST and sum(values) > MOST_SECONDS * 1e3)


def peak_bytes(case: Case, one: Contender) -> int | None:
    """Growth of resident memory during one call, results included, and what is kept between calls.

    Scratch that a first call leaves behind for the next ones is not in it. None where Linux does not tell.
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
    results = case.compute(one.function, one.inputs)
    peak = field("VmHWM") - before
    del results
    return max(peak, 0) + one.kept


def prepare(case: Case, threads: int) -> tuple[dict[str, Contender], dict[str, float], int]:
    torch.set_num_threads(threads)
    inputs = case.inputs(torch.Generator().manual_seed(0))
    contenders = {name: contender(peer, inputs) for name, peer in case.peers.items()}
    return contenders, *gate(case, contenders, inputs)


def measure_time(case: Case, threads: int) -> dict:
    """Times of all peers; in turns with them, of ours in the case whose time per image is this one's goal."""
    contenders, errors, moved = prepare(case, threads)
    turns = {name: turn(case, one) for name, one in contenders.items()}
    beside = CASES[case.goals.time_of[0]] if case.goals.time_of else None
    if beside:
        alone = replace(beside, peers={OURS: beside.peers[OURS]})
        turns[beside.name] = turn(alone, prepare(alone, threads)[0][OURS])
    taken = times(turns)
    found = {"bytes": moved}
    if beside:
        found["beside"] = {
            "case": beside.name,
            "median_ms_per_image": statistics.median(taken.pop(beside.name)) / beside.images,
        }
    found["peers"] = {
        name: {
            "median_ms": statistics.median(values),
            "min_ms": min(values),
            "rounds": len(values),
            "error": errors[name],
        }
        for name, values in taken.items()
    }
    return found


def measure_memory(case: Case, threads: int) -> dict:
    contenders, *_ = prepare(case, threads)
    return {name: peak_bytes(case, one) for name, one in contenders.items()}


def without_compiled(case: Case) -> Case:
    """The case without the peers that take seconds to compile."""
    return replace(case, peers={name: peer for name, peer in case.peers.items() if not peer.compiled})


if __name__ == "__main__":
    case_name, thread_count, what = sys.argv[1:]
    function = {"time": measure_time, "memory": measure_memory}[what]
    print(json.dumps(function(CASES[case_name], int(thread_count))))
