"""Weights of other origin: VGG16 with or without NetVLAD and whitening, as other projects write them.

Nothing is unpickled but tensors, arrays and plain values: safetensors, ``torch.load(weights_only=True)``,
MATLAB's arrays.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfrs.models.backbones import VGG16_HEAD, VGG16_TRUNK
from sfrs.models.matconvnet import MatConvNetError, read_matconvnet
from sfrs.runtime.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Where a project keeps its tensors.

    Attributes:
        backbone: prefix of VGG16's layers, which are numbered as torchvision numbers them.
        inputs: how it normalises images, a key of :data:`sfrs.models.backbones.VGG16_INPUTS`.
        assignment: prefix of NetVLAD's 1x1 convolution.
        centroids: key of the centroids.
        whitening: prefix of the layer behind NetVLAD.
        cluster_minor: centroids are ``[D, K]``, and descriptors have their clusters innermost.
    """

    backbone: str
    inputs: str
    assignment: str = ""
    centroids: str = ""
    whitening: str = ""
    cluster_minor: bool = False


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
"""Tried in this order."""

WRAPPERS = ("state_dict", "model_state_dict")
"""Keys under which training checkpoints hold the state dict."""


class WeightsError(UserError, ValueError):
    """A weights file cannot be used; the message names the file and what is missing."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict; what training checkpoints wrap around it and ``module.`` in its names are taken off.

    MatConvNet's ``.mat`` comes as the paper's state dict.

    Raises:
        WeightsError: no such file, or not a weights file.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file.")
    try:
        if path.suffix == ".mat":
            state = read_matconvnet(path, {name.split(".")[1]: i for name, i in vgg16_layers().items()})
        elif path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with torch.serialization.safe_globals(_numpy_values()):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message suggests to unpickle anything, which would run code from the file.
        raise WeightsError(
            f"{path}: this is no weights file, or it holds objects other than tensors and plain values."
        ) from error
    except MatConvNetError as error:
        raise WeightsError(str(error)) from error
    except Exception as error:  # a reader that stumbles over a damaged file raises anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: this is no weights file, or a damaged one ({reason}).") from error
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(
            f"{path}: expected a state dict of tensors, or a checkpoint with one at {' or '.join(WRAPPERS)}."
        )
    return {_unwrapped(name): value for name, value in state.items()}


def _unwrapped(name: str) -> str:
    """A tensor's name without what DataParallel adds, around the model or parts of it, once or more."""
    *path, last = name.split(".")
    return ".".join([part for part in path if part != "module"] + [last])


def _numpy_values() -> list:
    # Checkpoints keep recalls and counts as numpy numbers and arrays beside the weights.
    array = np.empty(0).__reduce__()[0]
    scalar = np.float64().__reduce__()[0]
    return [
        (array, "numpy.core.multiarray._reconstruct"),
        (array, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *{type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]},
        (_encode, "_codecs.encode"),
    ]


def _encode(text: str, encoding: str) -> bytes:
    """How pickle writes bytes in its protocol 2: latin-1 text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def vgg16_layers() -> dict[str, int]:
    """Convolutions by their name in `VGG16` -> torchvision's index in ``features``."""
    found, index = {}, 0
    for part, plan in (("trunk", VGG16_TRUNK), ("head", VGG16_HEAD)):
        for name, _ in plan:
            if not name.startswith("pool"):
                found[f"{part}.{name}"] = index
            index += 1 if name.startswith("pool") else 2  # a convolution is followed by its ReLU
    return found


@dataclass(frozen=True)
class ForeignVGG16:
    """What a weights file of other origin holds.

    Attributes:
        backbone: state dict of :class:`sfrs.models.backbones.VGG16`.
        inputs: the input it was trained with, a key of :data:`sfrs.models.backbones.VGG16_INPUTS`.
        vlad: state dict of :class:`sfrs_ext.nn.NetVLAD`, or None.
        has_pca: whether there is a whitening layer, which :meth:`sfrs.models.whitening.Whitening.load` reads.
    """

    backbone: dict[str, Tensor]
    inputs: str
    vlad: dict[str, Tensor] | None
    has_pca: bool


