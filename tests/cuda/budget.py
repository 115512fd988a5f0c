"""``python tests/cuda/budget.py BUILD [--update]``: no kernel spills or takes more registers than its budget.

Reads what ptxas said of every kernel while ``BUILD`` was compiled with ``-DSFRS_CUDA_USAGE=ON`` and compares
it with ``budget.json``. A spill, a stack frame and static shared memory (all shared memory is dynamic here)
fail on every architecture; so does a kernel that takes more registers, is not in the budget, or is gone from
the library. ``--update`` writes the budget as it is now. As a compiler launcher, ``--record FILE -- COMMAND``
keeps ptxas' words.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BUDGET = Path(__file__).with_name("budget.json")
USAGE_LINE = re.compile(r"ptxas info|\s*\d+ bytes stack frame|\s*$")
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
PROPERTIES = re.compile(r"Function properties for (\S+)")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SECONDS = re.compile(r"compiled in ([\d.]+) s of processor time")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Usage:
    """What one kernel takes on one architecture."""

    kernel: str
    architecture: str
    registers: int = 0
    shared: int = 0
    frame: int = 0
    spills: int = 0

    def faults(self) -> list[str]:
        counts = {"stack frame": self.frame, "spills": self.spills, "static shared memory": self.shared}
        return [
            f"{self.kernel} on {self.architecture}: {n} bytes of {what}" for what, n in counts.items() if n
        ]


def record(log: Path, command: list[str]) -> int:
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    seconds = sum(os.times()[2:4])  # of children
    log.write_text(f"{done.stderr}compiled in {seconds:.1f} s of processor time\n")
    sys.stderr.writelines(line for line in done.stderr.splitlines(True) if not USAGE_LINE.match(line))
    return done.returncode


def read(log: str) -> list[Usage]:
    """Usages in one log; functions that were not inlined count towards the kernel before them."""
    usages: list[Usage] = []
    for line in log.splitlines():
        if entry := ENTRY.search(line):
            usages.append(Usage(*entry.groups()))
        elif frame := FRAME.search(line):
            usages[-1].frame += int(frame[1])
            usages[-1].spills += int(frame[2]) + int(frame[3])
        elif used := USED.search(line):
            usages[-1].registers = int(used[1])
            if shared := SHARED.search(line):
                usages[-1].shared = int(shared[1])
    return usages


def shorten(name: str) -> str:
    """``kernel<parameters>`` of a demangled name."""
    name = re.sub(r"^void |\(anonymous namespace\)::|sfrs::|cuda::", "", name)
    name = name.replace("(bool)1", "true").replace("(bool)0", "false")
    return re.sub(r"\((int|long|unsigned int|Crews)\)", "", name).split("(")[0]


def readable(mangled: list[str]) -> dict[str, str]:
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    names = dict(zip(mangled, map(shorten, done.stdout.splitlines()), strict=True))
    if len(set(names.values())) < len(names):
        raise SystemExit("two kernels have the same readable name")
    return names


def compare(usages: list[Usage], budget: dict[str, dict[str, int]]) -> list[str]:
    """What is wrong, in words."""
    faults = [fault for usage in usages for fault in usage.faults()]
    for usage in usages:
        allowed = budget.get(usage.kernel, {}).get(usage.architecture)
        if allowed is None:
            faults.append(f"{usage.kernel} on {usage.architecture}: not in the budget")
        elif usage.registers > allowed:
            faults.append(
                f"{usage.kernel} on {usage.architecture}: {usage.registers} registers, budget {allowed}"
            )
    architectures = {usage.architecture for usage in usages}
    present = {(usage.kernel, usage.architecture) for usage in usages}
    for kernel, registers in budget.items():
        for architecture in architectures & registers.keys():
            if (kernel, architecture) not in present:
                faults.append(f"{kernel} on {architecture}: in the budget, but there is no such kernel")
    return faults


def show(budget: dict[str, dict[str, int]], architectures: list[str]) -> None:
    width = max(map(len, budget))
    print(f"{'registers':{width}}", *(f"{a:>7}" for a in architectures))
    for kernel, registers in budget.items():
        print(f"{kernel:{width}}", *(f"{registers.get(a, '-'):>7}" for a in architectures))


def write(compiler: str, budget: dict[str, dict[str, int]]) -> None:
    lines = ",\n".join(f"  {json.dumps(kernel)}: {json.dumps(r)}" for kernel, r in budget.items())
    BUDGET.write_text(f'{{\n "nvcc": "{compiler}",\n "registers": {{\n{lines}\n }}\n}}\n')


def main() -> int:
    if sys.argv[1:2] == ["--record"]:
        return record(Path(sys.argv[2]), sys.argv[4:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", type=Path, help="folder compiled with -DSFRS_CUDA_USAGE=ON")
    parser.add_argument("--update", action="store_true", help="write the budget as it is now")
    arguments = parser.parse_args()

    logs = {path.stem: path.read_text() for path in sorted(arguments.build.rglob("*.usage"))}
    usages = [usage for log in logs.values() for usage in read(log)]
    if not usages:
        raise SystemExit(f"no kernel's usage below {arguments.build}")
    names = readable(sorted({usage.kernel for usage in usages}))
    used: dict[str, dict[str, int]] = {}
    for usage in sorted(usages, key=lambda u: (names[u.kernel], len(u.architecture), u.architecture)):
        usage.kernel = names[usage.kernel]
        used.setdefault(usage.kernel, {})[usage.architecture] = usage.registers
    show(used, sorted({u.architecture for u in usages}, key=lambda a: (len(a), a)))

    cache = (arguments.build / "CMakeCache.txt").read_text()
    compiler = re.search(r"^SFRS_NVCC_VERSION:\w+=(\d+\.\d+)", cache, re.M)[1]
    if arguments.update:
        write(compiler, used)
    recorded = json.loads(BUDGET.read_text()) if BUDGET.exists() else {"nvcc": compiler, "registers": {}}
    if recorded["nvcc"] != compiler:
        print(f"budget.json is of nvcc {recorded['nvcc']}, this is {compiler}: registers not compared")
        faults = [fault for usage in usages for fault in usage.faults()]
    else:
        faults = compare(usages, recorded["registers"])
    print(*faults, sep="\n", end="\n" if faults else "")
    seconds = sum(float(SECONDS.search(log)[1]) for log in logs.values())
    took = f"{len(used)} kernels compiled {len(usages)} times in {seconds:.0f} s of processor time"
    print(f"{took}: {len(faults) or 'no'} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
