"""Quarter VLADs of many images, kept for comparing regions later: float16, on disk, from one pass."""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfrs.models.model import Model, compact
from sfrs.runtime.errors import UserError


class KeptQuarters:
    """Quarter VLADs kept as float16 ``[n, 4, K, D]``, in memory or a memory map, handed out as float32.

    Rows are copied one by one into a buffer that is used again: fresh memory for every query would cost more
    than the comparison (50 MB at K = 64, D = 512 and 100 candidates).
    """

    def __init__(self, kept: np.ndarray, device: str | torch.device = "cpu"):
        self.kept = torch.from_numpy(kept)
        self.device = device
        self.buffer = torch.empty(0, *kept.shape[1:])

    def __call__(self, rows: np.ndarray) -> Tensor:
        """``[C]`` -> float32 ``[C, 4, K, D]`` on the device, valid until the next call."""
        if len(rows) > len(self.buffer):
            self.buffer = torch.empty(len(rows), *self.buffer.shape[1:])
        for place, row in zip(self.buffer, rows.tolist(), strict=False):
            place.copy_(self.kept[row])
        return self.buffer[: len(rows)].to(self.device)


class RememberedQuarters:
    """Quarter VLADs that take long to compute, ``[C]`` -> ``[C, 4, K, D]``, computed once: the last ones
    asked for are kept as float16, in at most ``limit`` bytes.
    """

    def __init__(self, compute: Callable[[np.ndarray], Tensor], limit: int = 2**30):
        self.compute, self.limit = compute, limit
        self.known: dict[int, Tensor] = {}  # oldest first

    def __call__(self, rows: np.ndarray) -> Tensor:
        """``[C]`` -> float32 ``[C, 4, K, D]``."""
        wanted = np.asarray(rows).tolist()
        missing = [row for row in wanted if row not in self.known]
        found = {row: self.known.pop(row) for row in dict.fromkeys(wanted) if row in self.known}
        if missing:
            found |= dict(zip(missing, compact(self.compute(np.array(missing))), strict=True))
        self.known |= found
        for row in list(self.known)[: max(0, len(self.known) - self.limit // found[wanted[0]].nbytes)]:
            del self.known[row]
        return torch.stack([found[row] for row in wanted]).float()


@contextmanager
def temporary_quarters(model: Model, images: int) -> Iterator[np.ndarray]:
    """Open a temporary memory map for the quarter VLADs of so many images."""
    shape = (images, *model.quarters_shape)
    needed, free = 2 * math.prod(shape), shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise UserError(
            f"Re-ranking by regions keeps {needed / 1e9:.1f} GB of quarter VLADs meanwhile, but "
            f"{tempfile.gettempdir()} has {free / 1e9:.1f} GB free. Set TMPDIR to a larger disk."
        )
    with tempfile.TemporaryDirectory(prefix="sfrs-quarters-") as folder:
        yield np.memmap(Path(folder) / "quarters.float16", dtype=np.float16, mode="w+", shape=shape)
