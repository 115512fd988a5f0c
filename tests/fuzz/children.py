"""Random work in child processes: another one goes on after a crash or a hang."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

PATIENCE = 300  # seconds that a child may take for its last calls on a busy machine
SLICE = 600  # seconds of one child
MOST_FAILED = 20  # seeds, after which no more are tried


def work(seed: int, step: int, seconds: float, attempt: Callable[[int], tuple[int, str]]) -> None:
    """Do what a child does: try seed after seed, and announce each as `run_child` reads it.

    Args:
        attempt: returns how many calls a seed took, and what is wrong, or nothing.
    """
    end, calls, failed = time.monotonic() + seconds, 0, 0
    while True:
        print("AT", seed, calls, flush=True)
        made, fault = attempt(seed)
        calls, seed = calls + made, seed + step
        if fault:
            print("FAULT", fault, flush=True)
            failed += 1
        if time.monotonic() >= end or failed >= MOST_FAILED:
            print("AT", seed, calls, flush=True)
            return


def run_child(
    command: Sequence[str], seed: int, step: int, seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[int, int, list[tuple[int, str]]]:
    """Run ``command`` from a seed on for so many seconds.

    The child prints ``AT seed calls`` before each seed and at its end, and ``FAULT text`` after it.

    Returns:
        the seed to go on with, the number of calls, and the failed seeds with a fault.
    """
    arguments = [sys.executable, "-X", "faulthandler", *command, "--child", *map(str, (seed, step, seconds))]
    try:
        done = subprocess.run(
            arguments,
            timeout=seconds + PATIENCE,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, ended = done.stdout, f"ended with {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        output, ended = error.stdout or b"", f"did not return within {PATIENCE} seconds"
    calls, faults, rest = 0, [], []
    for line in output.decode(errors="replace").splitlines():
        word, _, text = line.partition(" ")
        if word == "AT":
            (seed, calls), rest = map(int, text.split()), []
        elif word == "FAULT":
            faults.append((seed, text))
        else:
            rest.append(line)
    if ended:
        faults.append((seed, f"{ended}: {' '.join(rest)[:600]}"))
    return seed + step * bool(ended), calls, faults


def run_children(
    command: Sequence[str], seed: int, step: int, seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[int, int]:
    """Run children one after the other; print what failed, and return the calls and how many seeds failed."""
    end, made, found = time.monotonic() + seconds, 0, 0
    while True:
        left = end - time.monotonic()
        seed, calls, faults = run_child(command, seed, step, max(0.0, min(SLICE, left)), environment)
        for at, what in faults:
            print(f"python {' '.join(command)} --seed {at}\n    {what}", flush=True)
        made, found = made + calls, found + len(faults)
        if time.monotonic() >= end or found >= MOST_FAILED:
            return made, found
