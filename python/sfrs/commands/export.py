"""``sfrs export``: a trained network and its whitening as one file for other programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfrs.commands import network as shared
from sfrs.runtime.errors import UserError

if TYPE_CHECKING:
    from sfrs.models.describer import Describer
    from sfrs.models.export import Exported, ImageShape

EXAMPLES = """
[b]Examples[/b]

  sfrs export runs/sfrs --whitening pca.safetensors --out place.safetensors

  sfrs export place.safetensors --size dynamic --out place.onnx --check photos/

  sfrs export place.safetensors --format aoti --size 480x640 --out place.pt2
"""
MOST_PHOTOS = 16
"""Of a folder to compare on."""
EXAMPLE_SIZE = (240, 320)
"""Of networks that keep images at their own size."""


def register(app: typer.Typer) -> None:
    app.command("export", epilog=EXAMPLES)(export)


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|WEIGHTS",
            help="A training run, whose last generation's best network is taken, or a file of weights.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="File to write.", metavar="X.safetensors|X.pt2|X.onnx", show_default=False
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="safetensors (weights), torch (torch.export program), aoti (the program compiled), onnx. "
            "Default: by the suffix; .pt2 is torch.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="HxW|dynamic",
            help="Size of the images the file takes. Default: as trained; 480x640 for VGG16.",
            show_default=False,
        ),
    ] = None,
    whitening: Annotated[
        Path | None,
        typer.Option(
            "--whitening",
            help="PCA whitening to put behind it. Default: the one in the file of weights, if there is one.",
            rich_help_panel="Network",
            show_default=False,
        ),
    ] = None,
    no_whitening: Annotated[
        bool, typer.Option("--no-whitening", help="Leave it out.", rich_help_panel="Network")
    ] = False,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            "--check",
            help=f"Image, or folder of which {MOST_PHOTOS} are taken, to compare on; may be repeated.",
            rich_help_panel="Comparison",
            show_default=False,
        ),
    ] = None,
    device: shared.Device = "cpu",
) -> None:
    """Write a network as one file: normalisation, backbone, NetVLAD and whitening.

    The file takes RGB images in 0..1 and gives unit descriptors. Before it is put in place its descriptors
    are compared with the network's, on made-up images and those of [b]--check[/b].
    """
    if whitening is not None and no_whitening:
        raise UserError("--whitening and --no-whitening exclude each other.")
    from sfrs.models import export as exports
    from sfrs.models.describer import load_describer
    from sfrs.runtime.terminal import messages, progress_tasks

    name = exports.choose_format(format, out)
    device = shared.parse_device(device)
    photos = check_files(check or [])
    weights = weights_of(source)
    describer = load_describer(weights, whitening, whiten=not no_whitening)
    shape = parse_shape(size, describer)
    text = f"Writing {out} ({exports.FORMATS[name].title}) from {weights}"
    messages.print(text, highlight=False, markup=False, soft_wrap=True)
    with progress_tasks() as tasks:
        done = exports.export(
            describer,
            out,
            name,
            shape,
            photos=photos,
            device=device,
            source=weights.name,
            progress=tasks("comparing"),
        )
    print(summary(done, exports.FORMATS[name].title, describer, shape))


def summary(done: Exported, title: str, describer: Describer, shape: ImageShape) -> str:
    network = f"{describer.network.backbone.name}, K = {describer.network.vlad.num_clusters}"
    white = "no whitening" if describer.whitening is None else "whitened"
    return (
        f"{done.path}: {title}, {done.bytes / 1e6:.1f} MB, {network}, {white}, images {shape}, "
        f"{describer.dim} numbers\ncompared: {done.agreement}"
    )


def weights_of(source: Path) -> Path:
    """The file of weights, or the best network of a run.

    Raises:
        UserError: there is no network in the folder.
    """
    if not source.is_dir():
        return source
    generations = [
        (int(match[1]), file)
        for file in source.glob("generation_*/best.safetensors")
        if (match := re.fullmatch(r"generation_(\d+)", file.parent.name))
    ]
    if generations:
        return max(generations)[1]
    if (source / "best.safetensors").is_file():
        return source / "best.safetensors"
    raise UserError(
        f"{source}: no network in this folder; expected generation_N/best.safetensors of sfrs train."
    )


def parse_shape(size: str | None, describer: Describer) -> ImageShape:
    """The images ``--size`` asks for; without it, those the network was trained on.

    Raises:
        UserError: it is neither HxW nor dynamic, or smaller than two positions of the feature map.
    """
    from sfrs.models.export import ImageShape

    network = describer.network
    stride = network.backbone.stride
    trained = shared.parse_size(None, None, False, network)
    if size in (None, "dynamic"):
        fixed = trained if isinstance(trained, tuple) else EXAMPLE_SIZE
        return ImageShape(*fixed, stride, dynamic=size == "dynamic" or not isinstance(trained, tuple))
    match = re.fullmatch(r"(\d+)[xX](\d+)", size)
    if not match or min(map(int, match.groups())) < 2 * stride:
        raise UserError(
            f"--size is {size!r}; expected dynamic, or HEIGHTxWIDTH of at least {2 * stride}x{2 * stride}, "
            "as 480x640."
        )
    return ImageShape(int(match[1]), int(match[2]), stride)


def check_files(paths: list[Path]) -> list[Path]:
    """Images to compare on: the files given, and up to MOST_PHOTOS of each folder, evenly spread."""
    from sfrs.data.images import images_at

    files: list[Path] = []
    for path in paths:
        found = images_at(path) if path.is_dir() else [path]
        files += found[:: -(-len(found) // MOST_PHOTOS)]
    return files
