"""Made-up photographs."""

import numpy as np
from PIL import Image


def picture(scene: int, height: int = 48, width: int = 64, noise: float = 0.0) -> Image.Image:
    """Blocks of random colours drawn from ``scene``: the same scene looks alike, others do not."""
    blocks = np.random.default_rng(scene).random((6, 8, 3))
    pixels = np.kron(blocks, np.ones((8, 8, 1)))
    pixels += noise * np.random.default_rng(scene + 1000).normal(size=pixels.shape)
    image = Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8))
    return image.resize((width, height))
