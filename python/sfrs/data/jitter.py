"""Colour jitter on tensors, without state: its draws are a function of the seed and a key."""

import hashlib

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision weighs them


def hashed(*numbers: int) -> int:
    """Return a number in 0 .. 2^63 - 1 that depends on ``numbers`` only, the same on every machine."""
    text = ",".join(str(int(number)) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class ColorJitter:
    """Random brightness, contrast, saturation and hue in random order, with torchvision's meaning.

    Factors of the first three are uniform in ``[max(0, 1 - x), 1 + x]``, the hue shift is uniform in ``[-hue,
    hue]`` turns. The paper uses (0.7, 0.7, 0.7, 0.5). The draws follow from ``seed`` and the key of each call
    alone, so neither the order of calls nor threads nor processes matter, and a resumed run needs no
    checkpoint of them. Raises `ValueError` if an amount is out of range.
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
        self.amounts, self.seed = (brightness, contrast, saturation, hue), seed

    def __call__(self, image: Tensor, *key: int) -> Tensor:
        """Jitter float RGB ``[3, H, W]`` in 0..1 with the draw of ``key``, such as (step, image number)."""
        generator = torch.Generator().manual_seed(hashed(self.seed, *key))
        order = torch.randperm(4, generator=generator).tolist()
        draws = torch.rand(4, generator=generator).tolist()
        for step in order:
            image = self._apply(step, draws[step], image)
        return image

    def _apply(self, step: int, draw: float, image: Tensor) -> Tensor:
        amount = self.amounts[step]
        if not amount:
            return image
        if step == 3:
            return shift_hue(image, (2 * draw - 1) * amount)
        low, high = max(0.0, 1 - amount), 1 + amount
        factor = low + (high - low) * draw
        other = torch.zeros((), device=image.device) if step == 0 else luminance(image)
        if step == 1:
            other = other.mean()
        return (factor * image + (1 - factor) * other).clamp_(0, 1)


def luminance(image: Tensor) -> Tensor:
    """Weigh RGB ``[3, H, W]`` into ``[1, H, W]``."""
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
    start = 5 - 2 * torch.arange(3.0, device=image.device).view(3, 1, 1)
    phase = (start + sixths) % 6
    return value - chroma * torch.minimum(phase, 4 - phase).clamp_(0, 1)
