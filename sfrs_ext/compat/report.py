"""What :func:`sfrs_ext.accelerate` and :func:`sfrs_ext.restore` did, as data and as text."""

from dataclasses import dataclass

from .recipe import Recipe


@dataclass(frozen=True)
class Replaced:
    """A layer that is fused now. ``paths``: where it is in the model; "" is the model itself."""

    paths: tuple[str, ...]
    layer: str
    recipe: Recipe

    def __str__(self) -> str:
        r = self.recipe
        sizes = f"K = {r.clusters}, D = {r.dim}"
        return f"{_where(self.paths)} ({self.layer}): {r.kind}; {sizes}; {r.calls}; {r.steps}"


@dataclass(frozen=True)
class Used:
    """A layer that was fused before, and how often it has been called since.

    Attributes:
        fused: calls that the operator answered.
        own: calls that went to the layer's own ``forward``, by what was unforeseen about them.
    """

    paths: tuple[str, ...]
    layer: str
    fused: int
    own: dict[str, int]

    def __str__(self) -> str:
        why = ", ".join(f"{what}: {number}" for what, number in self.own.items())
        own = f"{sum(self.own.values())} by its own forward" + (f" ({why})" if why else "")
        calls = "call" if self.fused == 1 else "calls"
        return f"{_where(self.paths)} ({self.layer}): {self.fused} {calls} fused, {own}"


@dataclass(frozen=True)
class LeftAlone:
    """A layer that looks like NetVLAD or is another aggregator and is as it was, and why."""

    paths: tuple[str, ...]
    layer: str
    reason: str

    def __str__(self) -> str:
        return f"{_where(self.paths)} ({self.layer}): {self.reason}"


@dataclass(frozen=True)
class Report:
    """Layers that ``accelerate`` replaced, found fused from before or left alone."""

    replaced: tuple[Replaced, ...]
    fused: tuple[Used, ...]
    left_alone: tuple[LeftAlone, ...]

    def __str__(self) -> str:
        if not self.replaced and not self.fused and not self.left_alone:
            return "sfrs_ext.accelerate: nothing in this model looks like NetVLAD"
        before = f", {len(self.fused)} fused before" if self.fused else ""
        lines = [
            f"sfrs_ext.accelerate: {len(self.replaced)} replaced{before}, {len(self.left_alone)} left alone"
        ]
        lines += [f"  replaced    {entry}" for entry in self.replaced]
        lines += [f"  fused       {entry}" for entry in self.fused]
        lines += [f"  left alone  {entry}" for entry in self.left_alone]
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True)
class Restored:
    """Layers to which ``restore`` gave their own class back."""

    restored: tuple[Used, ...]

    def __str__(self) -> str:
        if not self.restored:
            return "sfrs_ext.restore: nothing in this model is fused"
        lines = [f"sfrs_ext.restore: {len(self.restored)} restored"]
        return "\n".join([*lines, *(f"  restored    {entry}" for entry in self.restored)])

    __repr__ = __str__


def _where(paths: tuple[str, ...]) -> str:
    return ", ".join(path or "the model" for path in paths)
