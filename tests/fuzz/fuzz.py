"""``python tests/fuzz/fuzz.py [--minutes N] [--seed N] [--kernels NAME]``: random calls of every operator.

Every set of kernels that runs here is called in a process of its own, and in another one after a crash or a
hang. What failed is printed with the command that repeats it. Once it is mended, its seed belongs into
seeds.txt, which the tests replay.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from children import run_children, work


def make_calls(seed: int) -> tuple[int, str]:
    """Make the calls of a seed; return how many they are, and what is wrong with one."""
    import torch
    from cases import make
    from check import check

    torch.set_num_threads((1, 1, 1, 2, 3)[seed // 1000 % 5])
    told = list(check(make(seed)))
    faults = [fault for fault in told if fault]
    return len(told), f"{len(faults)} of {len(told)} calls: {faults[0]}" if faults else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.0, help="how long; the calls of one seed without")
    parser.add_argument("--seed", type=int, default=int(time.time()) * 1000, help="the first one")
    parser.add_argument("--kernels", help="a set of kernels, see SFRS_CPU; all without")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        seed, step, seconds = options.child
        work(int(seed), int(step), float(seconds), make_calls)
        return 0
    import sfrs_ext

    sets = (
        [options.kernels] if options.kernels else [n for n in sfrs_ext.available_kernels() if n != "emulated"]
    )
    firsts = [options.seed + i * bool(options.minutes) for i in range(len(sets))]

    def run(kernels: str, seed: int) -> tuple[int, int]:
        command = [__file__, "--kernels", kernels]
        environment = os.environ | {"SFRS_CPU": kernels, "OMP_WAIT_POLICY": "PASSIVE"}
        return run_children(command, seed, len(sets), 60 * options.minutes, environment)

    with ThreadPoolExecutor(len(sets)) as pool:
        counts = pool.map(run, sets, firsts)
        totals = dict(zip(sets, counts, strict=True))
    print(
        ", ".join(f"{name}: {calls} calls, {faults} failed seeds" for name, (calls, faults) in totals.items())
    )
    return any(faults for _, faults in totals.values())


if __name__ == "__main__":
    sys.exit(main())
