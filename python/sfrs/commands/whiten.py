"""``sfrs whiten``: fit PCA whitening to a network's descriptors."""

from pathlib import Path

from sfrs.commands import options
from sfrs.commands.flags import command, option
from sfrs.runtime.errors import UserError, counted
from sfrs.runtime.terminal import progress_tasks, say, show


@command(
    "sfrs whiten --data pitts30k --weights runs/sfrs --out pca.safetensors",
    "sfrs evaluate --data pitts30k --weights runs/sfrs --whitening pca.safetensors",
)
def whiten(
    *,
    data: Path = option("Data set to fit to: a folder or a CSV manifest.", default=...),
    out: Path = option("Where to write it.", default=..., metavar="X.safetensors"),
    weights: options.Weights,
    image_options: options.Images,
    running: options.Running,
    split: str = option("Which split of it.", default="train"),
    dim: int = option("Numbers to keep per descriptor.", default=4096, min=1),
    images: int = option("Fit to at most this many images.", default=10_000, min=2),
) -> None:
    """Fit PCA whitening to the training images' descriptors, for [b]--whitening[/b].

    Database and queries serve alike; of more than --images a random choice is described.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out is {out}; expected a name that ends in .safetensors.")
    if weights.weights is None:
        raise UserError("Which network? Give --weights FILE.")
    model = options.open_model(weights, options.Whitening(no_whitening=True), image_options, running)
    options.require_trained(model.network, "whitening")
    if dim > model.dim:
        raise UserError(f"--dim is {dim}, but this network's descriptors have {model.dim} numbers.")

    import numpy as np

    from sfrs.data.places import load_places
    from sfrs.models.whitening import Whitening

    places = load_places(data, split, lenient=True)
    files = places.database.files + places.queries.files
    chosen = np.sort(np.random.default_rng(weights.seed).permutation(len(files))[:images])
    with progress_tasks() as tasks:
        descriptors = model.encode(
            [files[i] for i in chosen], progress=tasks("describing"), **running.begin()
        )
    fitted = Whitening.fit(descriptors, dim, max_images=images)
    if fitted.dim < dim:
        say(f"The descriptors vary in {counted(fitted.dim, 'direction')} only; these are kept, not {dim}.")
    fitted.save(out)
    show(f"Whitening from {fitted.input_dim} to {fitted.dim} numbers in {out}")
