"""Cars, trees, lamps and passers-by: upright planes, merged into the surface through a depth buffer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfrs.synthetic.city.camera import Cameras, Surface, light_at, mip_level
from sfrs.synthetic.city.scene import Scene
from sfrs.synthetic.city.sprites import CAR_HEIGHT, CAR_LENGTH, CAR_WIDTH, HOLE
from sfrs.synthetic.city.views import Views

REACH = 60.0  # metres within which trees and lamps are drawn
CAR_REACH = 40.0
CAR_DENSITY = 0.45  # share of the parking slots that are taken
PEOPLE = 14  # per recording, within 25 m
NEAREST = 0.8  # metres; a plane nearer than this is left out


@dataclass(frozen=True)
class Planes:
    """Upright rectangles: ends in camera axes (sideways, forward) [m], height [m], texture [m], view number
    [m]."""

    view: Tensor
    side0: Tensor
    forward0: Tensor
    side1: Tensor
    forward1: Tensor
    height: Tensor
    texture: Tensor
    position: Tensor  # [m, 2] in the plan, for the light maps


def _hash(*parts: np.ndarray | int) -> np.ndarray:
    """Evenly spread uint64 of integer arrays (splitmix64), for draws that depend on (moment, thing) alone."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = state + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def _share(values: np.ndarray) -> np.ndarray:
    return (values >> np.uint64(40)).astype(np.float64) / float(1 << 24)


