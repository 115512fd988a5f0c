"""``sfrs index``: descriptors and coordinates of photographs in one directory, to be searched."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfrs.commands import network as shared
from sfrs.runtime.errors import UserError

if TYPE_CHECKING:
    from sfrs.retrieval.index import Change, Model

EXAMPLES = """
[b]Kinds[/b], with a million descriptors of 4,096 numbers on one core (docs/index.md): descriptors and codes
on disk; memory; ms per query; queries whose place is found first.

  exact    every row, float32            16.4 GB         0.2 GB    938   95.7 %

  float16  every row, float16             8.2 GB         0.1 GB  1,658   95.7 %

  pq       product-quantised codes        8.2 + 0.3 GB   0.4 GB     60   95.7 %

  ivf      pq in inverted lists           8.2 + 0.3 GB   0.5 GB     28   92.6 %

  disk     inverted lists on the disk     8.2 + 0.5 GB   0.1 GB    111   92.6 %

[b]Examples[/b]

  sfrs index photos/ --out city.index

  sfrs index places/lund --out lund.index --weights sfrs.safetensors --zone 33N --kind pq

  sfrs index --out city.index --remove 'photos/2019/*'

  sfrs index --out city.index --info
"""


def register(app: typer.Typer) -> None:
    app.command("index", epilog=EXAMPLES)(index)


def index(
    out: Annotated[
        Path,
        typer.Option("--out", help="Directory of the index.", metavar="X.index", show_default=False),
    ],
    photos: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of photographs (subfolders included), a place folder, or a CSV manifest.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            metavar="exact|float16|pq|ivf|disk",
            help="How descriptors are searched, see below. Default: exact, or as the index is.",
            rich_help_panel="Index",
            show_default=False,
        ),
    ] = None,
    regions: Annotated[
        bool | None,
        typer.Option(
            "--regions/--no-regions",
            help="Keep what re-ranking by regions needs: 8 K D bytes per image, 262 kB for VGG16. Default: "
            "as the index is; for a new one, only where its clusters are made from the photographs.",
            rich_help_panel="Index",
            show_default=False,
        ),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            "--remove",
            metavar="PATTERN|FOLDER",
            help="Remove the images below a folder, or whose path or name matches.",
            rich_help_panel="Index",
            show_default=False,
        ),
    ] = None,
    remove_missing: Annotated[
        bool,
        typer.Option("--remove-missing", help="Remove images whose file is gone.", rich_help_panel="Index"),
    ] = False,
    info: Annotated[
        bool, typer.Option("--info", help="Say what is in the index.", rich_help_panel="Index")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else.", rich_help_panel="Index")
    ] = False,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            help="Whose database to index, of a place folder or manifest with splits.",
            rich_help_panel="Coordinates",
        ),
    ] = "test",
    zone: Annotated[
        str,
        typer.Option(
            "--zone",
            metavar="33N",
            help="UTM zone of the index, and of easting and northing that do not say theirs. "
            "Default: that of the first image that has one.",
            rich_help_panel="Coordinates",
            show_default=False,
        ),
    ] = "",
    allow_unplaced: Annotated[
        bool,
        typer.Option(
            "--allow-unplaced",
            help="Index images without coordinates too.",
            rich_help_panel="Coordinates",
        ),
    ] = False,
    weights: shared.Weights = None,
    backbone: shared.Backbone = None,
    random_weights: shared.RandomWeights = False,
    whitening: shared.WhiteningFile = None,
    image_size: shared.ImageSize = None,
    shorter_side: shared.ShorterSide = None,
    keep_size: shared.KeepSize = False,
    skip_bad_images: shared.SkipBadImages = False,
    batch_size: shared.BatchSize = 8,
    workers: shared.Workers = None,
    device: shared.Device = "auto",
    seed: shared.Seed = 0,
) -> None:
    """Index photographs: what they look like and where they were taken, for sfrs locate and sfrs serve.

    Coordinates come from @easting@northing@... names, EXIF GPS or the manifest's columns. Without --weights
    the network is EfficientNet-Lite0 as ImageNet trained it, with clusters made from these photographs. The
    directory keeps a copy of the network, so later commands need no weights. Run it again to add new images
    and to describe changed ones again; interrupted at any moment, it goes on where it stopped.
    """
    if info:
        if photos is not None or remove or remove_missing or kind is not None:
            raise UserError("--info changes nothing; leave out PHOTOS, --kind and --remove.")
        _show(out, as_json)
        return
    if photos is None and not (remove or remove_missing or kind or zone):
        raise UserError("What to do? Give PHOTOS to index, --kind, --remove, --zone, or --info.")
    device = shared.parse_device(device)

    from sfrs.retrieval.index import Builder, read_photos
    from sfrs.retrieval.index.store import Store
    from sfrs.runtime.terminal import progress_tasks

    if photos is None:
        Store.open(out).close()  # raises where there is no index to change, before a network is opened
    model = _model(
        out, weights, backbone, random_weights, whitening, image_size, shorter_side, keep_size, device, seed
    )
    with progress_tasks() as tasks:
        found = ()
        if photos is not None:
            reading = tasks("reading coordinates")
            found = read_photos(photos, split, skip_bad_images=skip_bad_images, progress=reading)
        prepare = None
        if model is not None and model.network.meta.get("untrained_vlad"):
            regions = regions is not False
            prepare = partial(
                shared.make_clusters,
                model.network,
                size=model.size,
                skip_bad_images=skip_bad_images,
                batch_size=batch_size,
                device=device,
                seed=seed,
                tasks=tasks,
            )
        with Builder(out, model, kind=kind, regions=regions, zone=zone, device=device) as builder:
            for pattern in remove or ():
                builder.remove(pattern)
            if remove_missing:
                builder.remove_missing()
            builder.add(
                found,
                allow_unplaced=allow_unplaced,
                skip_bad_images=skip_bad_images,
                batch_size=batch_size,
                threads=shared.decoding_workers(workers),
                tasks=tasks,
                prepare=prepare,
            )
            change = builder.finish(tasks)
    _show(out, as_json, change)


def _model(
    out: Path,
    weights: Path | None,
    backbone: str | None,
    random_weights: bool,
    whitening: Path | None,
    image_size: str | None,
    shorter_side: int | None,
    keep_size: bool,
    device: str,
    seed: int,
) -> Model | None:
    """What the options say describes images; None where they leave that to the index there is."""
    from sfrs.retrieval.index import Model
    from sfrs.retrieval.index.store import TABLE

    sized = image_size is not None or shorter_side is not None or keep_size
    if (out / TABLE).is_file() and weights is None and backbone is None and not random_weights:
        if whitening is not None or sized:
            raise UserError(
                f"{out} has its own network, whitening and image size; leave out --whitening and the "
                "size, or give --weights as well to have them compared."
            )
        return None
    network = shared.open_network(weights, backbone, random_weights, seed)
    size = shared.parse_size(image_size, shorter_side, keep_size, network)
    return Model(network.to(device).eval(), shared.open_whitening(whitening, network, device), size, device)


def _show(out: Path, as_json: bool, change: Change | None = None) -> None:
    from dataclasses import asdict

    from rich.text import Text

    from sfrs.retrieval.index.summary import summarise
    from sfrs.runtime.terminal import messages

    facts = summarise(out)
    if change is not None:
        for file, why in change.skipped:
            messages.print(Text.assemble(("Skipped", "yellow"), f" {file}: {why}"), soft_wrap=True)
        facts["change"] = asdict(change) | {
            "skipped": [{"file": str(file), "why": why} for file, why in change.skipped]
        }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    if change is not None:
        counts = [f"{change.added:,} added", f"{change.described_again:,} described again"]
        counts += [f"{change.removed:,} removed", f"{change.unchanged:,} unchanged"]
        print(", ".join(counts))
    _print_facts(facts)


def _print_facts(facts: dict) -> None:
    searched = facts["kind"]
    if searched in ("pq", "ivf", "disk") and not facts["compressed"]:
        searched += " (few images yet: every row is compared)"
    size = facts["size"]
    if isinstance(size, list):
        size = tuple(size)
    network = f"{facts['backbone']}, K = {facts['clusters']}, {shared.describe_size(size)}"
    lines = {
        "images": f"{facts['images']:,}"
        + ("" if facts["finished"] else " so far: the build is not finished"),
        "kind": searched,
        "descriptors": f"{facts['descriptor_dim']:,} numbers, {facts['stored_as']}"
        + (", whitened" if facts["whitened"] else "")
        + (", with regions" if facts["regions"] else ""),
        "network": f"{network}; fingerprint {facts['fingerprint'][:12]}",
        "position": f"UTM zone {facts['zone']}" if facts["zone"] else "plain metres, UTM zone not known",
    }
    extent = facts["west_south_east_north"]
    if extent is None:
        lines["position"] = "of no image"
    else:
        width, height = extent[2] - extent[0], extent[3] - extent[1]
        lines["position"] += f", {width:,.0f} m from west to east, {height:,.0f} m from south to north"
    if facts["without_position"] and extent is not None:
        lines["position"] += f"; {facts['without_position']:,} images without"
    if facts["removed_rows"]:
        lines["removed"] = f"{facts['removed_rows']:,} still on the disk, until a quarter of all is"
    lines["on disk"] = f"{sum(facts['bytes'].values()) / 1e6:,.1f} MB"
    print(facts["path"])
    for name, text in lines.items():
        print(f"  {name:<12} {text}")
