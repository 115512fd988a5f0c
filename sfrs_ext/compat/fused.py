"""A layer of somebody else's class becomes one of a subclass whose ``forward`` is fused.

The object stays: its parameters, hooks, attributes and other methods, ``isinstance`` of its class, and every
reference to it. Only ``__class__`` changes, as ``torch.nn.utils.parametrize`` does it.
"""

import copyreg
import dis
import functools
import inspect
import re
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _cuda
from .forms import WAYS
from .recipe import Recipe, aggregate

MOST_COLUMNS_ON_CUDA, MOST_COLUMNS_ON_CUDA_IN_FLOAT64 = 320, 256
"""K + G of the CUDA kernels: kMaxLogits and kMaxLogits64 in csrc/cuda/aggregate_tiling.h."""

FUSED = "fused"
CONSTANTS = (type(None), bool, int, float, str)


class Fused:
    """Mixed in before the layer's own class."""

    def __reduce_ex__(self, protocol):
        # This class is made at run time and cannot be found by its name; the layer's own class can.
        # Protocols 0 and 1 would name it nevertheless.
        function, arguments, *state = super().__reduce_ex__(max(protocol, 2))
        if function is copyreg.__newobj__:  # pyright: ignore[reportAttributeAccessIssue]
            function, arguments = _new, (original_class(self),)
        return function, arguments, *state


def _new(original: type) -> nn.Module:
    fused: Any = fused_class(original)
    return fused.__new__(fused)


class Calls:
    """Counts a layer's calls by what came of them. DataParallel's replicas share it; copies begin at zero."""

    def __init__(self):
        self._numbers: Counter[tuple[str, int]] = Counter()

    def count(self, what: str) -> None:
        self._numbers[what, threading.get_ident()] += 1  # no thread adds to another's number: none is lost

    # torch.compile runs it while it traces, leaves it out of the graph and puts no guard on the numbers.
    count._dynamo_marked_constant = True

    def __reduce__(self):
        return Calls, ()

    def numbers(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for (what, _), number in self._numbers.copy().items():
            total[what] += number
        return total


class Signature:
    """The arguments of a class's ``forward``: ``names`` may be given by position, the features first."""

    def __init__(self, forward: Callable):
        parameters = [*inspect.signature(forward).parameters.values()][1:]  # without self
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.names = tuple(p.name for p in named if p.kind != p.KEYWORD_ONLY) or ("*args",)
        self.others = tuple(p.name for p in named if p.name not in self.names[:1])
        self.unread = {*self.others} - _mentioned(forward)  # by the code
        self.variable = tuple(str(p.replace(annotation=p.empty)) for p in parameters if p not in named)
        self.defaults = {p.name: p.default for p in named if isinstance(p.default, CONSTANTS)}

    def is_default(self, name: str, value: object) -> bool:
        default = self.defaults.get(name, self)
        return type(value) is type(default) and value == default


def _mentioned(forward: Callable) -> set[str]:
    if not inspect.isfunction(forward) or hasattr(forward, "__wrapped__"):  # its code is somewhere else
        return {*inspect.signature(forward).parameters}
    return {word for line in dis.get_instructions(forward) for word in re.findall(r"\w+", line.argrepr)}


def respond(layer: nn.Module, recipe: Recipe, signature: Signature, args: tuple, kwargs: dict) -> object:
    """The layer's result for these arguments; or, as a string, why its own ``forward`` has to give it."""
    given, mask = dict(zip(signature.names, args, strict=False)) | kwargs, None
    if len(given) != len(args) + len(kwargs) or signature.names[0] not in given:
        return "other arguments"
    x = given.pop(signature.names[0])
    for name, value in given.items():
        if name in recipe.ignored or signature.is_default(name, value):
            continue
        if name != recipe.mask or value is None:
            return f"argument {name}"
        mask = value
    if isinstance(x, (list, tuple)):
        return _several(layer, recipe, x) if mask is None else f"argument {recipe.mask} beside a list"
    form = next((form for form in recipe.forms if form.layout.fits(x, recipe.dim)), None)
    if form is None or form.result is None:
        return "another form of input"
    if not has_kernels(recipe, x):
        return "no kernels for the input"
    if mask is not None:
        known = next((one for one in recipe.masks if one.fits(mask, x, form.layout)), None)
        if known is None:
            return f"another form of {recipe.mask}"
        mask = known.weights(mask, x)
    return aggregate(layer, recipe, form, x, mask)


def _several(layer: nn.Module, recipe: Recipe, xs: list | tuple) -> object:
    lists = recipe.lists
    if lists is None or type(xs) not in lists.containers or not xs:
        return "a list of inputs"
    taken, join = WAYS[lists.way]
    if not all([lists.form.layout.fits(x, recipe.dim) and has_kernels(recipe, x) for x in xs[taken]]):
        return "a list of other inputs"
    return join(lambda x, form: aggregate(layer, recipe, form, x), xs[taken], lists.form)


def has_kernels(recipe: Recipe, x: Tensor) -> bool:
    """Whether the operator takes features of this dtype on this device."""
    if not x.is_floating_point() or x.device.type != "cuda":
        return x.is_floating_point() and x.device.type in ("cpu", "meta")
    most = MOST_COLUMNS_ON_CUDA_IN_FLOAT64 if x.dtype == torch.float64 else MOST_COLUMNS_ON_CUDA
    return _cuda.missing is None and recipe.clusters + recipe.ghost_clusters <= most


@functools.cache
def fused_class(original: type) -> type:
    signature = Signature(original.forward)

    @functools.wraps(original.forward, updated=())  # without what torch.compile marks the function with
    def forward(self, *args, **kwargs):
        result = respond(self, self._sfrs_recipe, signature, args, kwargs)
        if isinstance(result, str):
            self._sfrs_calls.count(result)
            return original.forward(self, *args, **kwargs)
        self._sfrs_calls.count(FUSED)
        return result

    contents = {"__module__": original.__module__, "__doc__": original.__doc__, "forward": forward}
    return type(original)(f"Fused{original.__name__}", (Fused, original), contents)


def original_class(layer: object) -> type:
    return type(layer).__mro__[2]


def numbers_of_calls(layer: Any) -> tuple[int, dict[str, int]]:
    """Calls of a fused layer that were fused, and those that were not, by what was unforeseen."""
    numbers = layer._sfrs_calls.numbers()
    return numbers.pop(FUSED, 0), numbers


def fuse(layer: Any, recipe: Recipe) -> None:
    layer.__class__ = fused_class(type(layer))
    layer._sfrs_recipe = recipe
    layer._sfrs_calls = Calls()


def unfuse(layer: Any) -> None:
    layer.__class__ = original_class(layer)
    del layer._sfrs_recipe, layer._sfrs_calls
