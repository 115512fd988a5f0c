"""Backbones: a frozen trunk and a trained head that turn images into local features."""

from collections import OrderedDict
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import nn

from sfrs.data.images import Size
from sfrs.models.convolution import Convolution3x3
from sfrs.runtime.errors import UserError

REGISTRY = {
    "vgg16": "sfrs.models.backbones:VGG16",
    "gradient": "sfrs.models.gradient:GradientBackbone",
    "efficientnet-lite0": "sfrs.models.efficientnet_lite:lite0",
    "efficientnet-lite1": "sfrs.models.efficientnet_lite:lite1",
    "efficientnet-lite2": "sfrs.models.efficientnet_lite:lite2",
}
"""Name -> module:class or function, imported when asked for."""

LIBRARIES = ("timm:", "torchvision:")  # prefixes of the names of other libraries' networks
NEEDS_WEIGHTS = ("vgg16",)  # backbones that do not train from random weights and have no published ones

# Layer names of VGG16 (configuration D) up to conv5_3 with their output channels; "pool" halves the size.
VGG16_TRUNK = (
    ("conv1_1", 64), ("conv1_2", 64), ("pool1", 0),
    ("conv2_1", 128), ("conv2_2", 128), ("pool2", 0),
    ("conv3_1", 256), ("conv3_2", 256), ("conv3_3", 256), ("pool3", 0),
    ("conv4_1", 512), ("conv4_2", 512), ("conv4_3", 512), ("pool4", 0),
)  # fmt: skip
VGG16_INPUTS = {
    # RGB in 0..255 minus the mean, as VGG's authors and the paper trained it.
    "caffe": ((0.48501960784313836, 0.4579568627450961, 0.4076039215686255), (1 / 255, 1 / 255, 1 / 255)),
    # As torchvision trained its weights.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
VGG16_HEAD = (("conv5_1", 512), ("conv5_2", 512), ("conv5_3", 512))


@dataclass(frozen=True)
class Published:
    """Weights that are published with a backbone."""

    source: str  # where `Backbone.load_pretrained` takes them from
    licence: str  # theirs, as their publisher names it


class BackboneError(UserError, ValueError):
    """There is no such backbone."""


class PretrainedWeightsError(UserError):
    """A backbone has no published weights here."""


class Backbone(nn.Module):
    """A trunk that is never trained and a head that is.

    Attributes:
        trunk: images ``[B, 3, H, W]`` -> ``[B, Ct, Ht, Wt]``; frozen, always in evaluation mode.
        head: trunk output -> local features ``[B, channels, h, w]``; its parameters are trained.
        channels: D, channels of the local features.
        stride: pixels per position of the local features.
        mean, std: normalisation of RGB in 0..1.
        name, options: what `build_backbone` needs to build it again.
        default_size: image size where nothing says another, see `sfrs.data.images.Size`.
        published: the weights that `load_pretrained` takes, or None.
        exports_any_size: whether it can be traced for images of any size.
    """

    published: Published | None = None
    exports_any_size = True
    default_size: Size = None

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        *,
        name: str,
        channels: int,
        stride: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ):
        super().__init__()
        self.trunk = trunk.eval().requires_grad_(False)
        self.head = head
        self.name, self.options = name, {}
        self.channels, self.stride = channels, stride
        self.mean, self.std = mean, std

    @property
    def frozen_stages(self) -> tuple[str, ...]:
        """Names of the trunk's stages, in order."""
        return _stages(self.trunk)

    @property
    def trained_stages(self) -> tuple[str, ...]:
        """Names of the head's stages, in order."""
        return _stages(self.head)

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        self.trunk.eval()
        return self

    def load_pretrained(self) -> None:
        """Take the weights that are published with the backbone, in place.

        Raises `PretrainedWeightsError` if there are none, or they are not installed.
        """
        raise PretrainedWeightsError(
            f"{self.name}: no weights come with this backbone; give --weights FILE, or --random-weights to "
            "try the path."
        )


def _stages(part: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in part.named_children()) or (type(part).__name__,)


class VGG16(Backbone):
    """VGG16 up to conv5_3 without its ReLU: 512 channels, stride 16 (Simonyan & Zisserman, 2015).

    The trunk is conv1_1 .. conv4_3 with pool4, the head conv5_1 .. conv5_3, as SFRS trains it. Convolutions
    start from He initialisation by fan-out and zero biases. ``inputs``, a key of `VGG16_INPUTS`, says how
    pixels are normalised; it belongs to the weights.
    """

    default_size = (480, 640)

    def __init__(self, inputs: str = "caffe"):
        if inputs not in VGG16_INPUTS:
            raise BackboneError(f"VGG16: inputs is {inputs!r}; expected one of {', '.join(VGG16_INPUTS)}")
        mean, std = VGG16_INPUTS[inputs]
        super().__init__(
            _layers(VGG16_TRUNK, 3),
            _layers(VGG16_HEAD, 512, last_relu=False),
            name="vgg16",
            channels=512,
            stride=16,
            mean=mean,
            std=std,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # A fifth less CPU time and memory than the contiguous layout; NetVLAD reads this one in place too.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not in its stub


def _layers(plan: tuple[tuple[str, int], ...], channels: int, last_relu: bool = True) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, width in plan:
        if name.startswith("pool"):
            layers[name] = nn.MaxPool2d(2)
            continue
        layers[name] = Convolution3x3(channels, width)
        layers[name.replace("conv", "relu")] = nn.ReLU(inplace=True)
        channels = width
    if not last_relu:
        layers.popitem()
    return nn.Sequential(layers)


def vgg16_layers() -> dict[str, int]:
    """Map convolutions by their name in `VGG16` to torchvision's index in ``features``."""
    found, index = {}, 0
    for part, plan in (("trunk", VGG16_TRUNK), ("head", VGG16_HEAD)):
        for name, _ in plan:
            if not name.startswith("pool"):
                found[f"{part}.{name}"] = index
            index += 1 if name.startswith("pool") else 2  # a convolution is followed by its ReLU
    return found


def is_backbone(name: str) -> bool:
    """Whether `build_backbone` takes the name; of a library's network, whether it names a library."""
    return name in REGISTRY or name.startswith(LIBRARIES)


def build_backbone(name: str, **options) -> Backbone:
    """Build a backbone, with random weights, by its name in `REGISTRY`, or a network of timm or
    torchvision (`sfrs.models.libraries`); ``options`` go to its constructor.

    Raises `BackboneError` if there is no such name, or the library does not import.
    """
    if name.startswith(LIBRARIES):
        from sfrs.models.libraries import LibraryBackbone

        return LibraryBackbone(name, **options)
    if name not in REGISTRY:
        known = ", ".join([*REGISTRY, *(f"{library}NAME" for library in LIBRARIES)])
        raise BackboneError(f"backbone: {name!r} is not known; expected one of {known}")
    module, _, cls = REGISTRY[name].partition(":")
    backbone = getattr(import_module(module), cls)(**options)
    backbone.options = dict(options)
    return backbone
