"""Weights of other origin: torchvision's VGG16 and the paper's reference implementation.

Nothing is unpickled but tensors and plain values: safetensors, or ``torch.load(weights_only=True)``.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sfrs.backbones import VGG16_HEAD, VGG16_TRUNK
from sfrs.errors import UserError

# Where VGG16's convolutions are found, and the input they were trained with: the paper's, torchvision's
# and the bare layers the paper starts from (converted from the authors' VGG16).
VGG16_PREFIXES = {"base_model.base.": "caffe", "base.": "caffe", "features.": "imagenet", "": "caffe"}
VLAD_PREFIX = "net_vlad."


class WeightsError(UserError, ValueError):
    """A weights file cannot be used; the message names the file and what is missing."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict; the wrappers ``state_dict`` and ``module.`` of training checkpoints are taken off.

    Raises:
        WeightsError: no such file, or not a weights file.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file.")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with torch.serialization.safe_globals(_numpy_scalars()):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message suggests to unpickle anything, which would run code from the file.
        raise WeightsError(
            f"{path}: this is no weights file, or it holds objects other than tensors and plain values."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: this is no safetensors or PyTorch weights file ({reason}).") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(
            f"{path}: expected a state dict of tensors, or a checkpoint with one at 'state_dict'."
        )
    return {name.removeprefix("module."): value for name, value in state.items()}


def _numpy_scalars() -> list:
    # The paper's checkpoints keep their best recall as a numpy float beside the weights.
    scalar = np._core.multiarray.scalar
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        type(np.dtype(np.float64)),
        (_encode, "_codecs.encode"),
    ]


def _encode(text: str, encoding: str) -> bytes:
    """How pickle writes bytes in its protocol 2: latin-1 text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def vgg16_layers() -> dict[str, int]:
    """Convolutions by their name in :class:`sfrs.backbones.VGG16` -> torchvision's index in ``features``."""
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
        backbone: state dict of :class:`sfrs.backbones.VGG16`.
        inputs: the input it was trained with, a key of :data:`sfrs.backbones.VGG16_INPUTS`.
        vlad: state dict of :class:`sfrs_ext.nn.NetVLAD`, or None.
        has_pca: whether there is a PCA layer, which :meth:`sfrs.whitening.Whitening.load` reads.
    """

    backbone: dict[str, Tensor]
    inputs: str
    vlad: dict[str, Tensor] | None
    has_pca: bool


def load_vgg16(path: Path, state: dict[str, Tensor]) -> ForeignVGG16:
    """Find VGG16, and NetVLAD if there is one, in a foreign state dict.

    Raises:
        WeightsError: a convolution up to conv5_3 is missing; the message says which keys there are.
    """
    prefix = next((prefix for prefix in VGG16_PREFIXES if f"{prefix}0.weight" in state), None)
    if prefix is None:
        raise WeightsError(
            f"{path}: no VGG16 in it. Expected a key such as base_model.base.0.weight (the paper's networks) "
            f"or features.0.weight (torchvision), but it has {', '.join(list(state)[:4]) or 'none'} ..."
        )
    backbone = {}
    for name, index in vgg16_layers().items():
        for kind in ("weight", "bias"):
            key = f"{prefix}{index}.{kind}"
            if key not in state:
                raise WeightsError(f"{path}: {key} ({name.split('.')[1]}) is missing.")
            backbone[f"{name}.{kind}"] = state[key]
    vlad = {
        key.removeprefix(VLAD_PREFIX): value for key, value in state.items() if key.startswith(VLAD_PREFIX)
    }
    return ForeignVGG16(backbone, VGG16_PREFIXES[prefix], vlad or None, "pca_layer.weight" in state)
