"""What :func:`sfrs_ext.accelerate` did, as data and as text."""

from dataclasses import dataclass

from .recipe import LAYOUTS, Recipe


@dataclass(frozen=True)
class Replaced:
    """A layer that is fused now. ``paths``: where it is in the model; "" is the model itself."""

    paths: tuple[str, ...]
    layer: str
    recipe: Recipe

    def __str__(self) -> str:
        r = self.recipe
        sizes, form = f"K = {r.clusters}, D = {r.dim}", f"{LAYOUTS[r.layout]} -> {r.output}"
        return f"{_where(self.paths)} ({self.layer}): {r.kind}; {sizes}; {form}; {r.steps}"


@dataclass(frozen=True)
class LeftAlone:
    """A layer that looks like NetVLAD and is as it was, and why."""

    paths: tuple[str, ...]
    layer: str
    reason: str

    def __str__(self) -> str:
        return f"{_where(self.paths)} ({self.layer}): {self.reason}"


@dataclass(frozen=True)
class Report:
    """Layers replaced and layers left alone."""

    replaced: tuple[Replaced, ...]
    left_alone: tuple[LeftAlone, ...]

    def __str__(self) -> str:
        if not self.replaced and not self.left_alone:
            return "sfrs_ext.accelerate: nothing in this model looks like NetVLAD"
        lines = [f"sfrs_ext.accelerate: {len(self.replaced)} replaced, {len(self.left_alone)} left alone"]
        lines += [f"  replaced    {entry}" for entry in self.replaced]
        lines += [f"  left alone  {entry}" for entry in self.left_alone]
        return "\n".join(lines)

    __repr__ = __str__


def _where(paths: tuple[str, ...]) -> str:
    return ", ".join(path or "the model" for path in paths)
