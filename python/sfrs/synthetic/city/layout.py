"""The plan of a made-up city quarter: streets, blocks, lots, trees, lamps and kerbs, as arrays of metres.

A jittered grid of crossings gives streets that are neither parallel nor of equal width. Each block is the
quadrangle between four streets, inset by half their widths, and its edges are cut into lots. A lot is a
building: a front wall on the street, two side walls and a back wall. Everything is drawn from one seed.

Axes: x east, y north, metres from the south-west corner of the quarter. Headings are degrees clockwise from
north.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FRONT, SIDE, BACK, FENCE = 0, 1, 2, 3


@dataclass(frozen=True)
class Walls:
    """Vertical wall segments. A wall's outside lies to the right of the direction start -> end."""

    start: np.ndarray  # float64 [n, 2]
    end: np.ndarray  # float64 [n, 2]
    height: np.ndarray  # float64 [n], metres above the ground
    building: np.ndarray  # int64 [n]
    kind: np.ndarray  # int64 [n], FRONT, SIDE, BACK or FENCE

    def __len__(self) -> int:
        return len(self.height)


@dataclass(frozen=True)
class CityPlan:
    """One quarter. `inner` marks the streets a camera drives along; the others only close the view."""

    seed: int
    extent: tuple[float, float]  # metres
    walls: Walls
    footprints: list[np.ndarray]  # per building float64 [4, 2]
    footprint_height: np.ndarray  # float64 [buildings]
    streets: np.ndarray  # float64 [s, 2, 2], centre lines from crossing to crossing
    half_width: np.ndarray  # float64 [s], centre line to facades
    inner: np.ndarray  # bool [s]
    trees: np.ndarray  # float64 [t, 3]: x, y, height
    lamps: np.ndarray  # float64 [l, 2]
    car_slots: np.ndarray  # float64 [c, 3]: x, y, direction of the kerb in radians (from east, anticlockwise)
    tree_species: np.ndarray  # int64 [t]


PAVEMENT = 2.6  # metres between kerb and facades


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _left(v: np.ndarray) -> np.ndarray:
    return np.stack([-v[..., 1], v[..., 0]], axis=-1)


