"""``sfrs whiten``: fit PCA whitening to a network's descriptors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfrs.commands import network as shared
from sfrs.runtime.errors import UserError

EXAMPLES = """
[b]Examples[/b]

  sfrs whiten --data pitts30k --weights runs/sfrs/generation_4/best.safetensors --out pca.safetensors

  sfrs evaluate --data pitts30k --weights runs/sfrs/generation_4/best.safetensors --whitening pca.safetensors
"""


def register(app: typer.Typer) -> None:
    app.command("whiten", epilog=EXAMPLES)(whiten)


def whiten(
    data: Annotated[
        Path,
        typer.Option("--data", help="Data set to fit to: a folder or a CSV manifest.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Where to write it.", metavar="X.safetensors", show_default=False)
    ],
    split: Annotated[str, typer.Option("--split", help="Which split of it.")] = "train",
    dim: Annotated[int, typer.Option("--dim", min=1, help="Numbers to keep per descriptor.")] = 4096,
    images: Annotated[int, typer.Option("--images", min=2, help="Fit to at most this many images.")] = 10_000,
    weights: shared.Weights = None,
    image_size: shared.ImageSize = None,
    shorter_side: shared.ShorterSide = None,
    keep_size: shared.KeepSize = False,
    batch_size: shared.BatchSize = 8,
    workers: shared.Workers = None,
    device: shared.Device = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the choice of images.")] = 0,
) -> None:
    """Fit PCA whitening to the training images' descriptors, for [b]--whitening[/b].

    Database and queries serve alike; of more than --images a random choice is described.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out is {out}; expected a name that ends in .safetensors.")
    if weights is None:
        raise UserError("Which network? Give --weights FILE.")
    network = shared.open_network(weights, None, False, seed)
    shared.require_trained(network, "whitening")
    size = shared.parse_size(image_size, shorter_side, keep_size, network)
    device = shared.parse_device(device)
    if dim > network.dim:
        raise UserError(f"--dim is {dim}, but this network's descriptors have {network.dim} numbers.")

    import numpy as np

    from sfrs.data.places import load_places
    from sfrs.models.network import describe
    from sfrs.models.whitening import Whitening
    from sfrs.runtime.terminal import messages, progress_tasks

    places = load_places(data, split)
    files = places.database.files + places.queries.files
    chosen = np.sort(np.random.default_rng(seed).permutation(len(files))[:images])
    with progress_tasks() as tasks:
        descriptors = describe(
            network,
            [files[i] for i in chosen],
            size=size,
            batch_size=batch_size,
            device=device,
            threads=shared.decoding_workers(workers),
            progress=tasks("describing"),
        )
    fitted = Whitening.fit(descriptors, dim, max_images=images)
    if fitted.dim < dim:
        messages.print(
            f"{len(chosen)} images vary in {fitted.dim} directions only; keeping those instead of {dim}."
        )
    fitted.save(out)
    print(f"Whitening from {fitted.input_dim} to {fitted.dim} numbers in {out}")
