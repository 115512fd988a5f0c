"""Weights in the names of our own files, whoever wrote them: of our network, or of VGG16 with or without
NetVLAD and whitening as other projects name them."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sfrs.models.backbones import VGG16_HEAD, VGG16_INPUTS, VGG16_TRUNK, vgg16_layers
from sfrs.models.published import downloaded, published
from sfrs.models.weights_file import WeightsError, checked, listed, read_tensors

WHITENING = "whitening."  # prefix of the whitening's tensors in a network's file


@dataclass(frozen=True)
class Layout:
    """Where a project keeps its tensors."""

    backbone: str  # prefix of VGG16's layers, which are numbered as torchvision numbers them
    inputs: str  # how it normalises images, a key of `sfrs.models.backbones.VGG16_INPUTS`
    assignment: str = ""  # prefix of NetVLAD's 1x1 convolution
    centroids: str = ""  # key of the centroids
    whitening: str = ""  # prefix of the layer after NetVLAD
    cluster_minor: bool = False  # centroids are [D, K], and descriptors have their clusters innermost


LAYOUTS = (
    # The paper's reference implementation, and MatConvNet's as read_matconvnet names it.
    Layout("base_model.base.", "caffe", "net_vlad.conv.", "net_vlad.centroids", "pca_layer."),
    # pytorch-NetVlad and Patch-NetVLAD.
    Layout("encoder.", "imagenet", "pool.conv.", "pool.centroids", "WPCA.0."),
    # The deep visual geo-localization benchmark; with an output layer, NetVLAD is the first of two.
    Layout("backbone.", "imagenet", "aggregation.conv.", "aggregation.centroids"),
    Layout("backbone.", "imagenet", "aggregation.0.conv.", "aggregation.0.centroids", "aggregation.1."),
    # hloc.
    Layout("backbone.", "caffe", "netvlad.score_proj.", "netvlad.centers", "whiten.", cluster_minor=True),
    # torchvision, and the bare layers the paper starts from (converted from the authors' VGG16).
    Layout("features.", "imagenet"),
    Layout("base.", "caffe"),
    Layout("", "caffe"),
)
"""Tried in this order, each with any prefix before its names; the last, which has none, before WRAPPERS."""

WRAPPERS = {
    "backbone", "base_model", "embed_net", "model", "model_state_dict", "net", "network", "state_dict"
}  # fmt: skip
"""Names that say nothing about the layers in them."""

UNUSED = {
    r"num_batches_tracked": "counts batches in training",
    r"(optim|sched|lr_sched|scaler|grad_scaler)[^.]*\..*": "states of training, next to the network",
}
"""Tensors (regular expressions for the end of their names) that change no descriptor -> why."""

CHANNELS = dict(VGG16_HEAD)["conv5_3"]
CLASSIFIER = r"classifier\.[036]\.(weight|bias)"
"""VGG16's last layers, which follow its features; harmless where no other layer follows them."""


@dataclass(frozen=True)
class Weights:
    """Content of a file of weights."""

    path: Path  # the file
    # Of the network as `sfrs.models.network.network_description` makes it, or None where the file holds a
    # whitening alone.
    description: dict | None
    # backbone.* and vlad.* of `sfrs.models.network.DescriptorNetwork`, and whitening.projection
    # [dim, K * D] for cluster-major descriptors with whitening.bias.
    tensors: dict[str, Tensor]
    ignored: tuple[str, ...] = ()  # patterns of tensors that were left out


