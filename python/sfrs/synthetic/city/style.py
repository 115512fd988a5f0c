"""What makes one building unlike the next: material, colours, proportions, ornaments."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np


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


def hsv(h: float, s: float, v: float) -> np.ndarray:
    """RGB float32 [3] in 0..1; the hue wraps around, saturation and value are clipped."""
    return np.array(colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0), 1), min(max(v, 0), 1)), dtype=np.float32)


def _wall_colour(rng: np.random.Generator, material: str) -> np.ndarray:
    if material == "brick":
        return hsv(rng.choice([0.01, 0.04, 0.09, 0.12]) + rng.normal(0, 0.012), rng.uniform(0.3, 0.65),
                    rng.uniform(0.35, 0.68))  # fmt: skip
    if material == "plaster":
        hue = rng.choice([0.05, 0.09, 0.13, 0.15, 0.3, 0.45, 0.57, 0.98]) + rng.normal(0, 0.02)
        return hsv(hue, rng.uniform(0.05, 0.5), rng.uniform(0.62, 0.95))
    if material == "stone":
        return hsv(rng.uniform(0.07, 0.14), rng.uniform(0.05, 0.3), rng.uniform(0.45, 0.8))
    if material == "timber":
        return hsv(0.11, rng.uniform(0.05, 0.3), rng.uniform(0.78, 0.95))
    return hsv(rng.uniform(0.5, 0.65), rng.uniform(0.0, 0.22), rng.uniform(0.32, 0.85))  # panel, glass


def draw_style(rng: np.random.Generator) -> Style:
    """A style; equal generators give equal styles."""
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
        frame=hsv(rng.random(), rng.uniform(0, 0.25), rng.choice([0.92, 0.85, 0.3, 0.15])),
        glass=hsv(rng.uniform(0.5, 0.65), rng.uniform(0.05, 0.4), rng.uniform(0.12, 0.34)),
        accent=hsv(rng.random(), rng.uniform(0.3, 0.75), rng.uniform(0.25, 0.6)),
        roof_colour=hsv(
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
