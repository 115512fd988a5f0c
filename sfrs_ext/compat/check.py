"""Runs a copy of a layer beside its fused form: finds the recipe, or says why there is none."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from .memory import attributes, changed
from .recipe import LAYOUTS, OUTPUTS, Recipe, aggregate
from .structure import Reading, readings, scales

TOLERANCE = 1e-9
"""Of the largest value, in float64: rounding stays a thousand times below, an eps of 1e-8 in a norm above."""


def find_recipe(layer: nn.Module) -> Recipe | str:
    """The recipe by which the fused form equals the layer, or why none does.

    A float64 copy on the CPU with random parameters is run in evaluation and in training, forward and
    backward. Layer, its buffers and torch's random state stay as they are.
    """
    with _undisturbed():
        try:
            twin = copy.deepcopy(layer)
        except Exception as error:  # whatever somebody else's layer holds
            return f"it cannot be copied for the check: {_first_line(error)}"
        try:
            return _compare(twin)
        except Exception as error:  # as above
            return f"it cannot be run beside the fused form: {_first_line(error)}"


def _compare(twin: nn.Module) -> Recipe | str:
    generator = torch.Generator().manual_seed(0)
    twin = twin.to("cpu", torch.float64).eval()
    randomise(twin, generator)
    before = attributes(twin)
    found = _search(twin, generator)
    if isinstance(found, str):
        return found
    if remembered := changed(before, twin):
        return _remembers(remembered)
    transposes = _takes_transposed(twin, found, generator)
    return _confirm(twin, found, generator) or dataclasses.replace(found, takes_transposed=transposes)


def _remembers(names: list[str]) -> str:
    return f"its forward remembers something, which a fused layer would not: {', '.join(names)}"


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps torch's random state and default dtype; layers that allocate without a dtype get float64."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float64)
        yield


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def randomise(layer: nn.Module, generator: torch.Generator) -> None:
    """Give a copy parameters under which every step shows: zeros, ones and equal clusters hide some."""

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for module in layer.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.copy_(random(parameter)).requires_grad_(True)
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    buffer.copy_(random(buffer).abs() + 0.5 if name == "running_var" else random(buffer))
    for index, name in enumerate(scales(layer)):
        if name not in {**layer._parameters, **layer._buffers}:
            setattr(layer, name, 1.3 + 0.2 * index)  # unequal, so that it shows which one is used


def sample(layout: str, dim: int, generator: torch.Generator, batch: int = 2, size=(9, 8)) -> Tensor:
    """Random features in a layout, of norm 2 or so, that no other layout's shape can be mistaken for."""
    x = torch.randn(batch, dim, *size, generator=generator, dtype=torch.float64) * 2 * dim**-0.5
    x = x if layout == "map" else x.flatten(2)
    return x.transpose(1, 2).contiguous() if layout == "tokens" else x


@torch.no_grad()
def _search(twin: nn.Module, generator: torch.Generator) -> Recipe | str:
    complaints = []
    for reading, layout in itertools.product(readings(twin), LAYOUTS):
        if reading.extras:
            continue
        x = sample(layout, reading.dim, generator)
        try:
            theirs = twin.forward(x)
        except Exception as error:  # a layer that takes another layout raises anything
            complaints.append((2, f"it does not run on {LAYOUTS[layout]}: {_first_line(error)}"))
            continue
        best, closest = float("inf"), None
        for recipe in _candidates(twin, reading, layout, theirs):
            error = _difference(aggregate(twin, recipe, x), theirs)
            if error <= TOLERANCE:
                return recipe
            best, closest = min((best, closest), (error, recipe), key=lambda pair: pair[0])
        if closest is None:
            complaints.append((1, f"its result is {_form(theirs)}, not a descriptor per image"))
        else:
            nearest = f"the closest, {closest.kind} with {closest.steps}, differs by {best:.0e}"
            complaints.append((0, f"it computes something else than NetVLAD; {nearest}"))
    return min(complaints, default=(0, "its tensors do not fit together as NetVLAD"))[1]