def find_layout(state: dict[str, Tensor]) -> Layout | None:
    """The layout of a state dict: one whose NetVLAD is there, else one whose VGG16 is."""
    fitting = [layout for layout in LAYOUTS if f"{layout.backbone}0.weight" in state]
    complete = [layout for layout in fitting if layout.centroids in state]
    return next(iter(complete + fitting), None)


def load_vgg16(path: Path, state: dict[str, Tensor]) -> ForeignVGG16:
    """Find VGG16, and NetVLAD if there is one, in a foreign state dict.

    Raises:
        WeightsError: a tensor is missing or has another shape; the message says which.
    """
    layout = find_layout(state)
    if layout is None:
        raise WeightsError(
            f"{path}: no VGG16 in it. Expected a key such as base_model.base.0.weight (the paper's "
            f"networks), encoder.0.weight (pytorch-NetVlad) or features.0.weight (torchvision), but it has "
            f"{', '.join(list(state)[:4]) or 'none'} ..."
        )
    backbone, channels, widths = {}, 3, dict(VGG16_TRUNK) | dict(VGG16_HEAD)
    for name, index in vgg16_layers().items():
        width = widths[name.split(".")[1]]
        for kind, shape in (("weight", (width, channels, 3, 3)), ("bias", (width,))):
            backbone[f"{name}.{kind}"] = _tensor(path, state, f"{layout.backbone}{index}.{kind}", shape, name)
        channels = width
    vlad = _vlad(path, state, layout, channels) if layout.centroids in state else None
    return ForeignVGG16(backbone, layout.inputs, vlad, _has_whitening(state, layout))


def _tensor(path: Path, state: dict[str, Tensor], key: str, shape: tuple[int, ...], layer: str) -> Tensor:
    """A tensor by its key, whose size must be that of ``shape``."""
    layer = layer.split(".")[-1]
    if key not in state:
        raise WeightsError(f"{path}: {key} ({layer}) is missing.")
    value = state[key]
    if value.numel() != int(np.prod(shape)) or value.shape[0] != shape[0]:
        raise WeightsError(
            f"{path}: {key} ({layer}) is {list(value.shape)}; expected {list(shape)}. Networks other than "
            "VGG16 with NetVLAD on conv5_3 cannot be read."
        )
    return value.reshape(shape).float()


def _vlad(path: Path, state: dict[str, Tensor], layout: Layout, dim: int) -> dict[str, Tensor]:
    centroids = state[layout.centroids]
    if centroids.dim() != 2 or centroids.shape[0 if layout.cluster_minor else 1] != dim:
        expected = f"[{dim}, K]" if layout.cluster_minor else f"[K, {dim}]"
        raise WeightsError(
            f"{path}: {layout.centroids} (centroids) is {list(centroids.shape)}; expected {expected}."
        )
    centroids = (centroids.T if layout.cluster_minor else centroids).float().contiguous()
    weight, bias = f"{layout.assignment}weight", f"{layout.assignment}bias"
    vlad = {"centroids": centroids}
    vlad["conv.weight"] = _tensor(path, state, weight, (len(centroids), dim, 1, 1), "assignment")
    if bias in state:
        vlad["conv.bias"] = _tensor(path, state, bias, (len(centroids),), "assignment")
    return vlad


def find_whitening(state: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Projection ``[dim, K * D]`` of cluster-major descriptors and bias ``[dim]`` in a foreign state dict."""
    for layout in LAYOUTS:
        if not _has_whitening(state, layout):
            continue
        projection = state[f"{layout.whitening}weight"].float().flatten(1)
        bias = state[f"{layout.whitening}bias"].float()
        if layout.cluster_minor:
            dim, clusters = state[layout.centroids].shape
            projection = projection.unflatten(1, (dim, clusters)).transpose(1, 2).flatten(1)
        return projection, bias
    return None


def _has_whitening(state: dict[str, Tensor], layout: Layout) -> bool:
    keys = [f"{layout.whitening}weight", f"{layout.whitening}bias"]
    keys += [layout.centroids] if layout.cluster_minor else []
    return bool(layout.whitening) and all(key in state for key in keys)
