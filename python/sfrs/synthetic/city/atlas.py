"""All textures of a city in one flat array of texels with mip levels, so that a pixel is one gather whatever
it shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfrs.synthetic.city.sprites import HOLE

LEVELS = 4


@dataclass(frozen=True)
class Atlas:
    texels: Tensor  # int32 [n]; bytes red, green, blue, light. Texel 0 is transparent (sky).
    offset: Tensor  # int32 [textures, LEVELS]
    width: Tensor  # int32 [textures, LEVELS]
    height: Tensor  # int32 [textures, LEVELS]
    density: Tensor  # float32 [textures], texels per metre at level 0


def _halve(picture: np.ndarray, holes: bool) -> np.ndarray:
    """uint8 [h, w, 4] -> half the size. Light numbers are sampled, not averaged; holes win by majority."""
    h, w = picture.shape[:2]
    if h == 1 and w == 1:
        return picture
    picture = np.pad(picture, ((0, h % 2 if h > 1 else 1), (0, w % 2 if w > 1 else 1), (0, 0)), mode="edge")
    quads = [picture[i::2, j::2] for i in (0, 1) for j in (0, 1)]
    if not holes:
        total = quads[0].astype(np.uint16)
        for quad in quads[1:]:
            total += quad
        result = (total >> 2).astype(np.uint8)
        result[..., 3] = quads[0][..., 3]
        return result
    stacked = np.stack(quads)  # [4, h/2, w/2, 4]
    solid = (stacked[..., 3:] != HOLE).astype(np.uint16)
    count = solid.sum(axis=0)
    result = np.empty(stacked.shape[1:], np.uint8)
    result[..., :3] = (stacked[..., :3] * solid).sum(axis=0) // np.maximum(count, 1)
    light = np.where(solid[0, ..., 0] == 1, stacked[0, ..., 3], stacked[1:, ..., 3].min(axis=0))
    result[..., 3] = np.where(count[..., 0] >= 2, np.where(light == HOLE, 0, light), HOLE)
    return result


class AtlasBuilder:
    """Collects pictures (uint8 [h, w, 4], row 0 lowest) and numbers them in order."""

    def __init__(self) -> None:
        transparent = np.zeros(1, np.uint32)
        self._parts: list[np.ndarray] = [transparent]
        self._size = 1
        self._offset: list[list[int]] = []
        self._width: list[list[int]] = []
        self._height: list[list[int]] = []
        self._density: list[float] = []

    def add(self, picture: np.ndarray, density: float) -> int:
        """Store a picture and its mip levels; returns its number. `density` in texels per metre."""
        offsets, widths, heights = [], [], []
        holes = bool((picture[..., 3] == HOLE).any())
        for level in range(LEVELS):
            if level:
                picture = _halve(picture, holes)
            flat = np.ascontiguousarray(picture).view(np.uint32).reshape(-1)
            offsets.append(self._size)
            widths.append(picture.shape[1])
            heights.append(picture.shape[0])
            self._parts.append(flat)
            self._size += flat.size
        self._offset.append(offsets)
        self._width.append(widths)
        self._height.append(heights)
        self._density.append(density)
        return len(self._density) - 1

    def build(self) -> Atlas:
        return Atlas(
            texels=torch.from_numpy(np.concatenate(self._parts).view(np.int32)),
            offset=torch.tensor(self._offset, dtype=torch.int32),
            width=torch.tensor(self._width, dtype=torch.int32),
            height=torch.tensor(self._height, dtype=torch.int32),
            density=torch.tensor(self._density, dtype=torch.float32),
        )