def _candidates(twin: nn.Module, reading: Reading, layout: str, theirs: object) -> Iterator[Recipe]:
    """Every recipe that gives a result of the right shape."""
    if not isinstance(theirs, Tensor) or theirs.dim() not in (2, 3) or theirs.numel() % (2 * reading.dim):
        return
    clusters = theirs.numel() // (2 * reading.dim)
    if not 1 <= clusters <= reading.columns:
        return
    flat = (clusters * reading.dim,)
    shapes = (flat, flat, (clusters, reading.dim), (reading.dim, clusters))  # of OUTPUTS
    outputs = [form for form, shape in zip(OUTPUTS, shapes, strict=True) if shape == tuple(theirs.shape[1:])]
    factors = [(None, False), *itertools.product(scales(twin), (False, True))]
    normalisations = itertools.product((True, False), repeat=3)
    for output, (scale, divides), (first, intra, last) in itertools.product(outputs, factors, normalisations):
        yield Recipe(
            clusters=clusters,
            ghost_clusters=reading.columns - clusters,
            dim=reading.dim,
            layout=layout,
            output=output,
            scale=scale,
            scale_divides=divides,
            normalize_input=first,
            intra_norm=intra,
            l2_norm=last,
            **reading.parts,
        )


def _form(result: object) -> str:
    return str(list(result.shape)) if isinstance(result, Tensor) else f"a {type(result).__name__}"


def _difference(ours: Tensor, theirs: Tensor, least: float = 1e-300) -> float:
    """Largest difference relative to the largest value or ``least``; infinite where shape or dtype differ."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    difference = ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(least)).item()
    return difference if difference == difference else float("inf")


def _confirm(twin: nn.Module, recipe: Recipe, generator: torch.Generator) -> str | None:
    """Compare on other shapes, at a position without features, in training, and backward."""
    empty = sample(recipe.layout, recipe.dim, generator, batch=1, size=(4, 5))
    (empty[0, 0] if recipe.layout == "tokens" else empty[0].flatten(1)[:, 0]).zero_()
    with torch.no_grad():
        if not _difference(aggregate(twin, recipe, empty), twin.forward(empty)) <= TOLERANCE:
            return "it treats positions without features in its own way"
    for training in (False, True):
        x = sample(recipe.layout, recipe.dim, generator, batch=2, size=(5, 6))
        mode = "training" if training else "evaluation"
        remembered: list[str] = []
        try:
            theirs = _run(twin, training, x, functools.partial(_forward, remembered))
        except Exception as error:  # as above
            return f"it does not run in {mode}: {_first_line(error)}"
        if remembered:
            return _remembers(remembered)
        ours = _run(twin, training, x, lambda layer, x: aggregate(layer, recipe, x))
        # A gradient may be zero but for rounding, such as that of a bias before batch norm.
        least = 1e-3 * max(value.abs().max().item() for value in theirs.values())
        for name, value in theirs.items():
            if name not in ours or not _difference(ours[name], value, least) <= TOLERANCE:
                return f"in {mode} its {name} differs from the fused layer's"
    return None


def _forward(remembered: list[str], layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's own forward; the attributes that it changed are added to ``remembered``."""
    before = attributes(layer)
    result = layer.forward(x)
    remembered += changed(before, layer)
    return result


@torch.no_grad()
def _takes_transposed(twin: nn.Module, recipe: Recipe, generator: torch.Generator) -> bool:
    """Whether the layer also runs on its input with the channels at the other end."""
    size = (7, 5) if recipe.dim not in (7, 5, 35) else (8, 6)
    x = sample(recipe.layout, recipe.dim, generator, size=size)
    x = x.transpose(1, 2) if x.dim() == 3 else x.movedim(1, -1)
    try:
        twin.forward(x)
    except Exception:  # the usual case: it does not fit the weights, and what that raises is the layer's
        return False
    return True


def _run(twin: nn.Module, training: bool, x: Tensor, function: Callable) -> dict[str, Tensor]:
    """Result, all gradients and all buffers after one step of a copy."""
    layer = copy.deepcopy(twin).train(training)
    x = x.clone().requires_grad_(True)
    result = function(layer, x)
    cotangent = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).sin().view_as(result)
    (result * cotangent).sum().backward()
    inputs = {"x": x, **dict(layer.named_parameters())}
    gradients = {
        f"gradient of {name}": torch.zeros_like(t) if t.grad is None else t.grad for name, t in inputs.items()
    }
    return {"result": result.detach()} | gradients | dict(layer.named_buffers())