def _inset(corners: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Corners [4, 2] (anticlockwise) of the quadrangle whose edge i is moved inwards by distances[i]."""
    direction = _unit(np.roll(corners, -1, axis=0) - corners)
    origin = corners + _left(direction) * distances[:, None]
    moved = np.empty_like(corners)
    for i in range(4):  # corner i is where edge i-1 meets edge i
        a, b = (i - 1) % 4, i
        system = np.stack([direction[a], -direction[b]], axis=1)
        moved[i] = origin[a] + direction[a] * np.linalg.solve(system, origin[b] - origin[a])[0]
    return moved


class _Builder:
    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.start: list[np.ndarray] = []
        self.end: list[np.ndarray] = []
        self.height: list[float] = []
        self.building: list[int] = []
        self.kind: list[int] = []
        self.footprints: list[np.ndarray] = []
        self.footprint_height: list[float] = []
        self.next_building = 0

    def wall(self, start, end, height, building, kind) -> None:
        self.start.append(start)
        self.end.append(end)
        self.height.append(height)
        self.building.append(building)
        self.kind.append(kind)

    def lot(self, a, b, inward, height, building, *, depth, sides, fence=False) -> None:
        """A building on the front line a -> b (outside to the right); `inward` is the unit vector off the
        street."""
        back_a, back_b = a + inward * depth, b + inward * depth
        if fence:
            self.wall(a, b, height, building, FENCE)
            self.footprints.append(np.stack([a, b, b + inward * 0.2, a + inward * 0.2]))
            self.footprint_height.append(height)
            return
        self.wall(a, b, height, building, FRONT)
        if sides[0]:
            self.wall(back_a, a, height, building, SIDE)
        if sides[1]:
            self.wall(b, back_b, height, building, SIDE)
        self.wall(back_b, back_a, height, building, BACK)
        self.footprints.append(np.stack([a, b, back_b, back_a]))
        self.footprint_height.append(height)

    def block(self, corners: np.ndarray, seen: tuple[bool, ...]) -> None:
        """Lots along those edges of a block that a camera can see; corner lots of adjacent edges are one
        building."""
        rng = self.rng
        first = self.next_building
        corner_heights = rng.uniform(9.0, 21.0, 4)
        typical = rng.uniform(8.0, 18.0)
        building = first + 4  # the first four numbers are the corner buildings
        for edge in range(4):
            a, b = corners[edge], corners[(edge + 1) % 4]
            length = float(np.linalg.norm(b - a))
            direction = (b - a) / length
            inward = _left(direction)
            if not seen[edge]:
                continue
            lots = max(3, int(round(length / rng.uniform(9.5, 13.0))))
            shares = rng.uniform(0.65, 1.35, lots)
            cuts = np.concatenate([[0.0], np.cumsum(shares / shares.sum())]) * length
            for i in range(lots):
                is_corner = i in (0, lots - 1)
                left, right = a + direction * cuts[i], a + direction * cuts[i + 1]
                depth = rng.uniform(9.0, 12.0)
                if is_corner:
                    which = edge if i == 0 else (edge + 1) % 4
                    self.lot(left, right, inward, corner_heights[which], first + which, depth=9.0,
                             sides=(i != 0, i == 0))  # fmt: skip
                    continue
                setback = rng.choice([0.0, 0.0, rng.uniform(0.3, 1.4)])
                fence = rng.random() < 0.06
                height = (
                    rng.uniform(1.3, 2.2) if fence else float(np.clip(rng.normal(typical, 3.5), 6.0, 24.0))
                )
                self.lot(left + inward * setback, right + inward * setback, inward, height, building,
                         depth=depth, sides=(True, True), fence=fence)  # fmt: skip
                building += 1
        self.next_building = building

    def walls(self) -> Walls:
        return Walls(
            np.array(self.start),
            np.array(self.end),
            np.array(self.height),
            np.array(self.building, dtype=np.int64),
            np.array(self.kind, dtype=np.int64),
        )


def _crossings(rng: np.random.Generator, blocks: int) -> np.ndarray:
    """Crossings [blocks + 3, blocks + 3, 2]: `blocks` blocks a side and a closing ring of blocks around
    them."""
    lines = blocks + 3
    x = np.concatenate([[0.0], np.cumsum(rng.uniform(50.0, 68.0, lines - 1))])
    y = np.concatenate([[0.0], np.cumsum(rng.uniform(50.0, 68.0, lines - 1))])
    grid = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
    return grid + rng.uniform(-6.0, 6.0, grid.shape)


def _along(street: np.ndarray, spacing: float, margin: float, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """Points every `spacing` metres on a centre line, `margin` metres away from both crossings; and its
    direction."""
    length = float(np.linalg.norm(street[1] - street[0]))
    direction = (street[1] - street[0]) / length
    steps = np.arange(margin + phase * spacing, length - margin, spacing)
    return street[0] + steps[:, None] * direction, direction


def _furnish(rng, streets, half_width):
    """Trees, lamps and parking slots along both kerbs of every street."""
    trees, species, lamps, slots = [], [], [], []
    for street, half in zip(streets, half_width, strict=True):
        kerb = half - PAVEMENT
        leafy, kind = rng.random() < 0.4, int(rng.integers(3))
        for side in (-1.0, 1.0):
            if leafy:
                points, direction = _along(street, rng.uniform(10.0, 15.0), half + 3.0, rng.random())
                points = (
                    points + side * _left(direction) * (kerb + 0.6) + rng.uniform(-0.4, 0.4, points.shape)
                )
                trees.append(np.column_stack([points, rng.uniform(5.0, 8.5, len(points))]))
                species.append(np.full(len(points), kind))
            points, direction = _along(street, 24.0, half + 1.0, rng.random())
            lamps.append(points + side * _left(direction) * (kerb + 0.4))
            points, direction = _along(street, 6.0, half + 4.0, rng.random() * 0.5)
            angle = np.arctan2(direction[1], direction[0])
            slots.append(
                np.column_stack(
                    [points + side * _left(direction) * (kerb - 1.0), np.full(len(points), angle)]
                )
            )
    return (
        np.concatenate(trees) if trees else np.zeros((0, 3)),
        np.concatenate(species).astype(np.int64) if species else np.zeros(0, np.int64),
        np.concatenate(lamps),
        np.concatenate(slots),
    )


def plan_city(seed: int, blocks: int = 4) -> CityPlan:
    """Draw the plan of a quarter of `blocks` x `blocks` blocks with drivable streets around and between them.

    Equal seeds give equal plans. Raises ValueError if `blocks` is less than 1.
    """
    if blocks < 1:
        raise ValueError(f"plan_city: blocks is {blocks}, expected at least 1")
    rng = np.random.default_rng([seed, 1])
    nodes = _crossings(rng, blocks)
    lines = blocks + 3
    width_x, width_y = (
        rng.uniform(6.0, 9.0, lines),
        rng.uniform(6.0, 9.0, lines),
    )  # of the lines x = i and y = j
    builder = _Builder(rng)
    for i in range(lines - 1):
        for j in range(lines - 1):
            quad = np.stack([nodes[i, j], nodes[i + 1, j], nodes[i + 1, j + 1], nodes[i, j + 1]])
            corners = _inset(quad, np.array([width_y[j], width_x[i + 1], width_y[j + 1], width_x[i]]))
            builder.block(corners, seen=(j > 0, i < lines - 2, j < lines - 2, i > 0))
    streets, half_width, inner = [], [], []
    for i in range(lines):
        for j in range(lines):
            core_i, core_j = 1 <= i <= lines - 2, 1 <= j <= lines - 2
            if i + 1 < lines:
                streets.append(np.stack([nodes[i, j], nodes[i + 1, j]]))
                half_width.append(width_y[j])
                inner.append(core_j and core_i and i + 1 <= lines - 2)
            if j + 1 < lines:
                streets.append(np.stack([nodes[i, j], nodes[i, j + 1]]))
                half_width.append(width_x[i])
                inner.append(core_i and core_j and j + 1 <= lines - 2)
    streets_array, half = np.array(streets), np.array(half_width)
    trees, species, lamps, slots = _furnish(rng, streets_array, half)
    shift = -nodes.reshape(-1, 2).min(axis=0) + 10.0
    walls = builder.walls()
    walls = Walls(walls.start + shift, walls.end + shift, walls.height, walls.building, walls.kind)
    extent = nodes.reshape(-1, 2).max(axis=0) + shift + 10.0
    trees[:, :2] += shift
    slots[:, :2] += shift
    return CityPlan(
        seed=seed,
        extent=(float(extent[0]), float(extent[1])),
        walls=walls,
        footprints=[f + shift for f in builder.footprints],
        footprint_height=np.array(builder.footprint_height),
        streets=streets_array + shift,
        half_width=half,
        inner=np.array(inner),
        trees=trees,
        lamps=lamps + shift,
        car_slots=slots,
        tree_species=species,
    )
