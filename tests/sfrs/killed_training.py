"""Train, be killed or run out of disk, go on, and print as JSON how the runs end: ``... FOLDER``."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from forked import ended, fork, sfrs_command
from safetensors.numpy import load_file
from tiny_town import OPTIONS, write_town
from tiny_training import network_of_seed

import sfrs.runtime.atomic_io
import sfrs.runtime.tensor_files
from sfrs.models.network import save_network
from sfrs.training.display import TrainingDisplay
from sfrs.training.run_folder import RunDirectory

KILLS, MOST_KILLS_OF_RUN = 20, 7
POINTS = (
    ("config", 1),
    ("half a file", 1),
    ("half a file", 2),
    ("half a file", 6),
    ("before the name", 5),
    ("after the name", 2),
    ("after the name", 6),
    ("half a line", 3),
    ("half a line", 9),
)
"""Where a run is killed: at the n-th configuration, file of tensors or line of metrics."""
TIMES = ("time", "tuples_per_second", "images_per_second", "peak_bytes")
FILES = ("initial", "generation_1/best", "generation_2/best", "checkpoints/latest")


def train(path: Path) -> None:
    """What the command line does; a run that is there is resumed. A checkpoint after every step."""
    if (path / "config.json").exists():
        sfrs_command("train", "--resume", path)
    else:
        folder = path.parent
        settings = ("--checkpoint-minutes", 0, "--jitter", "0.4,0.4,0.4,0.1", "--tuples-per-step", 3)
        given = ("--data", folder / "town", "--weights", folder / "start.safetensors", "--out", path)
        sfrs_command("train", *given, *OPTIONS, *settings)


def run(path: Path) -> None:
    """Train to the end."""
    code = ended(fork(path.with_suffix(".txt"), train, path))
    if code:
        raise SystemExit(f"{path}: exit code {code}\n{path.with_suffix('.txt').read_text()}")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(path: Path, point: str, count: int) -> None:
    """Be killed at the ``count``-th ``point``."""
    calls = 0

    def due() -> bool:
        nonlocal calls
        calls += 1
        return calls == count

    write_tensors, replace, log = sfrs.runtime.tensor_files.save_file, os.replace, RunDirectory.log

    def half_a_file(tensors, file, metadata):
        write_tensors(tensors, file, metadata)
        if due():
            os.truncate(file, os.path.getsize(file) // 2)
            die()

    def named(partial, final):
        of_interest = str(final).endswith(".json" if point == "config" else ".safetensors") and due()
        if of_interest and point == "before the name":
            die()
        replace(partial, final)
        if of_interest:
            die()

    def half_a_line(self, kind, **line):
        log(self, kind, **line)
        if due():
            os.truncate(self.metrics, self.metrics.stat().st_size - 20)
            die()

    if point == "half a file":
        sfrs.runtime.tensor_files.save_file = half_a_file
    elif point == "half a line":
        RunDirectory.log = half_a_line
    else:
        sfrs.runtime.atomic_io.os.replace = named
    train(path)


def metrics(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines if line["kind"] != "start"]


def compare(path: Path, expected: Path) -> dict[str, bool]:
    weights = True
    for name in FILES:
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (path, expected))
        weights &= ours.keys() == theirs.keys()
        weights &= all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs)
    return {
        "same_weights": weights,
        "same_metrics": metrics(path) == metrics(expected),
        "leftovers": [str(file) for file in path.rglob("*.partial")],
    }


def kill_at_random(folder: Path, expected: Path, seconds: float) -> list[dict]:
    """Runs that are killed at random moments and resumed, until enough kills have been seen."""
    dice, seen = random.Random(0), []
    while sum(each["kills"] for each in seen) < KILLS and len(seen) < 3 * KILLS:
        path, kills = folder / f"random-{len(seen)}", 0
        for _ in range(MOST_KILLS_OF_RUN):
            child = fork(path.with_suffix(".txt"), train, path)
            time.sleep(dice.uniform(0.1, 0.6) * seconds)
            os.kill(child, signal.SIGKILL)
            kills += ended(child) == -signal.SIGKILL
        run(path)
        seen.append({"kills": kills} | compare(path, expected))
        seconds *= 0.9  # most of a run may be over before the first kill
    return seen


def fill_the_disk(path: Path, how: str) -> None:
    """Train; in generation 2 the disk fills up, or files may not become larger (than ``file``: a checkpoint,
    ``line``: the metrics)."""
    original, log = TrainingDisplay.step, RunDirectory.log

    def step(self, generation, epoch, report):
        original(self, generation, epoch, report)
        if (generation, report.step) == (2, 2):
            if how == "file":
                resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
                return
            free = shutil.disk_usage(path).free
            with open(path / "ballast", "wb") as ballast:
                ballast.write(bytes(free - 8192))

    def logged(self, kind, **line):
        if (line.get("generation"), line.get("step")) == (2, 3):
            largest = self.metrics.stat().st_size + 10
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        log(self, kind, **line)

    if how == "line":
        RunDirectory.log = logged
    else:
        TrainingDisplay.step = step
    train(path)


def full_disk(folder: Path, expected: Path, how: str) -> dict:
    path = folder / f"full-{how}"
    path.mkdir()
    if how == "disk":
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
        try:
            if subprocess.run(mount, capture_output=True).returncode:
                return {"possible": False}
        except FileNotFoundError:
            return {"possible": False}
    try:
        output = folder / f"full-{how}.txt"
        code = ended(fork(output, fill_the_disk, path, how))
        (path / "ballast").unlink(missing_ok=True)
        seen = {"possible": True, "code": code, "printed": output.read_text()}
        seen["partial"] = [str(file) for file in path.rglob("*.partial")]
        seen["whole_lines"] = (path / "metrics.jsonl").read_text().endswith("}\n")
        run(path)
        return seen | compare(path, expected)
    finally:
        if how == "disk":
            subprocess.run(["umount", str(path)], check=True)


def main() -> None:
    folder = Path(sys.argv[1])
    write_town(folder / "town")
    save_network(folder / "start.safetensors", network_of_seed())
    expected = folder / "undisturbed"
    run(expected)
    began = time.monotonic()
    run(folder / "again")  # the first run read the images into the memory of the system
    seconds = time.monotonic() - began
    outcome = {"again": compare(folder / "again", expected), "seconds": seconds, "points": {}}
    outcome["random"] = kill_at_random(folder, expected, seconds)
    for point, count in POINTS:
        path = folder / f"{point.replace(' ', '-')}-{count}"
        code = ended(fork(path.with_suffix(".txt"), train_and_die, path, point, count))
        run(path)
        outcome["points"][f"{point} {count}"] = {"code": code} | compare(path, expected)
    outcome["full"] = {how: full_disk(folder, expected, how) for how in ("file", "line", "disk")}
    print(json.dumps(outcome))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
