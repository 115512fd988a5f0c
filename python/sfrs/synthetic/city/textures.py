"""Procedural facades: every building gets its own wall, windows, doors, signs, cornices and roof line.

What decides how a building looks is its `Style`; what is drawn at random beyond that comes from a generator
of its own, so that a wall never depends on what was painted before it.
"""

from __future__ import annotations

import numpy as np

from sfrs.synthetic.city.facade import LAST_WINDOW, TEXELS_PER_METRE, Facade
from sfrs.synthetic.city.ground_floor import paint_ground_floor
from sfrs.synthetic.city.style import Style, hsv


def _noise(rng: np.random.Generator, h: int, w: int, cell: int) -> np.ndarray:
    """Value noise in -1..1, [h, w], constant on cells of `cell` texels."""
    coarse = rng.uniform(-1, 1, (h // cell + 2, w // cell + 2)).astype(np.float32)
    return np.repeat(np.repeat(coarse, cell, 0), cell, 1)[:h, :w]


def _wall_surface(rng: np.random.Generator, style: Style, h: int, w: int) -> np.ndarray:
    """The bare wall [h, w, 3]: courses, joints, stains."""
    stain = 0.05 * _noise(rng, h, w, 24) + 0.03 * _noise(rng, h, w, 9) + 0.02 * rng.uniform(-1, 1, (h, w))
    shade = 1.0 + stain.astype(np.float32)
    rows, columns = np.arange(h)[:, None], np.arange(w)[None, :]
    if style.material == "brick":
        bricks = rng.uniform(-1, 1, (h // 2 + 1, w // 3 + 3)).astype(np.float32)
        course = rows // 2
        shade = shade + 0.13 * bricks[course, (columns + (course % 2) * 2) // 3]
    elif style.material == "stone":
        course = rows // 5
        block = (columns + (course % 2) * 6) // 12
        tone = rng.uniform(-1, 1, (h // 5 + 1, w // 12 + 3)).astype(np.float32)
        joint = (rows % 5 == 0) | ((columns + (course % 2) * 6) % 12 == 0)
        shade = (shade + 0.09 * tone[course, block]) * np.where(joint, 0.74, 1.0)
    elif style.material == "panel":
        step = max(10, int(style.spacing * TEXELS_PER_METRE))
        shade = shade * np.where(columns % step == 0, 0.7, 1.0)
    surface = style.wall[None, None] * shade[..., None].astype(np.float32)
    if style.material == "timber":
        beam = style.accent * 0.45
        step = int(style.spacing * TEXELS_PER_METRE)
        floor = int(style.floor_height * TEXELS_PER_METRE)
        slanted = (
            ((columns + rows * step // max(floor, 1)) % (2 * step) < 2)
            | (columns % step < 2)
            | (rows % floor < 3)
        )
        surface[slanted] = beam
    return surface


def _window(style: Style, w: int, h: int) -> np.ndarray:
    """One window [h, w, 3]: glass with the sky's reflection above, frame and bars."""
    gradient = np.linspace(0.75, 1.35, h, dtype=np.float32)[:, None, None]
    pane = np.broadcast_to(style.glass, (h, w, 3)) * gradient
    if style.bars >= 1 and w >= 6:
        pane[:, w // 2] = style.frame
    if style.bars >= 2 and h >= 8:
        pane[int(h * 0.66)] = style.frame
    if style.bars == 3 and w >= 9:
        pane[:, w // 4] = style.frame * 0.8
        pane[:, w - 1 - w // 4] = style.frame * 0.8
    pane[0], pane[-1], pane[:, 0], pane[:, -1] = (style.frame,) * 4
    return pane


def _upper_floors(rng: np.random.Generator, facade: Facade, style: Style, eaves: float) -> None:
    s = TEXELS_PER_METRE
    floors = max(1, int((eaves - style.ground_height - 0.5) / style.floor_height))
    columns = max(1, int((facade.width - 0.6) / style.spacing))
    pitch = facade.width / columns
    w, h = (
        max(4, int(pitch * style.window_width * s)),
        max(5, int(style.floor_height * style.window_height * s)),
    )
    pane = _window(style, w, h)
    floor_h = (eaves - 0.5 - style.ground_height) / floors
    blind = rng.random((floors, columns)) < 0.04
    arch = np.abs(np.arange(w) - (w - 1) / 2) > w * 0.3
    for f in range(floors):
        z = style.ground_height + f * floor_h
        if style.bands:
            facade.rect(0, facade.width, z - 0.2, z + 0.05, style.trim)
        for c in range(columns):
            if blind[f, c]:
                continue
            x = (c + 0.5) * pitch
            x0, z0 = int(round(x * s - w / 2)), int(round((z + floor_h * 0.2) * s))
            left, low = x0 / s, z0 / s
            right, high = (x0 + w) / s, (z0 + h) / s
            if style.lintel:
                facade.rect(left - 0.15, right + 0.15, high, high + style.lintel, style.trim)
            facade.rect(left - 0.12, right + 0.12, low - 0.2, low, style.trim * 0.9)
            if style.shutters:
                for side in (left - 0.55, right + 0.05):
                    facade.rect(side, side + 0.5, low, high, style.accent)
            box = facade.colour[z0 : z0 + h, max(x0, 0) : x0 + w]
            tone = rng.uniform(0.8, 1.25)
            box[...] = pane[: box.shape[0], : box.shape[1]] * tone
            if rng.random() < 0.35:  # a curtain
                box[1:-1, 1 : max(2, w // 4)] = style.trim * 0.9
            facade.light[z0 + 1 : z0 + h - 1, max(x0, 0) + 1 : x0 + w - 1] = rng.integers(1, LAST_WINDOW + 1)
            if style.arched and box.shape[1] == w and box.shape[0] == h:
                box[-2:, arch] = style.wall
            if style.balconies and f > 0 and c % style.balconies == 0:
                facade.rect(left - 0.3, right + 0.3, low - 0.25, low - 0.05, style.trim * 0.8)
                rail = facade.colour[z0 : z0 + 7, max(x0 - 2, 0) : x0 + w + 2]
                rail[:, ::2] = style.accent * 0.4
                rail[-1:] = style.accent * 0.35


def _ornaments(facade: Facade, style: Style, eaves: float) -> None:
    if style.pilasters:
        for x in np.linspace(0, facade.width - 0.5, max(2, int(facade.width / (2 * style.spacing)) + 1)):
            facade.rect(x, x + 0.5, style.ground_height, eaves - 0.4, style.trim)
            facade.rect(x + 0.38, x + 0.5, style.ground_height, eaves - 0.4, style.trim * 0.75)
    if style.quoins:
        for k, z in enumerate(np.arange(0, eaves - 0.6, 0.55)):
            w = 0.6 if k % 2 else 0.9
            facade.rect(0, w, z, z + 0.42, style.trim)
            facade.rect(facade.width - w, facade.width, z, z + 0.42, style.trim)
    facade.rect(0, facade.width, eaves - 0.55, eaves, style.trim)
    facade.rect(0, facade.width, eaves - 0.7, eaves - 0.55, style.trim * 0.55)


def _roof(rng: np.random.Generator, facade: Facade, style: Style, eaves: float, height: float) -> None:
    """Everything above the eaves; sets the outline."""
    h, w = facade.light.shape
    x = (np.arange(w) + 0.5) / TEXELS_PER_METRE
    rise = height - eaves
    outline = np.full(w, eaves, np.float32)
    top = int(eaves * TEXELS_PER_METRE)
    tiles = 1.0 + 0.12 * rng.uniform(-1, 1, (h - top, w)) - 0.15 * (np.arange(h - top) % 3 == 0)[:, None]
    if style.roof == "mansard":
        outline[:] = height
        facade.colour[top:] = style.roof_colour * tiles[..., None].astype(np.float32)
        dormers = max(1, int(facade.width / (2 * style.spacing)))
        for c in range(dormers):
            mid = (c + 0.5) * facade.width / dormers
            facade.rect(mid - 0.75, mid + 0.75, eaves + 0.3, eaves + rise * 0.8, style.trim)
            facade.rect(
                mid - 0.5,
                mid + 0.5,
                eaves + 0.5,
                eaves + rise * 0.7,
                style.glass,
                rng.integers(1, LAST_WINDOW),
            )
    elif style.roof in ("gable", "steps"):
        slope = 1.0 - np.abs(x - facade.width / 2) / (facade.width / 2)
        if style.roof == "steps":
            slope = np.ceil(slope * 4) / 4
        outline[:] = eaves + rise * slope
        middle, attic = facade.width / 2, rng.integers(1, LAST_WINDOW)
        facade.rect(middle - 0.5, middle + 0.5, eaves + 0.2, eaves + rise * 0.5, style.glass, attic)
        edge = (outline * TEXELS_PER_METRE).astype(int)
        for d in (1, 2):
            facade.colour[np.clip(edge - d, 0, h - 1), np.arange(w)] = style.trim
    if rng.random() < 0.5:  # a chimney or a lift house
        mid, half = rng.uniform(0.15, 0.85) * facade.width, rng.uniform(0.4, 1.2)
        stands = np.abs(x - mid) < half
        outline[stands] = np.maximum(outline[stands], min(height, outline[stands].max(initial=eaves) + 1.2))
        facade.colour[top:, stands & (outline > eaves)] *= 0.8
    facade.outline = np.minimum(outline, height).astype(np.float32)


def paint_front(
    rng: np.random.Generator, style: Style, width: float, height: float, years: int
) -> list[Facade]:
    """The street front of a building, once per year; years differ in the ground floor only.

    `width`, `height` in metres (height of the highest point of the roof line).
    """
    s = TEXELS_PER_METRE
    w, h = max(4, int(round(width * s))), max(8, int(np.ceil(height * s)))
    rise = {"flat": 0.9, "mansard": 2.8, "gable": min(4.5, width * 0.4), "steps": min(4.0, width * 0.4)}[
        style.roof
    ]
    eaves = max(style.ground_height + 0.8, height - rise)
    wall = _wall_surface(rng, style, h, w)
    facade = Facade(wall.copy(), np.zeros((h, w), np.uint8), np.full(w, height, np.float32))
    _upper_floors(rng, facade, style, eaves)
    _ornaments(facade, style, eaves)
    _roof(rng, facade, style, eaves, height)
    if rng.random() < 0.4:  # a drain pipe
        x = rng.uniform(0.2, max(0.3, facade.width - 0.4))
        facade.rect(x, x + 0.14, 0, eaves - 0.5, style.trim * 0.5)
    fronts = []
    for _ in range(years):
        copy = Facade(facade.colour.copy(), facade.light.copy(), facade.outline)
        paint_ground_floor(rng, copy, style, wall)
        # A darker foot and a soft shadow under the eaves: ambient occlusion a camera always sees.
        foot = np.minimum(1.0, 0.72 + np.arange(h, dtype=np.float32) / (2.5 * s))
        copy.colour = np.clip(copy.colour * foot[:, None, None], 0, 1)
        fronts.append(copy)
    return fronts


def paint_plain(
    rng: np.random.Generator, style: Style, width: float, height: float, windows: float
) -> Facade:
    """A side or back wall: the building's material with few windows (`windows`: share of places that have
    one)."""
    s = TEXELS_PER_METRE
    w, h = max(4, int(round(width * s))), max(8, int(np.ceil(height * s)))
    colour = _wall_surface(rng, style, h, w) * rng.uniform(0.75, 0.95)
    facade = Facade(np.clip(colour, 0, 1), np.zeros((h, w), np.uint8), np.full(w, height, np.float32))
    for z in np.arange(1.2, height - 2.0, style.floor_height):
        for x in np.arange(1.0, width - 1.5, 2.6):
            if rng.random() < windows:
                facade.rect(x - 0.1, x + 1.0, z - 0.1, z + 1.4, style.trim)
                facade.rect(x, x + 0.9, z, z + 1.3, style.glass, int(rng.integers(1, LAST_WINDOW)))
    return facade


def paint_fence(rng: np.random.Generator, style: Style, width: float, height: float) -> Facade:
    """A garden wall, a hedge or a picket fence."""
    s = TEXELS_PER_METRE
    w, h = max(4, int(round(width * s))), max(8, int(np.ceil(height * s)))
    kind = rng.choice(["wall", "hedge", "pickets"])
    if kind == "wall":
        colour = _wall_surface(rng, style, h, w)
    elif kind == "hedge":
        colour = hsv(0.3, 0.5, 0.32) * (1 + 0.35 * rng.uniform(-1, 1, (h, w, 1))).astype(np.float32)
    else:
        colour = np.broadcast_to(style.accent, (h, w, 3)).copy()
        colour[:, ::3] = style.accent * 0.4
    return Facade(np.clip(colour, 0, 1), np.zeros((h, w), np.uint8), np.full(w, height, np.float32))
