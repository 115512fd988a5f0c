"""The frozen trunk, and features computed from the image files whenever asked, loaded ahead in threads."""

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import torch
from torch import Tensor

from sfrs.data.images import load_image
from sfrs.data.jitter import ColorJitter
from sfrs.features.source import Draw, FeatureSource
from sfrs.models.autocast import autocast
from sfrs.models.network import DescriptorNetwork
from sfrs.runtime.threads import single_threads


class FrozenTrunk:
    """The trunk of a network, which is moved to ``device``, as a function of images, without gradients.

    ``autocast`` is off, bfloat16 or float16. Where torch.compile fails, for example because there is no
    compiler, a warning says so and the trunk runs as it is.
    """

    def __init__(
        self,
        network: DescriptorNetwork,
        *,
        device: str | torch.device = "cpu",
        autocast: str = "off",
        compiled: bool = False,
    ) -> None:
        self.device, self.autocast = torch.device(device), autocast
        self.backbone = network.to(self.device).backbone.eval()
        self.run = torch.compile(self.backbone.trunk) if compiled else self.backbone.trunk
        self.mean = torch.tensor(self.backbone.mean).view(3, 1, 1).to(self.device)
        self.std = torch.tensor(self.backbone.std).view(3, 1, 1).to(self.device)
        self._output_shapes: dict[tuple[int, int], tuple[int, int, int]] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Map normalised images ``[B, 3, H, W]`` on the device to float32 ``[B, C, h, w]``, channels_last."""
        with autocast(self.autocast, self.device):
            try:
                outputs = self.run(images)
            except RuntimeError as error:
                if self.run is self.backbone.trunk:
                    raise
                self.run = self.backbone.trunk
                why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                warnings.warn(f"--compile-trunk: the trunk runs uncompiled ({why})", stacklevel=2)
                outputs = self.run(images)
        return outputs.to(torch.float32, memory_format=torch.channels_last)

    def normalised(self, image: Tensor) -> Tensor:
        """Turn RGB ``[3, H, W]`` in 0..1 on the device into the trunk's input; overwrites the image."""
        return image.sub_(self.mean).div_(self.std)

    @torch.no_grad()
    def output_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return (C, h, w) of the output for images of ``size`` (height, width)."""
        if size not in self._output_shapes:
            output = self.backbone.trunk(torch.zeros(1, 3, *size, device=self.device))
            self._output_shapes[size] = tuple(output.shape[1:])
        return self._output_shapes[size]

    def fingerprint(self) -> str:
        """Return the same for trunks with the same weights, layers and input normalisation, and no others."""
        backbone = self.backbone
        facts = (backbone.name, sorted(backbone.options.items()), backbone.mean, backbone.std)
        digest = hashlib.sha256(repr(facts).encode())
        for name, value in (*backbone.trunk.named_parameters(), *backbone.trunk.named_buffers()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


AHEAD = 4  # calls whose images are loaded ahead, at most


class OnTheFlyFeatures(FeatureSource):
    """Frozen features computed from the files.

    Threads (``workers``) decode the files, and on a CPU also jitter and normalise; a GPU does that itself.
    What is loaded ahead waits in memory until it is asked for, so ask for what was announced.

    Args:
        trunk: or the network it belongs to.
        size: (height, width) the images are resized to.
        jitter: what calls with a ``step`` apply.
        batch_size: images per pass through the trunk; by default 32 on a GPU and 2 on a CPU, whose caches
            more would leave (VGG16 at 240x320: 0.56 s an image and core in twos, 0.63 s in eights).
    """

    def __init__(
        self,
        trunk: FrozenTrunk | DescriptorNetwork,
        files: Sequence[Path],
        size: tuple[int, int],
        *,
        jitter: ColorJitter | None = None,
        batch_size: int | None = None,
        workers: int = 2,
    ) -> None:
        self.trunk = trunk if isinstance(trunk, FrozenTrunk) else FrozenTrunk(trunk)
        self.device = self.trunk.device
        self.files, self.size, self.jitter = tuple(files), (size[0], size[1]), jitter
        self.batch_size = batch_size or (2 if self.device.type == "cpu" else 32)
        self.pool = single_threads(workers)
        self.ahead: dict[tuple[Draw, ...], dict[int, Future]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def draws(self, images: Tensor, step: int) -> list[Draw]:
        key = None if self.jitter is None else step
        return [Draw(image, key) for image in images.tolist()]

    def prefetch_draws(self, draws: Sequence[Draw]) -> None:
        if not draws or tuple(draws) in self.ahead:
            return
        if len(self.ahead) == AHEAD:
            del self.ahead[next(iter(self.ahead))]  # announced, but never asked for
        self.ahead[tuple(draws)] = self._submitted(draws)

    def read(self, draws: Sequence[Draw], dtype: torch.dtype = torch.float32) -> Tensor:
        """Compute features in ``dtype``. Raises `BadImageError` for a file that cannot be read."""
        channels, height, width = self.trunk.output_shape(self.size)
        out = torch.empty(len(draws), height, width, channels, dtype=dtype, device=self.device)
        out = out.permute(0, 3, 1, 2)
        loading = self.ahead.pop(tuple(draws), None) or self._submitted(draws)
        for start in range(0, len(draws), self.batch_size):
            part = draws[start : start + self.batch_size]
            # Popping frees an image as soon as the trunk has seen it.
            batch = torch.stack([loading[draw.image].result().pop(0) for draw in part])
            out[start : start + len(part)] = self.trunk(self._on_device(batch, part))
        return out

    def _submitted(self, draws: Sequence[Draw]) -> dict[int, Future]:
        """Begin to decode each image once for all its draws."""
        keys: dict[int, list[int | None]] = {}
        for draw in draws:
            keys.setdefault(draw.image, []).append(draw.key)
        return {image: self.pool.submit(self._load, image, wanted) for image, wanted in keys.items()}

    def _load(self, image: int, keys: list[int | None]) -> list[Tensor]:
        pixels = load_image(self.files[image], self.size)
        if self.device.type != "cpu":
            return [pixels.mul_(255).round_().to(torch.uint8)] * len(keys)
        return [self._prepared(pixels, Draw(image, key)) for key in keys]

    def _on_device(self, batch: Tensor, draws: Sequence[Draw]) -> Tensor:
        if self.device.type == "cpu":
            return batch
        pixels = batch.pin_memory().to(self.device, non_blocking=True).float().div_(255)
        return torch.stack([self._prepared(p, draw) for p, draw in zip(pixels, draws, strict=True)])

    def _prepared(self, pixels: Tensor, draw: Draw) -> Tensor:
        jittered = pixels
        if draw.key is not None:
            assert self.jitter is not None  # draws have keys only where it is there
            jittered = self.jitter(pixels, draw.key, draw.image)
        return self.trunk.normalised(pixels.clone() if jittered is pixels else jittered)
