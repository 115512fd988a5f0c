"""``sfrs describe``: descriptors of a file or a folder as .npy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfrs.commands import network as shared
from sfrs.runtime.errors import UserError

EXAMPLES = """
[b]Examples[/b]

  sfrs describe photos/ --weights runs/demo/best.safetensors --out photos.npy

  sfrs describe one.jpg --weights sfrs.safetensors --whitening sfrs_pca.safetensors --out one.npy
"""


def register(app: typer.Typer) -> None:
    app.command("describe", epilog=EXAMPLES)(describe)


def describe(
    path: Annotated[
        Path,
        typer.Argument(help="An image, or a folder of images (subfolders included).", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Where to write the descriptors, float32 [n, dim].",
            metavar="X.npy",
            show_default=False,
        ),
    ],
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
    """Write the descriptors of images to X.npy, and the list of their files to X.txt beside it.

    Row i of the array belongs to line i of the list. Descriptors are unit vectors: their inner product is
    the similarity of two images.
    """
    if out.suffix != ".npy":
        raise UserError(f"--out is {out}; expected a name that ends in .npy.")
    from sfrs.data.images import check_images, images_at

    files = images_at(path)
    network = shared.open_network(weights, backbone, random_weights, seed)
    size = shared.parse_size(image_size, shorter_side, keep_size, network)
    device = shared.parse_device(device)
    loaded = shared.open_whitening(whitening, network, device)

    import numpy as np

    from sfrs.models import network as descriptor
    from sfrs.runtime.atomic_io import replaced, write_text
    from sfrs.runtime.terminal import messages, progress_tasks

    if network.meta.get("source") == shared.RANDOM_WEIGHTS:
        messages.print("[yellow]Random weights:[/yellow] these descriptors only serve to try the path.")
    else:
        shared.require_trained(network, "describe")
    workers = shared.decoding_workers(workers)
    with progress_tasks() as tasks:
        if skip_bad_images:
            bad = dict(check_images(files, workers=workers, progress=tasks("checking")))
            files = [file for file in files if file not in bad]
            for file, why in bad.items():
                messages.print(f"[yellow]Skipped[/yellow] {file}: {why}", soft_wrap=True, highlight=False)
            if not files:
                raise UserError(f"{path}: none of the {len(bad)} images can be read.")
        dim = network.dim if loaded is None else loaded.dim
        with replaced(out) as partial:
            rows = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(len(files), dim))
            descriptor.describe(
                network,
                files,
                size=size,
                batch_size=batch_size,
                device=device,
                threads=workers,
                whitening=loaded,
                progress=tasks("describing"),
                out=rows,
            )
            rows.flush()
    listing = out.with_suffix(".txt")
    write_text(listing, "".join(f"{file}\n" for file in files))
    print(f"{len(files)} descriptors of {dim} numbers in {out}, their files in {listing}")
