"""Quarter VLADs of many images, kept for comparing regions later: float16, on disk, from one pass."""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfrs.data.images import ImageFiles, Size, batches
from sfrs.models.network import DescriptorNetwork
from sfrs.models.whitening import Whitening
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress

EPS = 1e-12


def compact(quarters: Tensor) -> Tensor:
    """Quarter VLADs ``[..., 4, K, D]`` -> float16, for keeping them.

    Every cluster is scaled to a largest value of 1 over the four quarters: regions are normalised cluster by
    cluster, so this changes none of them, and neither do values overflow nor whole clusters vanish. What is
    lost is a cluster's part in a quarter where it is 10^-7 of its largest value: nearly no local feature of
    that quarter belongs to it, yet normalised it would weigh as much as any other.
    """
    largest = quarters.abs().amax(dim=(-3, -1), keepdim=True)
    return torch.where(largest > EPS, quarters / largest.clamp_min(EPS), 0).half()


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
    """Quarter VLADs that take long to compute, computed once: the last ones asked for are kept as float16.

    Args:
        compute: database rows ``[C]`` -> ``[C, 4, K, D]``.
        limit: bytes to keep at most.
    """

    def __init__(self, compute: Callable[[np.ndarray], Tensor], limit: int = 2**30):
        self.compute, self.limit = compute, limit
        self.known: dict[int, Tensor] = {}  # oldest first

    def __call__(self, rows: np.ndarray) -> Tensor:
        """``[C]`` -> float32 ``[C, 4, K, D]``."""
        wanted = np.asarray(rows).tolist()
        missing = [row for row in wanted if row not in self.known]
        computed = compact(self.compute(np.array(missing))) if missing else ()
        found = {row: self.known.pop(row) for row in dict.fromkeys(wanted) if row in self.known}
        found |= dict(zip(missing, computed, strict=True))
        self.known |= found
        for row in list(self.known)[: max(0, len(self.known) - self.limit // found[wanted[0]].nbytes)]:
            del self.known[row]
        return torch.stack([found[row] for row in wanted]).float()


@torch.no_grad()
def describe_with_quarters(
    network: DescriptorNetwork,
    images: Sequence[str | Path],
    *,
    quarters: np.ndarray,
    size: Size = None,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    threads: int = 2,
    whitening: Whitening | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """As :func:`sfrs.models.network.describe`, and the quarter VLADs from the same pass through the backbone.

    Args:
        quarters: where they are written, float16 ``[n, 4, K, D]`` (see :func:`compact`).

    Returns:
        Descriptors, float32 ``[n, dim]``.

    Raises:
        BadImageError: an image cannot be read.
    """
    images = ImageFiles(images, size, network.backbone.mean, network.backbone.std)
    network = network.to(device).eval()
    out = np.empty((len(images), network.dim if whitening is None else whitening.dim), dtype=np.float32)
    for rows, batch in batches(images, batch_size, workers=threads):
        features = network.features(network.trunk(batch.to(device)))
        descriptors = network.vlad(features)
        if whitening is not None:
            descriptors = whitening.apply(descriptors)
        there = slice(rows[0], rows[-1] + 1)
        out[there] = descriptors.float().cpu().numpy()
        quarters[there] = compact(network.vlad.quarters(features).float()).cpu().numpy()
        if progress is not None:
            progress(rows[-1] + 1, len(images))
    return out


@contextmanager
def temporary_quarters(network: DescriptorNetwork, images: int) -> Iterator[np.ndarray]:
    """A temporary memory map for the quarter VLADs of so many images."""
    shape = (images, 4, network.vlad.num_clusters, network.vlad.dim)
    needed, free = 2 * math.prod(shape), shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise UserError(
            f"Re-ranking by regions keeps {needed / 1e9:.1f} GB of quarter VLADs meanwhile, but "
            f"{tempfile.gettempdir()} has {free / 1e9:.1f} GB free. Set TMPDIR to a larger disk."
        )
    with tempfile.TemporaryDirectory(prefix="sfrs-quarters-") as folder:
        yield np.memmap(Path(folder) / "quarters.float16", dtype=np.float16, mode="w+", shape=shape)
