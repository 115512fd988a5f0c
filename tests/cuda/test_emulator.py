"""The CUDA kernels without a GPU: right, in bounds and free of races wherever the emulator runs them.

The checks are C++ programs of csrc/testing, built here without torch; see check_kernels.cpp for the problems.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "build" / sys.implementation.cache_tag
CORES = len(os.sched_getaffinity(0))

CHECKS = {
    "emulator": ["check_emulator"],
    "emulator, sanitized": ["check_emulator_sanitized"],
    "missing barriers": ["check_races"],
    "primitives": ["check_primitives"],
    "every problem": ["check_kernels", "--order", "forward"],
    "every type, reversed": ["check_kernels", "--quick", "--order", "reversed"],
    "shuffled": ["check_kernels", "--quick", "--filter", "/bf16/", "--order", "shuffled"],
    "sanitized": ["check_kernels_sanitized", "--quick", "--filter", "/f16/", "--order", "forward"],
    "races, one tile": ["check_kernels_races", "--quick", "--filter", "/f16/odd", "--order", "forward"],
    "races, many tiles": ["check_kernels_races", "--quick", "--filter", "/f16/more", "--order", "forward"],
    "float64, CPU kernels": ["check_kernels_cpu", "--quick"],
    "float32, sums cut off": ["check_kernels", "--quick", "--filter", "/f32/", "--order", "forward"],
}
TRUNCATED = {"float32, sums cut off": {"SFRS_EMULATOR_SUMS": "truncated"}}


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess:
    options = {"TSAN_OPTIONS": "halt_on_error=1 atexit_sleep_ms=0"} | variables
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | options)


@pytest.fixture(scope="module")
def programs() -> Path:
    """Build the checks, where the extension was built with the emulated kernels: then those are there."""
    build = programs = ROOT / "build" / "testing"
    notes = EXTENSION / "CMakeCache.txt"
    if notes.is_file() and "SFRS_EMULATED_KERNELS:BOOL=ON" in notes.read_text():
        build, programs = EXTENSION, EXTENSION / "csrc" / "testing"
    else:
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        configured = run("cmake", "-S", ROOT / "csrc" / "testing", "-B", build, *generator)
        assert configured.returncode == 0, configured.stderr
    targets = sorted({"list_launches", *(command[0] for command in CHECKS.values())})
    built = run("cmake", "--build", build, "--parallel", str(CORES), "--target", *targets)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return programs


@pytest.fixture(scope="module")
def checks(programs) -> dict[str, Future]:
    """All checks, running side by side."""
    with ThreadPoolExecutor(CORES) as pool:
        longest_first = sorted(CHECKS, key=lambda name: "every" not in name and name != "sanitized")
        yield {
            name: pool.submit(run, programs / CHECKS[name][0], *CHECKS[name][1:], **TRUNCATED.get(name, {}))
            for name in longest_first
        }


@pytest.mark.parametrize("name", CHECKS)
def test_emulated_check_passes(checks, name):
    done = checks[name].result()
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.parametrize("lists", (0, 1), ids=("all pairs", "lists"))
def test_grids_that_no_device_launches_are_refused_by_number(programs, lists):
    list_launches = programs / "list_launches"
    sizes = (f"lists={lists}", "K=1", "D=8")
    fits = run(list_launches, "pairs=46340", "B=46340", *sizes)
    assert fits.returncode == 0, fits.stderr
    # 2^32 pairs, which 32 bits take for none; of all pairs it is the gradient's blocks that are too many
    refused = run(list_launches, "pairs=65536", f"B={65536 if lists else 1 << 34}", *sizes)
    assert refused.returncode == 1 and "CUDA launches at most 2147483647" in refused.stderr
    assert not lists or "4294967296 blocks" in refused.stderr


def test_broken_kernels_are_noticed():
    done = run(sys.executable, ROOT / "csrc" / "testing" / "mutations.py", "--sample", "1")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
