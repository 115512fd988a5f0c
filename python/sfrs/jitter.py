"""Colour jitter on tensors, with a generator of its own."""

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision weighs them


class ColorJitter:
    """Random brightness, contrast, saturation and hue in random order, with torchvision's meaning.

    Factors of the first three are uniform in ``[max(0, 1 - x), 1 + x]``, the hue shift is uniform in
    ``[-hue, hue]`` turns. The paper uses (0.7, 0.7, 0.7, 0.5).

    Args:
        seed: of the ``torch.Generator`` at ``.generator``, whose state a checkpoint can save.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        *,
        seed: int = 0,
    ):
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if value < 0:
                raise ValueError(f"ColorJitter: {name} is {value}; expected 0 or more")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"ColorJitter: hue is {hue}; expected 0..0.5 turns")
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """Jitter float RGB in 0..1, ``[3, H, W]`` or ``[B, 3, H, W]`` (each image with its own draw)."""
        if images.dim() == 4:
            return torch.stack([self(image) for image in images])
        order = torch.randperm(4, generator=self.generator).tolist()
        draws = torch.rand(4, generator=self.generator).tolist()
        for step in order:
            images = self._apply(step, draws[step], images)
        return images

    def _apply(self, step: int, draw: float, image: Tensor) -> Tensor:
        if step == 3:
            return shift_hue(image, (2 * draw - 1) * self.hue) if self.hue else image
        amount = (self.brightness, self.contrast, self.saturation)[step]
        if not amount:
            return image
        low, high = max(0.0, 1 - amount), 1 + amount
        factor = low + (high - low) * draw
        if step == 0:
            other = torch.zeros((), device=image.device)
        else:
            other = luminance(image)
            if step == 1:
                other = other.mean()
        return (factor * image + (1 - factor) * other).clamp_(0, 1)


def luminance(image: Tensor) -> Tensor:
    """RGB ``[3, H, W]`` -> ``[1, H, W]``."""
    red, green, blue = image.unbind(-3)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(-3)


def shift_hue(image: Tensor, turns: float) -> Tensor:
    """Turn the hue of RGB ``[3, H, W]`` in 0..1 by a fraction of the colour circle; HSV value and
    saturation stay as they are."""
    value, top = image.max(dim=-3)
    chroma = value - image.amin(dim=-3)
    red, green, blue = image.unbind(-3)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(top == 0, (green - blue) / safe, (blue - red) / safe + 2)
    sixths = torch.where(top == 2, (red - green) / safe + 4, sixths) + 6 * turns
    # Each channel is the value minus the chroma times a trapezoid of the hue, shifted by 5, 3 and 1 sixths.
    start = torch.tensor([5.0, 3.0, 1.0], device=image.device).view(3, 1, 1)
    phase = (start + sixths) % 6
    return value - chroma * torch.minimum(phase, 4 - phase).clamp_(0, 1)
