"""``sfrs describe``: descriptors of a file or a folder as .npy."""

from pathlib import Path

from sfrs.commands import options
from sfrs.commands.flags import argument, command, option
from sfrs.runtime.atomic_io import replaced, write_text
from sfrs.runtime.errors import UserError, counted
from sfrs.runtime.terminal import progress_tasks, say, show


@command(
    "sfrs describe photos/ --weights runs/demo/best.safetensors --out photos.npy",
    "sfrs describe one.jpg --weights sfrs.safetensors --whitening sfrs_pca.safetensors --out one.npy",
)
def describe(
    *,
    path: Path = argument("An image, or a folder of images (subfolders included)."),
    out: Path = option("Where to write the descriptors, float32 [n, dim].", default=..., metavar="X.npy"),
    weights: options.Weights,
    whitening: options.Whitening,
    images: options.Images,
    running: options.Running,
    skip_bad_images: bool = options.SKIP_BAD_IMAGES,
) -> None:
    """Write the descriptors of images to X.npy, and the list of their files to X.txt.

    Row i of the array belongs to line i of the list. Descriptors are unit vectors: their inner product is
    the similarity of two images.
    """
    if out.suffix != ".npy":
        raise UserError(f"--out is {out}; expected a name that ends in .npy.")
    from sfrs.data.photo_files import images_at

    files = images_at(path)
    model = options.open_model(weights, whitening, images, running)

    import numpy as np

    if model.network.meta.get("source") == options.RANDOM_WEIGHTS:
        say(("Random weights:", "yellow"), " these descriptors only serve to try the path.")
        model.network.meta.pop("untrained_vlad")
    else:
        options.require_trained(model.network, "describe")
    settings = running.begin()
    with progress_tasks() as tasks:
        if skip_bad_images:
            files = options.readable(files, path, settings["workers"], tasks)
        out.parent.mkdir(parents=True, exist_ok=True)
        with replaced(out) as partial:
            shape = (len(files), model.dim)
            rows = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
            model.encode(files, progress=tasks("describing"), out=rows, **settings)
            rows.flush()
    listing = out.with_suffix(".txt")
    names = (str(file).replace("\n", r"\n").replace("\r", r"\r") for file in files)  # a line each
    write_text(listing, "".join(f"{name}\n" for name in names))
    show(f"{counted(len(files), 'descriptor')} of {model.dim} numbers in {out}, their files in {listing}")
