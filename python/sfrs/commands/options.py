"""Options that several commands share, in groups."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sfrs.commands.flags import option
from sfrs.runtime.errors import UserError
from sfrs.runtime.terminal import say

if TYPE_CHECKING:
    from sfrs.data.images import Size
    from sfrs.models.model import Model
    from sfrs.models.network import DescriptorNetwork
    from sfrs.retrieval.region_rerank import Reranking
    from sfrs.runtime.progress import Tasks

RANDOM_WEIGHTS = "random weights"


# A declaration may stand in several groups, under one name.
IGNORE_KEYS = option(
    "Leave out tensors of the file of weights that would be refused; may be repeated.",
    "Network",
    metavar="PATTERN",
)
WORKERS = option("Threads that decode images. Default: one per core, at most 8.", "Running", min=0)
SKIP_BAD_IMAGES = option("Leave out images that cannot be read, and list them.", "Images", False)


@dataclass(frozen=True)
class Weights:
    """Which network."""

    weights: Path | None = option(
        "Weights: a run of sfrs train or a file of one, the network of another project, or the name of a "
        "published one, as sfrs/pitts30k.",
        "Network",
    )
    backbone: str | None = option(
        "Backbone to take with the weights published for it: efficientnet-lite0, -lite1, -lite2, "
        "timm:NAME or torchvision:NAME; any with --random-weights.",
        "Network",
    )
    random_weights: bool = option("Take random weights, to try the path.", "Network", default=False)
    ignore_keys: list[str] | None = IGNORE_KEYS
    seed: int = option("Seed of what is random.", "Running", default=0)

    @property
    def given(self) -> bool:
        """Whether any option says which network."""
        return self.weights is not None or self.backbone is not None or self.random_weights

    def open(self) -> "Model":
        """Open the model; without any option, the default backbone with its published weights.

        Raises `UserError` if the options contradict each other, or weights are missing or cannot be read.
        """
        if self.weights is not None and (self.backbone or self.random_weights):
            raise UserError("--weights says which network it is; leave out --backbone and --random-weights.")
        if self.random_weights and self.backbone is None:
            raise UserError("--random-weights of which network? Give --backbone, as --backbone vgg16.")
        if self.ignore_keys and self.weights is None:
            raise UserError("--ignore-keys leaves out tensors of a file; give --weights FILE.")
        import torch

        from sfrs.models.backbones import build_backbone
        from sfrs.models.model import DEFAULT, Model
        from sfrs.models.network import DescriptorNetwork, pretrained_network

        torch.manual_seed(self.seed)
        if self.weights is not None:
            return Model.load(self.weights, ignore_keys=self.ignore_keys or ())
        if not self.random_weights:
            return Model(pretrained_network(self.backbone or DEFAULT))
        network = DescriptorNetwork(build_backbone(self.backbone or DEFAULT))
        network.meta = {"source": RANDOM_WEIGHTS, "untrained_vlad": True}
        return Model(network)


@dataclass(frozen=True)
class Whitening:
    """Which whitening."""

    whitening: Path | None = option(
        "PCA whitening to apply: a file of ours, or the paper's network with its PCA layer. Default: the "
        "one in the file of weights, if there is one.",
        "Network",
    )
    no_whitening: bool = option("Leave it out.", "Network", default=False)

    def file(self, weights: Path | None, network: "DescriptorNetwork") -> Path | None:
        """The file to read it from: as given, else the weights that bring one."""
        if self.whitening is not None and self.no_whitening:
            raise UserError("--whitening and --no-whitening exclude each other.")
        if self.whitening is not None:
            require_trained(network, "--whitening")
        brought = weights if network.meta.get("has_pca") else None
        return None if self.no_whitening else self.whitening or brought


@dataclass(frozen=True)
class LearnedWhitening(Whitening):
    """Which whitening, where one may be learned from the photographs that are searched."""

    whiten: bool | None = option(
        "Learn a whitening from the photographs that are searched (of an index: those it begins with). "
        "Default: without --weights, from 200 on.",
        "Network",
        flag="--whiten/--no-whiten",
    )


@dataclass(frozen=True)
class Images:
    """How images are read."""

    image_size: str | None = option(
        "Resize images to this height and width. Default: as trained; without that 480x640 for VGG16, "
        "a shorter side of 240 for EfficientNet-Lite.",
        "Images",
        metavar="HxW",
    )
    shorter_side: int | None = option(
        "Resize the shorter side to N pixels, keeping the shape.", "Images", metavar="N", min=16
    )
    keep_size: bool = option("Leave every image at its own size.", "Images", default=False)

    @property
    def given(self) -> bool:
        """Whether any option says a size."""
        return self.image_size is not None or self.shorter_side is not None or self.keep_size

    def size(self, network: "DescriptorNetwork") -> "Size":
        """The image size; without any option, the one the network was trained at.

        Raises `UserError` if more than one is given, or --image-size is not HxW.
        """
        if sum((self.image_size is not None, self.shorter_side is not None, self.keep_size)) > 1:
            raise UserError("--image-size, --shorter-side and --keep-size exclude each other.")
        if self.image_size is not None:
            return parse_size("--image-size", self.image_size, 16)
        if self.given:
            return self.shorter_side
        return network.image_size


@dataclass(frozen=True)
class Running:
    """How the work is done."""

    batch_size: int = option("Images of equal size per batch.", "Running", default=8, min=1)
    workers: int | None = WORKERS
    threads: int | None = option("Threads that compute. Default: torch's choice.", "Running", min=1)
    device: str = option("cpu, cuda, cuda:1, ... or auto.", "Running", default="auto")

    def begin(self, processes: int = 1) -> dict[str, Any]:
        """Set the threads that compute; returns batch_size and workers for who describes images.

        Args:
            processes: of this machine, which share its cores.
        """
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        return {"batch_size": self.batch_size, "workers": decoding_workers(self.workers, processes)}

    def on_device(self) -> str:
        """The device, with "auto" resolved. Raises `UserError` if torch lacks it."""
        from sfrs.runtime.host import usable_device

        return usable_device(self.device)


@dataclass(frozen=True)
class Rerank:
    """Whether and how to re-rank."""

    rerank: str | None = option(
        "Order the first images found by how their regions match the query's, or do not. Default: as an "
        "index's self-test recommends, else none.",
        "Re-ranking",
        metavar="regions|none",
    )
    rerank_depth: int | None = option("How many images. Default: 100.", "Re-ranking", metavar="N", min=1)
    rerank_score: str | None = option(
        "mixed (default), chamfer, nine-best, aligned, whole-query or best-pair; see docs/reranking.md.",
        "Re-ranking",
        metavar="NAME",
    )

    def parse(self) -> "Reranking | Literal['none'] | None":
        """The re-ranking asked for, if any. Raises `UserError` if an option has no meaning."""
        given = {"--rerank-depth": self.rerank_depth, "--rerank-score": self.rerank_score}
        if self.rerank in (None, "none"):
            for name, value in given.items():
                if value is not None:
                    raise UserError(f"{name} needs --rerank regions.")
            return self.rerank
        if self.rerank != "regions":
            raise UserError(f"--rerank is {self.rerank!r}; expected regions or none.")
        from sfrs.retrieval.region_rerank import DEFAULT_SCORE, DEPTH, Reranking

        return Reranking(self.rerank_depth or DEPTH, self.rerank_score or DEFAULT_SCORE)


def open_model(weights: Weights, whitening: Whitening, images: Images, running: Running) -> "Model":
    """Open the model that the options describe.

    Raises `UserError` if an option is wrong, or a file cannot be used.
    """
    from sfrs.models.model import Model
    from sfrs.models.whitening import Whitening as PCA

    model = weights.open()
    size, file = images.size(model.network), whitening.file(weights.weights, model.network)
    applied = None if file is None else model.whitening
    if file is not None and file != weights.weights:
        applied = PCA.load(file, ignore_keys=weights.ignore_keys or ())
    return Model(model.network, applied, size=size).to(running.on_device())


def cluster_options(model: "Model", seed: int) -> dict[str, int]:
    """Options of `sfrs.models.model.Model.fit_clusters`."""
    # Random features are not worth passing the paper's 500 images through the network.
    random = model.network.meta.get("source") == RANDOM_WEIGHTS
    return {"seed": seed} | ({"images": 10, "per_image": 500} if random else {})


def require_trained(network: "DescriptorNetwork", what: str) -> None:
    """Raise `UserError` if NetVLAD is untrained, so that nothing can have been fitted to it."""
    if network.meta.get("untrained_vlad"):
        raise UserError(
            f"{what} needs a trained network, but {network.meta['source']} has no NetVLAD. See sfrs train."
        )


def decoding_workers(asked: int | None, processes: int = 1) -> int:
    """As many as asked for, else one per core that each of the processes has, and at most 8."""
    from sfrs.runtime.host import usable_cores

    return min(8, max(1, usable_cores() // processes)) if asked is None else asked


def parse_size(flag: str, text: str, smallest: int, other: str = "") -> tuple[int, int]:
    """Height and width from HxW. Raises `UserError` that names the flag."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not match or min(map(int, match.groups())) < smallest:
        raise UserError(
            f"{flag} is {text!r}; expected {other}HEIGHTxWIDTH of at least {smallest}x{smallest}, as 480x640."
        )
    return int(match[1]), int(match[2])


def describe_size(size: "Size") -> str:
    if size is None:
        return "own size"
    return f"shorter side {size}" if isinstance(size, int) else f"{size[0]}x{size[1]}"


def readable(files: list[Path], path: Path, workers: int, tasks: "Tasks") -> list[Path]:
    """The files that can be read; the others are named. Raises `UserError` if none can."""
    from sfrs.data.images import check_images

    bad = dict(check_images(files, workers=workers, progress=tasks("checking")))
    show_skipped(bad.items())
    if len(bad) == len(files):
        raise UserError(f"{path}: none of the {len(bad)} images can be read.")
    return [file for file in files if file not in bad]


def show_skipped(skipped: Iterable[tuple[Path, str]]) -> None:
    """Name images that were left out, and why."""
    for file, why in skipped:
        say(("Skipped", "yellow"), f" {file}: {why}")
