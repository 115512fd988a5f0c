"""Forms of a layer's inputs, results and masks, in letters: B images, D channels, N or H x W positions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """A form of input: its number of dimensions, which of them are the D channels, and whether one is B."""

    text: str
    rank: int
    channels: int
    batched: bool = True

    def fits(self, x: object, dim: int) -> bool:
        return isinstance(x, Tensor) and x.dim() == self.rank and x.shape[self.channels] == dim

    def images(self, maps: Tensor) -> int:
        return maps.shape[0] if self.batched else 1

    def as_map(self, x: Tensor) -> Tensor:
        """A view ``[B, D, H, W]``; positions in a row are a map of height one."""
        x = (x if self.batched else x.unsqueeze(0)).movedim(self.channels + (not self.batched), 1)
        return x if x.dim() == 4 else x.unsqueeze(2)

    def has_channels_innermost(self, x: Tensor) -> bool:
        last = self.rank - 1  # first the stride that depends on no size
        if self.channels == last:
            return x.stride(last) == 1
        return x.stride(last) != 1 and x.stride(self.channels) == 1


CHANNELS_FIRST = Layout("[B, D, N]", 3, 1)
LAYOUTS = (
    Layout("[B, D, H, W]", 4, 1),
    Layout("[B, N, D]", 3, 2),
    CHANNELS_FIRST,
    Layout("[B, H, W, D]", 4, 3),
    Layout("[D, H, W]", 3, 0, batched=False),
    Layout("[N, D]", 2, 1, batched=False),
    Layout("[D, N]", 2, 0, batched=False),
)

RESULTS = {
    "[B, K*D]": lambda b, k, d: (b, k * d),
    "[B, D*K]": lambda b, k, d: (b, k * d),
    "[B, K, D]": lambda b, k, d: (b, k, d),
    "[B, D, K]": lambda b, k, d: (b, d, k),
}
"""Forms of a result, and its shape by their sizes; that of an unbatched input may be without ``B``."""


def results_for(layout: Layout, sizes: tuple[int, ...] = (), shape: tuple[int, ...] = ()) -> list[str]:
    """Forms of a result for an input in a layout, of this shape for these sizes of B, K and D."""
    found = {text: size(*sizes) if sizes else () for text, size in RESULTS.items()}
    if not layout.batched:
        found |= {text.replace("B, ", ""): size[1:] for text, size in found.items()}
    return [text for text, size in found.items() if size == tuple(shape)]


@dataclass(frozen=True)
class Form:
    """A form of input that a layer takes, and its result's.

    Attributes:
        result: one of `RESULTS`, without ``B`` for a result without; None where it is none of them, so
            that the layer's own ``forward`` has to give it.
        orders: `order_of` the result for inputs whose positions and whose channels are innermost.
    """

    layout: Layout
    result: str | None
    orders: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    @property
    def is_flat(self) -> bool:
        return self.result is not None and self.result.endswith("K*D]")

    def arranged(self, vlad: Tensor, x: Tensor) -> Tensor:
        """Bring the operator's result into the form and memory order of the layer's own for ``x``."""
        form, (positions, channels) = self.result or "", self.orders
        if not self.is_flat:
            vlad = vlad if form.endswith("K, D]") else vlad.transpose(1, 2)
            vlad = vlad.flatten(1) if form.endswith("D*K]") else vlad
        vlad = vlad if form.startswith("[B") else vlad.squeeze(0)
        innermost = positions != channels and self.layout.has_channels_innermost(x)
        return in_order(vlad, channels if innermost else positions)


def in_order(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same values with the dimensions in this order in memory, outermost first; copied if need be."""
    if order == tuple(range(len(order))):
        return tensor.contiguous()
    inverse = [order.index(dim) for dim in range(len(order))]
    return tensor.permute(order).contiguous().permute(inverse)


def order_of(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions from the outermost in memory to the innermost; one of size one stays in its place."""
    order = list(range(tensor.dim()))
    moving = [d for d in order if tensor.shape[d] > 1]
    for place, dim in zip(moving, sorted(moving, key=lambda d: -tensor.stride(d)), strict=True):
        order[place] = dim
    return tuple(order)


MASKS = ("[B, H, W]", "[B, 1, H, W]", "[B, N]", "[B, N, 1]", "[B, 1, N]")
"""Forms of a tensor with a number for every position of ``[B, D, H, W]``."""


@dataclass(frozen=True)
class Mask:
    """A form in which a layer takes weights of the positions.

    Attributes:
        layout: of the input beside it.
        form: one of `MASKS`.
        kind: "float", which is in the dtype of the features, "bool" or "int64".
        meaning: "weights", "in" where it is not zero, or "out" where it is not.
    """

    layout: Layout
    form: str
    kind: str
    meaning: str

    @classmethod
    def all(cls, layout: Layout) -> Iterator["Mask"]:
        """Every form beside an input in a layout; false and true as weights are the same as out and in."""
        for form, kind, meaning in product(MASKS, ("float", "bool", "int64"), ("weights", "in", "out")):
            if (kind, meaning) != ("bool", "weights"):
                yield cls(layout, form, kind, meaning)

    def shape(self, x: Tensor) -> tuple[int, ...]:
        batch, _, height, width = self.layout.as_map(x).shape
        sizes = {"B": batch, "N": height * width, "H": height, "W": width, "1": 1}
        return tuple(sizes[letter] for letter in self.form[1:-1].split(", "))

    def fits(self, mask: object, x: Tensor, layout: Layout) -> bool:
        if not isinstance(mask, Tensor) or mask.device != x.device or layout != self.layout:
            return False
        dtype = {"float": x.dtype, "bool": torch.bool, "int64": torch.int64}[self.kind]
        return mask.dtype == dtype and mask.shape == self.shape(x)

    def weights(self, mask: Tensor, x: Tensor) -> Tensor:
        """``[B, N]`` in the dtype of ``x``."""
        if self.meaning != "weights":
            mask = mask != 0 if self.meaning == "in" else mask == 0
        return mask.to(x.dtype).flatten(1)


Describe = Callable[[Tensor, Form], Tensor]
Way = Callable[[Describe, Sequence[Tensor], Form], object]
ALL = slice(None)


def _each(join: Callable[[list[Tensor]], object]) -> Way:
    return lambda describe, xs, form: join([describe(x, form) for x in xs])


def _as_one(describe: Describe, xs: Sequence[Tensor], form: Form) -> Tensor:
    positions = torch.cat([form.layout.as_map(x).flatten(2) for x in xs], 2)
    return describe(positions, replace(form, layout=CHANNELS_FIRST))


WAYS: dict[str, tuple[slice, Way]] = {
    "one result each, in a list": (ALL, _each(list)),
    "one result each, in a tuple": (ALL, _each(tuple)),
    "their results in one batch": (ALL, _each(torch.cat)),
    "their results stacked": (ALL, _each(torch.stack)),
    "the positions of all together": (ALL, _as_one),
    "the first alone": (slice(0, 1), _each(lambda results: results[0])),
    "the last alone": (slice(-1, None), _each(lambda results: results[0])),
}
"""Results for several inputs: those that take part, and how."""


@dataclass(frozen=True)
class Lists:
    """How a layer takes several inputs: the form of each, one of `WAYS`, and in what they come."""

    form: Form
    way: str
    containers: tuple[type, ...]
