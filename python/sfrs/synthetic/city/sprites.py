"""Small pictures of what stands in front of facades: cars, trees, pedestrians and street lamps.

A sprite is uint8 [h, w, 4] (row 0 at the ground): colour, and in the last channel 0, HOLE where one sees
through, or `facade.ALWAYS_LIT`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfrs.synthetic.city.facade import ALWAYS_LIT

HOLE = 254
CAR_LENGTH, CAR_WIDTH, CAR_HEIGHT = 4.3, 1.75, 1.5


@dataclass(frozen=True)
class Sprites:
    """Pictures by kind; every list holds uint8 [h, w, 4]."""

    car_sides: list[np.ndarray]
    car_ends: list[np.ndarray]  # same order as car_sides
    trees: list[np.ndarray]  # species-major: index = species * variants + variant
    tree_variants: int
    people: list[np.ndarray]
    lamp: np.ndarray


def _blank(h: int, w: int) -> np.ndarray:
    picture = np.zeros((h, w, 4), np.uint8)
    picture[..., 3] = HOLE
    return picture


def _fill(picture: np.ndarray, where, colour, light: int = 0) -> None:
    picture[where] = (*[int(min(max(c, 0), 1) * 255) for c in colour], light)


_PAINTS = [(0.75, 0.75, 0.77), (0.12, 0.12, 0.14), (0.6, 0.08, 0.08), (0.12, 0.2, 0.5), (0.88, 0.88, 0.86),
           (0.36, 0.38, 0.4), (0.1, 0.3, 0.2), (0.7, 0.55, 0.15),
           (0.35, 0.22, 0.15), (0.45, 0.6, 0.7)]  # fmt: skip


def _car(rng: np.random.Generator, paint) -> tuple[np.ndarray, np.ndarray]:
    h, w = 24, 68
    z, x = np.mgrid[0:h, 0:w] / np.array([h, w]).reshape(2, 1, 1)
    paint, glass, rubber = np.array(paint), (0.12, 0.15, 0.18), (0.05, 0.05, 0.05)
    van = rng.random() < 0.2
    front, rear = (0.12, 0.03) if van else (rng.uniform(0.22, 0.32), rng.uniform(0.08, 0.2))
    side = _blank(h, w)
    cabin = (z >= 0.5) & (z < 0.98) & (x > rear + (z - 0.5) * 0.2) & (x < 1 - front - (z - 0.5) * 0.3)
    _fill(side, (z > 0.16) & (z < 0.6) & (x > 0.01) & (x < 0.99), paint)
    _fill(side, (z > 0.16) & (z < 0.3), paint * 0.6)
    _fill(side, cabin, paint * 0.95)
    _fill(side, cabin & (z > 0.57) & (z < 0.9) & (np.abs((x * 6) % 2 - 1) > 0.12) & (x > rear + 0.06), glass)
    for centre in (0.2, 0.8):
        disc = ((x - centre) * w / h) ** 2 + (z - 0.18) ** 2
        _fill(side, disc < 0.19**2, rubber)
        _fill(side, disc < 0.1**2, (0.5, 0.5, 0.5))
    end = _blank(h, 28)
    z, x = np.mgrid[0:h, 0:28] / np.array([h, 28]).reshape(2, 1, 1)
    _fill(end, (z > 0.16) & (z < 0.62) & (x > 0.02) & (x < 0.97), paint * 0.9)
    _fill(end, (z >= 0.6) & (z < 0.97) & (np.abs(x - 0.5) < 0.47 - (z - 0.6) * 0.3), paint)
    _fill(end, (z > 0.64) & (z < 0.9) & (np.abs(x - 0.5) < 0.38 - (z - 0.6) * 0.3), glass)
    _fill(
        end, (z > 0.42) & (z < 0.54) & (np.abs(np.abs(x - 0.5) - 0.38) < 0.07), (0.75, 0.1, 0.08), ALWAYS_LIT
    )
    _fill(end, (z > 0.28) & (z < 0.38) & (np.abs(x - 0.5) < 0.16), (0.9, 0.9, 0.85))
    _fill(end, (z < 0.2) & (np.abs(np.abs(x - 0.5) - 0.38) < 0.08), rubber)
    return side, end


def _tree(rng: np.random.Generator, species: int) -> np.ndarray:
    h, w = 96, 64
    z, x = np.mgrid[0:h, 0:w] / np.array([h, w]).reshape(2, 1, 1)
    picture = _blank(h, w)
    _fill(picture, (np.abs(x - 0.5 + 0.03 * np.sin(9 * z)) < 0.028) & (z < 0.6), (0.23, 0.17, 0.12))
    leaf = np.array([(0.2, 0.36, 0.12), (0.3, 0.42, 0.14), (0.13, 0.28, 0.14)][species])
    for _ in range(60):
        angle, radius = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        tall = (0.36, 0.27, 0.4)[species]
        cx, cz = (
            0.5 + (0.36, 0.4, 0.2)[species] * radius * np.cos(angle),
            0.62 + tall * 0.9 * radius * np.sin(angle),
        )
        blob = ((x - cx) * w / h) ** 2 + (z - cz) ** 2 < rng.uniform(0.035, 0.075) ** 2
        tone = (0.65 + 0.75 * (cz - 0.3)) * rng.uniform(0.75, 1.25)
        _fill(picture, blob & (rng.random((h, w)) < 0.82), leaf * tone)
    return picture


def _person(rng: np.random.Generator) -> np.ndarray:
    h, w = 40, 16
    z, x = np.mgrid[0:h, 0:w] / np.array([h, w]).reshape(2, 1, 1)
    coat, legs, skin = rng.uniform(0.05, 0.8, 3), rng.uniform(0.05, 0.35, 3), rng.uniform(0.35, 0.85)
    picture = _blank(h, w)
    stride = rng.uniform(0.08, 0.25)
    _fill(picture, (z < 0.47) & (np.abs(np.abs(x - 0.5) - stride * (0.47 - z) / 0.47) < 0.11), legs)
    _fill(picture, (z >= 0.42) & (z < 0.84) & (np.abs(x - 0.5) < 0.28 - 0.12 * np.abs(z - 0.65)), coat)
    _fill(picture, ((x - 0.5) * w / h) ** 2 + (z - 0.91) ** 2 < 0.075**2, np.array([1.0, 0.8, 0.68]) * skin)
    return picture


def _lamp() -> np.ndarray:
    picture = _blank(96, 16)
    _fill(picture, np.s_[0:84, 7:9], (0.16, 0.18, 0.18))
    _fill(picture, np.s_[0:8, 6:10], (0.16, 0.18, 0.18))
    _fill(picture, np.s_[84:94, 5:11], (0.95, 0.9, 0.75), ALWAYS_LIT)
    _fill(picture, np.s_[94:96, 4:12], (0.16, 0.18, 0.18))
    return picture


def draw_sprites(seed: int) -> Sprites:
    """All sprites of a city; equal seeds give equal pictures."""
    rng = np.random.default_rng([seed, 2])
    cars = [_car(rng, paint) for paint in _PAINTS for _ in range(2)]
    variants = 4
    return Sprites(
        car_sides=[c[0] for c in cars],
        car_ends=[c[1] for c in cars],
        trees=[_tree(rng, species) for species in range(3) for _ in range(variants)],
        tree_variants=variants,
        people=[_person(rng) for _ in range(12)],
        lamp=_lamp(),
    )
