"""Fused operators inside models that were written without them."""

from collections.abc import Iterator

from torch import nn

from .. import nn as layers
from .check import find_recipe
from .fused import Fused, fuse, original_class, unfuse
from .report import LeftAlone, Replaced, Report
from .structure import class_name, is_named_so, may_be_netvlad, obstacle

__all__ = ["LeftAlone", "Replaced", "Report", "accelerate", "restore"]


def accelerate(model: nn.Module) -> Report:
    """Let the NetVLAD layers of a model, of whatever class, compute by the fused operators, in place.

    A layer is recognised by its tensors' shapes: a 1x1 convolution, linear layer or matrix ``[K + G, D]``;
    centroids or none; bias; batch norm on the logits; ghost clusters; a factor on the logits. A float64 copy
    of it with random parameters then runs beside the fused form, in evaluation and training, forward and
    backward, which also settles normalisations and layouts. Only what agrees is replaced.

    Parameters, buffers, ``state_dict``, hooks and all other attributes stay the same objects; ``isinstance``
    still holds, ``deepcopy`` and ``pickle`` work. Inputs that were not checked (extra arguments, other ranks,
    devices without kernels) go to the layer's own ``forward``. Call it before the model is wrapped
    (``torch.compile``, ``DistributedDataParallel``) and again after changing an option of a layer such as
    ``normalize_input``. From fused layers gradients come in reverse mode and once: no gradients of gradients,
    no forward mode. ``torch.jit`` does not take them either. :func:`restore` undoes it all.

    Args:
        model: any module; NetVLAD may be it or in it at any depth.

    Returns:
        What was replaced, and what looks like NetVLAD but was left alone and why; print it.

    Raises:
        TypeError: ``model`` is not a module.

    Example::

        print(sfrs_ext.accelerate(model))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, but is {type(model).__name__}")
    recipes, replaced, left_alone = [], [], []
    for paths, layer in _innermost(model):
        name = class_name(layer)
        found = _recipe_or_reason(layer)
        if isinstance(found, str):
            if is_named_so(layer) or isinstance(layer, Fused):
                left_alone.append(LeftAlone(paths, name, found))
        else:
            recipes.append((layer, found))
            replaced.append(Replaced(paths, name, found))
    for (
        layer,
        recipe,
    ) in recipes:  # when all are found, so that an error on the way leaves the model as it was
        fuse(layer, recipe)
    return Report(tuple(replaced), tuple(left_alone))


def restore(model: nn.Module) -> int:
    """Undo :func:`accelerate`: give every fused layer its own class back. Returns how many there were."""
    fused = [layer for layer in model.modules() if isinstance(layer, Fused)]
    for layer in fused:
        unfuse(layer)
    return len(fused)


def _recipe_or_reason(layer: nn.Module):
    if isinstance(layer, Fused):
        return f"it is fused already, from {original_class(layer).__name__}"
    if isinstance(layer, layers.NetVLAD):
        return "it is a layer of sfrs_ext.nn"
    return obstacle(layer) or find_recipe(layer)


def _innermost(model: nn.Module) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Modules that may be NetVLAD with all their paths; a container of one is not one itself."""
    paths: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if may_be_netvlad(module):
            paths.setdefault(id(module), []).append(path)
            modules[id(module)] = module
    for key, module in modules.items():
        if not any(id(inner) in modules for inner in module.modules() if inner is not module):
            yield tuple(paths[key]), module
