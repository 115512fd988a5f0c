"""Fork processes that join as torchrun's do, and print as JSON what became of them: ``... FOLDER``."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from forked import ended, fork, sfrs_command

import sfrs.runtime.distributed
import sfrs.training.epoch
from sfrs.runtime.distributed import processes, running_together


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def together(folder: Path, name: str, work: Callable[[int, Path], None], count: int = 2) -> dict:
    """Run ``work`` in ``count`` processes; exit codes, what each printed, and how long it took."""
    port, began = free_port(), time.monotonic()
    outputs = [folder / f"{name}-{rank}.txt" for rank in range(count)]
    children = [fork(outputs[rank], joined, work, rank, count, port, folder) for rank in range(count)]
    codes = [ended(child) for child in children]
    printed = [output.read_text() for output in outputs]
    return {"codes": codes, "printed": printed, "seconds": time.monotonic() - began}


def joined(work: Callable[[int, Path], None], rank: int, count: int, port: int, folder: Path) -> None:
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in values.items()}, MASTER_ADDR="127.0.0.1")
    work(rank, folder)


def collect(rank: int, folder: Path) -> None:
    """Every way of putting things together, twice, since a process may join again."""
    for _ in range(2):
        with running_together() as joined:
            rows = torch.arange(10.0).view(5, 2)
            mine = rows[joined.share(5)]
            filled = rows[:1].clone() if rank == 1 else torch.zeros(1, 2)
            joined.broadcast_(filled, 1)
            tensors = [torch.full((2, 3), float(rank)), torch.tensor(1.0)]
            joined.sum_(tensors)
            received = joined.broadcast(
                {"a": torch.arange(3), "b": torch.ones(0, 2), "c": torch.eye(2).T} if rank == 0 else None
            )
            found = {
                "share": len(mine),
                "main": (gathered := joined.gather_rows(mine, 5)) is not None,
                "right": gathered is None or torch.equal(gathered, rows),
                "filled": filled.tolist(),
                "sums": [tensors[0].tolist(), tensors[1].item()],
                "dealt": joined.deal(list("abcde") if rank == 0 else []),
                "gathered": joined.gather(rank),
                "object": joined.broadcast({"x": [1.5, "ü"]} if rank == 0 else None),
                "tensors": {name: [list(x.shape), str(x.dtype), x.tolist()] for name, x in received.items()},
            }
    print(json.dumps(found))


def disagree(rank: int, folder: Path) -> None:
    options = json.loads((folder / "options.json").read_text())
    sfrs_command(*options, "--out", folder / "disagree", "--learning-rate", str(0.01 + rank))


def die_in_training(rank: int, folder: Path) -> None:
    """The second process is killed in its third step."""
    if rank == 1:
        original = sfrs.training.epoch.Epoch._step

        def step(self, on_mining):
            if self.state.done >= 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, on_mining)

        sfrs.training.epoch.Epoch._step = step
    options = json.loads((folder / "options.json").read_text())
    sfrs_command(*options, "--out", folder / "die")


def diverge(rank: int, folder: Path) -> None:
    """In the third step the second process gets a loss that is not a number."""
    original, calls = sfrs.training.epoch.tuple_losses, 0

    def losses(*arguments, **options):
        nonlocal calls
        calls += 1
        found = original(*arguments, **options)
        if rank == 1 and calls == 3:
            found.hard_by_tuple.data[0] = torch.nan
        return found

    sfrs.training.epoch.tuple_losses = losses
    options = json.loads((folder / "options.json").read_text())
    sfrs_command(*options, "--out", folder / "diverge", "--checkpoint-minutes", 0)


def main() -> None:
    folder = Path(sys.argv[1])
    sfrs.runtime.distributed.LAST_WORDS = 0.2
    outcome = {"collect": together(folder, "collect", collect, count=3)}
    for work in (disagree, die_in_training, diverge):
        outcome[work.__name__] = together(folder, work.__name__, work)
    assert processes().count == 1
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
