"""Cameras of a batch of views, and the surface each of their pixels shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfrs.synthetic.city.atlas import LEVELS
from sfrs.synthetic.city.ground import LIGHT_CELL
from sfrs.synthetic.city.scene import Scene
from sfrs.synthetic.city.views import Views

FAR = 1e4  # metres; the depth of the sky


@dataclass(frozen=True)
class Cameras:
    """Cameras of a batch: position [B, 2], right and forward unit vectors [B, 2], scalars [B]."""

    position: Tensor
    right: Tensor
    forward: Tensor
    height: Tensor
    focal: Tensor  # pixels
    horizon: Tensor  # pixel row
    slope: Tensor  # [B, W] tangent of the angle of each column's ray off the axis
    sun: Tensor  # int32 [B]


@dataclass
class Surface:
    """What each pixel [B, H, W] shows, and the nearest wall of each column [B, W]."""

    texel: Tensor  # int32, index into Atlas.texels
    depth: Tensor  # float32 metres along the camera's axis
    z: Tensor  # float32 metres above the ground
    facing: Tensor  # float32, cosine between the surface and the sun (0 where turned away)
    shadow: Tensor  # float32, metres; below this height the sun does not reach
    lamp: Tensor  # float32, light of the street lamps near the ground
    wall_depth: Tensor  # float32 [B, W]
    wall_rise: Tensor  # float32 [B, W], slope from the camera to the top of that wall


def place_cameras(views: Views, width: int, height: int) -> Cameras:
    angle = torch.from_numpy(np.radians(views.heading))
    focal = (width / 2) / torch.tan(torch.from_numpy(np.radians(views.fov)) / 2)
    columns = torch.arange(width) + 0.5 - width / 2

    def f32(values) -> Tensor:
        return torch.as_tensor(values).to(torch.float32)

    return Cameras(
        position=f32(np.stack([views.x, views.y], axis=1)),
        right=f32(torch.stack([torch.cos(angle), -torch.sin(angle)], dim=1)),
        forward=f32(torch.stack([torch.sin(angle), torch.cos(angle)], dim=1)),
        height=f32(views.height),
        focal=f32(focal),
        horizon=f32(views.horizon * height),
        slope=f32(columns[None] / focal[:, None]),
        sun=torch.from_numpy(views.sun).to(torch.int32),
    )


def light_at(scene: Scene, sun: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Shadow height and lamp light at the points (x, y), any shape; `sun` (int32) broadcasts against them."""
    h, w = scene.light_shape
    column = (x * (1 / LIGHT_CELL)).to(torch.int32).clamp_(0, w - 1)
    cell = (y * (1 / LIGHT_CELL)).to(torch.int32).clamp_(0, h - 1).mul_(w).add_(column)
    lamp = scene.lamp.index_select(0, cell.view(-1)).view(cell.shape)
    shadow = scene.shadow.index_select(0, (cell + sun * (h * w)).view(-1)).view(cell.shape)
    return shadow, lamp


def mip_level(footprint: Tensor) -> Tensor:
    """Level whose texels match a pixel's footprint in level-0 texels."""
    return torch.log2(footprint.clamp(min=1.0)).add_(0.2).to(torch.int64).clamp_(0, LEVELS - 1)
