"""Files of equally long rows of numbers, one per image: descriptors and quarter VLADs."""

import math
import mmap
import os
from pathlib import Path

import numpy as np
import torch

from sfrs.runtime.errors import UserError


class RowFile:
    """A file of equally long rows of numbers, appended to in batches; what it holds beyond ``first`` is
    overwritten.

    Raises `UserError` if the file ends before that. Going on would leave rows of zeros.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...], first: int) -> None:
        self._dtype = getattr(torch, dtype)
        start = checked_bytes(path, dtype, shape, first)
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self._file.seek(start)

    def append(self, rows: np.ndarray) -> None:
        """Write rows ``[b, *shape]``."""
        # By torch, which rounds to float16 and back five times as fast as numpy.
        numbers = torch.from_numpy(np.ascontiguousarray(rows)).to(self._dtype)
        self._file.write(numbers.numpy().reshape(-1).view(np.uint8).data)

    def sync(self) -> None:
        """Return when everything appended is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()


def map_rows(
    path: Path, dtype: str, shape: tuple[int, ...], rows: int, *, scattered: bool = False
) -> np.ndarray:
    """Map the first ``rows`` rows of a row file, ``[rows, *shape]``, without reading them; not to be written.

    Where rows here and there will be read, ``scattered``, reading ahead would be in vain. Raises `UserError`
    if the file is missing or too short.
    """
    expected = checked_bytes(path, dtype, shape, rows)
    if rows == 0:
        return np.empty((0, *shape), dtype)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), expected, access=mmap.ACCESS_READ)
    if scattered:
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype=dtype).reshape(rows, *shape)


def checked_bytes(path: Path, dtype: str, shape: tuple[int, ...], rows: int) -> int:
    """Bytes of so many rows. Raises `UserError` if the file is missing or shorter."""
    expected = rows * np.dtype(dtype).itemsize * math.prod(shape)
    size = path.stat().st_size if path.is_file() else -1
    if size < expected and expected > 0:
        what = "is missing" if size < 0 else f"has {size:,} bytes"
        raise UserError(f"{path}: this file {what}; expected {expected:,} bytes. The index is damaged.")
    return expected
