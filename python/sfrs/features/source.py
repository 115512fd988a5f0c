"""Where trunk outputs come from, and descriptors from them."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sfrs.data.images import Progress
from sfrs.models.network import DescriptorNetwork


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
    parts = images.split(batch_size)
    with torch.no_grad():
        for number, part in enumerate(parts):
            if isinstance(source, LoadsAhead):
                for soon in parts[number : number + 2]:
                    source.load_ahead(soon)
            descriptors = network.descriptor(source(part)).float()
            if out is None:
                out = descriptors.new_empty(len(images), descriptors.shape[1])
            start = number * batch_size
            out[start : start + len(descriptors)] = descriptors
            if progress is not None:
                progress(start + len(descriptors), len(images))
    network.train(was_training)
    if out is None:
        raise ValueError("describe_trunk: there are no images")
    return out
