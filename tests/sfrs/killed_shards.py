"""Index photographs by two processes, kill one or both, and print as JSON how the index ends.

``killed_shards.py FOLDER``. The processes are forked and join as torchrun's do; the server is a process too.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pymilvus  # noqa: F401  before any fork
from forked import ended, fork, sfrs_command
from forked_processes import joined
from milvus_server import free_port, milvus_server
from PIL import Image

import sfrs.runtime.distributed
from sfrs.retrieval.index import Index, build
from sfrs.retrieval.index.engine_store import EngineStore

IMAGES = 60
KILLS = (((0, 1), 2), ((0,), 2), ((1,), 2))
"""Which processes are killed, and after how many batches of theirs, give or take a few milliseconds."""
BAD = ("@500017@4000000@.png", "@500053@4000000@.png")


def make_photos(folder: Path) -> None:
    folder.mkdir()
    for i in range(IMAGES):
        # Sizes change, so that batches are of unequal length.
        pixels = np.random.default_rng(i).integers(0, 256, (32 + 8 * (i // 7 % 2), 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"@{500000 + i}@4000000@.png")


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    """Of ``sfrs index``; clusters and whitening are made of the photographs, which one process has to do."""
    network = "--backbone tiny --random-weights --whiten --keep-size".split()
    options = "--zone 33N --batch-size 4 --workers 0".split()
    return ["index", str(folder / "photos"), "--out", out, *network, *options, *more]


def index(rank: int, folder: Path, out: str, more: Sequence[str] = ()) -> None:
    build.COMMIT_SECONDS = 0.0  # every batch is written
    sfrs_command(*arguments(folder, out, *more))


def killed(rank: int, folder: Path, out: str, doomed: Sequence[int], batches: int, delay: float) -> None:
    """Do the same, and be killed some time after so many batches, whatever goes on then."""
    add, written = EngineStore.add, []

    def counted(store, *batch):
        written.append(batch)
        if rank in doomed and len(written) == batches:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        add(store, *batch)
        time.sleep(2 * delay)  # no share is through before the other's process is killed

    EngineStore.add = counted
    index(rank, folder, out)


def start(folder: Path, name: str, work: Callable[[int, Path], None]) -> list[tuple[int, Path]]:
    """Start two processes that work together; returns their ids and what they print to."""
    port, outputs = free_port(), [folder / f"{name}-{rank}.txt" for rank in range(2)]
    return [(fork(outputs[rank], joined, work, rank, 2, port, folder), outputs[rank]) for rank in range(2)]


def through(children: list[tuple[int, Path]]) -> dict:
    codes = [ended(child) for child, _ in children]
    return {"codes": codes, "printed": [output.read_text() for _, output in children]}


def facts(folder: Path, out: str) -> dict:
    """What is in the index, of which a child asks: this process must not start threads."""
    ended(fork(folder / "facts.txt", sfrs_command, "index", "--out", out, "--info", "--json"))
    text = (folder / "facts.txt").read_text()
    found = json.loads(text) if text.startswith("{") else {"finished": False, "images": 0}
    return {"finished": found["finished"], "images": found["images"]}


def kill_at_random(folder: Path, out: str) -> list[dict]:
    dice, seen = random.Random(), []
    for doomed, batches in KILLS:
        delay = dice.uniform(0, 0.03)
        how = partial(killed, out=out, doomed=doomed, batches=batches, delay=delay)
        ended = through(start(folder, f"killed-{len(seen)}", how))
        seen.append({"doomed": doomed, "delay": delay, **ended, **facts(folder, out)})
    return seen


def inspect(folder: Path, out: str, result: Path) -> None:
    """Write what the index holds and finds to ``result``."""
    opened = Index.open(out)
    order = np.argsort([file.name for file in opened.files])
    files = [opened.files[row] for row in order]
    found = opened.locate(files[::9], rerank="none")
    np.savez(
        result,
        files=[file.name for file in files],
        positions=opened.positions[order],
        descriptors=opened.descriptors(order),
        matches=[[match.file.name for match in each.matches] for each in found],
        places=np.float32([each.location.easting - 500_000 for each in found]),
        fingerprint=opened.fingerprint,
    )


def under_torchrun(folder: Path, out: str) -> dict:
    (folder / "commands.json").write_text(json.dumps([arguments(folder, out)]))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [
        sys.executable,
        *launch,
        Path(__file__).with_name("tiny_commands.py"),
        folder / "commands.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return {"code": done.returncode, "printed": done.stdout, "shown": done.stderr}


def main() -> None:
    folder = Path(sys.argv[1])
    sfrs.runtime.distributed.LAST_WORDS = 0.2
    make_photos(folder / "photos")
    outcome: dict = {"bad": BAD}
    with milvus_server(folder / "data") as (server, _):
        outcome["alone"] = ended(fork(folder / "alone.txt", index, 0, folder, f"{server}/alone"))
        out = f"{server}/together"
        outcome["killed"] = kill_at_random(folder, out)
        outcome["finished"] = under_torchrun(folder, out) | facts(folder, out)
        for name in ("alone", "together"):
            ended(fork(folder / f"{name}.txt", inspect, folder, f"{server}/{name}", folder / f"{name}.npz"))
        outcome |= damaged(folder, out, f"{server}/damaged")
        outcome["folder"] = through(start(folder, "folder", partial(index, out=str(folder / "x.index"))))
    with np.load(folder / "alone.npz") as alone, np.load(folder / "together.npz") as together:
        outcome["same"] = {name: same(alone[name], together[name]) for name in alone.files}
        outcome["files"] = together["files"].tolist()
    print(json.dumps(outcome))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Descriptors depend by rounding on what is in the same batch."""
    if one.dtype == np.float32:
        return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=1e-6))
    return bool(np.array_equal(one, other))


def damaged(folder: Path, finished: str, new: str) -> dict:
    """A photograph of each process's share is damaged: in an index that is finished, and in a new one."""
    for name in BAD:
        (folder / "photos" / name).write_bytes(b"no image")
    refused = through(start(folder, "refused", partial(index, out=finished))) | facts(folder, finished)
    skipping = partial(index, out=new, more=("--skip-bad-images", "--json"))
    return {"refused": refused, "skipped": through(start(folder, "skipped", skipping))}


if __name__ == "__main__":
    main()
