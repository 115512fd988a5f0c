"""Files of equally long rows of numbers, one per image: descriptors and quarter VLADs."""

import mmap
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from sfrs.runtime.errors import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16}


class RowFile:
    """A file of equally long rows of numbers, appended to in batches.

    Args:
        first: row to write next; what the file holds beyond is overwritten.

    Raises:
        UserError: the file ends before ``first``. Going on would leave rows of zeros.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...], first: int) -> None:
        self.dtype, self.shape = np.dtype(dtype), shape
        check_length(path, first * self.row_bytes)
        self._file: BinaryIO = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self._file.seek(first * self.row_bytes)

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape))

    def append(self, rows: np.ndarray) -> None:
        """Write rows ``[b, *shape]``."""
        # By torch, which rounds to float16 and back five times as fast as numpy.
        rows = torch.from_numpy(np.ascontiguousarray(rows)).to(DTYPES[self.dtype.name]).numpy()
        self._file.write(rows.reshape(-1).view(np.uint8))

    def sync(self) -> None:
        """Return when everything appended is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def check_length(path: Path, expected: int) -> None:
    """Raise :class:`UserError` if the file is missing or shorter than ``expected`` bytes."""
    size = path.stat().st_size if path.is_file() else -1
    if size < expected and expected > 0:
        what = "is missing" if size < 0 else f"has {size:,} bytes"
        raise UserError(f"{path}: this file {what}; expected {expected:,} bytes. The index is damaged.")


def map_rows(
    path: Path, dtype: str, shape: tuple[int, ...], rows: int, *, scattered: bool = False
) -> np.ndarray:
    """The first ``rows`` rows of a row file, ``[rows, *shape]``, mapped and not read; not to be written to.

    Args:
        scattered: rows here and there will be read, so that reading ahead would be in vain.

    Raises:
        UserError: the file is missing or too short.
    """
    expected = rows * np.dtype(dtype).itemsize * int(np.prod(shape))
    check_length(path, expected)
    if rows == 0:
        return np.empty((0, *shape), dtype)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), expected, access=mmap.ACCESS_READ)
    if scattered:
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype=dtype).reshape(rows, *shape)
