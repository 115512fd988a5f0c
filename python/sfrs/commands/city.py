"""``sfrs city``: render a data set."""

from __future__ import annotations

import time
from pathlib import Path

from sfrs.commands.flags import command, option
from sfrs.runtime.errors import counted
from sfrs.runtime.terminal import progress_tasks, show


@command("sfrs city --out runs/city", "sfrs city --out runs/small --size small --seed 3")
def city(
    *,
    out: Path = option("Folder to write images/{train,val,test} into.", default=...),
    seed: int = option("Equal seeds give equal pictures.", default=0, min=0),
    size: str = option("demo: about 10,000 images in a minute; small: a few hundred.", default="demo"),
    threads: int | None = option("Rendering threads.", min=1, show_default="all cores"),
) -> None:
    """Render a city in the field's folder format: disjoint quarters to train, validate and test on.

    The training database is recorded by day, on overcast days and at dusk, its queries are taken close to a
    view under the same conditions in another year. The test and validation quarters have a database of
    daylight images and queries by day, overcast, dusk and night, from other places and with other lenses.
    An interrupted run is continued.
    """
    import torch

    from sfrs.synthetic.city.write import city_config, write_city

    if threads is not None:
        torch.set_num_threads(threads)
    config = city_config(size, seed)
    started = time.perf_counter()
    with progress_tasks() as tasks:
        fresh = write_city(out, config, tasks)
    if not fresh:
        show(f"{out} already holds this city")
        return
    count = sum(1 for _ in (out / "images").rglob("*.jpg"))
    show(f"{counted(count, 'image')} of seed {seed} in {out}, {time.perf_counter() - started:.1f} s")
