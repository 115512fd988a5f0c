"""``python tests/fuzz/fuzz.py [--minutes N] [--seed N] [--kernels NAME]``: random calls of every operator.

Every set of kernels that runs here is called in a process of its own, and in another one after a crash or a
hang. What failed is printed with the command that repeats it. Once it is mended, its seed belongs into
seeds.txt, which the tests replay.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

PATIENCE = 300  # seconds that a child may take for its last calls on a busy machine
SLICE = 600  # seconds of one child
MOST_FAILED = 20  # seeds, of a set of kernels that is then given up


def make_calls(seed: int, step: int, seconds: float) -> None:
    """What a child does. Announces each seed with the calls before it, and what is wrong with one."""
    import torch
    from cases import make
    from check import check

    end, calls, failed = time.monotonic() + seconds, 0, 0
    while True:
        print("AT", seed, calls, flush=True)
        torch.set_num_threads((1, 1, 1, 2, 3)[seed // 1000 % 5])
        told = list(check(make(seed)))
        calls, seed = calls + len(told), seed + step
        if faults := [fault for fault in told if fault]:
            print("FAULT", len(faults), "of", len(told), "calls:", faults[0], flush=True)
            failed += 1
        if time.monotonic() >= end or failed >= MOST_FAILED:
            print("AT", seed, calls, flush=True)
            return


def run_child(kernels: str, seed: int, step: int, seconds: float) -> tuple[int, int, list[tuple[int, str]]]:
    """The seed to go on with, the number of calls, and the failed seeds with a fault."""
    command = [sys.executable, "-X", "faulthandler", __file__, "--child", *map(str, (seed, step, seconds))]
    environment = os.environ | {"SFRS_CPU": kernels, "OMP_WAIT_POLICY": "PASSIVE"}
    options = dict(env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        done = subprocess.run(command, timeout=seconds + PATIENCE, **options)
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


def run_kernels(kernels: str, seed: int, step: int, seconds: float) -> tuple[int, int]:
    """Calls, and how many seeds failed."""
    end, made, found = time.monotonic() + seconds, 0, 0
    while True:
        left = end - time.monotonic()
        seed, calls, faults = run_child(kernels, seed, step, max(0.0, min(SLICE, left)))
        for at, what in faults:
            print(f"python tests/fuzz/fuzz.py --kernels {kernels} --seed {at}\n    {what}", flush=True)
        made, found = made + calls, found + len(faults)
        if time.monotonic() >= end or found >= MOST_FAILED:
            return made, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.0, help="how long; the calls of one seed without")
    parser.add_argument("--seed", type=int, default=int(time.time()) * 1000, help="the first one")
    parser.add_argument("--kernels", help="a set of kernels, see SFRS_CPU; all without")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        seed, step, seconds = options.child
        make_calls(int(seed), int(step), float(seconds))
        return 0
    import sfrs_ext

    sets = (
        [options.kernels] if options.kernels else [n for n in sfrs_ext.available_kernels() if n != "emulated"]
    )
    firsts = [options.seed + i * bool(options.minutes) for i in range(len(sets))]
    with ThreadPoolExecutor(len(sets)) as pool:
        counts = pool.map(lambda n, s: run_kernels(n, s, len(sets), 60 * options.minutes), sets, firsts)
        totals = dict(zip(sets, counts, strict=True))
    print(
        ", ".join(f"{name}: {calls} calls, {faults} failed seeds" for name, (calls, faults) in totals.items())
    )
    return any(faults for _, faults in totals.values())


if __name__ == "__main__":
    sys.exit(main())
