"""From views to pictures: one ray per image column, one texel per pixel.

2.5-D: walls are vertical and the camera is level (pitch is a shift of the horizon), so a column of pixels
sees a wall at one depth and the ground row by row. Per column the three nearest walls that rise above each
other are kept; a pixel then needs its layer, a texel index and a depth. Everything that stands in the street
is a small upright plane, enumerated pixel by pixel and merged through a depth buffer. `lighting.shade` turns
the result into colour.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfrs.synthetic.city import lighting, occluders
from sfrs.synthetic.city.camera import FAR, Cameras, Surface, light_at, mip_level, place_cameras
from sfrs.synthetic.city.ground import SUNS
from sfrs.synthetic.city.scene import OUTSIDE, Scene
from sfrs.synthetic.city.views import Views

LAYERS = 3
CANDIDATES = 112  # nearest walls inside the field of view that a column is tested against


def _sun_facing(views: Views, normal: Tensor) -> Tensor:
    """Cosine between the horizontal part of the sun's direction and wall normals [..., 2] of a batch."""
    suns = torch.tensor(SUNS, dtype=torch.float32)[torch.from_numpy(views.sun)]
    azimuth, elevation = torch.deg2rad(suns[:, 0]), torch.deg2rad(suns[:, 1])
    direction = torch.stack([torch.sin(azimuth), torch.cos(azimuth)], dim=1) * torch.cos(elevation)[:, None]
    shape = (len(views),) + (1,) * (normal.dim() - 2) + (2,)
    return (normal * direction.reshape(shape)).sum(-1).clamp_(min=0.0)


