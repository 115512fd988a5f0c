"""From surfaces to colour: sun and sky, street lamps, lit windows, haze, and the camera's own faults."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from sfrs.synthetic.city.camera import FAR, Cameras, Surface
from sfrs.synthetic.city.facade import ALWAYS_LIT, LAST_WINDOW
from sfrs.synthetic.city.scene import Scene
from sfrs.synthetic.city.views import Views

# Per condition (day, overcast, dusk, night), linear light: from the sky, from the sun, from lamps, from
# windows; the sky's colour at the zenith and at the horizon; the share of windows that are lit.
AMBIENT = ((0.40, 0.46, 0.58), (0.78, 0.80, 0.83), (0.22, 0.19, 0.27), (0.035, 0.042, 0.075))
SUN = ((1.30, 1.18, 0.95), (0.0, 0.0, 0.0), (0.16, 0.08, 0.03), (0.0, 0.0, 0.0))
LAMP = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.40, 0.28, 0.13), (0.85, 0.58, 0.28))
WINDOW = ((0.0, 0.0, 0.0), (0.10, 0.09, 0.06), (0.55, 0.40, 0.20), (0.75, 0.54, 0.26))
ZENITH = ((0.20, 0.42, 0.85), (0.62, 0.65, 0.70), (0.14, 0.15, 0.30), (0.008, 0.010, 0.022))
SKYLINE = ((0.70, 0.80, 0.92), (0.80, 0.81, 0.82), (0.62, 0.36, 0.24), (0.06, 0.05, 0.055))
CLOUD = ((0.95, 0.95, 0.95), (0.45, 0.47, 0.50), (0.45, 0.26, 0.24), (0.03, 0.03, 0.035))
LIT_SHARE = (0.0, 0.1, 0.30, 0.38)
NOISE = (0.010, 0.012, 0.020, 0.028)  # after gamma
PENUMBRA = 0.6  # metres over which a shadow's edge fades


def _per_view(table, views: Views) -> Tensor:
    return torch.tensor(table, dtype=torch.float32)[torch.from_numpy(views.condition)]


@functools.lru_cache(maxsize=1)
def _clouds() -> Tensor:
    """Cloud cover in 0..1, float32 [64, 512]; wraps around in azimuth."""
    rng = np.random.default_rng(7)
    cover = np.zeros((64, 512), np.float32)
    for octave in range(1, 6):
        h, w = 2 ** (octave - 1) * 2, 2 ** (octave + 1)
        coarse = rng.uniform(-1, 1, (h + 1, w)).astype(np.float32)
        y, x = np.linspace(0, h - 1e-3, 64), np.linspace(0, w, 512, endpoint=False)
        i, j = y.astype(int), x.astype(int)
        fy, fx = (y - i)[:, None], (x - j)[None]
        fy, fx = fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
        k = (j + 1) % w
        cover += (
            (coarse[i][:, j] * (1 - fx) + coarse[i][:, k] * fx) * (1 - fy)
            + (coarse[i + 1][:, j] * (1 - fx) + coarse[i + 1][:, k] * fx) * fy
        ) / octave
    return torch.from_numpy(np.clip(cover * 1.1, 0, 1).astype(np.float32))


@functools.lru_cache(maxsize=1)
def _grain() -> Tensor:
    return torch.from_numpy(np.random.default_rng(8).normal(size=(512, 512)).astype(np.float32))


def _sky(cameras: Cameras, views: Views, height: int) -> list[Tensor]:
    """Three colour planes [B, H, W] of the sky behind everything."""
    rows = torch.arange(height) + 0.5
    rise = ((cameras.horizon[:, None] - rows) / cameras.focal[:, None]).clamp(0.0, 1.2)  # [B, H]
    heading = torch.deg2rad(torch.from_numpy(views.heading)).to(torch.float32)
    drift = torch.from_numpy((views.moment * 37) % 512)
    azimuth = (heading[:, None] + torch.atan(cameras.slope)) * (512 / (2 * torch.pi))
    column = (azimuth.to(torch.int64) + drift[:, None]) % 512
    row = (rise * 50).to(torch.int64)
    cover = _clouds().view(-1)[row[:, :, None] * 512 + column[:, None]]
    blend = (rise * 1.6).clamp(max=1.0).sqrt()[:, :, None]
    zenith, skyline, cloud = (_per_view(t, views) for t in (ZENITH, SKYLINE, CLOUD))
    planes = []
    for c in range(3):
        low, high, white = (v[:, c, None, None] for v in (skyline, zenith, cloud))
        clear = low + (high - low) * blend  # [B, H, 1]
        planes.append(torch.addcmul(clear, cover, white - clear))
    return planes


def _window_light(views: Views, light: Tensor) -> Tensor:
    """How brightly each pixel shines by itself, 0..1: signs always, windows by the moment's draw."""
    share = _per_view(LIT_SHARE, views)[:, None, None]
    moment = torch.from_numpy(views.moment % 65521).to(torch.int32)[:, None, None]
    draw = ((light.to(torch.int32) * 7919 + moment * 104_729) & 1023).to(torch.float32) * (1 / 1024)
    window = (light > 0) & (light <= LAST_WINDOW)
    lit = torch.where(window & (draw < share), 0.45 + 0.6 * draw / share.clamp(min=0.01), 0.0)
    return torch.where(light == ALWAYS_LIT, 1.0, lit)


