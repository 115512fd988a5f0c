"""The processes of a run: one, or those that torchrun started, with gloo on CPUs and NCCL on GPUs.

Process 0 is the main one: it alone mines, writes files and shows progress. Work that is spread is cut into
contiguous shares by rank, so that results put together have the order one process would give them.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sfrs.runtime.errors import UserError
from sfrs.runtime.host import usable_device

PATIENCE = timedelta(minutes=30)  # a process that died is noticed at once, by its closed connections
LOOK = 0.5  # seconds between two looks at what the others have done
LAST_WORDS = 5.0  # seconds that the process which says why the run failed gets for it
FAILURES = "sfrs/failures"  # of processes of this run, counted in its store
_joined: "Processes | None" = None
_running: "Processes | None" = None  # within `running_together`


class PeerLostError(UserError, RuntimeError):
    """Another process of the run has ended."""


@dataclass(eq=False)
class Processes:
    """The processes of this run, seen from one of them; those of its machine are the local ones."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    store: dist.Store | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return the device ``name``, with auto resolved; each of several processes has a GPU of its own.

        Raises `UserError` if torch has no such device, or there are more processes than GPUs.
        """
        name = usable_device(name)
        if self.count == 1 or not name.startswith("cuda"):
            return torch.device(name)
        if name != "cuda":
            raise UserError(
                f"--device is {name}; expected cuda or auto, since torchrun gives each process its GPU"
            )
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started process {self.local_rank} of this machine (counted from 0), but it has "
                f"{torch.cuda.device_count()} GPU(s), expected --nproc-per-node to be at most that"
            )
        return torch.device("cuda", self.local_rank)

    def share(self, total: int, rank: int | None = None) -> slice:
        """Return the part of ``total`` items that falls to ``rank``, by default to this process."""
        rank = self.rank if rank is None else rank
        return slice(total * rank // self.count, total * (rank + 1) // self.count)

    def gather_rows(self, local: Tensor, total: int) -> Tensor | None:
        """Put the rows of every process's `share` together: ``[total, ...]`` in the main one, else None.

        There must be a row for each process.
        """
        if self.count == 1:
            return local
        if not self.is_main:
            self._call(dist.send, local.contiguous(), 0)
            return None
        rows = local.new_empty(total, *local.shape[1:])
        rows[self.share(total)] = local
        for rank in range(1, self.count):  # dist.gather wants equal shares, and a second copy of all rows
            self._call(dist.recv, rows[self.share(total, rank)], rank)
        return rows

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add up ``tensors`` (of one type and device) over the processes, in place, in one message."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._call(dist.all_reduce, flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def broadcast_(self, tensor: Tensor, rank: int) -> None:
        """Fill ``tensor`` from that of process ``rank``."""
        if self.count > 1:
            self._call(dist.broadcast, tensor, rank)

    def broadcast(self, value: Any = None) -> Any:
        """Return the main process's ``value``: anything that can be pickled, tensors in the host's memory."""
        held = [value]
        if self.count > 1:
            self._call(dist.broadcast_object_list, held, 0)
        return held[0]

    def deal(self, items: Sequence) -> list:
        """Give every process its `share` of the main one's ``items``: anything that can be pickled."""
        dealt: list = [items]
        if self.count > 1:
            parts = [items[self.share(len(items), rank)] for rank in range(self.count)]
            self._call(dist.scatter_object_list, dealt, parts if self.is_main else None, 0)
        return dealt[0]

    def gather(self, value: Any) -> list | None:
        """Return every process's ``value``, in the order of ranks, in the main one; None in the others."""
        found = [value] * self.count if self.is_main else None
        if self.count > 1:
            self._call(dist.gather_object, value, found, 0)
        return found

    def count_up(self, name: str, by: int) -> int:
        """Add to a number that all processes count together; returns it.

        Raises `PeerLostError` where one of them has failed.
        """
        assert self.store is not None  # one process has nobody to count with
        if self._call(self.store.add, FAILURES, 0):
            raise PeerLostError(f"process {self.rank} of {self.count} ends, because another has failed")
        return self._call(self.store.add, name, by)

    def meet(self, look: Callable[[], int]) -> None:
        """Wait until every process is here, and ``look`` meanwhile how far the others are.

        Raises `PeerLostError` if one has ended, or nothing changes for `PATIENCE`.
        """
        arrived = self._call(partial(dist.all_reduce, async_op=True), torch.zeros(1))
        seen, since = look(), time.monotonic()
        while not arrived.is_completed():
            time.sleep(LOOK)
            if (now := look()) != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE.total_seconds():
                raise self._lost(f"for {PATIENCE} nothing was done")
        self._call(arrived.wait)

    def agree(self, what: str, value: dict[str, Any]) -> None:
        """Raise `UserError` in a process whose ``value`` is another than the main process's."""
        theirs = self.broadcast(value)
        differing = [key for key in value if value[key] != theirs.get(key)]
        if differing:
            ours, theirs = ({key: each.get(key) for key in differing} for each in (value, theirs))
            raise UserError(
                f"process {self.rank} has other {what} than process 0: {ours}, expected {theirs}. All need "
                "the same command and data."
            )

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.sum_([torch.zeros(1)])

    def first_to_fail(self) -> bool:
        """Tell a process that failed whether it is the first, which says why."""
        if self.store is None:
            return self.is_main
        try:
            return self.store.add(FAILURES, 1) == 1
        except RuntimeError:
            return False  # the store went with the process that kept it, which has had its say

    def _call(self, operation: Callable, *arguments: Any) -> Any:
        try:
            return operation(*arguments)
        except RuntimeError as error:
            raise self._lost(str(error).splitlines()[0].split(". ")[0]) from error  # gloo adds advice

    def _lost(self, why: str) -> PeerLostError:
        return PeerLostError(
            f"process {self.rank} of {self.count} waits in vain for another process of the run, which "
            f"has been killed, has run out of memory or is stuck ({why})"
        )


