"""Which tensors of a layer could be assignment weights, centroids and the rest: by shape, not by class."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from .recipe import as_matrix

SCALES = ("alpha", "scale", "tau", "temp", "temperature")
"""Plain numbers of these names may multiply or divide the logits."""

WORDS = ("centroid", "cluster", "center", "centre", "codebook")
"""In the names of tensors these words say that a layer may be meant as NetVLAD."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Reading:
    """One way to read a layer's tensors as NetVLAD.

    Attributes:
        parts: the fields of :class:`sfrs_ext.compat.recipe.Recipe` that say where tensors are.
        columns, dim: K + G and D.
        extras: names of tensors and children that have no place in it.
    """

    parts: dict
    columns: int
    dim: int
    extras: tuple[str, ...]


def own_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the layer itself that hold more than one real number and have a shape."""
    return {name: t for name, t in _named(layer) if t.numel() > 1 and t.is_floating_point()}


def _named(layer: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, t) for name, t in {**layer._parameters, **layer._buffers}.items() if _has_shape(t)]


def _has_shape(tensor: Tensor | None) -> bool:
    return tensor is not None and not is_lazy(tensor)


def scales(layer: nn.Module) -> list[str]:
    """Attributes the logits may be multiplied by: tensors of one number, and numbers of a telling name."""
    numbers = {name: vars(layer).get(name) for name in SCALES}
    plain = [name for name, n in numbers.items() if isinstance(n, (int, float)) and not isinstance(n, bool)]
    return [name for name, tensor in _named(layer) if tensor.numel() == 1] + plain


def readings(layer: nn.Module) -> list[Reading]:
    """Every way to read the layer as NetVLAD, those with the fewest extras first."""
    found = [r for assignment in _assignments(layer) for r in _complete(layer, *assignment)]
    return sorted(found, key=lambda reading: len(reading.extras))


def _assignments(layer: nn.Module) -> Iterator[tuple[dict, int, int]]:
    """What could hold assignment weights, with its K + G and D."""
    for name, child in layer.named_children():
        linear = isinstance(child, (nn.Linear, nn.Conv1d, nn.Conv2d)) and _has_shape(child.weight)
        if linear and (isinstance(child, nn.Linear) or _is_linear(child)):
            bias = None if child.bias is None else f"{name}.bias"
            yield dict(assignment=name, bias=bias), *child.weight.shape[:2]
    for name, tensor in own_tensors(layer).items():
        if (matrix := as_matrix(tensor)) is not None:
            yield dict(assignment=name, assignment_transposed=True), *reversed(matrix.shape)
            yield dict(assignment=name), *matrix.shape


def _is_linear(convolution: nn.Conv1d | nn.Conv2d) -> bool:
    unpadded = convolution.padding == "valid" or set(convolution.padding) == {0}
    return as_matrix(convolution.weight) is not None and convolution.groups == 1 and unpadded


def _complete(layer: nn.Module, parts: dict, columns: int, dim: int) -> Iterator[Reading]:
    """Give every other tensor and child of the layer its place."""
    tensors, others, norm = own_tensors(layer), [], None
    for name, child in layer.named_children():
        if name == parts["assignment"]:
            continue
        if norm is None and isinstance(child, _BatchNorm) and child.num_features == columns:
            norm = name
        elif [*child.parameters(), *child.buffers()]:
            others.append(name)
    if tensors.pop(parts["assignment"], None) is not None:
        bias = next((name for name, t in tensors.items() if t.numel() == columns == max(t.shape)), None)
        parts = parts | dict(bias=bias)
        tensors.pop(bias, None)
    parts = parts | dict(batch_norm=norm)
    centroids = [
        dict(centroids=name, centroids_transposed=transposed)
        for name, tensor in tensors.items()
        for transposed in (False, True)
        if _may_be_centroids(tensor, columns, dim, transposed)
    ]
    for chosen in centroids or [{}]:
        rest = [name for name in tensors if name != chosen.get("centroids")]
        yield Reading(parts | chosen, columns, dim, tuple(others + rest))


def _may_be_centroids(tensor: Tensor, columns: int, dim: int, transposed: bool) -> bool:
    matrix = as_matrix(tensor)
    if matrix is None:
        return False
    rows, width = reversed(matrix.shape) if transposed else matrix.shape
    return width == dim and rows <= columns


def class_name(layer: nn.Module) -> str:
    """The name of the layer's class, which torch.jit keeps apart."""
    return getattr(layer, "original_name", type(layer).__name__)


def is_named_so(layer: nn.Module) -> bool:
    """Whether names say that it may be a NetVLAD layer: its class's, or its tensors' beside a 1x1 layer."""
    if "vlad" in class_name(layer).lower():
        return True
    named = any(word in name.lower() for name in own_tensors(layer) for word in WORDS)
    return named and any("centroids" in reading.parts for reading in readings(layer))


def may_be_netvlad(layer: nn.Module) -> bool:
    """Whether the layer is worth running: everything it has finds its place beside centroids."""
    if is_named_so(layer):
        return True
    if type(layer).__module__.startswith("torch."):
        return False
    found = readings(layer)
    return bool(found) and not found[0].extras and "centroids" in found[0].parts


def obstacle(layer: nn.Module) -> str | None:
    """Why a fused layer would not do all that this one does, as far as that shows without running it."""
    if isinstance(layer, torch.jit.ScriptModule):
        return "torch.jit compiled it; accelerate the layer before that"
    if "forward" in vars(layer):
        return "its forward is overridden on the instance"
    if "parametrizations" in layer._modules:
        return "its own tensors are parametrised"
    tensors = dict([*layer.named_parameters(), *layer.named_buffers()])
    if lazy := [name for name, tensor in tensors.items() if is_lazy(tensor)]:
        return f"its tensors have no shapes before the model has run once: {', '.join(lazy)}"
    if any(tensor.is_meta for tensor in tensors.values()):
        return "its tensors are on the device meta, without values; accelerate it when they have some"
    for name, child in layer.named_children():
        if any(getattr(child, kind) for kind in HOOKS):
            return f"{name} has hooks, which a fused layer would not call"
    found = readings(layer)
    if not found:
        return "it has no assignment weights [K, D]"
    if found[0].extras:
        return f"it has more than a NetVLAD layer's tensors: {', '.join(found[0].extras)}"
    return None
