"""Networks of the NetVLAD release in MATLAB: MatConvNet's ``.mat``, read as the paper's state dict.

``net.layers`` is a list of layers with ``type``, ``name`` and ``weights``: VGG16's convolutions (HWIO), a
layer ``vlad:core`` between two that normalise, and a last 1x1 convolution that whitens (Arandjelovic et al.,
CVPR 2016). MATLAB's arrays lie column by column, so that the descriptor the whitening takes has the clusters
innermost.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfrs.models.backbones import VGG16_INPUTS, vgg16_layers
from sfrs.runtime.array_files import read_arrays
from sfrs.runtime.errors import UserError

CLUSTER_LAYER = "vlad:core"
CLASSIFIER = {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}
MEAN_TOLERANCE = 0.05  # grey levels by which the mean image may differ from VGG's mean colour


class MatConvNetError(UserError, ValueError):
    """A ``.mat`` file holds no network that can be used; the message names the file and the layer."""


def read_matconvnet(path: Path) -> dict[str, Tensor]:
    """Read a network: ``base_model.base.N.*``, ``net_vlad.*`` and ``pca_layer.*``, as far as it has them.

    The file is a ``.mat`` up to version 7 with the variable ``net``, or its fields. Convolutions that have no
    place in the paper's networks keep their names. Raises `ArrayFileError`, or `MatConvNetError` if there is
    no network in it, or it computes something else than the paper's do.
    """
    content = read_arrays(path)
    net = content.get("net", content)
    if not isinstance(net, dict) or "layers" not in net:
        found = ", ".join(content) or "nothing"
        raise MatConvNetError(f"{path}: no network in it. Expected net.layers, but it holds {found}.")
    layers = net["layers"] if isinstance(net["layers"], list) else [net["layers"]]
    for number, layer in enumerate(layers, start=1):
        if isinstance(layer, dict) and all(isinstance(layer.get(key), str) for key in ("name", "type")):
            continue
        raise MatConvNetError(
            f"{path}: layer {number} is no struct but an object of a MATLAB class, which only MATLAB reads. "
            "Run there: net.layers = cellfun(@struct, net.layers, 'UniformOutput', false); "
            "save('net.mat', 'net', '-v7')"
        )
    _check_mean(path, net.get("meta"))
    names = [layer["name"] for layer in layers]
    position = names.index(CLUSTER_LAYER) if CLUSTER_LAYER in names else len(layers)
    numbers = {name.split(".")[1]: f"base_model.base.{index}" for name, index in vgg16_layers().items()}
    state = {}
    for place, layer in enumerate(layers):
        if layer["type"] != "conv" or place > position:
            continue
        target = (numbers | CLASSIFIER).get(layer["name"], layer["name"])
        weight, bias = _arrays(path, layer, 2)
        state[f"{target}.weight"] = _tensor(weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight)
        state[f"{target}.bias"] = _tensor(bias.reshape(-1))
    if position < len(layers):
        state |= _vlad(path, layers, position)
    return state


def _check_mean(path: Path, meta: Any) -> None:
    normalization = meta.get("normalization") if isinstance(meta, dict) else None
    image = normalization.get("averageImage") if isinstance(normalization, dict) else None
    if image is None:
        return
    expected = 255 * np.array(VGG16_INPUTS["caffe"][0])
    mean = np.asarray(image, dtype=np.float64).reshape(-1, 3).mean(axis=0)
    if not np.abs(mean - expected).max() <= MEAN_TOLERANCE:
        raise MatConvNetError(
            f"{path}: trained on images minus {np.round(mean, 3).tolist()}, but expected VGG's mean "
            f"{np.round(expected, 3).tolist()}."
        )


def _vlad(path: Path, layers: list[dict], position: int) -> dict[str, Tensor]:
    """Read NetVLAD, check its neighbours, and read the whitening that follows."""
    kinds = [layer["type"] for layer in layers]
    for neighbour, does in ((position - 1, "normalises its input"), (position + 1, "intra-normalises")):
        if not (0 <= neighbour < len(kinds) and kinds[neighbour] == "normalize"):
            raise MatConvNetError(
                f"{path}: expected a layer of type normalize that {does} beside {CLUSTER_LAYER}."
            )
    arrays = _arrays(path, layers[position], 2, 3)
    assignment, offset = (array.reshape(array.shape[-2:]) for array in (arrays[0], arrays[-1]))  # [D, K]
    state = {
        "net_vlad.conv.weight": _tensor(assignment.T)[:, :, None, None],
        "net_vlad.centroids": _tensor(-offset.T),  # the layer adds what it keeps
    }
    if len(arrays) == 3:
        state["net_vlad.conv.bias"] = _tensor(arrays[1].reshape(-1))
    after = [layer for layer in layers[position + 1 :] if layer["type"] == "conv"]
    if len(after) > 1:
        names = ", ".join(layer["name"] for layer in after)
        raise MatConvNetError(f"{path}: expected one convolution that whitens after NetVLAD, not {names}.")
    for layer in after:
        weight, bias = _arrays(path, layer, 2)
        dim, clusters = arrays[0].shape[-2:]
        matrix = weight.reshape(weight.shape[-2:]).T  # [dim, D * K]
        matrix = matrix.reshape(-1, dim, clusters).transpose(0, 2, 1).reshape(len(matrix), -1)
        state |= {"pca_layer.weight": _tensor(matrix), "pca_layer.bias": _tensor(bias.reshape(-1))}
    return state


def _arrays(path: Path, layer: dict, *counts: int) -> list[np.ndarray]:
    arrays = layer.get("weights")
    if not isinstance(arrays, list) or len(arrays) not in counts:
        raise MatConvNetError(
            f"{path}: weights of the layer {layer['name']} are not {' or '.join(map(str, counts))} arrays."
        )
    return [np.asarray(array) for array in arrays]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
