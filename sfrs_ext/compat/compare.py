"""A copy of a layer beside its fused form, on one input: results, gradients and buffers."""

import copy
from collections.abc import Callable
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor, nn

from .cases import harden
from .forms import order_of
from .fused import Signature, respond
from .memory import Memory
from .recipe import Recipe

TOLERANCE = 1e-9
"""Of the largest value, in float64: rounding stays a thousand times below, an eps of 1e-8 in a norm above."""


class NoAnswer(Exception):
    """The layer's own forward or backward raises something or gives NaN or infinity."""


def disagreement(
    twin: nn.Module, recipe: Recipe, x: object, arguments: dict, training: bool, factor: float = 1
) -> str | None:
    """What differs between a copy and its fused form after forward and backward, the logits times a factor.

    Raises:
        NoAnswer: the copy has no result on this input.
    """
    signature = Signature(type(twin).forward)
    mode = "training" if training else "evaluation"
    remembered: list[str] = []

    def own(layer: nn.Module, x: object, arguments: dict) -> object:
        memory = Memory(layer)
        result = layer.forward(x, **arguments)
        remembered.extend(memory.changed())
        return result

    def fused(layer: nn.Module, x: object, arguments: dict) -> object:
        return respond(layer, recipe, signature, (x,), arguments)

    def prepared() -> nn.Module:
        layer = copy.deepcopy(twin).train(training)
        harden(layer, recipe, factor)
        return layer

    try:
        theirs = _outcome(prepared(), x, arguments, own)
    except Exception as error:  # whatever somebody else's layer raises
        raise NoAnswer(f"it does not run in {mode}: {first_line(error)}") from error
    if remembered:
        return remembers(remembered)
    if not all(value.isfinite().all() for value in theirs.values() if value is not None):
        raise NoAnswer(f"it gives NaN or infinity in {mode}")
    ours = _outcome(prepared(), x, arguments, fused)
    for name, value in theirs.items():
        if name not in ours or not difference(ours[name], value, _least(name, theirs)) <= TOLERANCE:
            return f"in {mode} its {name} differs from the fused layer's"
    return None


def _outcome(layer: nn.Module, x: object, arguments: dict, function: Callable) -> dict[str, Tensor | None]:
    """Results, all gradients and all buffers after one step."""
    given = {name: _fresh(value) for name, value in ({"x": x} | arguments).items()}
    results = _numbered("result", function(layer, given["x"], {name: given[name] for name in arguments}))
    total: Any = sum((r * _weights_like(r)).sum() for r in results.values())
    total.backward()
    inputs = {n: v for name, value in given.items() for n, v in _numbered(name, value).items() if _is_real(v)}
    inputs |= dict(layer.named_parameters())
    found = {name: result.detach() for name, result in results.items()}
    return found | {f"gradient of {name}": t.grad for name, t in inputs.items()} | dict(layer.named_buffers())


def _weights_like(result: Tensor) -> Tensor:
    return torch.linspace(-1, 1, result.numel(), dtype=result.dtype).sin().view(result.shape)


def _numbered(name: str, value: Any) -> dict[str, Any]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return {f"{name} {index}" if index else name: v for index, v in enumerate(values)}


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _fresh(value: Any) -> Any:
    """A leaf of the same values and strides, where it can have a gradient."""
    if isinstance(value, (list, tuple)):
        return type(value)([_fresh(item) for item in value])
    return value.detach().clone().requires_grad_(True) if _is_real(value) else value


def _least(name: str, values: dict[str, Tensor | None]) -> float:
    """A scale below which values are taken for rounding.

    A gradient may be zero but for that, such as one of a bias before batch norm. Those of features without
    length are 1e12 and say nothing about the others.
    """
    if not name.startswith("gradient"):
        return 1e-9  # a descriptor of nothing but rare clusters
    of_inputs, others = 0.0, 0.0
    for key, value in values.items():
        largest = value.abs().max().item() if value is not None and value.numel() else 0.0
        if key.startswith("gradient of x"):
            of_inputs = max(of_inputs, largest)
        elif key.startswith("gradient"):
            others = max(others, largest)
    if name.startswith("gradient of x"):
        return max(1e-6 * others, 1e-300)
    return max(1e-3 * max(others, min(of_inputs, 1)), 1e-300)


def difference(ours: object, theirs: object, least: float = 1e-300) -> float:
    """Largest difference relative to the largest value or ``least``; infinite where the kind differs.

    The kind is the shape, the dtype, the order of dimensions in memory, and whether there is a tensor at all.
    """
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return 0.0 if ours is None and theirs is None else inf
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype or order_of(ours) != order_of(theirs):
        return inf
    if not theirs.numel():
        return 0.0
    ours, theirs = ours.double(), theirs.double()
    largest = ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(least)).item()
    return inf if isnan(largest) else largest


def are_close(ours: object, theirs: object, tolerance: float = TOLERANCE) -> bool:
    """The same for results that may be several tensors in a container."""
    if isinstance(theirs, (list, tuple)):
        if type(ours) is not type(theirs) or len(ours) != len(theirs):
            return False
        return all(are_close(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))
    return difference(ours, theirs) <= tolerance


def remembers(names: list[str]) -> str:
    return f"its forward remembers something, which a fused layer would not: {', '.join(names)}"


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
