"""``python -m benchmarks.roof [--threads N]``: the arithmetic peak and read bandwidths of this machine.

Compiles ``roof.cpp`` for this very processor and runs it: multiply-adds in float32 by one thread and by N,
reads of buffers that fit L2, fit L3, or fit neither. Short repetitions of all tests take turns; the best one
says what the machine can do, the median what it did beside other work.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("roof.cpp")
COMMAND = ("c++", "-std=c++20", "-O3", "-march=native", "-pthread")
REPETITIONS = 25
USUAL_CACHES = {"L2": 1 << 20, "L3": 32 << 20}  # where Linux does not tell
LEAST_MEMORY = 128 << 20  # bytes read per thread, if caches are small


def cache_bytes() -> dict[str, int]:
    """Sizes of L2 and L3 of the first core as Linux tells them."""
    sizes = dict(USUAL_CACHES)
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, size = (f"L{(index / 'level').read_text().strip()}", (index / "size").read_text().strip())
        if level in sizes and size.endswith("K"):
            sizes[level] = int(size[:-1]) << 10
    return sizes


def buffers(threads: int) -> dict[str, int]:
    """Bytes that each thread reads: half a cache, so that other tenants leave it there; four L3 of memory."""
    caches = cache_bytes()
    return {
        "L2": caches["L2"] // 2,
        "L3": max(caches["L3"] // (2 * threads), 2 * caches["L2"]),
        "memory": max(4 * caches["L3"] // threads, LEAST_MEMORY),
    }


def measure(threads: int, repetitions: int = REPETITIONS) -> dict:
    """FLOP/s and bytes/s by number of threads, each as best and median; or ``{"missing": why}``."""
    if shutil.which(COMMAND[0]) is None:
        return {"missing": "no C++ compiler here to measure it with"}
    read = buffers(threads)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "roof"
        built = subprocess.run([*COMMAND, SOURCE, "-o", program], capture_output=True, text=True)
        if built.returncode:
            return {"missing": f"{' '.join(COMMAND)} does not compile {SOURCE.name}"}
        arguments = [str(number) for number in (threads, repetitions, *read.values())]
        lines = subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout
    found: dict[tuple[str, str], list[float]] = {}
    for line in lines.splitlines():
        name, by, value = line.split()
        found.setdefault((name, by), []).append(float(value))
    roof: dict = {"flops_per_second": {}, "bytes_per_second": {level: {} for level in read}}
    for (name, by), values in found.items():
        into = roof["flops_per_second"] if name == "flops" else roof["bytes_per_second"][name]
        into[by] = {"best": max(values), "median": statistics.median(values)}
    return roof | {"buffer_bytes": read, "repetitions": repetitions, "compiler": " ".join(COMMAND)}


def sentence(roof: dict | None, threads: int) -> str:
    """The roof in words, for the head of a table."""
    if not roof or "missing" in roof:
        why = (roof or {}).get("missing", "not measured when this was recorded")
        return f"Arithmetic peak and bandwidths: {why}."
    peaks = ", ".join(
        f"{value['best'] / 1e9:.0f} GFLOP/s with {by} thread{'s' * (by != '1')}"
        for by, value in roof["flops_per_second"].items()
    )
    reads = ", ".join(
        f"{level} {by_threads[str(threads)]['best'] / 1e9:.0f} GB/s"
        for level, by_threads in roof["bytes_per_second"].items()
    )
    return f"Measured roofs, float32: {peaks}; reading with {threads} threads: {reads}."


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roof", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    threads = parser.parse_args().threads
    roof = measure(threads)
    print(json.dumps(roof, indent=1))
    print(sentence(roof, threads))


if __name__ == "__main__":
    main()
