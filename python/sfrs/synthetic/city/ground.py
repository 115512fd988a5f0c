"""Maps seen from above: the painted ground, the shadows of every sun position, the light of the street
lamps."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from sfrs.synthetic.city.layout import PAVEMENT, CityPlan

GROUND_CELL = 0.25  # metres per cell of the painted ground
LIGHT_CELL = 0.5  # metres per cell of shadow and lamp maps

# Sun positions a recording can have: azimuth (degrees clockwise from north), elevation (degrees).
SUNS = ((100.0, 24.0), (140.0, 42.0), (180.0, 54.0), (220.0, 44.0), (255.0, 26.0), (60.0, 16.0))


def _window(points: np.ndarray, margin: float, cell: float, shape: tuple[int, int]) -> tuple[slice, slice]:
    low = np.floor((points.min(axis=0) - margin) / cell).astype(int)
    high = np.ceil((points.max(axis=0) + margin) / cell).astype(int)
    return slice(max(low[1], 0), min(high[1], shape[0])), slice(max(low[0], 0), min(high[0], shape[1]))


def _street_coordinates(
    street: np.ndarray, rows: slice, columns: slice
) -> tuple[np.ndarray, np.ndarray, float]:
    """Metres along and across (signed) the centre line at each cell of a window."""
    length = float(np.linalg.norm(street[1] - street[0]))
    direction = (street[1] - street[0]) / length
    x = (np.arange(columns.start, columns.stop) + 0.5) * GROUND_CELL - street[0, 0]
    y = (np.arange(rows.start, rows.stop) + 0.5) * GROUND_CELL - street[0, 1]
    along = x[None, :] * direction[0] + y[:, None] * direction[1]
    across = -x[None, :] * direction[1] + y[:, None] * direction[0]
    return along, across, length


def paint_ground(plan: CityPlan) -> np.ndarray:
    """uint8 [h, w, 4], row 0 in the south: yards, pavements with slabs and kerbs, asphalt, markings,
    crossings."""
    rng = np.random.default_rng([plan.seed, 3])
    h, w = (int(np.ceil(plan.extent[1] / GROUND_CELL)), int(np.ceil(plan.extent[0] / GROUND_CELL)))
    coarse = rng.uniform(0, 1, (h // 8 + 1, w // 8 + 1, 1)).astype(np.float32)
    patches = np.repeat(np.repeat(coarse, 8, 0), 8, 1)[:h, :w]
    green, brown = np.array([[0.3, 0.36, 0.18], [0.34, 0.3, 0.24]], np.float32)
    ground = green * patches + brown * (1 - patches)
    grain = 1 + 0.1 * rng.uniform(-1, 1, (h, w)).astype(np.float32)
    windows = [
        _window(s, half + 2, GROUND_CELL, (h, w))
        for s, half in zip(plan.streets, plan.half_width, strict=True)
    ]
    coordinates = [_street_coordinates(s, *window) for s, window in zip(plan.streets, windows, strict=True)]
    looks = rng.uniform(0.8, 1.15, (len(windows), 2))
    stone = np.array([[0.52, 0.5, 0.47], [0.46, 0.42, 0.4], [0.56, 0.55, 0.53]], np.float32)
    for i, (window, (along, across, length)) in enumerate(zip(windows, coordinates, strict=True)):
        half = plan.half_width[i]
        on = (np.abs(across) < half + 0.1) & (along > -half) & (along < length + half)
        slabs = np.where((np.floor(along / 0.25) % 4 == 0) | (np.floor(across / 0.25) % 4 == 0), 0.82, 1.0)
        ground[window][on] = (stone[i % 3] * looks[i, 0] * slabs[..., None])[on]
    for i, (window, (along, across, length)) in enumerate(zip(windows, coordinates, strict=True)):
        kerb = plan.half_width[i] - PAVEMENT
        inside = (along > -kerb) & (along < length + kerb)
        ground[window][(np.abs(across) < kerb + 0.25) & inside] = (0.62, 0.61, 0.58)
    for i, (window, (along, across, length)) in enumerate(zip(windows, coordinates, strict=True)):
        kerb = plan.half_width[i] - PAVEMENT
        inside = (np.abs(across) < kerb) & (along > -kerb) & (along < length + kerb)
        asphalt = np.array([0.27, 0.27, 0.28], np.float32) * looks[i, 1]
        ground[window][inside] = asphalt
        for _ in range(6):  # mended patches
            a, c = rng.uniform(0, length), rng.uniform(-kerb, kerb)
            patch = (
                inside
                & (np.abs(along - a) < rng.uniform(0.5, 3.0))
                & (np.abs(across - c) < rng.uniform(0.4, 1.2))
            )
            ground[window][patch] = asphalt * rng.uniform(0.75, 1.25)
    for i, (window, (along, across, length)) in enumerate(zip(windows, coordinates, strict=True)):
        half, kerb = plan.half_width[i], plan.half_width[i] - PAVEMENT
        free = (along > half + 4) & (along < length - half - 4)
        dash = (np.abs(across) < 0.1) & free & (along % 5.0 < 2.5)
        near = np.minimum(along - half, length - half - along)
        zebra = (near > 0.8) & (near < 3.4) & (np.abs(across) < kerb - 0.3) & (across % 1.0 < 0.5)
        if i % 4 == 3:
            zebra[:] = False
        ground[window][dash | zebra] = (0.85, 0.85, 0.82)
    painted = np.zeros((h, w, 4), np.uint8)
    painted[..., :3] = np.clip(ground * grain[..., None] * 255, 0, 255)
    return painted


def height_map(plan: CityPlan) -> np.ndarray:
    """float32 [h, w]: metres of building or tree crown above each cell."""
    h, w = (int(np.ceil(plan.extent[1] / LIGHT_CELL)), int(np.ceil(plan.extent[0] / LIGHT_CELL)))
    image = Image.new("F", (w, h), 0.0)
    draw = ImageDraw.Draw(image)
    for footprint, height in zip(plan.footprints, plan.footprint_height, strict=True):
        draw.polygon([tuple(p) for p in footprint / LIGHT_CELL], fill=float(height))
    for x, y, height in plan.trees:
        r = height * 0.28 / LIGHT_CELL
        cx, cy = x / LIGHT_CELL, y / LIGHT_CELL
        draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=float(height) * 0.9)
    return np.asarray(image).copy()


def shadow_maps(heights: np.ndarray) -> np.ndarray:
    """float32 [suns, h, w]: the height in metres below which a point over this cell lies in shadow.

    shadow(p) = max over k of heights(p + k d) - k |d| tan(elevation), d a step towards the sun.
    """
    maps = []
    reach = 45.0  # metres; longer shadows fall behind the next row of houses
    for azimuth, elevation in SUNS:
        a, tangent = np.radians(azimuth), np.tan(np.radians(elevation))
        shadow = np.zeros_like(heights)
        for distance in np.arange(1.0, min(reach, heights.max() / tangent), 1.0):
            dx, dy = (int(round(v * distance / LIGHT_CELL)) for v in (np.sin(a), np.cos(a)))
            h, w = heights.shape
            to = np.s_[max(0, -dy) : h - max(0, dy), max(0, -dx) : w - max(0, dx)]
            source = np.s_[max(0, dy) : h + min(0, dy), max(0, dx) : w + min(0, dx)]
            np.maximum(shadow[to], heights[source] - np.float32(distance * tangent), out=shadow[to])
        maps.append(shadow)
    return np.stack(maps)


def lamp_map(plan: CityPlan, shape: tuple[int, int]) -> np.ndarray:
    """float32 [h, w]: brightness of the lamps' light near the ground, about 1 beneath a lamp."""
    light = np.zeros(shape, np.float32)
    for lamp in plan.lamps:
        rows, columns = _window(lamp[None], 22.0, LIGHT_CELL, shape)
        x = (np.arange(columns.start, columns.stop) + 0.5) * LIGHT_CELL - lamp[0]
        y = (np.arange(rows.start, rows.stop) + 0.5) * LIGHT_CELL - lamp[1]
        light[rows, columns] += 1.0 / (1.0 + (x[None, :] ** 2 + y[:, None] ** 2) / 22.0) ** 1.5
    return light
