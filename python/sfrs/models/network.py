"""The descriptor network: backbone + NetVLAD, and its file."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from sfrs.data.images import Size
from sfrs.models.backbones import Backbone, build_backbone
from sfrs.models.foreign import WHITENING, Weights, read_weights
from sfrs.models.weights_file import METADATA_KEY, WeightsError, listed, reason
from sfrs.models.whitening import Whitening
from sfrs.runtime.records import Positive, RecordError, as_record
from sfrs.runtime.tensor_files import write_tensors
from sfrs_ext.nn import RegionNetVLAD

FORMAT = 1


class Meta(TypedDict, total=False):
    """Further facts about a network that are read; a file may hold more."""

    image_size: tuple[Positive, Positive] | Positive | None
    untrained_vlad: bool
    source: str
    clusters_from: int
    ignore_keys: list[str]


class Description(TypedDict):
    """Metadata of a network's file: the backbone's name and options, K, further facts."""

    backbone: str
    options: dict[str, Any]
    num_clusters: Positive
    meta: Meta
    bias: NotRequired[bool]
    whitening: NotRequired[int]


class DescriptorNetwork(nn.Module):
    """Image -> local features -> NetVLAD descriptor, with the frozen trunk kept apart.

    Training calls `trunk` once per image (or keeps its output) and then `descriptor` and `quarters` on that
    output. NetVLAD has K clusters on the backbone's D channels; ``bias`` gives its assignment one (NetVLAD
    v2). ``meta`` holds further facts of the weights file (image size, training set, ...).
    """

    def __init__(self, backbone: Backbone, num_clusters: int = 64, *, bias: bool = False):
        super().__init__()
        self.backbone = backbone
        self.vlad = RegionNetVLAD(num_clusters, backbone.channels, bias=bias)
        self.meta: dict = {}

    @property
    def dim(self) -> int:
        """Length of a descriptor, K * D."""
        return self.vlad.num_clusters * self.vlad.dim

    @property
    def image_size(self) -> Size:
        """Size of images it was trained at, else its backbone's; see `sfrs.data.images.Size`."""
        size = self.meta.get("image_size", self.backbone.default_size)
        return tuple(size) if isinstance(size, list) else size

    @torch.no_grad()
    def trunk(self, images: Tensor) -> Tensor:
        """Normalised images ``[B, 3, H, W]`` -> frozen trunk output ``[B, Ct, Ht, Wt]``, no gradients."""
        return self.backbone.trunk(images)

    def features(self, trunk: Tensor) -> Tensor:
        """Trunk output -> local features ``[B, D, h, w]``."""
        return self.backbone.head(trunk)

    def descriptor(self, trunk: Tensor) -> Tensor:
        """Trunk output -> unit descriptors ``[B, K*D]``."""
        return self.vlad(self.features(trunk))

    def quarters(self, trunk: Tensor) -> Tensor:
        """Trunk output -> un-normalised quarter VLADs ``[B, 4, K, D]``."""
        return self.vlad.quarters(self.features(trunk))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images ``[B, 3, H, W]`` -> unit descriptors ``[B, K*D]``."""
        return self.descriptor(self.trunk(images))

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of head and NetVLAD; the trunk's are never trained."""
        yield from self.backbone.head.parameters()
        yield from self.vlad.parameters()


def pretrained_network(backbone: str) -> DescriptorNetwork:
    """Build a network on a backbone with its published weights; its NetVLAD has no clusters yet.

    Raises `BackboneError` if there is none of that name, or `PretrainedWeightsError` if its weights are not
    there.
    """
    network = DescriptorNetwork(build_backbone(backbone))
    network.backbone.load_pretrained()
    network.meta = {"source": f"{backbone} with published weights", "untrained_vlad": True}
    return network.eval()


def network_description(
    network: DescriptorNetwork, meta: dict | None = None, whitening: Whitening | None = None
) -> dict:
    """Describe a network for its file: the backbone's name and options, K, ``meta``, whitening."""
    meta = network.meta if meta is None else meta
    return {
        "format": FORMAT,
        "backbone": network.backbone.name,
        "options": network.backbone.options,
        "num_clusters": network.vlad.num_clusters,
        "bias": network.vlad.conv.bias is not None,
        "meta": {key: value for key, value in meta.items() if key != "has_pca"},
    } | ({} if whitening is None else {"whitening": whitening.dim})


def save_network(
    path: str | Path, network: DescriptorNetwork, meta: dict | None = None, whitening: Whitening | None = None
) -> None:
    """Write a network, and a whitening, to one safetensors file that replaces ``path`` in one step.

    Its metadata holds `network_description`; ``meta`` (image size, generation, ...) must be JSON.
    """
    tensors = network.state_dict()
    if whitening is not None:
        tensors |= {WHITENING + "projection": whitening.projection, WHITENING + "bias": whitening.bias}
    description = network_description(network, meta, whitening)
    write_tensors(path, tensors, {METADATA_KEY: json.dumps(description)})


def load_network(path: str | Path, *, ignore_keys: Sequence[str] = ()) -> DescriptorNetwork:
    """Rebuild a network from `save_network`'s file, or from VGG16 weights of other projects (`LAYOUTS`).

    Bare VGG16, such as torchvision's, gets an untrained NetVLAD (``network.meta["untrained_vlad"]`` is set;
    see `sfrs.models.fitting`). Tensors whose names match ``ignore_keys`` (``fc.*``), which would be refused,
    are left out. Raises `WeightsError` if the file cannot be read, or a tensor is missing, not finite, has
    another shape, or no place in the network; the message names the file and the tensor.
    """
    return network_of(read_weights(path, ignore_keys))


def network_of(weights: Weights) -> DescriptorNetwork:
    """Build the network that a file holds. Raises `WeightsError` as `load_network` does."""
    described, path = weights.description, weights.path
    if described is None:
        raise WeightsError(f"{path}: no VGG16 in it, but a whitening alone; give it as --whitening.")
    try:
        as_record(described, Description, f"{path}: the description in it is damaged")
    except RecordError as error:
        raise WeightsError(str(error)) from error

    def build() -> DescriptorNetwork:
        backbone = build_backbone(described["backbone"], **described["options"])
        return DescriptorNetwork(backbone, described["num_clusters"], bias=bool(described.get("bias")))

    try:
        with torch.device("meta"):  # a damaged description can ask for more memory than there is
            expected = build().state_dict()
    except Exception as error:  # a constructor with damaged options raises anything
        raise WeightsError(f"{path}: the network it describes cannot be built ({reason(error)}).") from error
    meta, tensors = described["meta"], weights.tensors
    given = {name: t for name, t in tensors.items() if not name.startswith(WHITENING)}
    bare = bool(meta.get("untrained_vlad"))
    for name, value in expected.items():
        if name not in given and not (bare and name.startswith("vlad.")):
            raise WeightsError(f"{path}: {name} is missing.")
        if name in given and (shape := given[name].shape) != value.shape:
            raise WeightsError(f"{path}: {name} is {list(shape)}; expected {list(value.shape)}.")
    if unread := sorted(given.keys() - expected.keys()):
        raise WeightsError(f"{path}: {listed(unread)} have no place in the network it describes.")
    network = build()
    network.load_state_dict(given, strict=not bare)
    network.meta = meta | ({"has_pca": True} if len(given) < len(tensors) else {})
    network.meta |= {"ignore_keys": list(weights.ignored)} if weights.ignored else {}
    return network.eval()
