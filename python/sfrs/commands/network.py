"""Options that several commands share: which network, at which image size, on which device."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfrs.runtime.errors import UserError

if TYPE_CHECKING:
    from sfrs.data.images import Size
    from sfrs.models.network import DescriptorNetwork
    from sfrs.models.whitening import Whitening
    from sfrs.runtime.progress import Tasks

Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Weights: a safetensors file of sfrs train, a network of the paper, or torchvision's VGG16.",
        rich_help_panel="Network",
        show_default=False,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Backbone to take with the weights published for it: efficientnet-lite0, -lite1 or -lite2; any "
        "with --random-weights.",
        rich_help_panel="Network",
        show_default=False,
    ),
]
RandomWeights = Annotated[
    bool,
    typer.Option("--random-weights", help="Take random weights, to try the path.", rich_help_panel="Network"),
]
WhiteningFile = Annotated[
    Path | None,
    typer.Option(
        "--whitening",
        help="PCA whitening to apply: a file of ours, or the paper's network with its PCA layer.",
        rich_help_panel="Network",
        show_default=False,
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        metavar="HxW",
        help="Resize images to this height and width. Default: as trained; without that 480x640 for VGG16, "
        "a shorter side of 240 for EfficientNet-Lite.",
        rich_help_panel="Images",
        show_default=False,
    ),
]
ShorterSide = Annotated[
    int | None,
    typer.Option(
        "--shorter-side",
        metavar="N",
        min=16,
        help="Resize the shorter side to N pixels, keeping the shape.",
        rich_help_panel="Images",
        show_default=False,
    ),
]
KeepSize = Annotated[
    bool, typer.Option("--keep-size", help="Leave every image at its own size.", rich_help_panel="Images")
]
SkipBadImages = Annotated[
    bool,
    typer.Option(
        "--skip-bad-images",
        help="Leave out images that cannot be read, and list them.",
        rich_help_panel="Images",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option("--batch-size", min=1, help="Images of equal size per batch.", rich_help_panel="Running"),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Threads that decode images. Default: one per core, at most 8.",
        rich_help_panel="Running",
        show_default=False,
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1, ... or auto.", rich_help_panel="Running")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of random weights.", rich_help_panel="Running")]

DEFAULT_BACKBONE = "efficientnet-lite0"
RANDOM_WEIGHTS = "random weights"


def open_network(
    weights: Path | None, backbone: str | None, random_weights: bool, seed: int
) -> DescriptorNetwork:
    """The network the options ask for; without any, :data:`DEFAULT_BACKBONE` with its published weights.

    Where the weights are a backbone's alone, NetVLAD is untrained (``network.meta["untrained_vlad"]``).

    Raises:
        UserError: the options contradict each other, or weights are missing or cannot be read.
    """
    if weights is not None and (backbone or random_weights):
        raise UserError("--weights says which network it is; leave out --backbone and --random-weights.")
    if random_weights and backbone is None:
        raise UserError("--random-weights of which network? Give --backbone, as --backbone vgg16.")
    import torch

    from sfrs.models.backbones import build_backbone
    from sfrs.models.network import DescriptorNetwork, load_network

    torch.manual_seed(seed)
    if weights is not None:
        return load_network(weights)
    network = DescriptorNetwork(build_backbone(backbone or DEFAULT_BACKBONE))
    if not random_weights:
        network.backbone.load_pretrained()
    source = RANDOM_WEIGHTS if random_weights else f"{network.backbone.name} with published weights"
    network.meta = {"source": source, "untrained_vlad": True}
    return network.eval()


def make_clusters(
    network: DescriptorNetwork,
    files: Sequence[Path],
    size: Size,
    *,
    skip_bad_images: bool,
    batch_size: int,
    device: str,
    seed: int,
    tasks: Tasks,
) -> None:
    """Give an untrained NetVLAD clusters of the local features of images: the off-the-shelf descriptor.

    Raises:
        BadImageError: one of them cannot be read, and bad ones are not to be skipped.
        UserError: they have too few features.
    """
    from sfrs.models.clusters import init_vlad_from_images

    # Random features are not worth passing the paper's 500 images through the network.
    random = network.meta["source"] == RANDOM_WEIGHTS
    init_vlad_from_images(
        network,
        files,
        size=size,
        images=10 if random else 500,
        per_image=500 if random else 100,
        skip_bad_images=skip_bad_images,
        batch_size=batch_size,
        device=device,
        seed=seed,
        progress=tasks("k-means for NetVLAD"),
    )
    del network.meta["untrained_vlad"]
    network.meta["clusters_from"] = len(files)


def require_trained(network: DescriptorNetwork, what: str) -> None:
    """Raise :class:`UserError` if NetVLAD is untrained, so that nothing can have been fitted to it."""
    if network.meta.get("untrained_vlad"):
        raise UserError(
            f"{what} needs a trained network, but {network.meta['source']} has no NetVLAD. See sfrs train."
        )


def parse_size(
    image_size: str | None, shorter_side: int | None, keep_size: bool, network: DescriptorNetwork
) -> Size:
    """The image size the options ask for; without any, the one the network was trained at.

    Raises:
        UserError: more than one option, or --image-size is not HxW.
    """
    if sum((image_size is not None, shorter_side is not None, keep_size)) > 1:
        raise UserError("--image-size, --shorter-side and --keep-size exclude each other.")
    if image_size is not None:
        match = re.fullmatch(r"(\d+)[xX](\d+)", image_size)
        if not match or min(map(int, match.groups())) < 16:
            raise UserError(
                f"--image-size is {image_size!r}; expected HEIGHTxWIDTH of at least 16x16, as 480x640."
            )
        return int(match[1]), int(match[2])
    if shorter_side is not None or keep_size:
        return shorter_side
    if "image_size" in network.meta:
        trained = network.meta["image_size"]
        return tuple(trained) if isinstance(trained, list) else trained
    return network.backbone.default_size


def describe_size(size: Size) -> str:
    if size is None:
        return "own size"
    return f"shorter side {size}" if isinstance(size, int) else f"{size[0]}x{size[1]}"


def parse_device(name: str) -> str:
    """Resolve "auto" and check that torch has the device.

    Raises:
        UserError: it has not.
    """
    from sfrs.runtime.host import usable_device

    return usable_device(name)


def decoding_workers(workers: int | None) -> int:
    return min(8, len(os.sched_getaffinity(0))) if workers is None else workers


def open_whitening(path: Path | None, network: DescriptorNetwork, device: str) -> Whitening | None:
    """Load ``--whitening`` and check that it fits the network.

    Raises:
        UserError: it was fitted to descriptors of another length.
    """
    if path is None:
        if network.meta.get("has_pca"):
            from sfrs.runtime.terminal import messages

            messages.print(
                "The weights file holds a PCA layer too; to apply it, give it to --whitening as well."
            )
        return None
    from sfrs.models.whitening import Whitening

    require_trained(network, "--whitening")
    whitening = Whitening.load(path)
    if whitening.input_dim != network.dim:
        raise UserError(
            f"{path}: fitted to descriptors of {whitening.input_dim} numbers, but this network's "
            f"have {network.dim}."
        )
    return whitening.to(device)
