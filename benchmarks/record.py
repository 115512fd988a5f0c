"""Recorded results: where they lie, what was measured where, and files that are replaced as a whole.

Speeds on a CPU are recorded by processor, ``results/PROCESSOR/NAME.json``, everything else in
``results/NAME.json``. Needs torch and ``sfrs_ext`` alone, like the measurements for GPUs.
"""

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

import sfrs_ext

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` in one step: whoever reads it finds the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, content: dict) -> None:
    """Write ``content`` as indented JSON, replacing ``path`` in one step."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """What was measured; ``SFRS_COMMIT`` says it on a machine that has the files without their history."""
    if "SFRS_COMMIT" in os.environ:
        return os.environ["SFRS_COMMIT"]
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    if head.returncode:
        return "unknown"
    measured = ("../csrc", "../sfrs_ext", "../benchmarks/*.py", "../benchmarks/*.cpp")
    changed = subprocess.run([*git, "status", "--porcelain", "--", *measured], capture_output=True, text=True)
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def command(module: str, arguments: Sequence[str] = ()) -> str:
    """The command as it was given; of a path that leads out of the repository only its last name."""

    def shown(argument: str) -> str:
        path = Path(argument)
        outside = path.is_absolute() or ".." in path.parts
        return path.resolve().name if outside else argument

    return " ".join([f"python -m {module}", *map(shown, arguments)])


def machine(threads: int) -> dict:
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "kernels": sfrs_ext.kernels(),
        "torch": torch.__version__,
        "sfrs_ext": sfrs_ext.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def processor(about: dict) -> str:
    """The folder of a machine's results: its processor and its kernels, ``amd-epyc-avx2``."""
    name = re.sub(r"\(r\)|\(tm\)|\b(cpu|processor)\b|@.*", " ", about["cpu"].lower())
    return "-".join(re.findall(r"[a-z0-9]+", f"{name} {about['kernels']}"))


def file_of(name: str, about: dict) -> Path:
    """Where a measurement of this machine's CPU is recorded."""
    return RESULTS / processor(about) / f"{name}.json"


def files_of(name: str) -> list[Path]:
    """The records of a name, by processor or not, the newest first."""
    files = [*RESULTS.glob(f"{name}.json"), *RESULTS.glob(f"*/{name}.json")]
    dates = {file: json.loads(file.read_text("utf-8"))["machine"]["date"] for file in files}
    return sorted(files, key=lambda file: (dates[file], file.parent.name), reverse=True)
