"""What `sfrs_ext.accelerate` and `sfrs_ext.restore` did, as data and as text."""

from dataclasses import dataclass

from .recipe import Recipe


@dataclass(frozen=True)
class Entry:
    """A layer. ``paths``: where it is in the model; "" is the model itself."""

    paths: tuple[str, ...]
    layer: str

    def _text(self, about: str) -> str:
        return f"{', '.join(path or 'the model' for path in self.paths)} ({self.layer}): {about}"


@dataclass(frozen=True)
class Replaced(Entry):
    """A layer that is fused now."""

    recipe: Recipe

    def __str__(self) -> str:
        r = self.recipe
        return self._text(f"{r.kind}; K = {r.clusters}, D = {r.dim}; {r.calls}; {r.steps}")


@dataclass(frozen=True)
class Used(Entry):
    """A layer that was fused before, and how often it has been called since.

    Attributes:
        fused: calls that the operator answered.
        own: calls that went to the layer's own ``forward``, by what was unforeseen about them.
    """

    fused: int
    own: dict[str, int]

    def __str__(self) -> str:
        why = ", ".join(f"{what}: {number}" for what, number in self.own.items())
        own = f"{sum(self.own.values())} by its own forward" + (f" ({why})" if why else "")
        return self._text(f"{self.fused} {'call' if self.fused == 1 else 'calls'} fused, {own}")


@dataclass(frozen=True)
class LeftAlone(Entry):
    """A layer that looks like NetVLAD or is another aggregator and is as it was, and why."""

    reason: str

    def __str__(self) -> str:
        return self._text(self.reason)


@dataclass(frozen=True)
class Report:
    """Layers that ``accelerate`` replaced, found fused from before or left alone."""

    replaced: tuple[Replaced, ...]
    fused: tuple[Used, ...]
    left_alone: tuple[LeftAlone, ...]

    def __str__(self) -> str:
        if not self.replaced and not self.fused and not self.left_alone:
            return "sfrs_ext.accelerate: nothing in this model looks like NetVLAD"
        fused = f", {len(self.fused)} fused before" if self.fused else ""
        counts = f"{len(self.replaced)} replaced{fused}, {len(self.left_alone)} left alone"
        kinds = (("replaced", self.replaced), ("fused", self.fused), ("left alone", self.left_alone))
        lines = [f"  {kind:10}  {entry}" for kind, entries in kinds for entry in entries]
        return "\n".join([f"sfrs_ext.accelerate: {counts}", *lines])

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
