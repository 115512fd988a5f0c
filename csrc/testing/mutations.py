"""Breaks the CUDA kernels, one place after the other, and demands that the emulated checks notice.

    python csrc/testing/mutations.py [--only SUBSTRING] [--sample N] [--list]

A mutation removes one barrier, waits for one asynchronous copy too few, spoils one reduction or swaps two
quarters, in a copy of csrc. The checks are those of check_kernels under ThreadSanitizer, which knows the
emulated barriers: a missing one is seen in whatever order threads run. Exits with an error if a mutation
survives: then a check is missing, or the barrier was not needed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1]

CREWS = "Makers|Adders|Summers|Assigners|BothCrews|AssignmentsRead|Half|SummedUp|OperandsRead"
# What is broken, wherever it stands: (name, pattern, replacement).
PATTERNS = (
    ("block barrier removed", r"__syncthreads\(\);", ";"),
    (
        "barrier of a crew removed",
        rf"(?:{CREWS})::(?:sync|arrive)\(\);",
        ";",
    ),
    ("fence removed", r"__threadfence\(\);", ";"),
    ("warp barrier removed", r"__syncwarp\(\);", ";"),
    ("copy not waited for", r"copy_async_wait<(.+?)>\(\)", r"copy_async_wait<(\1) + 1>()"),
    ("terms of a sum dropped", r"\+= __shfl_xor_sync\(", r"= __shfl_xor_sync("),
    ("reduction too short", r"step > 0; step /= 2\) v \+=", "step > 1; step /= 2) v +="),
    ("quarters swapped", r"\(part & 1\) \?", "!(part & 1) ?"),
)
NOT_NEEDED = "keeps the compiler from"  # said behind a barrier that is there for speed
WORDS = ("device.cuh",)  # holds the definitions of the words above

# What the checks cannot notice: they are compiled for float16, which has no squares that lanes share and no
# dots that are mended.
UNTRIED = (
    ("matrix.cuh", "square[half] += __shfl_xor_sync"),
    ("similarity_dots.cuh", "__syncwarp();"),
    ("similarity_norms.cuh", "__syncwarp();"),
)
# The problems that a mutation must not survive, small ones first.
FILTERS = (
    ("aggregate/f16/odd",),
    ("aggregate/f16/one_row",),
    ("aggregate/f16/aligned",),
    ("aggregate/f16/seventy",),
    ("aggregate/f16/usual/planes/whole",),
    ("aggregate/f16/usual/planes/quarters",),
    ("aggregate/f16/overlapping/planes/whole",),
    ("aggregate/f16/overlapping_chunks/planes/whole",),
    ("aggregate/f16/long_features",),
    ("aggregate/f16/long_aligned",),
    ("similarity/f16/odd",),
    ("similarity/f16/many_clusters",),
    ("similarity/f16/more_gallery",),
    ("similarity/f16/more_queries",),
)
SECONDS = 300  # for one problem; a mutation may also hang


@dataclass(frozen=True)
class Mutation:
    path: Path  # below csrc
    line: int
    name: str
    text: str  # of the whole file
    tried: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.name}"


def mutations() -> Iterator[Mutation]:
    for file in sorted((CSRC / "cuda").glob("*.cu*")):
        if file.name in WORDS:
            continue
        text = file.read_text()
        for name, pattern, replacement in PATTERNS:
            for match in re.finditer(pattern, text):
                begin, end = text.rfind("\n", 0, match.start()) + 1, text.index("\n", match.end())
                if "//" in text[begin : match.start()] or NOT_NEEDED in text[match.end() : end]:
                    continue
                mutated = text[: match.start()] + match.expand(replacement) + text[match.end() :]
                line = text.count("\n", 0, match.start()) + 1
                tried = all(file.name != where or what not in text[begin:end] for where, what in UNTRIED)
                yield Mutation(file.relative_to(CSRC), line, name, mutated, tried)


class Checks:
    """The checks, built in a copy of csrc that may be spoilt."""

    def __init__(self, folder: Path):
        self.source, self.build = folder / "csrc", folder / "build"
        shutil.copytree(CSRC, self.source)
        options = ["-G", "Ninja"] if shutil.which("ninja") else []
        configure = ["cmake", "-S", self.source / "testing", "-B", self.build, *options]
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)

    def compile(self) -> subprocess.CompletedProcess:
        command = ["cmake", "--build", self.build, "--target", "check_kernels_races"]
        return subprocess.run(command, capture_output=True, text=True)

    def complaint(self, filters: tuple[tuple[str, ...], ...]) -> str | None:
        """The first thing that the checks have to say, or nothing."""
        for chosen in filters:
            arguments = [a for f in chosen for a in ("--filter", f)]
            command = [self.build / "check_kernels_races", "--quick", "--order", "forward", *arguments]
            options = os.environ | {"TSAN_OPTIONS": "halt_on_error=1 atexit_sleep_ms=0"}
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=options)
            except subprocess.TimeoutExpired:
                return f"hangs at {chosen[0]}"
            if done.returncode:
                said = (done.stderr + done.stdout).splitlines()
                found = [s for s in said if "ThreadSanitizer" in s or s.startswith("    ")]
                return f"{chosen[0]}: {(found or said or ['ended'])[0].strip()}"
        return None

    def try_out(self, mutation: Mutation, filters: tuple[tuple[str, ...], ...]) -> str | None:
        file = self.source / mutation.path
        original = file.read_text()
        file.write_text(mutation.text)
        try:
            built = self.compile()
            if built.returncode:
                raise SystemExit(f"{mutation}: does not compile\n{built.stdout[-3000:]}")
            return self.complaint(filters)
        finally:
            file.write_text(original)


def filters_for(mutation: Mutation) -> tuple[tuple[str, ...], ...]:
    """The problems of the operator that the file belongs to; of both if it belongs to both."""
    mine = tuple(f for f in FILTERS if f[0].split("/")[0] == mutation.path.name.split("_")[0].split(".")[0])
    return mine or FILTERS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mutations whose description contains this")
    parser.add_argument("--sample", type=int, default=0, help="this many, spread over all")
    parser.add_argument("--list", action="store_true", help="only list them")
    options = parser.parse_args()
    chosen = [m for m in mutations() if options.only in str(m)]
    if options.sample and options.sample < len(chosen):
        chosen = [chosen[i * len(chosen) // options.sample] for i in range(options.sample)]
    if options.list:
        print(*chosen, sep="\n")
        return 0
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        checks = Checks(Path(folder))
        built = checks.compile()
        if built.returncode:
            print(built.stdout[-3000:])
            return 2
        needed = tuple(dict.fromkeys(f for m in chosen for f in filters_for(m)))
        if complaint := checks.complaint(needed):
            print(f"the kernels as they are fail already: {complaint}")
            return 2
        for mutation in chosen:
            if not mutation.tried:
                print(f"untried   {mutation}  float16 has no such step", flush=True)
                continue
            complaint = checks.try_out(mutation, filters_for(mutation))
            survivors += complaint is None
            fate = "SURVIVED" if complaint is None else "killed  "
            print(f"{fate}  {mutation}  {complaint or ''}", flush=True)
    untried = sum(not mutation.tried for mutation in chosen)
    print(f"{len(chosen) - untried} mutations, {survivors} survived; {untried} untried")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
