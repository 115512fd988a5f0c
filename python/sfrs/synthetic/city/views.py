"""Where, when and how each picture of the city is taken."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from sfrs.synthetic.city.layout import CityPlan

DAY, OVERCAST, DUSK, NIGHT = 0, 1, 2, 3
CONDITIONS = ("day", "overcast", "dusk", "night")


@dataclass(frozen=True)
class Views:
    """Views as parallel arrays [n]. Positions are metres in the plan of the city."""

    x: np.ndarray  # float64
    y: np.ndarray  # float64
    height: np.ndarray  # float64, metres of the camera above the ground
    heading: np.ndarray  # float64, degrees clockwise from north
    fov: np.ndarray  # float64, horizontal field of view in degrees
    horizon: np.ndarray  # float64, row of the horizon as a share of the image height (the pitch)
    condition: np.ndarray  # int64, DAY .. NIGHT
    sun: np.ndarray  # int64, index of ground.SUNS
    year: np.ndarray  # int64, 0 or 1
    haze: np.ndarray  # float64, extinction per metre (fog, rain)
    moment: np.ndarray  # int64, seeds passers-by, parked cars, lit windows; one panorama shares it
    panorama: np.ndarray  # int64, number of the recording position
    tile: np.ndarray  # int64, number within the panorama

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, chosen) -> Views:
        return Views(**{f.name: np.atleast_1d(getattr(self, f.name)[chosen]) for f in fields(self)})


@dataclass(frozen=True)
class Drive:
    """How a database is recorded: panoramas along all streets, cut into tiles.

    Conditions are shares of day, overcast, dusk and night; one condition and one sun position per panorama.
    """

    spacing: float  # metres between panoramas
    headings: int  # tiles per panorama
    conditions: tuple[float, float, float, float]
    fov: float = 65.0


@dataclass(frozen=True)
class Visit:
    """How queries are taken: `near` a database view (same condition and sun), or anywhere along the
    streets."""

    count: int
    near: bool
    lateral: float  # metres: largest distance from the view, or from the centre line of the street
    turn: float  # degrees: largest turn away from the view; unused otherwise (any heading)
    conditions: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)  # unused near a view
    fov: tuple[float, float] = (65.0, 65.0)


EYE, HORIZON = 2.3, 0.60  # metres; share of the image height
HAZY = 0.22  # share of recordings in fog or rain
HAZE_CLEAR, HAZE_FOG = (0.0008, 0.0035), (0.010, 0.028)


def _recordings(rng: np.random.Generator, count: int, conditions) -> dict[str, np.ndarray]:
    """What is drawn once per recording: condition, sun, haze, moment, camera height and pitch."""
    condition = rng.choice(4, size=count, p=conditions)
    hazy = rng.random(count) < HAZY
    return {
        "condition": condition.astype(np.int64),
        "sun": rng.integers(0, 6, count),
        "haze": np.where(hazy, rng.uniform(*HAZE_FOG, count), rng.uniform(*HAZE_CLEAR, count)),
        "moment": rng.integers(1, 2**31, count),
        "height": EYE + rng.normal(0.0, 0.05, count),
        "horizon": HORIZON + rng.normal(0.0, 0.006, count),
    }


def drive(plan: CityPlan, how: Drive, seed: int, year: int = 0) -> Views:
    """Panoramas every `how.spacing` metres on every inner street, `how.headings` tiles each."""
    rng = np.random.default_rng([seed, 41])
    points = []
    for street in plan.streets[plan.inner]:
        length = float(np.linalg.norm(street[1] - street[0]))
        direction = (street[1] - street[0]) / length
        steps = np.arange(how.spacing / 2, length, how.spacing)
        lane = rng.choice([-1.0, 1.0]) * rng.uniform(0.6, 1.4)
        points.append(street[0] + steps[:, None] * direction + lane * np.array([-direction[1], direction[0]]))
    position = np.round(np.concatenate(points), 2)
    n, k = len(position), how.headings
    recorded = _recordings(rng, n, how.conditions)
    start = rng.uniform(0.0, 360.0 / k, n)
    tile = np.tile(np.arange(k), n)
    return Views(
        x=np.repeat(position[:, 0], k),
        y=np.repeat(position[:, 1], k),
        heading=(np.repeat(start, k) + tile * 360.0 / k) % 360.0,
        fov=np.full(n * k, how.fov),
        year=np.full(n * k, year),
        panorama=np.repeat(np.arange(n), k),
        tile=tile,
        **{name: np.repeat(values, k) for name, values in recorded.items()},
    )


def visit(plan: CityPlan, database: Views, how: Visit, seed: int, year: int = 1) -> Views:
    """`how.count` queries of another year; see `Visit`. A query near a view carries its panorama and tile
    number.

    Raises ValueError if more queries near a view are asked for than there are database views.
    """
    rng = np.random.default_rng([seed, 42])
    n = how.count
    recorded = _recordings(rng, n, how.conditions)
    fov = rng.uniform(*how.fov, n)
    if how.near:
        if n > len(database):
            raise ValueError(f"visit: {n} queries near distinct views, but the database has {len(database)}")
        base = database[rng.permutation(len(database))[:n]]
        offset = rng.uniform(-how.lateral, how.lateral, (n, 2)) * np.sqrt(0.5)
        x, y = base.x + offset[:, 0], base.y + offset[:, 1]
        heading = base.heading + rng.uniform(-how.turn, how.turn, n)
        recorded |= {"condition": base.condition, "sun": base.sun}
        panorama, tile = base.panorama, base.tile
    else:
        streets = plan.streets[plan.inner]
        vector = streets[:, 1] - streets[:, 0]
        length = np.linalg.norm(vector, axis=1)
        which = rng.choice(len(streets), size=n, p=length / length.sum())
        direction = (vector / length[:, None])[which]
        along = rng.uniform(0.02, 0.98, n) * length[which]
        across = rng.uniform(-how.lateral, how.lateral, n)
        x = streets[which, 0, 0] + along * direction[:, 0] - across * direction[:, 1]
        y = streets[which, 0, 1] + along * direction[:, 1] + across * direction[:, 0]
        heading = rng.uniform(0.0, 360.0, n)
        panorama, tile = np.arange(n), np.zeros(n, np.int64)
    return Views(
        x=np.round(x, 2),
        y=np.round(y, 2),
        heading=heading % 360.0,
        fov=fov,
        year=np.full(n, year),
        panorama=panorama,
        tile=tile,
        **recorded,
    )
