"""A city ready to be rendered: plan, textures and light maps as torch tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfrs.synthetic.city import textures
from sfrs.synthetic.city.atlas import Atlas, AtlasBuilder
from sfrs.synthetic.city.facade import TEXELS_PER_METRE, Facade
from sfrs.synthetic.city.ground import GROUND_CELL, height_map, lamp_map, paint_ground, shadow_maps
from sfrs.synthetic.city.layout import BACK, FENCE, FRONT, SIDE, CityPlan, plan_city
from sfrs.synthetic.city.sprites import Sprites, draw_sprites
from sfrs.synthetic.city.style import draw_style

YEARS = 2
BACKS = 40
OUTSIDE = 0.8  # metres in front of a wall where its shadow and lamp light are looked up


@dataclass(frozen=True)
class Scene:
    """Everything a view needs, as tensors in metres; `n` walls, `p` standing props."""

    plan: CityPlan
    sprites: Sprites
    atlas: Atlas
    ground_texture: int
    start: Tensor  # float32 [n, 2]
    end: Tensor  # float32 [n, 2]
    normal: Tensor  # float32 [n, 2], unit, pointing outside
    height: Tensor  # float32 [n]
    wall_texture: Tensor  # int64 [n, YEARS]
    outline: Tensor  # float32 [m], roof lines of all walls
    outline_offset: Tensor  # int64 [n]
    outline_length: Tensor  # int64 [n]
    prop_position: Tensor  # float32 [p, 2]
    prop_size: Tensor  # float32 [p, 2], width and height
    prop_texture: Tensor  # int64 [p]
    car_slots: Tensor  # float32 [c, 3]
    car_texture: Tensor  # int64 [cars, 2], side and end
    people_texture: Tensor  # int64 [people]
    shadow: Tensor  # float32 [suns * h * w]
    lamp: Tensor  # float32 [h * w]
    light_shape: tuple[int, int]


def _packed(facade: Facade) -> np.ndarray:
    picture = np.empty((*facade.light.shape, 4), np.uint8)
    picture[..., :3] = facade.colour * 255
    picture[..., 3] = facade.light
    return picture


def _wall_textures(plan: CityPlan, builder: AtlasBuilder) -> tuple[np.ndarray, list[np.ndarray]]:
    """Texture numbers [walls, YEARS] and the roof line of every wall.

    Every front is a picture of its own; the sides of a house share one; backs, seldom seen, share a small
    stock.
    """
    walls = plan.walls
    styles = {b: draw_style(np.random.default_rng([plan.seed, 4, b])) for b in np.unique(walls.building)}
    numbers = np.zeros((len(walls), YEARS), np.int64)
    outlines = []
    lengths = np.linalg.norm(walls.end - walls.start, axis=1)
    highest = float(walls.height.max())
    shared: dict[tuple[int, int], int] = {}
    for i in range(len(walls)):
        rng = np.random.default_rng([plan.seed, 5, i])
        building, kind = int(walls.building[i]), int(walls.kind[i])
        style, size = styles[building], (float(lengths[i]), float(walls.height[i]))
        if kind == FRONT:
            fronts = textures.paint_front(rng, style, *size, years=YEARS)
            numbers[i] = [builder.add(_packed(f), TEXELS_PER_METRE) for f in fronts]
            outlines.append(fronts[0].outline)
        elif kind == FENCE:
            numbers[i] = builder.add(_packed(textures.paint_fence(rng, style, *size)), TEXELS_PER_METRE)
            outlines.append(np.full(1, size[1], np.float32))
        else:
            key = (SIDE, building) if kind == SIDE else (BACK, building % BACKS)
            if key not in shared:
                tall, windows = (size[1], 0.12) if kind == SIDE else (highest, 0.5)
                plain = textures.paint_plain(rng, style, size[0], tall, windows)
                shared[key] = builder.add(_packed(plain), TEXELS_PER_METRE)
            numbers[i] = shared[key]
            outlines.append(np.full(1, size[1], np.float32))
    # A side or back wall ends below the eaves of its front where the roof slopes.
    for i in np.flatnonzero((walls.kind != FRONT) & (walls.kind != FENCE)):
        roof = styles[walls.building[i]].roof
        outlines[i] = outlines[i] - {"flat": 0.9, "mansard": 2.4, "gable": 3.0, "steps": 3.0}[roof]
    return numbers, outlines


def build_scene(seed: int, blocks: int = 4) -> Scene:
    """Draw the quarter of `seed` (see `plan_city`) with all its textures: about 370 houses for blocks = 4."""
    plan, sprites = plan_city(seed, blocks), draw_sprites(seed)
    builder = AtlasBuilder()
    ground_texture = builder.add(paint_ground(plan), 1.0 / GROUND_CELL)
    numbers, outlines = _wall_textures(plan, builder)
    car_texture = np.array(
        [
            [builder.add(side, side.shape[1] / 4.3), builder.add(end, end.shape[1] / 1.75)]
            for side, end in zip(sprites.car_sides, sprites.car_ends, strict=True)
        ]
    )
    tree_texture = np.array([builder.add(t, t.shape[0] / 7.0) for t in sprites.trees])
    people_texture = np.array([builder.add(p, p.shape[0] / 1.75) for p in sprites.people])
    lamp_texture = builder.add(sprites.lamp, 96 / 5.5)
    rng = np.random.default_rng([seed, 6])
    variant = rng.integers(sprites.tree_variants, size=len(plan.trees))
    heights = height_map(plan)
    lengths = np.array([len(o) for o in outlines])
    direction = plan.walls.end - plan.walls.start
    direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)

    def tensor(array: np.ndarray, dtype: type[np.generic] = np.float32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))

    return Scene(
        plan=plan,
        sprites=sprites,
        atlas=builder.build(),
        ground_texture=ground_texture,
        start=tensor(plan.walls.start),
        end=tensor(plan.walls.end),
        normal=tensor(np.stack([direction[:, 1], -direction[:, 0]], axis=1)),
        height=tensor(plan.walls.height),
        wall_texture=torch.from_numpy(numbers),
        outline=tensor(np.concatenate(outlines)),
        outline_offset=tensor(np.cumsum(lengths) - lengths, np.int64),
        outline_length=tensor(lengths, np.int64),
        prop_position=tensor(np.concatenate([plan.trees[:, :2], plan.lamps])),
        prop_size=tensor(
            np.concatenate(
                [plan.trees[:, 2:] * [[0.68, 1.0]], np.broadcast_to([0.92, 5.5], (len(plan.lamps), 2))]
            )
        ),
        prop_texture=tensor(
            np.concatenate(
                [
                    tree_texture[plan.tree_species * sprites.tree_variants + variant],
                    np.full(len(plan.lamps), lamp_texture),
                ]
            ),
            np.int64,
        ),
        car_slots=tensor(plan.car_slots),
        car_texture=torch.from_numpy(car_texture),
        people_texture=torch.from_numpy(people_texture),
        shadow=tensor(shadow_maps(heights)).reshape(-1),
        lamp=tensor(lamp_map(plan, heights.shape)).reshape(-1),
        light_shape=heights.shape,
    )
