"""``sfrs export``: a trained network and its whitening as one file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sfrs.commands import options
from sfrs.commands.flags import argument, command, option
from sfrs.runtime.errors import UserError
from sfrs.runtime.terminal import progress_tasks, say, show

if TYPE_CHECKING:
    from sfrs.models.export import ImageShape
    from sfrs.models.model import Model

MOST_PHOTOS = 16  # of a folder to compare on
EXAMPLE_SIZE = (240, 320)  # of networks that keep images at their own size


@command(
    "sfrs export runs/sfrs --whitening pca.safetensors --out place.safetensors",
    "sfrs export place.safetensors --size dynamic --out place.onnx --check photos/",
    "sfrs export place.safetensors --format aoti --size 480x640 --out place.pt2",
)
def export(
    *,
    source: Path = argument(
        "A training run, whose last generation's best network is taken, or a file of weights.",
        metavar="RUN|WEIGHTS",
    ),
    whitening: options.Whitening,
    out: Path = option("File to write.", default=..., metavar="X.safetensors|X.pt2|X.onnx"),
    format: str | None = option(
        "safetensors (weights), torch (torch.export program), aoti (the program compiled), onnx. "
        "Default: by the suffix; .pt2 is torch."
    ),
    size: str | None = option(
        "Size of the images the file takes. Default: as trained; 480x640 for VGG16.", metavar="HxW|dynamic"
    ),
    check: list[Path] | None = option(
        f"Image, or folder of which {MOST_PHOTOS} are taken, to compare on; may be repeated.", "Comparison"
    ),
    ignore_keys: list[str] | None = options.IGNORE_KEYS,
    device: str = option("cpu, cuda, cuda:1, ... or auto.", "Running", default="cpu"),
) -> None:
    """Write a network as one file: normalisation, backbone, NetVLAD and whitening.

    The file takes RGB images in 0..1 and gives unit descriptors. Before it is put in place its descriptors
    are compared with the network's, on made-up images and those of [b]--check[/b].
    """
    from sfrs.models import export as exports
    from sfrs.models.model import Model
    from sfrs.models.weights_file import network_file
    from sfrs.runtime.host import usable_device

    if whitening.whitening is not None and whitening.no_whitening:
        raise UserError("--whitening and --no-whitening exclude each other.")
    name = exports.choose_format(format, out)
    device = usable_device(device)
    photos = check_files(check or [])
    weights = network_file(source)
    model = Model.load(
        weights, whitening.whitening, whiten=not whitening.no_whitening, ignore_keys=ignore_keys or ()
    )
    model.check_clusters()
    shape = parse_shape(size, model)
    text = f"Writing {out} ({exports.FORMATS[name].title}) from {weights}"
    say(text)
    with progress_tasks() as tasks:
        agreement = exports.export(
            model,
            out,
            name,
            shape,
            photos=photos,
            device=device,
            source=weights.name,
            progress=tasks("comparing"),
        )
    network = f"{model.network.backbone.name}, K = {model.network.vlad.num_clusters}"
    white = "no whitening" if model.whitening is None else "whitened"
    file = f"{out}: {exports.FORMATS[name].title}, {out.stat().st_size / 1e6:.1f} MB"
    show(f"{file}, {network}, {white}, images {shape}, {model.dim} numbers")
    show(f"compared: {agreement}")


def parse_shape(size: str | None, model: Model) -> ImageShape:
    """The images ``--size`` asks for; without it, those the network was trained on.

    Raises `UserError` if it is neither HxW nor dynamic, or smaller than two positions of the feature map.
    """
    from sfrs.models.export import ImageShape

    network = model.network
    stride = network.backbone.stride
    trained = network.image_size
    if size in (None, "dynamic"):
        fixed = trained if isinstance(trained, tuple) else EXAMPLE_SIZE
        return ImageShape(*fixed, stride, dynamic=size == "dynamic" or not isinstance(trained, tuple))
    return ImageShape(*options.parse_size("--size", size, 2 * stride, "dynamic, or "), stride)


def check_files(paths: list[Path]) -> list[Path]:
    """Images to compare on: the files given, and up to MOST_PHOTOS of each folder, evenly spread."""
    from sfrs.data.photo_files import images_at

    files: list[Path] = []
    for path in paths:
        found = images_at(path) if path.is_dir() else [path]
        files += found[:: -(-len(found) // MOST_PHOTOS)]
    return files
