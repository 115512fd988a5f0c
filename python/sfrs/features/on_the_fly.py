"""Trunk outputs computed from the image files whenever asked, loaded ahead in threads."""

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sfrs.data.images import load_image
from sfrs.data.jitter import ColorJitter
from sfrs.features.frozen import FrozenTrunk
from sfrs.models.network import DescriptorNetwork
from sfrs.runtime.threads import single_threads

AHEAD = 4
"""Calls whose images are loaded ahead, at most."""


class Draw(NamedTuple):
    """An image as it is or jittered.

    Attributes:
        image: its number.
        key: with the image's number the key of its jitter; None leaves the image as it is.
    """

    image: int
    key: int | None = None


class FreshTrunk:
    """Trunk outputs computed from the files; a `sfrs.features.cache.TrunkSource` that can load ahead.

    Files are decoded in threads, which on a CPU also jitter and normalise; a GPU does that itself. What is
    loaded ahead waits in memory until it is asked for, so ask for what was announced.

    Args:
        trunk: or the network it belongs to.
        size: (height, width) the images are resized to.
        jitter: what calls with a ``step`` apply.
        batch_size: images per pass through the trunk; by default 32 on a GPU and 2 on a CPU, whose caches
            more would leave (VGG16 at 240x320: 0.56 s an image and core in twos, 0.63 s in eights).
        threads: 0 decodes in the caller's.
    """

    def __init__(
        self,
        trunk: FrozenTrunk | DescriptorNetwork,
        files: Sequence[Path],
        size: tuple[int, int],
        *,
        jitter: ColorJitter | None = None,
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
        threads: int = 2,
    ) -> None:
        self.trunk = trunk if isinstance(trunk, FrozenTrunk) else FrozenTrunk(trunk, device=device)
        self.device = self.trunk.device
        self.files, self.size, self.jitter = tuple(files), size, jitter
        self.batch_size = batch_size or (2 if self.device.type == "cpu" else 32)
        self.pool = single_threads(threads) if threads else None
        self.ahead: dict[tuple[Draw, ...], dict[int, Future]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __call__(self, images: Tensor, *, step: int = 0) -> Tensor:
        """Trunk outputs of ``images`` (int64 ``[b]``), float32 ``[b, C, h, w]``, jittered for ``step``."""
        return self.outputs(self._draws(images, step))

    def load_ahead(self, images: Tensor, *, step: int = 0) -> None:
        """Begin to load what a call with the same arguments will ask for."""
        self.load_draws_ahead(self._draws(images, step))

    def load_draws_ahead(self, draws: Sequence[Draw]) -> None:
        """Begin to load what `outputs` will be asked for."""
        if self.pool is None or not draws or tuple(draws) in self.ahead:
            return
        if len(self.ahead) == AHEAD:
            del self.ahead[next(iter(self.ahead))]  # announced, but never asked for
        self.ahead[tuple(draws)] = self._submitted(draws)

    def outputs(self, draws: Sequence[Draw], dtype: torch.dtype = torch.float32) -> Tensor:
        """Trunk outputs of images each jittered by its own key, ``[len(draws), C, h, w]``, channels_last.

        Raises:
            BadImageError: a file cannot be read.
        """
        channels, height, width = self.trunk.output_shape(self.size)
        out = torch.empty(len(draws), height, width, channels, dtype=dtype, device=self.device)
        out = out.permute(0, 3, 1, 2)
        futures = self.ahead.pop(tuple(draws), None) or self._submitted(draws)
        used = dict.fromkeys(futures, 0)  # how many of an image's draws have been taken
        for start in range(0, len(draws), self.batch_size):
            part = draws[start : start + self.batch_size]
            batch = []
            for draw in part:
                loaded, place = futures[draw.image].result(), used[draw.image]
                batch.append(loaded[place])
                loaded[place] = None  # frees the image as soon as the trunk has seen it
                used[draw.image] = place + 1
            out[start : start + len(part)] = self.trunk(self._on_device(batch, part))
        return out

    def _draws(self, images: Tensor, step: int) -> list[Draw]:
        key = None if self.jitter is None else step
        return [Draw(image, key) for image in images.tolist()]

    def _submitted(self, draws: Sequence[Draw]) -> dict[int, Future]:
        """Each image is decoded once for all its draws."""
        keys: dict[int, list[int | None]] = {}
        for draw in draws:
            keys.setdefault(draw.image, []).append(draw.key)
        if self.pool is not None:
            return {image: self.pool.submit(self._load, image, wanted) for image, wanted in keys.items()}
        futures = {image: Future() for image in keys}
        for image, wanted in keys.items():
            futures[image].set_result(self._load(image, wanted))
        return futures

    def _load(self, image: int, keys: list[int | None]) -> list[Tensor]:
        pixels = load_image(self.files[image], self.size)
        if self.device.type != "cpu":
            return [pixels.mul_(255).round_().to(torch.uint8)] * len(keys)
        return [self._prepared(pixels, Draw(image, key)) for key in keys]

    def _on_device(self, batch: list[Tensor], draws: Sequence[Draw]) -> Tensor:
        if self.device.type == "cpu":
            return torch.stack(batch)
        pixels = torch.stack(batch).pin_memory().to(self.device, non_blocking=True)
        pixels = pixels.float().div_(255)
        return torch.stack([self._prepared(p, draw) for p, draw in zip(pixels, draws, strict=True)])

    def _prepared(self, pixels: Tensor, draw: Draw) -> Tensor:
        if draw.key is None:
            return self.trunk.normalised(pixels.clone())
        jittered = self.jitter(pixels, draw.key, draw.image)
        return self.trunk.normalised(pixels.clone() if jittered is pixels else jittered)
