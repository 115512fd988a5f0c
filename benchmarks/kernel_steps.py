"""``python -m benchmarks.kernel_steps``: what each step of the CPU aggregation costs.

Compiles ``kernel_steps.cpp`` with the kernels that this processor gets and runs its steps one by one, on one
thread, for a map of each layout and the quarters of one; the best of many repetitions counts, since other
work on the machine only adds. Writes benchmarks/results/PROCESSOR/kernel-steps.json; `python -m
benchmarks.report` puts it into docs/performance.md.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import sfrs_ext

from . import roof
from .cases import Case
from .record import RESULTS, file_of, machine, write_json

SOURCE = Path(__file__).with_suffix(".cpp")
KERNELS = SOURCE.parents[1] / "csrc/cpu"
AVX512 = ("-DSFRS_VECTOR_BYTES=64", "-march=x86-64-v4")
COMPILE = {  # as CMakeLists.txt builds those that run for float32
    "portable": ("-DSFRS_VECTOR_BYTES=16",),
    "avx2": ("-DSFRS_VECTOR_BYTES=32", "-march=x86-64-v3"),
    "avx512": AVX512,
    "avx512bf16": AVX512,
    "amx": AVX512,
}
LAYOUTS = {"planes": "planes (NCHW)", "tokens": "tokens (channels_last)", "quarters": "quarters of planes"}


def measure(repetitions: int) -> dict[str, list[dict]]:
    """Layout -> steps in order: name, seconds per image, operations of its products."""
    name = sfrs_ext.kernels()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "kernel_steps"
        flags = (
            "-std=c++17",
            "-O3",
            f"-DSFRS_ISA={name}",
            *COMPILE[name],
            f"-I{KERNELS}",
            f"-I{KERNELS.parent}",
        )
        subprocess.run(["c++", *flags, SOURCE, "-o", program], check=True)
        steps = {}
        for layout in LAYOUTS:
            done = subprocess.run(
                [program, layout, str(repetitions)], capture_output=True, text=True, check=True
            )
            lines = (line.split(" ", 2) for line in done.stdout.splitlines())
            steps[layout] = [
                {"step": step, "seconds": float(seconds), "flops": float(flops)}
                for seconds, flops, step in lines
            ]
    return steps


def milliseconds(case: Case, threads: int, processor: str) -> float | None:
    """Milliseconds per image of a case whose threads share its maps evenly and take as long for each as its
    steps do one by one; None where they were not all recorded on this processor."""
    file = RESULTS / processor / "kernel-steps.json"
    if not case.maps or not file.exists():
        return None
    recorded = json.loads(file.read_text("utf-8"))["steps"]
    if not recorded.keys() >= case.maps.keys():
        return None
    seconds = 0.0
    for layout, maps in case.maps.items():
        for direction in ("forward", "backward")[: 1 + case.backward]:
            steps = [step for step in recorded[layout] if step["step"].startswith(direction)]
            *single, whole = steps
            if sum(step["flops"] for step in single) != whole["flops"]:
                return None  # older records have the backward's steps in one
            seconds += maps * sum(step["seconds"] for step in single)
    return 1e3 * seconds / threads / case.images


def table(recorded: dict) -> str:
    """One row per step, the layouts side by side."""
    about, peak, steps = recorded["machine"], recorded["peak"], recorded["steps"]
    lines = [
        f"{about['cpu']}, one thread, {about['kernels']} kernels, commit {about['commit']}, {about['date']}: "
        f"`{about['command']}`. Map of 512x30x40, K = 64, float32; milliseconds per image, best of "
        f"{recorded['repetitions']}, and the share of the arithmetic peak of one thread "
        f"({peak / 1e9:.0f} GFLOP/s). Steps are measured alone, so they do not quite add up.",
        "",
        "| step | " + " | | ".join(LAYOUTS[layout] for layout in steps) + " | |",
        "|---" * (1 + 2 * len(steps)) + "|",
    ]
    for together in zip(*steps.values(), strict=True):
        cells = []
        for step in together:
            share = f"{100 * step['flops'] / step['seconds'] / peak:.0f} %" if step["flops"] else ""
            cells += [f"{1e3 * step['seconds']:.3f}", share]
        lines.append(f"| {together[0]['step']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_steps", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=800)
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/PROCESSOR/kernel-steps.json")
    options = parser.parse_args()
    roofs = roof.measure(1)
    if "missing" in roofs:
        raise SystemExit(roofs["missing"])
    about = machine(1) | {"command": "python -m benchmarks.kernel_steps"}
    recorded = {"machine": about, "peak": roofs["flops_per_second"]["1"]["best"]}
    recorded |= {"repetitions": options.repetitions, "steps": measure(options.repetitions)}
    print(table(recorded))
    write_json(options.out or file_of("kernel-steps", about), json.loads(json.dumps(recorded)))


if __name__ == "__main__":
    main()