def _candidate_walls(scene: Scene, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers [B, C] of the nearest walls that face the camera, and their ends in camera axes [B, C, 2]
    each."""
    ends = []
    for points in (scene.start, scene.end):
        offset = points[None] - cameras.position[:, None]  # [B, n, 2]
        ends.append(((offset * cameras.right[:, None]).sum(-1), (offset * cameras.forward[:, None]).sum(-1)))
    (s0, t0), (s1, t1) = ends
    half = cameras.slope[:, -1:]
    facing = ((cameras.position[:, None] - scene.start[None]) * scene.normal[None]).sum(-1) > 0
    visible = facing & (torch.maximum(t0, t1) > 0.1)
    visible &= ~((s0 > half * t0) & (s1 > half * t1)) & ~((s0 < -half * t0) & (s1 < -half * t1))
    middle = 0.5 * (s0 + s1), 0.5 * (t0 + t1)
    distance = torch.where(visible, torch.hypot(*middle), torch.tensor(FAR))
    number = distance.topk(min(CANDIDATES, distance.shape[1]), dim=1, largest=False, sorted=False).indices
    take = [torch.gather(v, 1, number) for v in (s0, t0, s1, t1)]
    s0, t0, s1, t1 = take
    hidden = ~torch.gather(visible, 1, number)
    t0, t1 = t0.masked_fill(hidden, -1.0), t1.masked_fill(hidden, -1.0)
    return number, torch.stack([s0, t0], -1), torch.stack([s1, t1], -1)


def _hits(scene: Scene, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """The first LAYERS walls of every column that rise above what stands before them.

    Returns wall numbers [L, B, W], depth [L, B, W] (FAR where none) and the position along the wall in 0..1.
    """
    number, p0, p1 = _candidate_walls(scene, cameras)
    q = cameras.slope[:, None, :]  # [B, 1, W]
    s0, t0, s1, t1 = (v[..., None] for v in (p0[..., 0], p0[..., 1], p1[..., 0], p1[..., 1]))
    along = (q * t0 - s0) / ((s1 - s0) - q * (t1 - t0))  # [B, C, W]
    depth = torch.addcmul(t0.expand_as(along), along, t1 - t0)
    depth = torch.where((along >= 0) & (along < 1) & (depth > 0.3), depth, FAR)
    height = scene.height[number][..., None] - cameras.height[:, None, None]
    rise = height / depth
    walls, depths, positions = [], [], []
    for layer in range(LAYERS):
        nearest, which = depth.min(dim=1)  # [B, W]
        wall = torch.gather(number, 1, which)
        position = torch.gather(along, 1, which[:, None]).squeeze(1)
        walls.append(wall)
        depths.append(nearest)
        positions.append(position.nan_to_num(0.0).clamp(0.0, 0.9999))
        if layer + 1 < LAYERS:
            top = (_outline(scene, wall, positions[-1]) - cameras.height[:, None]) / nearest
            depth = torch.where((rise > top[:, None]) & (depth > nearest[:, None] + 0.05), depth, FAR)
    return torch.stack(walls), torch.stack(depths), torch.stack(positions)


def _outline(scene: Scene, wall: Tensor, position: Tensor) -> Tensor:
    index = scene.outline_offset[wall] + (position * scene.outline_length[wall]).to(torch.int64)
    return scene.outline[index]


def _ground(scene: Scene, cameras: Cameras, rows: Tensor, elevation: Tensor, surface_shape) -> Surface:
    """The surface of an empty city: ground below the horizon, sky above."""
    batch, height, width = surface_shape
    below = rows[None] - cameras.horizon[:, None]  # [B, H]
    seen = below > 0.5
    depth = torch.where(seen, (cameras.focal * cameras.height)[:, None] / below.clamp(min=0.5), FAR)
    reach = depth.clamp(max=400.0)[:, :, None]
    ray = cameras.forward[:, :, None] + cameras.right[:, :, None] * cameras.slope[:, None, :]  # [B, 2, W]
    x = torch.addcmul(cameras.position[:, 0, None, None].expand(batch, height, width), reach, ray[:, None, 0])
    y = torch.addcmul(cameras.position[:, 1, None, None].expand(batch, height, width), reach, ray[:, None, 1])
    # A ground pixel is much deeper than wide; the level follows the geometric mean of the two.
    metres = depth / cameras.focal[:, None]
    deep = (metres * depth / cameras.height[:, None] * metres).sqrt()
    atlas, texture = scene.atlas, scene.ground_texture
    level = mip_level(deep * atlas.density[texture])  # [B, H]
    scale = atlas.density[texture] * torch.exp2(-level.to(torch.float32))
    w, h = atlas.width[texture][level][:, :, None], atlas.height[texture][level][:, :, None]
    column = torch.minimum((x * scale[:, :, None]).to(torch.int32).clamp_(min=0), w - 1)
    row = torch.minimum((y * scale[:, :, None]).to(torch.int32).clamp_(min=0), h - 1)
    texel = row.mul_(w).add_(column).add_(atlas.offset[texture][level][:, :, None])
    texel.mul_(seen[:, :, None])
    shadow, lamp = light_at(scene, cameras.sun[:, None, None], x, y)
    return Surface(
        texel=texel,
        depth=depth[:, :, None].expand(batch, height, width),
        z=torch.zeros(1).expand(batch, height, width),
        facing=torch.sin(elevation)[:, None, None].expand(batch, height, width),
        shadow=shadow,
        lamp=lamp,
        wall_depth=depth,
        wall_rise=depth,
    )


def _draw_walls(scene: Scene, cameras: Cameras, views: Views, rows: Tensor, surface: Surface) -> None:
    """Overwrite the pixels of `surface` that show a wall, farthest layer first."""
    walls, depths, positions = _hits(scene, cameras)
    atlas = scene.atlas
    year = torch.from_numpy(views.year)[:, None].expand_as(walls[0])
    ray = cameras.forward[:, None] + cameras.right[:, None] * cameras.slope[..., None]  # [B, W, 2]
    below = rows[None] - cameras.horizon[:, None]  # [B, H]
    for layer in reversed(range(LAYERS)):
        wall, depth, position = walls[layer], depths[layer], positions[layer]
        rise = _outline(scene, wall, position) - cameras.height[:, None]
        pixels = cameras.focal[:, None] / depth  # pixels per metre [B, W]
        upper = torch.where(depth < FAR, -rise * pixels, FAR)
        lower = cameras.height[:, None] * pixels
        shown = (below[:, :, None] >= upper[:, None]) & (below[:, :, None] < lower[:, None])
        texture = scene.wall_texture[wall, year]
        normal = scene.normal[wall]  # [B, W, 2]
        cosine = -(normal * ray).sum(-1) / torch.sqrt(1 + cameras.slope**2)
        level = mip_level(atlas.density[texture] / pixels * cosine.clamp(min=0.05).rsqrt())
        scale = atlas.density[texture] * torch.exp2(-level.to(torch.float32))
        w, h = atlas.width[texture, level], atlas.height[texture, level]
        base = atlas.offset[texture, level] + (position * w).to(torch.int32)
        point = cameras.position[:, None] + ray * depth[..., None] + normal * OUTSIDE
        shadow, lamp = light_at(scene, cameras.sun[:, None], point[..., 0], point[..., 1])
        facing = _sun_facing(views, normal)
        z = torch.addcmul(cameras.height[:, None, None], below[:, :, None], (1 / pixels)[:, None], value=-1.0)
        row = (z * scale[:, None]).to(torch.int32).clamp_(min=0)
        texel = torch.minimum(row, (h - 1)[:, None]).mul_(w[:, None]).add_(base[:, None])
        surface.texel = torch.where(shown, texel, surface.texel)
        surface.depth = torch.where(shown, depth[:, None], surface.depth)
        surface.z = torch.where(shown, z, surface.z)
        surface.facing = torch.where(shown, facing[:, None], surface.facing)
        surface.shadow = torch.where(shown, shadow[:, None], surface.shadow)
        surface.lamp = torch.where(shown, lamp[:, None], surface.lamp)
        surface.wall_depth, surface.wall_rise = depth, rise / depth


def render(scene: Scene, views: Views, size: tuple[int, int] = (128, 160)) -> np.ndarray:
    """Pictures uint8 [n, H, W, 3] of all `views`; a pure function of scene, views and size = (H, W).

    Call it with batches of about 8 views: the working set then stays in the cache.
    """
    height, width = size
    with torch.no_grad():
        cameras = place_cameras(views, width, height)
        rows = torch.arange(height, dtype=torch.float32) + 0.5
        elevation = torch.deg2rad(torch.tensor(SUNS, dtype=torch.float32)[:, 1])[torch.from_numpy(views.sun)]
        surface = _ground(scene, cameras, rows, elevation, (len(views), height, width))
        _draw_walls(scene, cameras, views, rows, surface)
        occluders.draw(scene, cameras, views, rows, surface)
        return lighting.shade(scene, cameras, views, surface).numpy()
