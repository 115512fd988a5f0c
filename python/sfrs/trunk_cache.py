"""Outputs of the frozen trunk, computed once or on demand.

The trunk below the trained head never changes during training, is the same in student and teacher, and
costs most of the network's time. So its outputs are kept: mining and validation then cost the head and
NetVLAD only, and so do training steps if images are not jittered.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sfrs.descriptor import DescriptorNetwork
from sfrs.errors import UserError
from sfrs.images import ImageFiles, Progress, batches
from sfrs.jitter import ColorJitter


class TrunkSource(Protocol):
    """Where trunk outputs come from."""

    def __call__(self, images: Tensor, *, step: int = 0) -> Tensor:
        """Trunk outputs of ``images`` (int64 ``[b]``), float32 ``[b, C, h, w]`` on the network's device.

        They are channels_last, in which the heads' convolutions run 10 to 20 % faster on a CPU.

        Args:
            step: number of the optimisation step, see `step_number`. A source that jitters gives an image
                what depends on (seed, step, image) only; others ignore it.
        """


@runtime_checkable
class LoadsAhead(Protocol):
    """A source that can begin to load images before they are asked for."""

    def load_ahead(self, images: Tensor, *, step: int = 0) -> None:
        """Begin to load what a later call with the same arguments will ask for; returns at once."""


def step_number(generation: int, step: int) -> int:
    """The number of an optimisation step within the whole run; both are counted from 1."""
    return generation * 2**32 + step



class TrunkCache:
    """Trunk outputs of a list of images, kept in memory or in a memory-mapped file.

    Args:
        outputs: ``[n, C, h, w]``, in any floating type; on any device.
        device: where `__call__` puts what it returns.
    """

    def __init__(self, outputs: Tensor, device: str | torch.device = "cpu") -> None:
        self.outputs = outputs
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.outputs)

    def __call__(self, images: Tensor, *, step: int = 0) -> Tensor:
        """Trunk outputs of ``images`` (int64 ``[b]``), float32 ``[b, C, h, w]``; the same in every step."""
        chosen = self.outputs.index_select(0, images.to(self.outputs.device))
        return chosen.to(self.device, torch.float32, memory_format=torch.channels_last)

    @classmethod
    def build(
        cls,
        network: DescriptorNetwork,
        files: Sequence[Path],
        size: tuple[int, int],
        *,
        dtype: torch.dtype = torch.float16,
        device: str | torch.device = "cpu",
        file: Path | None = None,
        batch_size: int = 32,
        threads: int = 2,
        progress: Progress | None = None,
    ) -> "TrunkCache":
        """Run the trunk over ``files`` once.

        Args:
            size: (height, width) the images are resized to.
            dtype: number format in the cache; float16 halves the memory.
            file: keep the outputs in this file instead of in memory; it is overwritten.
            progress: called with (done, n).

        Raises:
            BadImageError: a file cannot be read.
            UserError: an output is not finite in ``dtype``.
        """
        images = ImageFiles(files, size, network.backbone.mean, network.backbone.std)
        network = network.to(device).eval()
        outputs: Tensor | None = None
        for rows, batch in batches(images, batch_size, threads=threads):
            trunk = network.trunk(batch.to(device)).to(dtype)
            if not trunk.isfinite().all():
                raise UserError(
                    f"trunk cache: the trunk's outputs of {images.files[rows[0]]} or one of the next "
                    f"{len(rows) - 1} images are not finite as {dtype}; try --cache-dtype float32"
                )
            if outputs is None:
                outputs = _allocate((len(images), *trunk.shape[1:]), dtype, file)
            outputs[rows[0] : rows[-1] + 1] = trunk.cpu()
            if progress is not None:
                progress(rows[-1] + 1, len(images))
        if outputs is None:
            raise UserError("trunk cache: there are no images")
        return cls(outputs, device)


class FreshTrunk:
    """Trunk outputs computed from the files whenever asked, with colour jitter if wanted.

    Files are decoded and jittered in threads.
    """

    def __init__(
        self,
        network: DescriptorNetwork,
        files: Sequence[Path],
        size: tuple[int, int],
        *,
        jitter: ColorJitter | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 8,
        threads: int = 2,
    ) -> None:
        self.network = network.to(device).eval()
        self.images = ImageFiles(files, size)
        self.jitter = jitter
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.threads = threads
        self.mean = torch.tensor(network.backbone.mean).view(3, 1, 1)
        self.std = torch.tensor(network.backbone.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, images: Tensor, *, step: int = 0) -> Tensor:
        """Trunk outputs of ``images`` (int64 ``[b]``), float32 ``[b, C, h, w]``, jittered for ``step``."""
        outputs = []
        for rows, batch in batches(self.images, self.batch_size, threads=self.threads, order=images.tolist()):
            if self.jitter is not None:
                pairs = zip(batch, rows, strict=True)
                batch = torch.stack([self.jitter(image, step, row) for image, row in pairs])
            outputs.append(self.network.trunk(batch.sub_(self.mean).div_(self.std).to(self.device)))
        return torch.cat(outputs).contiguous(memory_format=torch.channels_last)


def describe_trunk(
    network: DescriptorNetwork,
    source: TrunkSource,
    images: Tensor,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Tensor:
    """Descriptors of ``images`` (int64 ``[b]``) by head and NetVLAD only: float32 ``[b, K * D]``."""
    was_training = network.training
    network.eval()
    out: Tensor | None = None
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            descriptors = network.descriptor(source(images[start : start + batch_size])).float()
            if out is None:
                out = descriptors.new_empty(len(images), descriptors.shape[1])
            out[start : start + len(descriptors)] = descriptors
            if progress is not None:
                progress(start + len(descriptors), len(images))
    network.train(was_training)
    if out is None:
        raise ValueError("describe_trunk: there are no images")
    return out


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, file: Path | None) -> Tensor:
    if file is None:
        return torch.empty(shape, dtype=dtype)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    size = torch.Size(shape).numel()
    return torch.from_file(str(file), shared=True, size=size, dtype=dtype).view(shape)
