"""What running a layer leaves behind: in its attributes, and in what its code keeps outside of it."""

import functools
import random
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TENSORS_AND_CHILDREN = ("_parameters", "_buffers", "_modules")
"""Buffers are compared by value elsewhere: batch norm's statistics change rightly."""

PLAIN = (bool, int, float, complex, str, bytes)
CACHE = type(functools.cache(len))
Name = tuple[str, dict | type | None, str, Any]
"""Label, owner, name and value."""


class Held(NamedTuple):
    """A name in a dictionary or class, or a place in a function (no owner); its value and what is in it."""

    owner: dict | type | None
    name: str
    value: Any
    contents: list


class Memory:
    """The names in a layer's reach and what they hold, to say later what has changed and to put it back.

    Names are the attributes of the layer and its children and, with ``outside``, those of their classes, the
    globals that their code mentions, and the defaults and closures of its functions.
    """

    def __init__(self, layer: nn.Module, outside: bool = False):
        self._layer, self._outside = layer, outside
        self._before = self._look()
        self._values = {
            label: held.value.detach().clone()
            for label, held in self._before.items()
            if outside and isinstance(held.value, Tensor) and not held.value.is_inference()
        }

    def changed(self) -> list[str]:
        """Names that are new, gone, bound to something else or hold something else; no caches of results."""
        pairs = [(label, after or before) for label, before, after in self._differences()]
        return [label for label, held in pairs if held and not isinstance(held.value, CACHE)]

    def restore(self) -> None:
        """Bind names as they were bound, fill containers with what they held, empty caches that were used."""
        for label, before, after in self._differences():
            owner, name, value, contents = before or after  # pyright: ignore[reportGeneralTypeIssues]
            if isinstance(value, CACHE):
                value.cache_clear()
            elif before is None:
                owner.pop(name) if isinstance(owner, dict) else delattr(owner, name)
            else:
                if isinstance(owner, dict):
                    owner[name] = value
                elif owner is not None and vars(owner).get(name) is not value:
                    setattr(owner, name, value)
                _refill(value, self._values.get(label, contents))

    def _differences(self) -> list[tuple[str, Held | None, Held | None]]:
        after = self._look()
        pairs = [(label, self._before.get(label), after.get(label)) for label in self._before | after]
        return [pair for pair in pairs if not _are_same(pair[1], pair[2])]

    def _look(self) -> dict[str, Held]:
        surroundings = _surroundings(self._layer) if self._outside else ()
        names = chain(_attributes(self._layer), surroundings)
        return {label: Held(owner, name, value, _contents(value)) for label, owner, name, value in names}


def _attributes(layer: nn.Module) -> Iterator[Name]:
    for path, module in layer.named_modules():
        for name, value in [*vars(module).items()]:
            if name not in TENSORS_AND_CHILDREN:
                yield f"{path}.{name}" if path else name, vars(module), name, value


def _surroundings(layer: nn.Module) -> Iterator[Name]:
    """All in which the code of a layer can keep something."""
    waiting: list[object] = [cls for module in layer.modules() for cls in type(module).__mro__]
    homes = {str(cls.__module__).split(".")[0] for cls in waiting} - sys.stdlib_module_names - {"torch"}
    seen = set()
    while waiting:
        thing = _code_of(waiting.pop())
        if thing is None or id(thing) in seen or _is_of_a_library(str(thing.__module__), homes):
            continue
        seen.add(id(thing))
        for name in _names_of(thing, homes):
            yield name
            waiting.append(name[-1])


def _code_of(value: object) -> type | types.FunctionType | None:
    """The class or function behind a value; asks the value's type alone, since attributes may be computed."""
    if isinstance(value, (classmethod, staticmethod, types.MethodType)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    elif isinstance(value, CACHE):
        value = value.__wrapped__
    return value if isinstance(value, (type, types.FunctionType)) else None


def _names_of(thing: type | types.FunctionType, homes: set[str]) -> Iterator[Name]:
    title = f"{thing.__module__}.{thing.__qualname__}"
    if isinstance(thing, type):
        for name, value in [*vars(thing).items()]:
            if not name.startswith("__"):
                yield f"{title}.{name}", thing, name, value
        return
    cells = [cell.cell_contents for cell in thing.__closure__ or () if cell != types.CellType()]
    defaults = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    for index, value in enumerate(defaults + cells):
        yield f"{title}, default or closure {index}", None, "", value
    mentioned, scopes, seen = _mentioned(thing.__code__), [thing.__globals__], set()
    while scopes:
        scope = scopes.pop()
        seen.add(id(scope))
        for name in sorted(mentioned & scope.keys()):
            value = scope[name]
            yield f"{scope.get('__name__')}.{name}", scope, name, value
            if isinstance(value, types.ModuleType) and id(vars(value)) not in seen:
                scopes += [] if _is_of_a_library(vars(value)["__name__"], homes) else [vars(value)]


def _is_of_a_library(module: str, homes: set[str]) -> bool:
    """Whether a module is Python's own or installed, unless the layer lives there; those are not searched."""
    package = module.split(".")[0]
    file = vars(sys.modules[package]).get("__file__") if package in sys.modules else None
    return package not in homes and (
        package in sys.stdlib_module_names or file is None or "site-packages" in file
    )


def _mentioned(code: types.CodeType) -> set[str]:
    """Names of globals and attributes in a function and in those defined inside it."""
    inner = [_mentioned(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)


def _contents(value: object) -> list[object]:
    if isinstance(value, CACHE):
        return [value.cache_info().misses]
    if isinstance(value, Tensor):
        return [value, None if value.is_inference() else value._version]
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]


def _refill(container: object, contents: Any) -> None:
    if isinstance(container, Tensor):
        container.data.copy_(contents)
    elif isinstance(container, dict):
        half = len(contents) // 2
        container.clear()
        container.update(zip(contents[:half], contents[half:], strict=True))
    elif isinstance(container, list):
        container[:] = contents
    elif isinstance(container, set):
        container.clear()
        container.update(contents)


def _are_same(some: Held | None, other: Held | None) -> bool:
    if some is None or other is None or type(some.value) is not type(other.value):
        return False
    if len(some.contents) != len(other.contents):
        return False
    pairs = zip(some.contents, other.contents, strict=True)
    return all(a is b or (type(a) is type(b) and isinstance(a, PLAIN) and a == b) for a, b in pairs)


@contextmanager
def undisturbed(layer: nn.Module) -> Iterator[Memory]:
    """Let a copy of somebody else's layer run without a trace outside of it.

    Put back are its attributes and what its code keeps in classes, globals, defaults, closures and caches;
    random states; torch's modes, default dtype and device; hooks on all modules, which do not run; warnings,
    which are not shown. Layers that allocate without a dtype get float64.
    """
    with ExitStack() as stack:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        stack.enter_context(torch.random.fork_rng(devices))
        stack.callback(random.setstate, random.getstate())
        if numpy := sys.modules.get("numpy"):
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        for name, hooks in vars(nn.modules.module).items():
            if name.startswith("_global_") and isinstance(hooks, dict):
                stack.callback(hooks.update, hooks.copy())
                hooks.clear()
        memory = Memory(layer, outside=True)
        stack.callback(memory.restore)
        yield memory
