"""Rows of frozen features in a file that outlives the process and is filled block by block.

For a cache named ``trunk_train`` the folder holds ``trunk_train.bin`` (the rows, native byte order),
``trunk_train.json`` (what they are of) and ``trunk_train.done`` (a byte per block: 1 once it is on the disk).
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfrs.runtime.atomic_io import explained, lock_taken, write_json
from sfrs.runtime.errors import UserError

FORMAT = 1


class DiskRows:
    """The files of one cache. Several processes may write different blocks of it at once.

    Args:
        path: without suffix.
        facts: what decides the rows' content, as JSON values; a file with other facts is not used.
        shape: of all rows together, the first being their number.
        blocks: parts in which it is filled.
    """

    def __init__(
        self, path: Path, facts: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype, blocks: int
    ) -> None:
        self.path, self.facts_file, self.done_file, self.lock_file = (
            path.with_name(path.name + suffix) for suffix in (".bin", ".json", ".done", ".lock")
        )
        self.facts = json.loads(json.dumps({"format": FORMAT, **facts, "shape": shape, "dtype": str(dtype)}))
        self.shape, self.dtype, self.blocks = shape, dtype, blocks
        self.row_bytes = prod(shape[1:]) * dtype.itemsize
        self.bytes = shape[0] * self.row_bytes
        self._lock: int | None = None

    def open(self, say: Callable[[str], None]) -> None:
        """Get ready to fill what is missing: keep a file that fits, else begin another and ``say`` why.

        Call it in one process, before the others ask for what is `left`. Raises `UserError` if another run is
        filling the cache, or the disk is too full.
        """
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        why = self._why_unusable()
        if why is None:
            done = self.blocks - len(self.left())
            how = f"goes on after {done} of {self.blocks} blocks"
            say(f"{self.path}: {'is used again, all features are there' if done == self.blocks else how}")
            return
        if self.path.exists() or self.facts_file.exists():
            say(f"{self.path}: is built again, because {why}")
        self._begin()

    def left(self) -> list[int]:
        """List the blocks that are not on the disk."""
        return np.flatnonzero(np.fromfile(self.done_file, dtype=np.uint8) != 1).tolist()

    def write(self, first: int, rows: Tensor) -> None:
        """Put ``rows`` (of the cache's type) where row ``first`` is."""
        content = rows.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        offset = first * self.row_bytes
        with explained(self.path, size=self.bytes), open(self.path, "r+b", buffering=0) as file:
            while len(content):
                written = os.pwrite(file.fileno(), content, offset)
                content, offset = content[written:], offset + written

    def finish(self, block: int) -> None:
        """Mark a block as done, once its rows have reached the disk."""
        with explained(self.path, size=self.bytes):
            with open(self.path, "r+b") as file:
                os.fsync(file.fileno())
            with open(self.done_file, "r+b", buffering=0) as file:
                os.pwrite(file.fileno(), b"\x01", block)

    def close(self) -> None:
        """Let other runs fill the cache."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self) -> Tensor:
        """Map all rows of a cache that is done into memory."""
        if not prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        rows = torch.from_file(str(self.path), shared=False, size=prod(self.shape), dtype=self.dtype)
        return rows.view(self.shape)

    def _why_unusable(self) -> str | None:
        try:
            facts = dict(json.loads(self.facts_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return f"there is no {self.facts_file.name}"
        except (OSError, ValueError, TypeError):
            return f"{self.facts_file.name} is damaged"
        different = [name for name in self.facts if facts.get(name) != self.facts[name]]
        if different:
            return f"it was built for another {', '.join(different)}"
        for file, size in ((self.path, self.bytes), (self.done_file, self.blocks)):
            if not file.is_file() or file.stat().st_size != size:
                return f"{file.name} is missing or cut off"
        return None

    def _begin(self) -> None:
        for file in (self.facts_file, self.done_file, self.path):
            file.unlink(missing_ok=True)  # a run that has mapped the rows keeps them
        free = shutil.disk_usage(self.path.parent).free
        if self.bytes > free:
            raise UserError(
                f"{self.path}: the trunk cache needs {self.bytes / 1e9:.1f} GB, but the disk has "
                f"{free / 1e9:.1f} GB free. Set --cache-dir to a larger disk, or --cache-gigabytes."
            )
        with explained(self.path, size=self.bytes):
            with open(self.path, "xb") as file:
                os.ftruncate(file.fileno(), self.bytes)
                if self.bytes and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, self.bytes)
            self.done_file.write_bytes(bytes(self.blocks))
            write_json(self.facts_file, self.facts)  # last: without it nothing else counts

    def _take_lock(self) -> None:
        lock = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        if not lock_taken(lock, fcntl.LOCK_EX):
            os.close(lock)
            raise UserError(
                f"{self.path}: another run is filling this trunk cache; wait for it or give "
                "another --cache-dir"
            )
        self._lock = lock
