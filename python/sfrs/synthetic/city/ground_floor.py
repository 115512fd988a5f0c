"""Ground floors, which change from year to year: shops, doors, garages, arcades."""

from __future__ import annotations

import numpy as np

from sfrs.synthetic.city.facade import ALWAYS_LIT, LAST_WINDOW, TEXELS_PER_METRE, Facade
from sfrs.synthetic.city.style import Style, hsv


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
    sign = hsv(rng.random(), rng.uniform(0.1, 0.95), rng.uniform(0.2, 0.95))
    dark = sign.mean() < 0.5
    facade.rect(x0, x1, 0, top, sign * 0.55)
    panes = max(1, int((x1 - x0) / rng.uniform(1.4, 3.0)))
    pitch = (x1 - x0) / panes
    door = rng.integers(panes)
    for p in range(panes):
        left, right = x0 + p * pitch + 0.12, x0 + (p + 1) * pitch - 0.12
        glass = hsv(rng.uniform(0.05, 0.65), rng.uniform(0.1, 0.45), rng.uniform(0.15, 0.5))
        facade.rect(left, right, 0.1 if p == door else 0.6, top - 0.9, glass, rng.integers(1, LAST_WINDOW))
        for _ in range(3):  # goods in the window
            u, z = rng.uniform(left, max(left, right - 0.6)), rng.uniform(0.7, 1.4)
            facade.rect(u, u + rng.uniform(0.2, 0.6), 0.65, z, hsv(rng.random(), 0.6, rng.uniform(0.3, 0.9)))
    facade.rect(x0, x1, top - 0.9, top - 0.1, sign, ALWAYS_LIT)
    middle = (x0 + x1) / 2
    half = rng.uniform(0.25, 0.48) * (x1 - x0)
    _letters(
        rng, facade, middle - half, middle + half, top - 0.8, top - 0.2, np.float32(0.95 if dark else 0.1)
    )
    if rng.random() < 0.45:  # an awning
        stripes = hsv(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.4, 0.85))
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
            colour = hsv(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.6))
            facade.rect(door - 0.15, door + 1.25, 0, 2.6, style.trim)
            facade.rect(door, door + 1.1, 0, 2.35, colour)
            facade.rect(door, door + 1.1, 2.0, 2.35, style.glass, int(rng.integers(1, LAST_WINDOW)))
            for left in np.arange(door + 1.9, unit - 1.0, 1.9):
                facade.rect(left - 0.1, left + 1.1, 0.85, 2.75, style.trim)
                facade.rect(left, left + 1.0, 0.95, 2.65, style.glass, int(rng.integers(1, LAST_WINDOW)))
        x = unit + rng.uniform(0.1, 0.5)
