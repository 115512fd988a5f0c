"""Fork processes that join as torchrun's do, and print as JSON what became of them: ``... FOLDER``.

They are forked from this process, which has started no thread, so that they cost no import of torch.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import sfrs.distributed
import sfrs.generations
import sfrs.plots  # noqa: F401  matplotlib, before any fork
import sfrs.training
from sfrs.backbones import REGISTRY
from sfrs.cli import app
from sfrs.distributed import processes, running_together

REGISTRY["tiny"] = "tiny_backbone:TinyBackbone"
PATIENCE = 60.0


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def together(folder: Path, name: str, work: Callable[[int, Path], None], count: int = 2) -> dict:
    """Run ``work`` in ``count`` processes; exit codes, what each printed, and how long it took."""
    port, began, children = free_port(), time.monotonic(), []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in values.items()}, MASTER_ADDR="127.0.0.1")
            _child(work, rank, folder, folder / f"{name}-{rank}.txt")
        children.append(child)
    codes = [_ended(child, began) for child in children]
    printed = [(folder / f"{name}-{rank}.txt").read_text() for rank in range(count)]
    return {"codes": codes, "printed": printed, "seconds": time.monotonic() - began}


def _child(work: Callable[[int, Path], None], rank: int, folder: Path, output: Path) -> None:
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 0
    try:
        torch.set_num_threads(1)
        work(rank, folder)
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException as error:
        print(f"Traceback: {type(error).__name__}: {error}")
        code = 99
    with contextlib.suppress(ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _ended(child: int, began: float) -> int:
    while time.monotonic() - began < PATIENCE:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


def collect(rank: int, folder: Path) -> None:
    """Every way of putting things together, twice, since a process may join again."""
    for _ in range(2):
        with running_together() as joined:
            rows = torch.arange(10.0).view(5, 2)
            mine = rows[joined.share(5)]
            tensors = [torch.full((2, 3), float(rank)), torch.tensor(1.0)]
            joined.sum_(tensors)
            received = joined.broadcast_tensors(
                {"a": torch.arange(3), "b": torch.ones(0, 2), "c": torch.eye(2).T} if rank == 0 else None
            )
            found = {
                "share": len(mine),
                "everywhere": joined.gather_rows(mine, 5).tolist(),
                "main": (gathered := joined.gather_rows(mine, 5, everywhere=False)) is not None,
                "right": gathered is None or torch.equal(gathered, rows),
                "sums": [tensors[0].tolist(), tensors[1].item()],
                "object": joined.broadcast_object({"x": [1.5, "ü"]} if rank == 0 else None),
                "tensors": {name: [list(x.shape), str(x.dtype), x.tolist()] for name, x in received.items()},
            }
    print(json.dumps(found))


def disagree(rank: int, folder: Path) -> None:
    options = json.loads((folder / "options.json").read_text())
    app([*options, "--out", str(folder / "disagree"), "--learning-rate", str(0.01 + rank)])


def die_in_training(rank: int, folder: Path) -> None:
    """The second process is killed in its third step."""
    if rank == 1:
        original = sfrs.training._Epoch._step

        def step(self, tuples):
            if self.state.done >= 7:
                os.kill(os.getpid(), signal.SIGKILL)
            original(self, tuples)

        sfrs.training._Epoch._step = step
    options = json.loads((folder / "options.json").read_text())
    app([*options, "--out", str(folder / "die")])


def diverge(rank: int, folder: Path) -> None:
    """In the third step the second process gets a loss that is not a number."""
    original, calls = sfrs.training.tuple_losses, 0

    def losses(*arguments, **options):
        nonlocal calls
        calls += 1
        found = original(*arguments, **options)
        if rank == 1 and calls == 3:
            found.hard_by_tuple.data[0] = torch.nan
        return found

    sfrs.training.tuple_losses = losses
    options = json.loads((folder / "options.json").read_text())
    app([*options, "--out", str(folder / "diverge"), "--checkpoint-minutes", "0"])


def main() -> None:
    folder = Path(sys.argv[1])
    sfrs.distributed.LAST_WORDS = 0.2
    outcome = {"collect": together(folder, "collect", collect, count=3)}
    for work in (disagree, die_in_training, diverge):
        outcome[work.__name__] = together(folder, work.__name__, work)
    assert processes().count == 1
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