def read_weights(path: str | Path, ignore_keys: Sequence[str] = ()) -> Weights:
    """Read a file of weights; every tensor in it is used, known to change nothing (UNUSED), or refused.

    Args:
        path: a file, the folder of a run, or a name in `sfrs.models.published.PUBLISHED`.
        ignore_keys: tensors to leave out, see `sfrs.models.weights_file.read_tensors`.

    Raises `DownloadError`, or `WeightsError` if it cannot be read, or a tensor is missing, has another shape,
    is not finite, or has no place in the network; the message names it.
    """
    network = published(path)
    path = Path(path) if network is None else downloaded(network)
    tensors, description = read_tensors(path, ignore_keys)
    if description is None:
        found = _Foreign(path, tensors).read()
        if network is not None and network.inputs and found.description is not None:
            found.description["options"]["inputs"] = network.inputs
    else:
        found = Weights(path, description, {name: checked(path, name, t) for name, t in tensors.items()})
    return replace(found, ignored=tuple(ignore_keys))


class _Foreign:
    """Takes the tensors of another project's file; ``left`` are those it did not take yet."""

    def __init__(self, path: Path, tensors: dict[str, Tensor]):
        self.path = path
        self.left = dict(tensors)

    def read(self) -> Weights:
        layout, prefix = self.find(lambda layout: f"{layout.backbone}0.weight", sees_images=True)
        if layout is None:
            return Weights(self.path, None, self.read_whitening_alone())
        found = self.backbone(prefix + layout.backbone)
        bare = not layout.centroids or prefix + layout.centroids not in self.left
        if not bare:
            found |= self.vlad(prefix, layout)
            if layout.whitening and f"{prefix}{layout.whitening}weight" in self.left:
                found |= self.whitening(prefix, layout)
        self.refuse_left(
            lambda key, value: _is_input(layout, key, value) or (bare and _ends(CLASSIFIER, key))
        )
        description = {
            "backbone": "vgg16",
            "options": {"inputs": layout.inputs},
            "num_clusters": 64 if bare else len(found["vlad.centroids"]),
            "bias": "vlad.conv.bias" in found,
            "meta": {"source": self.path.name, "untrained_vlad": bare},
        }
        return Weights(self.path, description, found)

    def read_whitening_alone(self) -> dict[str, Tensor]:
        layout, prefix = self.find(lambda layout: layout.whitening and f"{layout.whitening}weight")
        if layout is not None:
            found = self.whitening(prefix, layout)
        elif "projection" in self.left:  # what Whitening.save writes
            found = {WHITENING + name: self.take(name) for name in ("projection", "bias")}
        else:
            raise WeightsError(
                f"{self.path}: no VGG16 in it, and no whitening. Expected a key such as "
                "base_model.base.0.weight (the paper's networks), encoder.0.weight (pytorch-NetVlad), "
                "features.0.weight (torchvision) or pca_layer.weight (a whitening), but it has "
                f"{listed('.'.join(key.split('.')[:2]) for key in self.left)}."
            )
        self.refuse_left(lambda key, value: False)
        return found

    def find(self, key: Callable[[Layout], str], *, sees_images: bool = False) -> tuple[Layout | None, str]:
        """Find a layout by one of its keys, with NetVLAD if there is one, and the prefix before its names."""
        found = []
        for layout in LAYOUTS:
            for name, value in self.left.items() if key(layout) else ():
                prefix = name.removesuffix(key(layout))
                if not _ends(re.escape(key(layout)), name) or (
                    sees_images and (value.dim(), *value.shape[1:2]) != (4, 3)
                ):
                    continue
                if layout.backbone or WRAPPERS.issuperset(prefix.split(".")[:-1]):
                    found.append((layout, prefix))
        places = dict.fromkeys(name + layout.backbone for layout, name in found)
        if len(places) > 1:
            raise WeightsError(
                f"{self.path}: {len(places)} networks in it, {' and '.join(places)}; expected one. Leave "
                f"others out with --ignore-keys, as --ignore-keys '{list(places)[-1]}*'."
            )
        found.sort(key=lambda pair: pair[1] + pair[0].centroids not in self.left)
        return found[0] if found else (None, "")

    def take(self, key: str, shape: tuple[int, ...] | None = None, layer: str = "") -> Tensor:
        """Take a tensor; its number of elements, and of rows, must be that of ``shape``."""
        named = f"{key} ({layer})" if layer else key
        if key not in self.left:
            raise WeightsError(f"{self.path}: {named} is missing.")
        value = self.left.pop(key)
        if shape is not None:
            if value.numel() != math.prod(shape) or value.shape[:1] != shape[:1]:
                raise WeightsError(
                    f"{self.path}: {named} is {list(value.shape)}; expected {list(shape)}. Networks other "
                    "than VGG16 with NetVLAD on conv5_3 cannot be read."
                )
            value = value.reshape(shape)
        return checked(self.path, key, value)

    def backbone(self, prefix: str) -> dict[str, Tensor]:
        found, channels, widths = {}, 3, dict(VGG16_TRUNK) | dict(VGG16_HEAD)
        for name, index in vgg16_layers().items():
            layer = name.split(".")[1]
            for kind, shape in (("weight", (widths[layer], channels, 3, 3)), ("bias", (widths[layer],))):
                found[f"backbone.{name}.{kind}"] = self.take(f"{prefix}{index}.{kind}", shape, layer)
            channels = widths[layer]
        return found

    def vlad(self, prefix: str, layout: Layout) -> dict[str, Tensor]:
        key = prefix + layout.centroids
        centroids = self.take(key)
        if centroids.dim() != 2 or centroids.shape[0 if layout.cluster_minor else 1] != CHANNELS:
            expected = f"[{CHANNELS}, K]" if layout.cluster_minor else f"[K, {CHANNELS}]"
            raise WeightsError(
                f"{self.path}: {key} (centroids) is {list(centroids.shape)}; expected {expected}."
            )
        centroids = (centroids.T if layout.cluster_minor else centroids).contiguous()
        clusters, assignment = len(centroids), prefix + layout.assignment
        weight = self.take(f"{assignment}weight", (clusters, CHANNELS, 1, 1), "assignment")
        found = {"vlad.centroids": centroids, "vlad.conv.weight": weight}
        if f"{assignment}bias" in self.left:
            found["vlad.conv.bias"] = self.take(f"{assignment}bias", (clusters,), "assignment")
        return found

    def whitening(self, prefix: str, layout: Layout) -> dict[str, Tensor]:
        projection = self.take(f"{prefix}{layout.whitening}weight").flatten(1)
        if layout.cluster_minor:
            projection = projection.unflatten(1, (CHANNELS, -1)).transpose(1, 2).flatten(1)
        bias = projection.new_zeros(len(projection))
        if (key := f"{prefix}{layout.whitening}bias") in self.left:
            bias = self.take(key, (len(projection),), "whitening")
        return {f"{WHITENING}projection": projection, f"{WHITENING}bias": bias}

    def refuse_left(self, harmless: Callable[[str, Tensor], bool]) -> None:
        """Raise `WeightsError` that names the tensors that were not taken and may change results."""
        left = [
            key
            for key, value in self.left.items()
            if not any(_ends(pattern, key) for pattern in UNUSED) and not harmless(key, value)
        ]
        if left:
            raise WeightsError(
                f"{self.path}: {listed(left)} have no place in VGG16 with NetVLAD and whitening: descriptors "
                "would not be those of the network that was trained. To leave such tensors out all the same: "
                f"--ignore-keys '{left[0]}', or a pattern as 'fc.*'."
            )


def _ends(pattern: str, key: str) -> bool:
    """Whether a regular expression matches the last parts of a dotted name."""
    return re.fullmatch(rf"(.*\.)?{pattern}", key) is not None


def _is_input(layout: Layout, key: str, value: Tensor) -> bool:
    """Whether a tensor repeats the mean or deviation of the images, in 0..1 or in 0..255."""
    name = key.rpartition(".")[2]
    if name not in ("mean", "std") or value.numel() != 3:
        return False
    known = torch.tensor(VGG16_INPUTS[layout.inputs][name == "std"])
    return any(torch.allclose(value.flatten().float() / scale, known, atol=1e-3) for scale in (1, 255))