def _in_camera(cameras: Cameras, view: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    offset = points - cameras.position[view]
    return (offset * cameras.right[view]).sum(-1), (offset * cameras.forward[view]).sum(-1)


def _upright(cameras: Cameras, view: Tensor, centre: Tensor, half: Tensor, height, texture) -> Planes:
    """Planes that face the camera: half = half the width [m]."""
    side, forward = _in_camera(cameras, view, centre)
    return Planes(view, side - half, forward, side + half, forward, height, texture, centre)


def _standing(scene: Scene, cameras: Cameras) -> Planes:
    distance = torch.cdist(cameras.position, scene.prop_position, compute_mode="donot_use_mm_for_euclid_dist")
    view, prop = (distance < REACH).nonzero(as_tuple=True)
    size = scene.prop_size[prop]
    return _upright(
        cameras, view, scene.prop_position[prop], size[:, 0] / 2, size[:, 1], scene.prop_texture[prop]
    )


def _walking(scene: Scene, cameras: Cameras, views: Views) -> Planes:
    """Passers-by at random places around the recording, the same for all tiles of a panorama."""
    number = np.arange(PEOPLE)[None]
    moment = views.moment[:, None]
    angle = 2 * np.pi * _share(_hash(moment, number, 11))
    radius = 3.0 + 22.0 * np.sqrt(_share(_hash(moment, number, 12)))
    kind = (_hash(moment, number, 13) % np.uint64(len(scene.people_texture))).astype(np.int64)
    height = 1.55 + 0.35 * _share(_hash(moment, number, 14))
    place = np.stack(
        [views.x[:, None] + radius * np.cos(angle), views.y[:, None] + radius * np.sin(angle)], axis=-1
    )
    view = torch.arange(len(views)).repeat_interleave(PEOPLE)
    centre = torch.from_numpy(place.reshape(-1, 2)).to(torch.float32)
    tall = torch.from_numpy(height.reshape(-1)).to(torch.float32)
    texture = scene.people_texture[torch.from_numpy(kind.reshape(-1))]
    return _upright(cameras, view, centre, tall * 0.2, tall, texture)


def _parked(scene: Scene, cameras: Cameras, views: Views) -> Planes:
    """Cars in their slots: the side and the end that face the camera."""
    slots = scene.car_slots
    distance = torch.cdist(
        cameras.position, slots[:, :2].contiguous(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    taken = _share(_hash(views.moment[:, None], np.arange(len(slots))[None], 21)) < CAR_DENSITY
    view, slot = ((distance < CAR_REACH) & torch.from_numpy(taken)).nonzero(as_tuple=True)
    draw = _hash(views.moment[view.numpy()], slot.numpy(), 22)
    model = torch.from_numpy((draw % np.uint64(len(scene.car_texture))).astype(np.int64))
    shift = torch.from_numpy(_share(draw) - 0.5).to(torch.float32)
    angle = slots[slot, 2]
    ahead = torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)
    aside = torch.stack([-ahead[:, 1], ahead[:, 0]], dim=1)
    centre = slots[slot, :2] + ahead * shift[:, None]
    to_camera = cameras.position[view] - centre
    near_side = torch.sign((to_camera * aside).sum(1, keepdim=True)) * aside * (CAR_WIDTH / 2)
    near_end = torch.sign((to_camera * ahead).sum(1, keepdim=True)) * ahead * (CAR_LENGTH / 2)
    quads = []
    for middle, half, column in (
        (centre + near_side, ahead * (CAR_LENGTH / 2), 0),
        (centre + near_end, aside * (CAR_WIDTH / 2), 1),
    ):
        s0, t0 = _in_camera(cameras, view, middle - half)
        s1, t1 = _in_camera(cameras, view, middle + half)
        tall = torch.full_like(s0, CAR_HEIGHT)
        quads.append(Planes(view, s0, t0, s1, t1, tall, scene.car_texture[model, column], centre))
    return _joined(quads)


def _joined(parts: list[Planes]) -> Planes:
    return Planes(*[torch.cat([getattr(p, name) for p in parts]) for name in Planes.__dataclass_fields__])


def _kept(planes: Planes, keep: Tensor) -> Planes:
    return Planes(*[getattr(planes, name)[keep] for name in Planes.__dataclass_fields__])


def _spread(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Owner and value of all integers first[i] <= v < last[i], for every i."""
    count = (last - first).clamp(min=0)
    owner = torch.arange(len(count)).repeat_interleave(count)
    start = torch.cumsum(count, 0) - count
    return owner, torch.arange(len(owner)) - start[owner] + first[owner]


def draw(scene: Scene, cameras: Cameras, views: Views, rows: Tensor, surface: Surface) -> None:
    """Merge all planes into `surface` (in place): the nearest wins, holes let through."""
    _, height, width = surface.depth.shape
    planes = _joined(
        [_standing(scene, cameras), _walking(scene, cameras, views), _parked(scene, cameras, views)]
    )
    half = cameras.slope[planes.view, -1] * 1.02
    inside = (planes.forward0 > NEAREST) & (planes.forward1 > NEAREST)
    for sign in (-1.0, 1.0):
        inside &= (sign * planes.side0 < half * planes.forward0) | (
            sign * planes.side1 < half * planes.forward1
        )
    planes = _kept(planes, inside)
    focal, horizon, eye = (v[planes.view] for v in (cameras.focal, cameras.horizon, cameras.height))
    edge0 = width / 2 + focal * planes.side0 / planes.forward0
    edge1 = width / 2 + focal * planes.side1 / planes.forward1
    left = torch.minimum(edge0, edge1).floor().clamp(0, width).to(torch.int64)
    right = torch.maximum(edge0, edge1).ceil().clamp(0, width).to(torch.int64)

    owner, column = _spread(left, right)
    slope = cameras.slope[planes.view[owner], column]
    s0, t0 = planes.side0[owner], planes.forward0[owner]
    s1, t1 = planes.side1[owner], planes.forward1[owner]
    along = (slope * t0 - s0) / ((s1 - s0) - slope * (t1 - t0))
    depth = t0 + along * (t1 - t0)
    keep = (along >= 0) & (along < 1) & (depth > NEAREST)
    # A strip behind a wall that also hides its top is not seen at all.
    behind = depth > surface.wall_depth[planes.view[owner], column]
    rise = (planes.height[owner] - eye[owner]) / depth
    keep &= ~(behind & (rise < surface.wall_rise[planes.view[owner], column]))
    owner, column, along, depth = owner[keep], column[keep], along[keep], depth[keep]

    pixels = focal[owner] / depth
    upper = (horizon[owner] - (planes.height[owner] - eye[owner]) * pixels).round().clamp(0, height)
    lower = (horizon[owner] + eye[owner] * pixels).round().clamp(0, height)
    strip, row = _spread(upper.to(torch.int64), lower.to(torch.int64))
    texel, z, solid = _texels(scene, cameras, planes, owner, along, pixels, strip, rows[row])
    strip, row, texel, z = strip[solid], row[solid], texel[solid], z[solid]
    flat = (planes.view[owner[strip]] * height + row) * width + column[strip]
    depth = depth[strip]

    # Nearest first: the key holds the depth in centimetres above and the entry's number below.
    key = ((depth * 100).to(torch.int64) << 40) | torch.arange(len(flat))
    buffer = torch.full((surface.depth.numel(),), torch.iinfo(torch.int64).max)
    buffer.scatter_reduce_(0, flat, key, "amin")
    pixel = (buffer < torch.iinfo(torch.int64).max).nonzero().squeeze(1)
    entry = buffer[pixel] & ((1 << 40) - 1)
    before = depth[entry] < surface.depth.view(-1)[pixel]
    pixel, entry = pixel[before], entry[before]
    plane = owner[strip[entry]]
    shadow, lamp = light_at(scene, cameras.sun[planes.view], planes.position[:, 0], planes.position[:, 1])
    surface.texel.view(-1)[pixel] = texel[entry]
    surface.depth.view(-1)[pixel] = depth[entry]
    surface.z.view(-1)[pixel] = z[entry]
    surface.facing.view(-1)[pixel] = 0.5
    surface.shadow.view(-1)[pixel] = shadow[plane]
    surface.lamp.view(-1)[pixel] = lamp[plane]


def _texels(scene, cameras, planes, owner, along, pixels, strip, row_centre) -> tuple[Tensor, Tensor, Tensor]:
    """Texel number, height above the ground and solidity of every enumerated pixel."""
    atlas = scene.atlas
    texture = planes.texture[owner]
    level = mip_level(atlas.density[texture] / pixels)
    w, h = atlas.width[texture, level], atlas.height[texture, level]
    base = atlas.offset[texture, level] + (along * w).to(torch.int32)
    view = planes.view[owner]
    z = cameras.height[view][strip] - (row_centre - cameras.horizon[view][strip]) / pixels[strip]
    share = (z / planes.height[owner][strip]).clamp(0.0, 0.9999)
    texel = base[strip] + (share * h[strip]).to(torch.int32) * w[strip]
    solid = ((atlas.texels[texel] >> 24) & 255) != HOLE
    return texel, z, solid
