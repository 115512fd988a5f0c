"""Seconds and peak memory of a call, on a CPU or a GPU."""

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def seconds(
    functions: dict[str, Callable[[], object]], device: torch.device, *, rounds: int, most: float
) -> dict[str, float]:
    """Median seconds of a call of each, which take turns so that they share the machine's moods.

    Each is called once before. After ``most`` seconds no further round begins, but two are measured.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    began = time.perf_counter()
    for round_ in range(rounds):
        if round_ >= min(2, rounds) and time.perf_counter() - began > most:
            break
        for name, function in functions.items():
            taken[name].append(once(function, device))
    return {name: statistics.median(values) for name, values in taken.items()}


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Convolutions in float32 proper, without a GPU's TF32, to compare results with each other."""
    flags = torch.backends.cudnn
    with flags.flags(enabled=flags.enabled, allow_tf32=False):
        yield


def once(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    _wait(device)
    began = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - began


def peak_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    """Growth of memory during a call: of the GPU's, or resident memory; None where Linux does not tell."""
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    _give_back_free_heap()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        return None
    before = _status("VmRSS")
    function()
    return max(0, _status("VmHWM") - before)


def _give_back_free_heap() -> None:
    """What earlier calls freed would hide what this one takes; only glibc keeps it and can return it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
