"""Facts about the process and its machine: versions, processor, memory, devices."""

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import torch

import sfrs_ext
from sfrs.runtime.errors import UserError


def host_facts() -> dict[str, Any]:
    """Return facts that JSON can hold.

    Keys: ``versions`` (python, torch, sfrs_ext), ``host``, ``system``, ``cpu`` (names), ``cores`` this
    process may use, ``threads`` of torch, ``memory_bytes`` (None where the system does not say), ``gpus``.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        memory = None
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sfrs_ext": sfrs_ext.__version__,
        },
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory,
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }


def usable_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_device(name: str) -> str:
    """Return the device ``name``, where ``auto`` is cuda if there is one. Raises `UserError` without it."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"--device is {name!r}, which torch cannot use: {why}") from error
    return name


def resident_bytes() -> int:
    """Return this process's resident memory; where the system does not say, its largest so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
