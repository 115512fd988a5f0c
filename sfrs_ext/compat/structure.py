"""Which tensors of a layer could be assignment weights, centroids and the rest: by shape, not by class.

Nothing here runs a layer's code or reads an attribute that code computes, such as a parametrised weight.
"""

import re
from collections.abc import Collection, Iterator
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

OTHERS = {
    r"salad": "SALAD assigns by optimal transport, with a dustbin",
    r"mix_?vpr": "MixVPR mixes the positions of a map by MLPs",
    r"(?<![a-z])sage(?!conv)|soft_?p(robing)?$": "SAGE weighs positions softly and pools them bilinearly",
    r"any_?loc": "AnyLoc assigns every position to one cluster",
    r"boq$|bag_?of_?queries$": "BoQ attends to learned queries",
}
"""Other aggregators by the names of their classes, and what they do instead."""

MOST = 2**26
"""Elements of a layer that is copied although it has more than NetVLAD's tensors, to see if it uses them."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Reading:
    """One way to read a layer's tensors as NetVLAD."""

    parts: dict  # the fields of a Recipe that say where tensors are
    columns: int  # K + G
    dim: int  # D
    extras: tuple[str, ...]  # tensors and children that have no place in it


def own_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the layer itself that hold more than one real number and have a shape."""
    return {name: t for name, t in _named(layer) if t.numel() > 1 and t.is_floating_point()}


def _named(layer: nn.Module) -> list[tuple[str, Tensor]]:
    tensors = {**layer._parameters, **layer._buffers}
    return [(name, t) for name, t in tensors.items() if t is not None and not is_lazy(t)]


def units(layer: nn.Module) -> list[str]:
    """What a forward uses or does not: own tensors, children with tensors, and a linear child's bias."""
    found = [*own_tensors(layer)]
    for name, child in layer.named_children():
        found += [name] if [*child.parameters(), *child.buffers()] else []
        found += [f"{name}.bias"] if _linear_shape(child) and _has_bias(child) else []
    return found


def _has_bias(child: nn.Module) -> bool:
    return child._parameters.get("bias") is not None


def scales(layer: nn.Module) -> list[str]:
    """Attributes that may be a factor on the logits: tensors of one number, numbers of a telling name."""
    numbers = {name: vars(layer).get(name) for name in SCALES}
    plain = [name for name, n in numbers.items() if isinstance(n, (int, float)) and not isinstance(n, bool)]
    return [name for name, tensor in _named(layer) if tensor.numel() == 1] + plain


def readings(layer: nn.Module, used: Collection[str] | None = None) -> list[Reading]:
    """Every way to read those of the layer's `units` that are used, or all, fewest extras first."""
    used = units(layer) if used is None else used
    found = [r for assignment in _assignments(layer, used) for r in _complete(layer, used, *assignment)]
    return sorted(found, key=lambda reading: len(reading.extras))


def _assignments(layer: nn.Module, used: Collection[str]) -> Iterator[tuple[dict, int, int]]:
    """What could hold assignment weights, with its K + G and D."""
    for name, child in layer.named_children():
        if name in used and (shape := _linear_shape(child)):
            bias = f"{name}.bias" if _has_bias(child) else None
            ignored = bias is not None and bias not in used
            yield dict(assignment=name, bias=None if ignored else bias, ignores_bias=ignored), *shape
    for name, tensor in own_tensors(layer).items():
        if name in used and (matrix := as_matrix(tensor)) is not None:
            rows, columns = matrix.shape
            yield dict(assignment=name, assignment_transposed=True), columns, rows
            yield dict(assignment=name), rows, columns


def _linear_shape(child: nn.Module) -> tuple[int, int] | None:
    """K + G and D of a linear layer or a 1x1 convolution."""
    if isinstance(child, nn.Linear):
        shape = child.out_features, child.in_features
    elif isinstance(child, (nn.Conv1d, nn.Conv2d)) and child.groups == 1 and {*child.kernel_size} == {1}:
        if child.padding != "valid" and {*child.padding} != {0}:
            return None
        shape = child.out_channels, child.in_channels
    else:
        return None
    weight = child._parameters.get("weight")  # none where it is parametrised: computed when it is read
    if weight is None:
        return shape
    return None if is_lazy(weight) or as_matrix(weight) is None else (weight.shape[0], weight.shape[1])


def _complete(
    layer: nn.Module, used: Collection[str], parts: dict, columns: int, dim: int
) -> Iterator[Reading]:
    """Give every other used tensor and child of the layer its place."""
    tensors = {name: t for name, t in own_tensors(layer).items() if name in used}
    others, norm = [], None
    for name, child in layer.named_children():
        if name == parts["assignment"] or name not in used:
            continue
        if norm is None and isinstance(child, _BatchNorm) and child.num_features == columns:
            norm = name
        else:
            others.append(name)
    if tensors.pop(parts["assignment"], None) is not None:
        bias = next((name for name, t in tensors.items() if t.numel() == columns == max(t.shape)), None)
        parts = parts | dict(bias=bias)
        tensors.pop(bias or "", None)
    parts = parts | dict(batch_norm=norm)
    centroids = []
    for name, tensor in tensors.items():
        if (matrix := as_matrix(tensor)) is None:
            continue
        for transposed in (False, True):
            rows, width = reversed(matrix.shape) if transposed else matrix.shape
            if width == dim and rows <= columns:
                centroids.append(dict(centroids=name, centroids_transposed=transposed))
    for chosen in centroids or [{}]:
        rest = [name for name in tensors if name != chosen.get("centroids")]
        yield Reading(parts | chosen, columns, dim, tuple(others + rest))


def class_name(layer: nn.Module) -> str:
    return getattr(layer, "original_name", type(layer).__name__)  # that of torch.jit's copies


def other_aggregator(layer: nn.Module) -> str | None:
    """What a layer does instead that is another known aggregator by the name of its class."""
    name = class_name(layer)
    return next((does for pattern, does in OTHERS.items() if re.search(pattern, name, re.I)), None)


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
    for name, child in layer.named_modules():
        if child is not layer and any(getattr(child, kind) for kind in HOOKS):
            return f"{name} has hooks, which a fused layer would not call"
    found = readings(layer)
    if not found:
        return "it has no assignment weights [K, D]"
    if found[0].extras and sum(tensor.numel() for tensor in tensors.values()) > MOST:
        return f"it has more than a NetVLAD layer's tensors: {', '.join(found[0].extras)}"
    return None
