"""``sfrs index``: descriptors and coordinates of photographs in one directory, to be searched."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfrs.commands import data_options, options
from sfrs.commands.flags import argument, command, is_first_process, option
from sfrs.runtime.errors import UserError
from sfrs.runtime.terminal import progress_tasks, show

if TYPE_CHECKING:
    from sfrs.models.model import Model
    from sfrs.retrieval.index import Change


KINDS = """
[b]Kinds[/b], with a million descriptors of 4,096 numbers on one core (docs/indexing.md): descriptors and
codes on disk; memory; ms per query; queries whose place is found first.

  exact    every row, float32            16.4 GB         0.2 GB    938   95.7 %

  float16  every row, float16             8.2 GB         0.1 GB  1,658   95.7 %

  pq       product-quantised codes        8.2 + 0.3 GB   0.4 GB     60   95.7 %

  ivf      pq in inverted lists           8.2 + 0.3 GB   0.5 GB     28   92.6 %

  disk     inverted lists on the disk     8.2 + 0.5 GB   0.1 GB    111   92.6 %"""


@dataclass(frozen=True)
class Contents:
    """The work to do on the index."""

    photos: Path | None = argument(
        "A folder of photographs (subfolders included), a place folder, or a CSV manifest.", None
    )
    remove: list[str] | None = option(
        "Remove images in a folder, or whose path or name matches.", "Index", metavar="PATTERN|FOLDER"
    )
    remove_missing: bool = option("Remove images whose file is gone.", "Index", False)
    info: bool = option("Say what is in the index.", "Index", False)
    check: bool = option(
        "Repeat the self-test: locate the index's own photographs, and pictures of nowhere, and keep the "
        "result.",
        "Index",
        False,
    )
    as_json: bool = option("Print JSON and nothing else.", "Index", False, flag="--json")
    skip_bad_images: bool = options.SKIP_BAD_IMAGES


@dataclass(frozen=True)
class Form:
    """The form of the index, and its coordinates."""

    kind: str | None = option(
        "How descriptors are searched, see below. Default: exact, or as the index is.",
        "Index",
        metavar="exact|float16|pq|ivf|disk",
    )
    regions: bool | None = option(
        "Keep what re-ranking by regions needs: 8 K D bytes per image, 262 kB for VGG16. Default: as the "
        "index is; for a new one, only where its clusters are made from the photographs.",
        "Index",
        flag="--regions/--no-regions",
    )
    split: str = option("Whose database to index, of a place folder or manifest.", "Coordinates", "test")
    zone: str = option(
        "UTM zone of the index, and of easting and northing that do not say theirs. Default: that of the "
        "first image that has one.",
        "Coordinates",
        "",
        metavar="33N",
    )
    allow_unplaced: bool = option("Index images without coordinates too.", "Coordinates", False)
    skip_unplaced: bool = data_options.SKIP_UNPLACED


@command(
    "sfrs index photos/ --out city.index",
    "sfrs index places/lund --out lund.index --weights sfrs.safetensors --zone 33N --kind pq",
    "sfrs index --out city.index --remove 'photos/2019/*'",
    "sfrs index --out city.index --info",
    "sfrs index photos/ --out milvus://db:19530/city",
    "torchrun --nproc-per-node 4 -m sfrs index photos/ --out milvus://db:19530/city",
    above=KINDS,
    shared=True,
)
def index(
    *,
    out: Path = option(
        "Directory of the index; or milvus:FILE.db or milvus://HOST:PORT/COLLECTION, to keep it in Milvus.",
        default=...,
        metavar="X.index",
    ),
    contents: Contents,
    form: Form,
    coordinates: data_options.Coordinates,
    weights: options.Weights,
    whitening: options.LearnedWhitening,
    images: options.Images,
    running: options.Running,
) -> None:
    """Index photographs: what they look like and where they were taken, for sfrs locate and sfrs serve.

    Coordinates come from @easting@northing@... names, EXIF, a manifest's columns, --positions or --track.
    Without --weights the network is EfficientNet-Lite0 as ImageNet trained it, with clusters made from these
    photographs. The directory keeps a copy of the network, so later commands need no weights. Run it again to
    add new images and to describe changed ones again; interrupted at any moment, it goes on where it stopped.
    It ends with a self-test, which says how many of the photographs are found among the others.
    Several processes and machines, for an index on a server: the same command under torchrun.
    """
    photos = contents.photos
    if contents.info:
        if photos is not None or contents.remove or contents.remove_missing or form.kind is not None:
            raise UserError("--info changes nothing; leave out PHOTOS, --kind and --remove.")
        if is_first_process():
            _show(out, contents.as_json)
        return
    removing = contents.remove or contents.remove_missing
    changing = photos is not None or removing or form.kind or form.zone
    if not changing and not contents.check:
        raise UserError("What to do? Give PHOTOS to index, --kind, --remove, --zone, --check, or --info.")
    if changing and contents.check:
        raise UserError("--check repeats the self-test alone; every change ends with one: leave it out.")

    from sfrs.retrieval.index import ALONE, PATIENCE, Adding, Index
    from sfrs.runtime.distributed import running_together

    change = None
    with running_together(PATIENCE) as joined, progress_tasks(shown=joined.is_main) as tasks:
        device, settings = str(joined.device(running.device)), running.begin(joined.local_count)
        if contents.check:
            if joined.count > 1:
                raise UserError(ALONE)
            Index.open(out, device=device).check(tasks=tasks)
        else:
            model = _model(out, contents, weights, whitening, images, running) if joined.is_main else None
            adding = Adding(
                form.split,
                form.allow_unplaced,
                form.skip_unplaced,
                coordinates.sources(),
                contents.skip_bad_images,
                **settings,
                device=device,
                whiten=whitening.whiten,
                clusters=options.cluster_options(model, weights.seed) if model is not None else {},
            )
            change = Index.build(
                contents.photos,
                model,
                out=out,
                remove=contents.remove or (),
                remove_missing=contents.remove_missing,
                adding=adding,
                tasks=tasks,
                kind=form.kind,
                regions=form.regions,
                zone=form.zone,
            ).change
    if joined.is_main:
        _show(out, contents.as_json, change)


def _model(
    out: Path,
    contents: Contents,
    weights: options.Weights,
    whitening: options.Whitening,
    images: options.Images,
    running: options.Running,
) -> Model | None:
    """The model that the options say; None where that is left to the index, or there is none to change."""
    from sfrs.retrieval.index import builder_class

    begun = builder_class(out).begun(out)
    if contents.photos is None and not begun:
        return None
    if not begun or weights.given:
        return options.open_model(weights, whitening, images, running)
    if whitening.whitening is not None or whitening.no_whitening or images.given:
        raise UserError(
            f"{out} has its own network, whitening and image size; leave out --whitening and the "
            "size, or give --weights as well to have them compared."
        )
    return None


def _show(out: Path, as_json: bool, change: Change | None = None) -> None:
    from sfrs.retrieval.index import summarise

    facts = summarise(out)
    if change is not None:
        options.show_skipped(change.skipped)
        skipped = [{"file": str(file), "why": why} for file, why in change.skipped]
        facts["change"] = asdict(change) | {"skipped": skipped}
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    if change is not None:
        counts = [f"{change.added:,} added", f"{change.described_again:,} described again"]
        counts += [f"{change.removed:,} removed", f"{change.unchanged:,} unchanged"]
        print(", ".join(counts))
    _print_facts(facts)


def _print_facts(facts: dict) -> None:
    kind, size = facts["kind"], facts["size"]
    if kind in ("pq", "ivf", "disk") and not facts["compressed"]:
        kind += " (few images yet: every row is compared)"
    described = options.describe_size(tuple(size) if isinstance(size, list) else size)
    network = f"{facts['backbone']}, K = {facts['clusters']}, {described}"
    position = f"UTM zone {facts['zone']}" if facts["zone"] else "plain metres, UTM zone not known"
    if facts["west_south_east_north"] is None:
        position = "of no image"
    else:
        west, south, east, north = facts["west_south_east_north"]
        if "+" in facts["zone"]:
            position = f"UTM zones {facts['zone'].replace('+', ', ')}"
        else:
            extent = f"{east - west:,.0f} m from west to east, {north - south:,.0f} m from south to north"
            position = f"{position}, {extent}"
        if facts["without_position"]:
            position += f"; {facts['without_position']:,} images without"
    lines = {
        "images": f"{facts['images']:,}{'' if facts['finished'] else ' so far: the build is not finished'}",
        "kind": kind,
        "descriptors": f"{facts['descriptor_dim']:,} numbers, {facts['stored_as']}"
        f"{', whitened' if facts['whitened'] else ''}{', with regions' if facts['regions'] else ''}",
        "network": f"{network}; fingerprint {facts['fingerprint'][:12]}",
        "position": position,
    }
    if facts["removed_rows"]:
        lines["removed"] = f"{facts['removed_rows']:,} still on the disk, until a quarter of all is"
    if facts["bytes"]:  # a server keeps to itself what it takes
        lines["on disk"] = f"{sum(facts['bytes'].values()) / 1e6:,.1f} MB"
    says = facts["self_test"]["says"] if facts["self_test"] else []
    names = [*lines, "self-test", *[""] * len(says)]
    texts = [*lines.values(), *says]
    for line in (facts["path"], *(f"  {name:<12} {text}" for name, text in zip(names, texts, strict=False))):
        show(line)
