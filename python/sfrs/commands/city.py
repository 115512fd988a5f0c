"""``sfrs city``: render a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
[b]Examples[/b]

  sfrs city --out runs/city

  sfrs city --out runs/small --size small --seed 3
"""


def register(app: typer.Typer) -> None:
    app.command("city", epilog=EXAMPLES)(city)


def city(
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write images/{train,val,test} into.", show_default=False)
    ],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Equal seeds give equal pictures.")] = 0,
    size: Annotated[
        str, typer.Option("--size", help="demo: about 10,000 images in a minute; small: a few hundred.")
    ] = "demo",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Rendering threads.", show_default="all cores")
    ] = None,
) -> None:
    """Render a city in the field's folder format: disjoint quarters to train, validate and test on.

    The training database is recorded by day, on overcast days and at dusk, its queries are taken close to a
    view under the same conditions in another year. The test and validation quarters have a database of
    daylight images and queries by day, overcast, dusk and night, from other places and with other lenses.
    An interrupted run is continued.
    """
    import time

    import torch

    from sfrs.runtime.terminal import progress_tasks, show
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
    show(f"{count} images of seed {seed} in {out}, {time.perf_counter() - started:.1f} s")
