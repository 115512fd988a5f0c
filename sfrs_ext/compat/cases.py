"""Inputs on which a layer and its fused form are compared."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .forms import Layout, Mask
from .recipe import Recipe
from .structure import scales


def randomise(layer: nn.Module, generator: torch.Generator) -> None:
    """Give a copy parameters under which every step shows: zeros, ones and equal clusters hide some."""
    for module in layer.modules():
        randomise_tensors(module, generator)
    layer.requires_grad_(True)
    for index, name in enumerate(scales(layer)):
        if name not in {**layer._parameters, **layer._buffers}:
            setattr(layer, name, 1.3 + 0.2 * index)  # unequal, so that it shows which one is used


@torch.no_grad()
def randomise_tensors(module: nn.Module, generator: torch.Generator, only: str | None = None) -> None:
    """Overwrite a module's own parameters and floating buffers, or one of them, in place."""
    for name, tensor in {**module._parameters, **module._buffers}.items():
        if tensor is not None and tensor.is_floating_point() and only in (None, name):
            random = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(random.abs() + 0.5 if name == "running_var" else random)


@torch.no_grad()
def harden(layer: nn.Module, recipe: Recipe, factor: float) -> None:
    """Multiply a copy's logits, in place: a large factor leaves clusters empty."""
    # Batch norm undoes what happens before it, all but its rounding.
    owner = getattr(layer, recipe.assignment if recipe.batch_norm is None else recipe.batch_norm)
    tensors = [*owner.parameters()] if isinstance(owner, nn.Module) else [owner]
    if recipe.batch_norm is None and (recipe.bias in layer._parameters or recipe.bias in layer._buffers):
        tensors.append(getattr(layer, recipe.bias))
    for tensor in tensors:
        tensor.mul_(factor)


def maps(dim: int, generator: torch.Generator, batch: int = 2, size: tuple[int, int] = (3, 4)) -> Tensor:
    return torch.randn(batch, dim, *size, generator=generator, dtype=torch.float64) * 2 * dim**-0.5


def unmistakable(dim: int, generator: torch.Generator, number: int = 0) -> Tensor:
    """Maps whose sizes no other form of input can be mistaken for; every number has sizes of its own."""
    sizes = [(h, w) for h, w in ((6, 4), (2, 8), (10, 4), (2, 14), (6, 8)) if dim not in (h, w, h * w)]
    return maps(dim, generator, batch=3 if dim == 2 else 2, size=sizes[number])


def in_layout(maps: Tensor, layout: Layout) -> Tensor:
    """``[B, D, H, W]`` as a contiguous input in the layout; one without a batch is the first image."""
    x = maps if layout.rank + (not layout.batched) == 4 else maps.flatten(2)
    x = x if layout.batched else x[0]
    return x.movedim(1 if layout.batched else 0, layout.channels).contiguous()


def in_memory(x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The same input with its positions and with its channels innermost in memory."""
    first, last = (
        x.movedim(layout.channels, to).contiguous().movedim(to, layout.channels)
        for to in (int(layout.batched), x.dim() - 1)
    )
    return first, last


EQUAL = ("equal features everywhere", "one dominant cluster", "rare clusters")
"""Cases in which all features are equal: batch norm in training makes nothing but rounding of them."""


def cases(dim: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor, float]]:
    """What is special about an input, the maps, and the factor on the logits; nothing about the first."""
    x = maps(dim, generator)
    equal = x[:, :, :1, :1].expand_as(x)
    with_zeros = x.clone()
    with_zeros[0, :, 0, 0] = 0
    yield "", x, 1
    yield "one image", maps(dim, generator, batch=1, size=(3, 5)), 1
    yield "a position without features", with_zeros, 1
    yield "zeros alone", torch.zeros_like(x), 1
    yield "a single position", x[:, :, :1, :1], 1
    yield "equal features everywhere", equal, 1
    yield "one dominant cluster", equal, 1e3
    yield "empty clusters", x, 1e3
    for factor in (10, 20, 40):  # shares of the clusters from one to 1e-9, 1e-18 and 1e-36, say
        yield "rare clusters", equal, factor
    yield "large features", x * 1e6, 1e-6  # with logits as they were
    yield "small features", x * 1e-6, 1
    yield "features below every eps", x * 1e-13, 1


def masks(mask: Mask, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Weights of all positions in a form: random ones with zeros, some with an image left out, and ones."""
    random = torch.randint(3, mask.shape(x), generator=generator)
    if mask.kind == "float":
        random = random * torch.rand(random.shape, generator=generator, dtype=torch.float64)
    none = torch.zeros_like(random[:1])
    for weights in (random, torch.cat((none, random[1:])), torch.ones_like(random)):
        yield weights > 0 if mask.kind == "bool" else weights
