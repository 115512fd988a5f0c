"""The frozen trunk of a backbone: its number format, its compilation, its identity."""

import hashlib
import warnings

import torch
from torch import Tensor

from sfrs.models.autocast import autocast
from sfrs.models.network import DescriptorNetwork


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
