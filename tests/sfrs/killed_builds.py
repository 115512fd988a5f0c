"""Build an index in child processes, kill them, and print as JSON how the indices end.

``python killed_builds.py FOLDER``. Children are forked from this process, which has started no thread, so a
build costs a fraction of a second and not an import of torch.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from sfrs.data.collection import read_photos
from sfrs.models.backbones import REGISTRY, build_backbone
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork
from sfrs.retrieval.index import Adding, Builder, Index, build, derive, rows, store
from sfrs.runtime.errors import UserError

REGISTRY["tiny"] = "tiny_backbone:TinyBackbone"
POINTS = (("create", 1), ("sync", 1), ("sync", 6), ("add", 1), ("add", 4), ("finish", 1), ("sweep", 1))
COMPACTING = (("rewrite", 1), ("rewrite", 2), ("finish", 1))
REMOVED = "@5000[01]?@*"
"""Half of the images, which is more than an index keeps the rows of."""
IMAGES, TRIALS, FEWEST_KILLS, MOST_KILLS = 40, 2, 2, 8


def make_photos(folder: Path) -> None:
    folder.mkdir()
    for i in range(IMAGES):
        # Sizes change, so that batches are of unequal length.
        pixels = np.random.default_rng(i).integers(0, 256, (32 + 8 * (i // 7 % 2), 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"@{500000 + i}@4000000@.png")


def make_model() -> Model:
    torch.manual_seed(0)
    return Model(DescriptorNetwork(build_backbone("tiny"), 4).eval())


def run(path: Path, photos: Path) -> None:
    """What ``sfrs index`` does."""
    build.COMMIT_SECONDS = 0.0
    with Builder(path, make_model(), regions=True) as builder:
        builder.add(read_photos(photos), Adding(batch_size=4, workers=0))
        builder.finish()


def thin(path: Path) -> None:
    """What ``sfrs index --remove`` does, and once it has removed, a run that only goes on."""
    with Builder(path) as builder:
        if committed(path) == IMAGES:
            builder.remove(REMOVED)
        builder.finish()


def in_child(function, *arguments) -> int:
    """Fork and call; returns the child's process id."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        function(*arguments)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)


def wait(child: int) -> bool:
    """Whether the child was killed; raises if it failed by itself."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise SystemExit(f"a build failed with exit code {os.WEXITSTATUS(status)}")
    return False


def die_at(call: str, count: int, work: Callable, *arguments: Path) -> None:
    """Do the work, and be killed right before the ``count``-th call of a step of it."""
    owner, name = {
        "sync": (rows.RowFile, "sync"),
        "add": (store.Store, "add"),
        "create": (store.Store, "create"),
        "rewrite": (derive, "_rewritten"),
        "finish": (store.Store, "finish"),
        "sweep": (derive, "sweep"),
    }[call]
    original, calls = getattr(owner, name), 0

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, counted)
    work(*arguments)


def inspect(path: Path, result: Path) -> None:
    """Write what a search finds, and the descriptors, to ``result``; in a child, since it starts threads."""
    index = Index.open(path)
    asked = index.model.encode(list(index.files)[::7])
    similarities, rows = index.search(asked, 9)
    np.savez(
        result,
        similarities=similarities,
        rows=rows,
        descriptors=index._descriptors[index._slots],
        quarters=index._quarters[index._slots],
        files=np.array([str(file) for file in index.files]),
    )


def compare(path: Path, expected: Path) -> dict[str, bool]:
    wait(in_child(inspect, path, path.with_suffix(".npz")))
    with np.load(path.with_suffix(".npz")) as ours, np.load(expected) as theirs:
        return {
            "same_rows": all((ours[name] == theirs[name]).all() for name in ("rows", "files")),
            "same_similarities": ours["similarities"].tobytes() == theirs["similarities"].tobytes(),
            "same_descriptors": ours["descriptors"].tobytes() == theirs["descriptors"].tobytes()
            and ours["quarters"].tobytes() == theirs["quarters"].tobytes(),
        }


def shown(path: Path) -> bool:
    """Whether a reader would take the index for finished."""
    try:
        found = store.Store.open(path)
    except UserError:
        return False
    generation = found.generation
    found.close()
    return generation > 0


def committed(path: Path) -> int:
    found = store.Store.open(path)
    count = len(found.pending().files)
    found.close()
    return count


def kill_at_random(folder: Path, photos: Path, seconds: float, seed: int) -> dict:
    """Build, killed again and again, then undisturbed."""
    dice = random.Random(seed)
    for attempt in range(20):
        path, kills = folder / f"random-{seed}-{attempt}.index", 0
        while kills < MOST_KILLS and not shown(path):
            child = in_child(run, path, photos)
            time.sleep(dice.uniform(0, 0.5) * seconds)
            os.kill(child, signal.SIGKILL)
            kills += wait(child)
        if kills >= FEWEST_KILLS:
            wait(in_child(run, path, photos))
            return {"kills": kills} | compare(path, folder / "expected.npz")
        seconds *= 0.7  # builds are quicker than the first one let expect
    raise SystemExit("no build could be killed twice before it was through")


def kill_while_compacting(folder: Path, photos: Path) -> dict[str, dict]:
    """Remove half of a first build that has not finished, and be killed while its files are written again."""
    undisturbed, expected = folder / "thinned.index", folder / "thinned.npz"
    wait(in_child(run, undisturbed, photos))
    wait(in_child(thin, undisturbed))
    wait(in_child(inspect, undisturbed, expected))
    outcome = {}
    for call, count in COMPACTING:
        path = folder / f"compacting-{call}-{count}.index"
        wait(in_child(die_at, "finish", 1, run, path, photos))
        killed = wait(in_child(die_at, call, count, thin, path))
        wait(in_child(thin, path))
        outcome[f"{call} {count}"] = {"killed": killed} | compare(path, expected)
    return outcome


def main() -> None:
    folder = Path(sys.argv[1])
    photos, undisturbed = folder / "photos", folder / "undisturbed.index"
    make_photos(photos)
    started = time.monotonic()
    wait(in_child(run, undisturbed, photos))
    seconds = time.monotonic() - started
    wait(in_child(inspect, undisturbed, folder / "expected.npz"))
    outcome = {"images": IMAGES, "shown_while_unfinished": [], "points": {}}
    outcome["random"] = [kill_at_random(folder, photos, seconds, seed) for seed in range(TRIALS)]
    for call, count in POINTS:
        path = folder / f"{call}-{count}.index"
        killed = wait(in_child(die_at, call, count, run, path, photos))
        if call != "sweep" and shown(path):
            outcome["shown_while_unfinished"].append(str(path))
        if (call, count) == ("add", 4):
            outcome["described_after_kill"] = IMAGES - committed(path)
        wait(in_child(run, path, photos))
        seen = compare(path, folder / "expected.npz")
        outcome["points"][f"{call} {count}"] = {"killed": killed} | seen
    outcome["compacted"] = kill_while_compacting(folder, photos)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