def processes(patience: timedelta = PATIENCE) -> Processes:
    """Join the processes of this run, from the environment torchrun sets; later calls return the same.

    Args:
        patience: time that one may wait for another, whatever that one does meanwhile.

    Raises `UserError` if the environment is not torchrun's, or the others cannot be reached.
    """
    global _joined
    if _joined is None:
        _joined = _join(patience)
    return _joined


def running_processes() -> Processes:
    """Return the processes of `running_together`; outside of it this one alone, whatever it has joined."""
    return _running or Processes()


def _join(patience: timedelta) -> Processes:
    count = _from_environment("WORLD_SIZE", "1")
    if count == 1:
        return Processes()
    rank, local_rank = _from_environment("RANK"), _from_environment("LOCAL_RANK", "0")
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())  # before NCCL takes one
        backend = "cpu:gloo,cuda:nccl"
    try:
        store = _store(rank, count)
        # A group needs keys of its own; a process may join and leave several times.
        group = dist.PrefixStore(f"sfrs/{store.add(f'sfrs/joined/{rank}', 1)}", store)
        dist.init_process_group(backend, store=group, rank=rank, world_size=count, timeout=patience)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"process {rank} cannot join the other {count - 1}: {error}") from error
    return Processes(rank, count, local_rank, _from_environment("LOCAL_WORLD_SIZE", "1"), group)


def _from_environment(name: str, default: str | None = None) -> int:
    text = os.environ.get(name, default)
    try:
        return int(text or "")
    except ValueError:
        raise UserError(
            f"the environment variable {name} is {text!r}, expected a number; start several processes with "
            "torchrun, or unset WORLD_SIZE for one"
        ) from None


@cache
def _store(rank: int, count: int) -> dist.Store:
    """Open the place where processes find each other; torchrun keeps it."""
    return next(dist.rendezvous("env://", rank, count, timeout=PATIENCE))[0]


@contextmanager
def running_together(patience: timedelta = PATIENCE) -> Iterator[Processes]:
    """Join the `processes` of the run, and if it fails, let one of them say why.

    A process that fails ends at once, which makes those end that wait for it. All but one end without
    cleaning up, which would wait, too, and some seconds later, since torchrun ends all once one has ended.
    """
    global _joined, _running
    joined = _running = processes(patience)
    try:
        yield joined
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)  # by torchrun, all; the main one says how to go on
        if joined.count > 1 and not (joined.is_main if stopped else joined.first_to_fail()):
            time.sleep(0.5 if stopped else LAST_WORDS)
            os._exit(1)
        raise
    finally:
        _running = None
    if joined.count > 1:
        joined.barrier()
        dist.destroy_process_group()
        _joined = None
