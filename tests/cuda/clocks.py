"""``python tests/cuda/clocks.py BUILD [--update] [--only WORDS]``: what the kernels cost on sm_90, unseen.

Counts the clocks of one block (walk.py) for every problem below, with the parameters that the launchers would
pass (csrc/testing/list_launches). Three sizes of a problem tell what a tile of 64 positions takes, a unit (an
image, a quarter, or a part of one) and the start; of all pairs: one cluster, and the rest. ``clocks.json``
keeps it for benchmarks/predict.py; more than a few percent above it fail. ``--only`` takes the problems whose
name contains all the words and shows where their clocks go, by phase and by function, and for how many clocks
each unit is busy, below which no schedule comes (``memory``: shared memory and the first cache). ``--update``
writes the clocks as they are now, of these problems or of all.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import sass
from budget import readable
from walk import Launch, Program, Walk

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("clocks.json")
SLACK = 1.02  # times the recorded clocks: the least that is a regression
TILE = 64  # positions


@dataclass(frozen=True)
class Problem:
    """What the launchers are asked, at three sizes that differ in tiles and units.

    Attributes:
        sizes: one tile in each of ``units`` units, twice as many tiles, twice as many units of one tile.
    """

    options: dict
    sizes: tuple[dict, dict, dict]
    units: int = 1


MAPS = ({"B": 1, "H": 1, "W": TILE}, {"B": 1, "H": 1, "W": 2 * TILE}, {"B": 2, "H": 1, "W": TILE})
# Quarters four positions wide, like the odd halves of real maps copied 8 bytes at a time.
QUARTERS = ({"B": 1, "H": 32, "W": 8}, {"B": 1, "H": 64, "W": 8}, {"B": 2, "H": 32, "W": 8})
FEW = {"layout": "features", "K": 32, "G": 16}
VIDEO = FEW | {"given": 1}
LONG = {"layout": "features", "D": 768}


def problems() -> dict[str, Problem]:
    maps = {"planes": {}, "features": {"layout": "features"}, "few clusters": FEW, "given logits": VIDEO}
    found = {
        f"{dtype} {name}": Problem({"dtype": dtype} | options, MAPS)
        for dtype in ("bf16", "tf32", "fp32")
        for name, options in maps.items()
    }
    found |= {f"{dtype} long features": Problem({"dtype": dtype} | LONG, MAPS) for dtype in ("bf16", "fp32")}
    found["bf16 quarters"] = Problem({"dtype": "bf16", "parts": 4}, QUARTERS, units=4)
    # A tile of pairs: a cluster is its "tile", and there is no unit.
    pairs = ({"K": 1}, {"K": 2}, {"K": 2})
    for dtype in ("bf16", "tf32", "fp32"):
        found[f"{dtype} pairs"] = Problem({"dtype": dtype, "pairs": 128, "B": 24}, pairs)
    return found


DIRECTIONS = {
    "aggregate_forward_kernel": "forward",
    "aggregate_backward_kernel": "backward",
    "similarity_pairs_forward": "forward",
}
GATE = ("bf16 planes: forward", "bf16 planes: backward", "fp32 planes: forward", "bf16 pairs: forward")
"""What is counted unless all are asked for."""


class Launcher:
    """Asks the launchers, compiled for the emulator, what they launch for a problem."""

    def __init__(self, build: Path):
        sources = ROOT / "csrc" / "testing"
        for command in (
            ["-S", sources, "-B", build, "-G", "Ninja"],
            ["--build", build, "--target", "list_launches"],
        ):
            subprocess.run(["cmake", *command], check=True, stdout=subprocess.DEVNULL)
        self.program = build / "list_launches"
        listed = subprocess.run(["nm", self.program], capture_output=True, text=True, check=True).stdout
        symbols = {w[2]: int(w[0], 16) for line in listed.splitlines() if len(w := line.split()) == 3}
        self.names = {at - symbols["main"]: name for name, at in symbols.items()}

    def __call__(self, problem: dict) -> list[Launch]:
        arguments = [f"{key}={value}" for key, value in problem.items()]
        done = subprocess.run([self.program, *arguments], capture_output=True, text=True, check=True)
        launches = []
        for line in done.stdout.splitlines():
            at, x, y, z, threads, shared, parameters = line.split()
            grid = (int(x), int(y), int(z))
            launches.append(
                Launch(self.names[int(at)], grid, int(threads), int(shared), bytes.fromhex(parameters))
            )
        return launches


WORDS = ("device.cuh", "matrix.cuh", "norms.cuh")  # their callers say more
OUTER = ("run", "walk", "work")


class Functions:
    """The function of the sources that an instruction belongs to, as ``phase: function``."""

    def __init__(self):
        self.files: dict[str, list[str]] = {}

    def __call__(self, i: sass.Instruction) -> str:
        frames = [frame for frame in i.where if "csrc/cuda" in frame[0] and not frame[0].endswith(WORDS)]
        if not frames:
            return "other: other"
        names = [self.function(*frame) for frame in frames]  # innermost first
        outer = next((n for n, name in enumerate(names) if name in OUTER and n + 1 < len(names)), len(names))
        inner = names[:outer] or names[:1]
        return f"{inner[-1]}: {inner[0]}"

    def function(self, path: str, line: int) -> str:
        if path not in self.files:
            self.files[path] = self.owners(Path(path).read_text().splitlines())
        return self.files[path][line - 1]

    @staticmethod
    def owners(lines: Iterable[str]) -> list[str]:
        """The function that is defined at or before each line."""
        owners, owner, opens = [], "other", False
        for line in lines:
            opens = opens or bool(re.match(r"\s*SFRS_(DEVICE|KERNEL|HOST_DEVICE)\b", line))
            if opens and (match := re.search(r"(?<!SFRS_KERNEL)(?<!\w)(\w+)\(", line)):
                if match[1] != "SFRS_KERNEL":
                    owner, opens = match[1], False
            owners.append(owner)
        return owners


class MachineCode:
    """The kernels for sm_90 of a library, or of the cubins that lie in a folder."""

    def __init__(self, build: Path, scratch: Path):
        library = next(build.glob("_C_cuda.*.so"), None)
        paths = sass.extract(library, scratch, "sm_90") if library else sorted(build.glob("*.cubin"))
        self.cubins = {path: path.read_bytes() for path in paths}

    def cubin(self, kernel: str) -> Path | None:
        name = f".text.{kernel}\0".encode()
        return next((path for path, content in self.cubins.items() if name in content), None)


@lru_cache(maxsize=4)
def disassembled(cubin: Path) -> dict[str, sass.Kernel]:
    return {k.name: k for k in sass.kernels(sass.disassemble(cubin, "-hex", "-gi"))}


def counted(cubin: Path, launches: list[Launch], units: int) -> dict[str, Counter]:
    """Clocks of a tile, of a unit without its tiles, and of what happens once."""
    program = Program(disassembled(cubin)[launches[0].kernel], Functions())
    walks = []
    for launch in launches:
        total, spent = Walk(program, launch).run()
        walks.append(Counter(spent, total=total))

    one, tiles, units_too = walks

    def each(**times: float) -> Counter:
        parts = {"one": one, "tiles": tiles, "units": units_too}
        return Counter({o: sum(n * parts[p][o] for p, n in times.items()) for o in one | tiles | units_too})

    return {
        "tile": each(tiles=1 / units, one=-1 / units),
        "unit": each(units=1 / units, tiles=-1 / units),
        "start": each(one=2, units=-1),
    }


def measured(job: tuple[str, Path, list[Launch], Problem]) -> tuple[str, dict[str, Counter]]:
    title, cubin, launches, problem = job
    return title, counted(cubin, launches, problem.units)


def count(build: Path, chosen: Callable[[str], bool]) -> dict[str, dict[str, Counter]]:
    """Counts the chosen problems, on all processors."""
    launcher = Launcher(ROOT / "build" / "testing")
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor() as pool:
        code, jobs = MachineCode(build, Path(scratch)), []
        for name, problem in problems().items():
            if not any(chosen(f"{name}: {direction}") for direction in DIRECTIONS.values()):
                continue
            sizes = [launcher({"multiprocessors": 1} | problem.options | size) for size in problem.sizes]
            for launches in zip(*sizes, strict=True):
                kernel = launches[0].kernel
                title = f"{name}: {DIRECTIONS.get(short(kernel))}"
                if title.endswith("None") or not chosen(title):
                    continue
                if cubin := code.cubin(kernel):
                    jobs.append((title, cubin, list(launches), problem))
        jobs.sort(key=lambda job: job[1])  # one disassembly serves its neighbours
        return dict(sorted(pool.map(measured, jobs, chunksize=2)))


def short(mangled: str) -> str:
    return readable([mangled])[mangled].split("<")[0]


def record_of(found: dict[str, dict[str, Counter]]) -> dict[str, dict[str, int]]:
    return {name: {part: round(of["total"]) for part, of in parts.items()} for name, parts in found.items()}


def show(found: dict[str, dict[str, Counter]], details: bool) -> None:
    for name, line in record_of(found).items():
        print(f"{name:32} tile {line['tile']:7,}  unit {line['unit']:7,}  start {line['start']:7,}")
        if not details:
            continue
        for part in ("tile", "unit", "start"):
            of = {k: v for k, v in found[name][part].items() if k != "total" and v >= 50}
            busy = Counter({k[6:]: of.pop(k) for k in [*of] if k.startswith("busy: ")})
            phases: Counter = Counter()
            for owner, clocks in of.items():
                phases[owner.split(": ")[0]] += clocks
            print(f"  {part}: {', '.join(f'{p} {c:,.0f}' for p, c in phases.most_common())}")
            print(f"    busy: {', '.join(f'{u} {c:,.0f}' for u, c in busy.most_common())}")
            for owner, clocks in sorted(of.items(), key=lambda item: -item[1]):
                print(f"    {clocks:8,.0f}  {owner}")


def compared(now: dict[str, dict[str, int]], before: dict[str, dict[str, int]]) -> list[str]:
    faults = [f"{name}: not in {RECORD.name}" for name in now.keys() - before.keys()]
    for name in now.keys() & before.keys():
        for part, most in before[name].items():
            clocks = now[name][part]
            # A part that is next to nothing may vary by what a tile does in a moment.
            if clocks > max(most * SLACK, most + 200):
                faults.append(f"{name}: {clocks:,} clocks of a {part}, recorded {most:,}")
    return sorted(faults)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", type=Path, help="folder with the library or with cubins")
    parser.add_argument("--update", action="store_true", help="write the clocks as they are now")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="show these problems, in full")
    arguments = parser.parse_args()
    sass.needed("clocks")
    words = arguments.only

    def chosen(title: str) -> bool:
        return all(word in title for word in words) if words else arguments.update or title in GATE

    found = count(arguments.build, chosen)
    if not found:
        raise SystemExit("clocks: the problems that were chosen are not in this build")
    show(found, details=bool(words))
    now, before = record_of(found), json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if arguments.update:
        before = dict(sorted((before | now if words else now).items()))
        lines = ",\n".join(f"  {json.dumps(title)}: {json.dumps(parts)}" for title, parts in before.items())
        RECORD.write_text(f"{{\n{lines}\n}}\n")
    faults = compared(now, before)
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"clocks of {len(now)} problems: {len(faults) or 'no'} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