def _camera_faults(views: Views) -> tuple[Tensor, Tensor]:
    """Exposure with white balance [B, 3] and the offset [B, 2] of the noise."""
    gains, offsets = [], []
    for moment, tile in zip(views.moment, views.tile, strict=True):
        rng = np.random.default_rng([int(moment), 31])
        exposure = np.exp(rng.normal(0.0, 0.13))
        gains.append(exposure * np.exp(rng.normal(0.0, [0.05, 0.02, 0.05])))
        offsets.append(np.random.default_rng([int(moment), int(tile), 32]).integers(0, 256, 2))
    return torch.from_numpy(np.array(gains)).to(torch.float32), torch.from_numpy(np.array(offsets))


def shade(scene: Scene, cameras: Cameras, views: Views, surface: Surface) -> Tensor:
    """Colour uint8 [B, H, W, 3] of a surface."""
    batch, height, width = surface.depth.shape
    texels = scene.atlas.texels.index_select(0, surface.texel.view(-1))
    texels = texels.view(torch.uint8).view(batch, height, width, 4)
    glow = _window_light(views, texels[..., 3])
    sunlit = (surface.z - surface.shadow).mul_(1 / PENUMBRA).add_(0.5).clamp_(0.0, 1.0).mul_(surface.facing)
    lamp = surface.z.mul(-0.17).exp_().mul_(surface.lamp)
    # Ambient light is weaker near the ground between houses.
    open_sky = surface.z.mul(0.03).add_(0.72).clamp_(max=1.05)
    is_sky = surface.depth >= FAR
    haze = torch.from_numpy(views.haze).to(torch.float32)[:, None, None]
    clear = (surface.depth * -haze).exp_()
    gain, offset = _camera_faults(views)
    grain = torch.stack([_grain()[y : y + height, x : x + width] for y, x in offset.tolist()])
    grain = grain * _per_view(NOISE, views)[:, None, None]
    sky = _sky(cameras, views, height)
    tables = [_per_view(t, views) for t in (AMBIENT, SUN, LAMP, WINDOW, SKYLINE)]
    planes = []
    for c in range(3):
        ambient, direct, lamps, windows, skyline = (t[:, c, None, None] for t in tables)
        albedo = texels[..., c].to(torch.float32).mul_(1 / 255).square_()
        incoming = (open_sky * ambient).addcmul_(sunlit, direct).addcmul_(lamp, lamps)
        colour = albedo.mul_(incoming).addcmul_(glow, windows)
        colour = colour.sub_(skyline).mul_(clear).add_(skyline)
        colour = torch.where(is_sky, sky[c], colour)
        colour = colour.mul_(gain[:, c, None, None]).clamp_(0.0, 1.0).sqrt_().add_(grain)
        planes.append(colour.mul_(255.0).clamp_(0.0, 255.0).to(torch.uint8))
    return torch.stack(planes, dim=-1)
