"""Procedural facades: every building gets its own wall, windows, doors, signs, cornices and roof line.

A facade is an image of 1/8 m texels, row 0 at the ground, with a `light` channel: 0 plain, 1..250 the number
of a window that may be lit at night, 255 what shines every night (signs). `outline[x]` is the height of the
roof line at column x in metres, so that gables and dormers stand against the sky.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

TEXELS_PER_METRE = 8
ALWAYS_LIT = 255
LAST_WINDOW = 250


@dataclass
class Facade:
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


@dataclass(frozen=True)
class Style:
    """What a building looks like; walls of one building share it."""

    material: str
    wall: np.ndarray
    trim: np.ndarray
    frame: np.ndarray
    glass: np.ndarray
    accent: np.ndarray
    roof_colour: np.ndarray
    roof: str
    floor_height: float
    ground_height: float
    spacing: float
    window_width: float  # share of the spacing
    window_height: float  # share of the floor
    bars: int
    arched: bool
    shutters: bool
    balconies: int  # every how many columns; 0 none
    bands: bool
    pilasters: bool
    quoins: bool
    lintel: float


def _hsv(h: float, s: float, v: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0), 1), min(max(v, 0), 1)), dtype=np.float32)


def _wall_colour(rng: np.random.Generator, material: str) -> np.ndarray:
    if material == "brick":
        return _hsv(rng.choice([0.01, 0.04, 0.09, 0.12]) + rng.normal(0, 0.012), rng.uniform(0.3, 0.65),
                    rng.uniform(0.35, 0.68))  # fmt: skip
    if material == "plaster":
        hue = rng.choice([0.05, 0.09, 0.13, 0.15, 0.3, 0.45, 0.57, 0.98]) + rng.normal(0, 0.02)
        return _hsv(hue, rng.uniform(0.05, 0.5), rng.uniform(0.62, 0.95))
    if material == "stone":
        return _hsv(rng.uniform(0.07, 0.14), rng.uniform(0.05, 0.3), rng.uniform(0.45, 0.8))
    if material == "timber":
        return _hsv(0.11, rng.uniform(0.05, 0.3), rng.uniform(0.78, 0.95))
    return _hsv(rng.uniform(0.5, 0.65), rng.uniform(0.0, 0.22), rng.uniform(0.32, 0.85))  # panel, glass


def draw_style(rng: np.random.Generator) -> Style:
    material = str(rng.choice(["brick", "plaster", "stone", "timber", "panel", "glass"],
                              p=[0.25, 0.37, 0.14, 0.06, 0.1, 0.08]))  # fmt: skip
    wall = _wall_colour(rng, material)
    light_trim = rng.random() < 0.65
    roofs = ["flat", "mansard", "gable", "steps"]
    modern = material in ("panel", "glass")
    roof = "flat" if modern else str(rng.choice(roofs, p=[0.33, 0.37, 0.2, 0.1]))
    return Style(
        material=material,
        wall=wall,
        trim=np.clip(
            wall * rng.uniform(1.2, 1.5) + 0.1 if light_trim else wall * rng.uniform(0.5, 0.8), 0, 0.97
        ),
        frame=_hsv(rng.random(), rng.uniform(0, 0.25), rng.choice([0.92, 0.85, 0.3, 0.15])),
        glass=_hsv(rng.uniform(0.5, 0.65), rng.uniform(0.05, 0.4), rng.uniform(0.12, 0.34)),
        accent=_hsv(rng.random(), rng.uniform(0.3, 0.75), rng.uniform(0.25, 0.6)),
        roof_colour=_hsv(
            *[(0.02, 0.5, 0.48), (0.6, 0.12, 0.33), (0.42, 0.25, 0.5), (0.07, 0.3, 0.3)][rng.integers(4)]
        )
        * rng.uniform(0.85, 1.2),
        roof=roof,
        floor_height=rng.uniform(2.8, 3.9),
        ground_height=rng.uniform(3.2, 4.4),
        spacing=rng.uniform(1.7, 3.4),
        window_width=rng.uniform(0.75, 0.95) if material == "glass" else rng.uniform(0.34, 0.66),
        window_height=rng.uniform(0.72, 0.88) if material == "glass" else rng.uniform(0.46, 0.72),
        bars=int(rng.integers(0, 4)),
        arched=not modern and rng.random() < 0.2,
        shutters=not modern and rng.random() < 0.22,
        balconies=int(rng.choice([0, 0, 0, 1, 2, 3])),
        bands=rng.random() < 0.5,
        pilasters=rng.random() < 0.25,
        quoins=rng.random() < 0.25,
        lintel=float(rng.choice([0.0, 0.15, 0.3])),
    )


def _noise(rng: np.random.Generator, h: int, w: int, cell: int) -> np.ndarray:
    """Value noise in -1..1, [h, w], constant on cells of `cell` texels, slightly offset from row to row."""
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


def _window(rng: np.random.Generator, style: Style, w: int, h: int) -> np.ndarray:
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
    pane = _window(rng, style, w, h)
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


def _letters(
    rng: np.random.Generator, facade: Facade, x0: float, x1: float, z0: float, z1: float, ink
) -> None:
    """A line of writing as upright strokes of irregular width."""
    s = TEXELS_PER_METRE
    x = x0
    while x < x1 - 0.3:
        w = rng.uniform(0.2, 0.45)
        part = facade.colour[int(z0 * s) + 1 : int(z1 * s), int(x * s) : int(min(x + w, x1) * s)]
        if part.size:
            part[rng.random(part.shape[:2]) < 0.75] = ink
        x += w + rng.choice([0.13, 0.13, 0.4])


def _shop(rng: np.random.Generator, facade: Facade, top: float, x0: float, x1: float) -> None:
    sign = _hsv(rng.random(), rng.uniform(0.1, 0.95), rng.uniform(0.2, 0.95))
    dark = sign.mean() < 0.5
    facade.rect(x0, x1, 0, top, sign * 0.55)
    panes = max(1, int((x1 - x0) / rng.uniform(1.4, 3.0)))
    pitch = (x1 - x0) / panes
    door = rng.integers(panes)
    for p in range(panes):
        left, right = x0 + p * pitch + 0.12, x0 + (p + 1) * pitch - 0.12
        glass = _hsv(rng.uniform(0.05, 0.65), rng.uniform(0.1, 0.45), rng.uniform(0.15, 0.5))
        facade.rect(left, right, 0.1 if p == door else 0.6, top - 0.9, glass, rng.integers(1, LAST_WINDOW))
        for _ in range(3):  # goods in the window
            u, z = rng.uniform(left, max(left, right - 0.6)), rng.uniform(0.7, 1.4)
            facade.rect(u, u + rng.uniform(0.2, 0.6), 0.65, z, _hsv(rng.random(), 0.6, rng.uniform(0.3, 0.9)))
    facade.rect(x0, x1, top - 0.9, top - 0.1, sign, ALWAYS_LIT)
    middle = (x0 + x1) / 2
    half = rng.uniform(0.25, 0.48) * (x1 - x0)
    _letters(
        rng, facade, middle - half, middle + half, top - 0.8, top - 0.2, np.float32(0.95 if dark else 0.1)
    )
    if rng.random() < 0.45:  # an awning
        stripes = _hsv(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.4, 0.85))
        for k, x in enumerate(np.arange(x0, x1, 0.5)):
            facade.rect(x, min(x + 0.5, x1), top - 1.7, top - 0.95, stripes if k % 2 else np.float32(0.9), 0)


def paint_ground_floor(rng: np.random.Generator, facade: Facade, style: Style, wall: np.ndarray) -> None:
    """The part of a facade that changes from year to year: shops, doors, garages, arcades."""
    top = min(style.ground_height - 0.1, float(facade.outline.min()) - 0.2)
    high = int(top * TEXELS_PER_METRE)
    facade.colour[:high] = wall[:high] * rng.uniform(0.75, 1.05)
    facade.light[:high] = 0
    x, width = 0.3, facade.width
    while x < width - 1.2:
        unit = min(width - 0.3, x + rng.uniform(3.0, 7.5))
        kind = rng.choice(["shop", "home", "garage", "arcade"], p=[0.42, 0.33, 0.1, 0.15])
        if kind == "shop" and unit - x > 2.2:
            _shop(rng, facade, top, x, unit)
        elif kind == "garage" and unit - x > 2.5:
            facade.rect(x + 0.2, unit - 0.2, 0, 2.4, style.accent * 0.8)
            for z in np.arange(0.3, 2.4, 0.4):
                facade.rect(x + 0.2, unit - 0.2, z, z + 0.1, style.accent * 0.55)
        elif kind == "arcade":
            for left in np.arange(x, unit - 1.4, 2.0):
                facade.rect(left + 0.3, left + 1.7, 0, top - 0.8, style.glass * 0.5)
                facade.rect(left + 0.55, left + 1.45, top - 0.8, top - 0.5, style.glass * 0.5)
                facade.rect(left + 0.1, left + 0.3, 0, top - 0.5, style.trim)
        else:
            door = x + rng.uniform(0.2, 0.6)
            colour = _hsv(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.6))
            facade.rect(door - 0.15, door + 1.25, 0, 2.6, style.trim)
            facade.rect(door, door + 1.1, 0, 2.35, colour)
            facade.rect(door, door + 1.1, 2.0, 2.35, style.glass, int(rng.integers(1, LAST_WINDOW)))
            for left in np.arange(door + 1.9, unit - 1.0, 1.9):
                facade.rect(left - 0.1, left + 1.1, 0.85, 2.75, style.trim)
                facade.rect(left, left + 1.0, 0.95, 2.65, style.glass, int(rng.integers(1, LAST_WINDOW)))
        x = unit + rng.uniform(0.1, 0.5)


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
        colour = _hsv(0.3, 0.5, 0.32) * (1 + 0.35 * rng.uniform(-1, 1, (h, w, 1))).astype(np.float32)
    else:
        colour = np.broadcast_to(style.accent, (h, w, 3)).copy()
        colour[:, ::3] = style.accent * 0.4
    return Facade(np.clip(colour, 0, 1), np.zeros((h, w), np.uint8), np.full(w, height, np.float32))
