"""Which images an exported file takes, and images of such sizes to try it with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sfrs.data.images import load_image

LARGEST_BATCH = 4096
LARGEST_SIDE = 8192


@dataclass(frozen=True)
class ImageShape:
    """Sizes in pixels of the images a file takes; batches are of any size. If ``dynamic``, other heights and
    widths are taken as well, and these are of examples. The ``stride`` is the backbone's.
    """

    height: int
    width: int
    stride: int
    dynamic: bool = False

    @property
    def smallest_side(self) -> int:
        return 2 * self.stride

    def __str__(self) -> str:
        return "any size" if self.dynamic else f"{self.height}x{self.width}"

    def dynamic_shapes(self) -> dict:
        """Return the argument of ``torch.export.export`` and ``torch.onnx.export``."""
        free = {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}
        if self.dynamic:
            for axis, name in ((2, "height"), (3, "width")):
                free[axis] = torch.export.Dim(name, min=self.smallest_side, max=LARGEST_SIDE)
        return {"images": free}

    def example(self, device: str | torch.device = "cpu") -> Tensor:
        """Make images to trace with: two, since torch takes a one for a constant."""
        width = self.width + (self.height == self.width and self.dynamic)  # equal sides would be tied
        return made_up_images(2, self.height, width).to(device)

    def batches(self, photos: Sequence[str | Path]) -> list[Tensor]:
        """Make batches to compare with: made-up images alone and in threes, in an odd size too where sizes
        are free, and the photographs resized to ``height`` and ``width``.
        """
        sizes = [(self.height, self.width)]
        if self.dynamic:
            height, width = (max(self.smallest_side, side * 3 // 4) | 1 for side in sizes[0])
            sizes.append((height, width))
        made_up = [made_up_images(n, *size, seed=n // 2) for size in sizes for n in (1, 3)]
        return made_up + [load_image(photo, sizes[0])[None] for photo in photos]


def made_up_images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Make coloured shapes with soft edges and a little noise, ``[count, 3, height, width]`` in 0..1."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 7, 9, generator=random)
    shapes = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (shapes + 0.05 * torch.randn(shapes.shape, generator=random)).clamp_(0, 1)
