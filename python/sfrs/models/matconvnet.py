"""Networks of the NetVLAD release in MATLAB: MatConvNet's ``.mat``, read as the paper's state dict.

``net.layers`` is a list of layers with ``type``, ``name`` and ``weights``: VGG16's convolutions (HWIO), a
layer ``vlad:core`` between two that normalise, and a last 1x1 convolution that whitens (Arandjelovic et al.,
CVPR 2016). MATLAB's arrays lie column by column, so that the descriptor the whitening takes has the clusters
innermost. Reading a ``.mat`` file runs no code.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfrs.models.backbones import VGG16_INPUTS
from sfrs.runtime.errors import UserError

CLUSTER_LAYER = "vlad:core"
MEAN_TOLERANCE = 0.05
"""Grey levels by which the mean image may differ from VGG's mean colour."""


class MatConvNetError(UserError, ValueError):
    """A ``.mat`` file holds no network that can be used; the message names the file and the layer."""


def read_matconvnet(path: Path, vgg16_layers: dict[str, int]) -> dict[str, Tensor]:
    """Read a network: ``base_model.base.N.*``, ``net_vlad.*`` and ``pca_layer.*``, as far as it has them.

    Args:
        path: a ``.mat`` file up to version 7 with the variable ``net``, or its fields.
        vgg16_layers: names such as ``conv1_1`` -> index of the convolution in the paper's state dict.

    Raises:
        MatConvNetError: not such a file, or it computes something else than the paper's networks do.
    """
    net = _open(path)
    layers = [_checked(path, number, layer) for number, layer in enumerate(net["layers"], start=1)]
    _check_mean(path, net.get("meta"))
    state = {}
    for layer in layers:
        if layer.name in vgg16_layers:
            target = f"base_model.base.{vgg16_layers[layer.name]}"
            weight, bias = (np.asarray(array) for array in layer.weights)
            state[f"{target}.weight"] = _tensor(weight.transpose(3, 2, 0, 1))
            state[f"{target}.bias"] = _tensor(bias.reshape(-1))
    names = [layer.name for layer in layers]
    if CLUSTER_LAYER in names:
        state |= _vlad(path, layers, names.index(CLUSTER_LAYER))
    return state


def _open(path: Path) -> dict:
    """The fields of the network."""
    import scipy.io

    try:
        content = scipy.io.loadmat(path, struct_as_record=False, squeeze_me=True)
    except NotImplementedError as error:
        raise MatConvNetError(
            f"{path}: written by MATLAB's save with -v7.3. Expected version 7: save('net.mat', 'net', '-v7')."
        ) from error
    except Exception as error:  # what SciPy raises depends on where the file is damaged
        raise MatConvNetError(f"{path}: this is no MATLAB file, or a damaged one ({error}).") from error
    net = content.get("net")
    fields = content if net is None else vars(net) if hasattr(net, "_fieldnames") else {}
    if "layers" not in fields:
        found = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        raise MatConvNetError(f"{path}: no network in it. Expected net.layers, but it holds {found}.")
    return fields | {"layers": np.atleast_1d(fields["layers"])}


def _checked(path: Path, number: int, layer: object) -> object:
    if hasattr(layer, "_fieldnames") and {"name", "type"} <= set(layer._fieldnames):
        return layer
    raise MatConvNetError(
        f"{path}: layer {number} is no struct but an object of a MATLAB class, which only MATLAB reads. Run "
        "there: net.layers = cellfun(@struct, net.layers, 'UniformOutput', false); "
        "save('net.mat', 'net', '-v7')"
    )


def _check_mean(path: Path, meta: object) -> None:
    image = getattr(getattr(meta, "normalization", None), "averageImage", None)
    if image is None:
        return
    mean = np.asarray(image, dtype=np.float64).reshape(-1, 3).mean(axis=0)
    expected = 255 * np.array(VGG16_INPUTS["caffe"][0])
    if np.abs(mean - expected).max() > MEAN_TOLERANCE:
        raise MatConvNetError(
            f"{path}: trained on images minus {np.round(mean, 3).tolist()}, but expected VGG's mean "
            f"{np.round(expected, 3).tolist()}."
        )


def _vlad(path: Path, layers: list, position: int) -> dict[str, Tensor]:
    """NetVLAD with its neighbours, and the whitening behind it."""
    kinds = [layer.type for layer in layers]
    for neighbour, what in ((position - 1, "normalises its input"), (position + 1, "intra-normalises")):
        if not (0 <= neighbour < len(kinds) and kinds[neighbour] == "normalize"):
            raise MatConvNetError(
                f"{path}: expected a layer of type normalize that {what} beside {CLUSTER_LAYER}."
            )
    arrays = [np.asarray(array) for array in layers[position].weights]
    if len(arrays) not in (2, 3):
        raise MatConvNetError(
            f"{path}: {CLUSTER_LAYER} has {len(arrays)} arrays; expected assignment and centroids, or three."
        )
    assignment, offset = (array.reshape(array.shape[-2:]) for array in (arrays[0], arrays[-1]))  # [D, K]
    state = {
        "net_vlad.conv.weight": _tensor(assignment.T)[:, :, None, None],
        "net_vlad.centroids": _tensor(-offset.T),  # the layer adds what it keeps
    }
    if len(arrays) == 3:
        state["net_vlad.conv.bias"] = _tensor(arrays[1].reshape(-1))
    whitening = [layer for layer in layers[position + 1 :] if layer.type == "conv"]
    if whitening:
        weight, bias = (np.asarray(array) for array in whitening[-1].weights)
        dim, clusters = assignment.shape
        matrix = weight.reshape(weight.shape[-2:]).T  # [dim, D * K]
        matrix = matrix.reshape(-1, dim, clusters).transpose(0, 2, 1).reshape(len(matrix), -1)
        state |= {"pca_layer.weight": _tensor(matrix), "pca_layer.bias": _tensor(bias.reshape(-1))}
    return state


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
