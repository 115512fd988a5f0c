"""A city as a data set: three disjoint quarters, rendered into the field's folder format.

`images/SPLIT/{database,queries}/@easting@northing@...@.jpg` in the full form of `places.folder`, and
`city.json`, written last, which says what the folder holds. A split is rendered into a hidden folder that is
renamed when complete, so an interrupted run is continued split by split.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sfrs.data.coordinates import to_degrees
from sfrs.runtime.atomic_io import refuse_foreign, write_text
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress, Tasks
from sfrs.runtime.threads import single_threads
from sfrs.synthetic.city.renderer import render
from sfrs.synthetic.city.scene import Scene, build_scene
from sfrs.synthetic.city.views import CONDITIONS, Drive, Views, Visit, drive, visit

RENDERER = 1  # raised whenever the same seed gives other pictures
IMAGE_SIZE = (128, 160)  # height, width
BATCH = 8
ZONE, LETTER = 33, "U"
ORIGIN = {
    "train": (391_000.0, 5_820_000.0),
    "val": (411_000.0, 5_820_000.0),
    "test": (391_000.0, 5_840_000.0),
    "pretext": (431_000.0, 5_820_000.0),
}
YEARS = (2019, 2023)
# Hours of the sun positions of ground.SUNS, then of overcast, dusk and night recordings.
SUN_HOURS = (8, 10, 12, 14, 16, 7)
HOURS = (None, 13, 20, 23)


@dataclass(frozen=True)
class Quarter:
    """One split: how large, how its database is driven and its queries are taken."""

    blocks: int
    database: Drive
    queries: Visit


@dataclass(frozen=True)
class CityConfig:
    """A data set of the Pittsburgh -> Tokyo kind: easy queries to train on, hard ones to be tested on."""

    size: str
    seed: int
    quarters: dict[str, Quarter]


_TRAIN_DRIVE = Drive(spacing=5.0, headings=9, conditions=(0.5, 0.3, 0.2, 0.0))
_TEST_DRIVE = Drive(spacing=8.0, headings=8, conditions=(1.0, 0.0, 0.0, 0.0))
_TRAIN_VISIT = Visit(count=400, near=True, lateral=0.7, turn=4.0)
_TEST_VISIT = Visit(
    count=1600, near=False, lateral=2.5, turn=180.0, conditions=(0.3, 0.25, 0.25, 0.2), fov=(55.0, 75.0)
)
_QUARTERS = {
    "demo": {
        "train": Quarter(4, _TRAIN_DRIVE, _TRAIN_VISIT),
        "val": Quarter(3, _TEST_DRIVE, replace(_TEST_VISIT, count=500)),
        "test": Quarter(4, _TEST_DRIVE, _TEST_VISIT),
    },
    "small": {
        "train": Quarter(1, replace(_TRAIN_DRIVE, spacing=10.0), replace(_TRAIN_VISIT, count=24)),
        "val": Quarter(1, replace(_TEST_DRIVE, spacing=16.0), replace(_TEST_VISIT, count=16)),
        "test": Quarter(1, replace(_TEST_DRIVE, spacing=16.0), replace(_TEST_VISIT, count=32)),
    },
}
SIZES = tuple(_QUARTERS)

# Views of one more city in pairs, for `sfrs.synthetic.pretext`: the same view in two years.
_PRETEXT_DRIVE = Drive(spacing=12.0, headings=9, conditions=(0.4, 0.25, 0.2, 0.15))
_PRETEXT_VISIT = Visit(count=1500, near=True, lateral=1.0, turn=6.0)


def city_config(size: str = "demo", seed: int = 0) -> CityConfig:
    """The configuration of one of `SIZES`. Raises UserError for another size."""
    if size not in _QUARTERS:
        raise UserError(f"city: size is {size!r}, expected one of {', '.join(SIZES)}")
    return CityConfig(size, seed, dict(_QUARTERS[size]))


def pretext_config(size: str = "demo") -> CityConfig:
    """Pairs of views of a city that no data set of `city_config` uses, the same for all their seeds."""
    quarters = {
        "demo": Quarter(4, _PRETEXT_DRIVE, _PRETEXT_VISIT),
        "small": Quarter(1, replace(_PRETEXT_DRIVE, spacing=16.0), replace(_PRETEXT_VISIT, count=60)),
    }
    if size not in quarters:
        raise UserError(f"city: size is {size!r}, expected one of {', '.join(quarters)}")
    return CityConfig(f"{size} pretext", 0, {"pretext": quarters[size]})


def _quarter_seed(seed: int, split: str) -> int:
    """Every split is a city of its own."""
    return int(np.random.SeedSequence([seed, *split.encode()]).generate_state(1)[0])


def quarter_views(config: CityConfig, split: str, scene: Scene) -> tuple[Views, Views]:
    """Database and query views of a split."""
    quarter, seed = config.quarters[split], _quarter_seed(config.seed, split)
    database = drive(scene.plan, quarter.database, seed)
    return database, visit(scene.plan, database, quarter.queries, seed)


def image_names(views: Views, split: str, recording: str) -> list[str]:
    """File names in the full form; `recording` starts the panorama field."""
    east, north = views.x + ORIGIN[split][0], views.y + ORIGIN[split][1]
    latitude, longitude = to_degrees(np.column_stack([east, north]), f"{ZONE}N").T
    names = []
    for i in range(len(views)):
        condition, sun, moment = int(views.condition[i]), int(views.sun[i]), int(views.moment[i])
        hour = SUN_HOURS[sun] if condition == 0 else HOURS[condition]
        stamp = (
            f"{YEARS[views.year[i]]}{1 + moment % 12:02d}{1 + moment % 28:02d}_"
            f"{hour:02d}{moment % 60:02d}{moment // 60 % 60:02d}"
        )
        note = CONDITIONS[condition] + ("-haze" if views.haze[i] > 0.005 else "")
        pitch = np.degrees(np.arctan((views.horizon[i] - 0.5) * 2 * IMAGE_SIZE[0] / IMAGE_SIZE[1]
                                     * np.tan(np.radians(views.fov[i] / 2))))  # fmt: skip
        names.append(
            f"@{east[i]:.2f}@{north[i]:.2f}@{ZONE}@{LETTER}@{latitude[i]:.6f}@{longitude[i]:.6f}"
            f"@{recording}{views.panorama[i]:05d}@{views.tile[i]:02d}@{views.heading[i]:.1f}@{pitch:.1f}@0.0"
            f"@{views.height[i]:.2f}@{stamp}@{note}@.jpg"
        )
    return names


def write_views(scene: Scene, views: Views, paths: list[Path], done: Callable[[int], None]) -> None:
    """Render `views` into `paths` (JPEG) on as many threads as torch would use.

    The pictures do not depend on the number of threads: batches are cut by position alone. `done(n)` is
    called as n more are written.
    """

    def batch(first: int) -> int:
        pictures = render(scene, views[np.arange(first, min(first + BATCH, len(views)))], IMAGE_SIZE)
        for picture, path in zip(pictures, paths[first : first + BATCH], strict=True):
            Image.fromarray(picture).save(path, quality=92)
        return len(pictures)

    with single_threads(torch.get_num_threads()) as pool:
        for count in pool.map(batch, range(0, len(views), BATCH)):
            done(count)


def _write_split(config: CityConfig, split: str, root: Path, tasks: Tasks) -> None:
    folder = root / "images" / split
    if folder.exists():
        return
    partial = root / "images" / f".{split}.partial"
    if partial.exists():
        shutil.rmtree(partial)
    scene = build_scene(_quarter_seed(config.seed, split), config.quarters[split].blocks)
    parts = dict(zip(("database", "queries"), quarter_views(config, split, scene), strict=True))
    total, written = sum(len(v) for v in parts.values()), 0
    progress = tasks(f"rendering {split}")

    def done(count: int) -> None:
        nonlocal written
        written += count
        progress(written, total)

    for part, views in parts.items():
        (partial / part).mkdir(parents=True)
        names = image_names(views, split, part[0])
        write_views(scene, views, [partial / part / name for name in names], done)
    os.replace(partial, folder)


def _silent(_: str) -> Progress:
    return lambda done, total: None


def write_city(root: str | Path, config: CityConfig, tasks: Tasks = _silent) -> bool:
    """Render the data set into `root`; returns False if it is there already.

    Raises UserError if `root` holds a city of another configuration or renderer.
    """
    root = Path(root)
    wanted = {"renderer": RENDERER, "image_size": list(IMAGE_SIZE), **asdict(config)}
    wanted = json.loads(json.dumps(wanted))
    plan, record = root / "city.partial.json", root / "city.json"
    refuse_foreign(root, record.name, plan.name)
    for file in (record, plan):
        if file.exists():
            found = json.loads(file.read_text())
            if found != wanted:
                raise UserError(
                    f"{root} holds another city (size {found.get('size')}, seed {found.get('seed')}, "
                    f"renderer {found.get('renderer')}); expected size {config.size}, seed {config.seed}, "
                    f"renderer {RENDERER}. "
                    "Choose another folder or remove this one."
                )
    if record.exists():
        return False
    (root / "images").mkdir(parents=True, exist_ok=True)
    write_text(plan, json.dumps(wanted, indent=1))
    for split in config.quarters:
        _write_split(config, split, root, tasks)
    os.replace(plan, record)
    return True
