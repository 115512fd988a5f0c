"""The canvas facades are painted on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TEXELS_PER_METRE = 8
ALWAYS_LIT = 255
LAST_WINDOW = 250


@dataclass
class Facade:
    """An image of 1/8 m texels, row 0 at the ground.

    Attributes:
        colour: RGB.
        light: 0 plain; 1 to LAST_WINDOW the number of a window that may be lit at night; ALWAYS_LIT what
        shines
            every night (signs).
        outline: height of the roof line by column, so that gables and dormers stand against the sky.
    """

    colour: np.ndarray  # float32 [h, w, 3] in 0..1
    light: np.ndarray  # uint8 [h, w]
    outline: np.ndarray  # float32 [w], metres

    def rect(self, x0, x1, z0, z1, colour, light=None) -> None:
        """Fill the rectangle of metres [x0, x1] x [z0, z1]; at least one texel each way, clipped to the
        facade."""
        s = TEXELS_PER_METRE
        left, low = max(0, int(round(x0 * s))), max(0, int(round(z0 * s)))
        right = min(self.colour.shape[1], max(int(round(x1 * s)), left + 1))
        high = min(self.colour.shape[0], max(int(round(z1 * s)), low + 1))
        if left >= right or low >= high:
            return
        self.colour[low:high, left:right] = colour
        if light is not None:
            self.light[low:high, left:right] = light

    @property
    def width(self) -> float:
        return self.colour.shape[1] / TEXELS_PER_METRE
