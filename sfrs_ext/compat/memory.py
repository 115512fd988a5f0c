"""What a layer's ``forward`` leaves behind in its attributes, which a fused layer would not."""

from torch import nn

TENSORS_AND_CHILDREN = ("_parameters", "_buffers", "_modules")
"""Buffers are compared by value elsewhere: batch norm's statistics change rightly."""

PLAIN = (bool, int, float, complex, str, bytes)


def attributes(layer: nn.Module) -> dict[str, list[object]]:
    """Attributes of a layer and its children by their path: the type, and the object or what it contains."""
    return {
        f"{path}.{name}" if path else name: [type(value), *_contents(value)]
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if name not in TENSORS_AND_CHILDREN
    }


def changed(before: dict[str, list[object]], layer: nn.Module) -> list[str]:
    """Paths of attributes that are new, gone, bound to something else or contain something else."""
    after = attributes(layer)
    return [name for name in before | after if not _are_same(before.get(name, []), after.get(name, []))]


def _contents(value: object) -> list[object]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]


def _are_same(some: list[object], others: list[object]) -> bool:
    if len(some) != len(others):
        return False
    pairs = zip(some, others, strict=True)
    return all(a is b or (type(a) is type(b) and isinstance(a, PLAIN) and a == b) for a, b in pairs)
