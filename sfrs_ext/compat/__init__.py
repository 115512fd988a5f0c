"""Fused operators inside models that were written without them."""

from collections.abc import Callable, Iterator

from torch import nn

from .. import nn as layers
from .check import find_recipe
from .fused import Fused, fuse, numbers_of_calls, original_class, unfuse
from .recipe import Recipe
from .report import LeftAlone, Replaced, Report, Restored, Used
from .structure import class_name, is_named_so, may_be_netvlad, obstacle, other_aggregator

__all__ = ["LeftAlone", "Replaced", "Report", "Restored", "Used", "accelerate", "restore"]


def accelerate(model: nn.Module) -> Report:
    """Let the NetVLAD layers of a model, of whatever class, compute by the fused operators, in place.

    A layer is recognised by the shapes of the tensors that its ``forward`` uses: a 1x1 convolution, linear
    layer or matrix ``[K + G, D]``; centroids or none; bias; batch norm on the logits; ghost clusters; a
    factor on the logits. A float64 copy of it with random parameters then runs and is compared with the fused
    form, in evaluation and training, forward and backward, on ordinary and on special inputs (empty clusters,
    positions without features), which also settles normalisations, layouts and strides. Only what agrees is
    replaced, for every form of call that the layer takes.

    Parameters, buffers, ``state_dict``, hooks, the signature of ``forward`` and all other attributes stay
    the same objects; ``isinstance`` still holds, ``deepcopy`` and ``pickle`` work. A call of another form
    (see the report) or on a device without kernels goes to the layer's own ``forward``; both kinds of call
    are counted. Looking leaves no trace in the model, in torch's random and other states, or in what the
    layer's code keeps elsewhere. Call it before the model is wrapped (``torch.compile``,
    ``DistributedDataParallel``) and again after changing an option of a layer such as ``normalize_input``.
    Gradients come in reverse mode and once; ``torch.jit`` does not take fused layers. `restore` undoes
    it all.

    Args:
        model: any module; NetVLAD may be it or in it at any depth.

    Returns:
        What was replaced; what an earlier call replaced, with the calls it has had since; and what looks like
        NetVLAD, or is another aggregator, but was left alone and why. Print it.

    Raises:
        TypeError: ``model`` is not a module.

    Example:

        print(sfrs_ext.accelerate(model))
    """
    _check("accelerate", model)
    recipes, replaced, left_alone = [], [], []
    for paths, layer in _innermost(model, lambda m: may_be_netvlad(m) or bool(other_aggregator(m))):
        if isinstance(layer, Fused):
            continue
        found, name = _recipe_or_reason(layer), class_name(layer)
        if isinstance(found, Recipe):
            recipes.append((layer, found))
            replaced.append(Replaced(paths, name, found))
        elif is_named_so(layer) or other_aggregator(layer):
            left_alone.append(LeftAlone(paths, name, found))
    fused = _used(model)
    for layer, recipe in recipes:  # after the search, so that an error in it leaves the model as it was
        fuse(layer, recipe)
    return Report(tuple(replaced), fused, tuple(left_alone))


def restore(model: nn.Module) -> Restored:
    """Undo `accelerate`: give every fused layer its own class back.

    Returns:
        The layers, and how many of their calls were fused; print it.

    Raises:
        TypeError: ``model`` is not a module.
    """
    _check("restore", model)
    restored = Restored(_used(model))
    for module in [*model.modules()]:
        if isinstance(module, Fused):
            unfuse(module)
    return restored


def _check(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, but is {type(model).__name__}")


def _recipe_or_reason(layer: nn.Module) -> Recipe | str:
    if isinstance(layer, layers.NetVLAD):
        return "it is a layer of sfrs_ext.nn"
    if not may_be_netvlad(layer):
        return f"not NetVLAD: {other_aggregator(layer)}"
    return obstacle(layer) or find_recipe(layer)


def _used(model: nn.Module) -> tuple[Used, ...]:
    fused = _innermost(model, lambda module: isinstance(module, Fused))
    return tuple(
        Used(paths, original_class(layer).__name__, *numbers_of_calls(layer)) for paths, layer in fused
    )


def _innermost(
    model: nn.Module, is_one: Callable[[nn.Module], bool]
) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Modules of a kind with all their paths; a container of one is not one itself."""
    found: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if module in found or is_one(module):
            found.setdefault(module, []).append(path)
    for module, paths in found.items():
        if not any(inner in found for inner in module.modules() if inner is not module):
            yield tuple(paths), module
