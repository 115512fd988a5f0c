"""A layer of somebody else's class becomes one of a subclass whose ``forward`` is fused.

The object stays: its parameters, hooks, attributes and other methods, ``isinstance`` of its class, and every
reference to it. Only ``__class__`` changes, as ``torch.nn.utils.parametrize`` does it.
"""

import copyreg
import functools

import torch
from torch import Tensor, nn

from .. import _cuda
from .recipe import Recipe, aggregate

MOST_COLUMNS_ON_CUDA, MOST_COLUMNS_ON_CUDA_IN_FLOAT64 = 320, 256
"""K + G of the CUDA kernels: kMaxLogits and kMaxLogits64 in csrc/cuda/aggregate_tiling.h."""


class Fused:
    """Mixed in before the layer's own class."""

    _sfrs_recipe: Recipe

    def forward(self, *args, **kwargs):
        """The layer's result by the fused operator, or by its own ``forward`` for anything unforeseen."""
        if len(args) == 1 and not kwargs and can_take(self._sfrs_recipe, args[0]):
            return aggregate(self, self._sfrs_recipe, args[0])
        return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol):
        # This class is made at run time and cannot be found by its name; the layer's own class can.
        # Protocols 0 and 1 would name it nevertheless.
        function, arguments, *state = super().__reduce_ex__(max(protocol, 2))
        if function is copyreg.__newobj__:
            function, arguments = _new, (original_class(self),)
        return function, arguments, *state


def _new(original: type) -> nn.Module:
    fused = fused_class(original)
    return fused.__new__(fused)


def can_take(recipe: Recipe, x: object) -> bool:
    """Whether the operator is known to do on this input what the layer does."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or not recipe.fits(x.shape):
        return False
    if x.device.type == "cuda":
        most = MOST_COLUMNS_ON_CUDA_IN_FLOAT64 if x.dtype == torch.float64 else MOST_COLUMNS_ON_CUDA
        return _cuda.missing is None and recipe.clusters + recipe.ghost_clusters <= most
    return x.device.type in ("cpu", "meta")


@functools.cache
def fused_class(original: type) -> type:
    """The subclass of a layer's class that is fused."""
    contents = {"__module__": original.__module__, "__doc__": original.__doc__}
    return type(original)(f"Fused{original.__name__}", (Fused, original), contents)


def original_class(layer: nn.Module) -> type:
    """The class a fused layer had."""
    return type(layer).__mro__[2]


def fuse(layer: nn.Module, recipe: Recipe) -> None:
    layer.__class__ = fused_class(type(layer))
    layer._sfrs_recipe = recipe


def unfuse(layer: nn.Module) -> None:
    layer.__class__ = original_class(layer)
    del layer._sfrs_recipe
