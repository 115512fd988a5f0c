"""The descriptor network: backbone + NetVLAD, and describing whole lists of images with it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from sfrs.data.images import ImageFiles, Size, batches
from sfrs.models.backbones import Backbone, build_backbone
from sfrs.models.foreign import load_vgg16, read_state
from sfrs.models.whitening import WHITENING, Whitening
from sfrs.runtime.progress import Progress
from sfrs.runtime.tensor_files import write_tensors
from sfrs_ext.nn import RegionNetVLAD

METADATA_KEY = "sfrs"
FORMAT = 1


class DescriptorNetwork(nn.Module):
    """Image -> local features -> NetVLAD descriptor, with the frozen trunk kept apart.

    Training calls :meth:`trunk` once per image (or keeps its output) and then :meth:`descriptor` and
    :meth:`quarters` on that output.

    Attributes:
        backbone: :class:`sfrs.models.backbones.Backbone`.
        vlad: :class:`sfrs_ext.nn.RegionNetVLAD` with K clusters on the backbone's D channels; ``bias``
            gives its assignment one (NetVLAD v2).
        meta: what the weights file said beside the weights (image size, training set, ...).
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


@torch.no_grad()
def describe(
    network: DescriptorNetwork,
    images: Sequence[str | Path] | torch.utils.data.Dataset,
    *,
    size: Size = None,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    threads: int = 2,
    whitening: Whitening | None = None,
    progress: Progress | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Describe images, float32 ``[n, dim]``, rows in the order of ``images``.

    Holds the result and two batches of images, nothing else that grows with n.

    Args:
        images: files, to be resized to ``size`` and normalised for the backbone; or a data set of
            normalised tensors.
        whitening: applied batch by batch.
        progress: called with (done, n).
        out: where to write, for example a memory map; made here if absent.

    Raises:
        BadImageError: an image cannot be read.
    """
    if not isinstance(images, torch.utils.data.Dataset):
        images = ImageFiles(images, size, network.backbone.mean, network.backbone.std)
    network = network.to(device).eval()
    shape = (len(images), network.dim if whitening is None else whitening.dim)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    elif out.shape != shape:
        raise ValueError(f"describe: out is {out.shape}, but the descriptors are {shape}")
    for rows, batch in batches(images, batch_size, workers=threads):
        descriptors = network(batch.to(device))
        if whitening is not None:
            descriptors = whitening.apply(descriptors)
        out[rows[0] : rows[-1] + 1] = descriptors.float().cpu().numpy()
        if progress is not None:
            progress(rows[-1] + 1, len(images))
    return out


def network_description(
    network: DescriptorNetwork, meta: dict | None = None, whitening: Whitening | None = None
) -> dict:
    """What a file says about the network in it: the backbone's name and options, K, ``meta``, whitening."""
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
    path: str | Path,
    network: DescriptorNetwork,
    meta: dict | None = None,
    whitening: Whitening | None = None,
) -> None:
    """Write a network to one safetensors file from which :func:`load_network` rebuilds it.

    The file's metadata holds, as JSON, the backbone's name and options, K, and ``meta`` (which must be
    JSON: image size, training set, generation, ...). A whitening goes into the same file, from which
    :meth:`sfrs.models.whitening.Whitening.load` reads it. Replaces ``path`` in one step.
    """
    tensors = network.state_dict()
    if whitening is not None:
        tensors |= {WHITENING + "projection": whitening.projection, WHITENING + "bias": whitening.bias}
    description = network_description(network, meta, whitening)
    write_tensors(path, tensors, {METADATA_KEY: json.dumps(description)})


def load_network(path: str | Path) -> DescriptorNetwork:
    """Rebuild a network from :func:`save_network`'s file, or from VGG16 weights of other origin.

    Also read: VGG16 with NetVLAD as the paper's implementation, pytorch-NetVlad, Patch-NetVLAD, the deep
    visual geo-localization benchmark, hloc and MatConvNet (``.mat``) write it; and bare VGG16 weights such
    as torchvision's, whose NetVLAD then is untrained (``network.meta["untrained_vlad"]`` is set; see
    `clusters`). A whitening in such a file is read by `load`.

    Raises:
        WeightsError: no such file, not a weights file, or it lacks layers.
    """
    path = Path(path)
    state = read_state(path)
    description = None
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
    if description is None:
        return _load_foreign(path, state)
    network = DescriptorNetwork(
        build_backbone(description["backbone"], **description["options"]),
        description["num_clusters"],
        bias=description.get("bias", False),
    )
    network.load_state_dict({name: t for name, t in state.items() if not name.startswith(WHITENING)})
    network.meta = description["meta"] | ({"has_pca": True} if "whitening" in description else {})
    return network.eval()


def _load_foreign(path: Path, state: dict[str, Tensor]) -> DescriptorNetwork:
    found = load_vgg16(path, state)
    clusters = len(found.vlad["centroids"]) if found.vlad else 64
    bias = found.vlad is not None and "conv.bias" in found.vlad
    network = DescriptorNetwork(build_backbone("vgg16", inputs=found.inputs), clusters, bias=bias)
    network.backbone.load_state_dict(found.backbone)
    if found.vlad:
        network.vlad.load_state_dict(found.vlad)
    network.meta = {"source": path.name, "untrained_vlad": not found.vlad, "has_pca": found.has_pca}
    return network.eval()
