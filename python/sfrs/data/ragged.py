"""Lists of different lengths in compressed rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths, one after the other."""

    values: np.ndarray  # int64 [nnz]
    offsets: np.ndarray  # int64 [n + 1]; list i is values[offsets[i]:offsets[i + 1]]

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> "Ragged":
        counts = np.fromiter((len(items) for items in lists), np.int64, len(lists))
        offsets = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
        values = np.fromiter((item for items in lists for item in items), np.int64, int(offsets[-1]))
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        if not -len(self) <= i < len(self):
            raise IndexError(f"list {i} of {len(self)}")
        i %= len(self)
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def counts(self) -> np.ndarray:
        """Return the length of every list, int64 ``[n]``."""
        return np.diff(self.offsets)

    def rows(self) -> np.ndarray:
        """Return for every value the list it belongs to, int64 ``[nnz]``."""
        return np.repeat(np.arange(len(self)), self.counts())

    def keep(self, mask: np.ndarray) -> "Ragged":
        """Return the same lists with the values at ``mask`` (bool ``[nnz]``) only."""
        counts = np.bincount(self.rows()[mask], minlength=len(self))
        return Ragged(self.values[mask], np.concatenate(([0], np.cumsum(counts))))
