"""Inputs of the operator tests: shapes that are awkward for the kernels, layouts that are read in place."""

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("planes", "channels_last", "crop", "channels_last_crop", "batch_slice")


@dataclass(frozen=True)
class Shape:
    """One aggregation problem; what is special about it is its name."""

    name: str
    batch: int
    dim: int
    height: int
    width: int
    clusters: int
    ghosts: int = 0

    def __str__(self) -> str:
        return self.name


SHAPES = (
    Shape("paper", 1, 512, 30, 40, 64),
    Shape("odd map, odd everything", 3, 33, 9, 5, 5, 2),
    Shape("one position", 2, 64, 1, 1, 3),
    Shape("one cluster", 2, 16, 4, 6, 1),
    Shape("one dimension", 2, 1, 3, 4, 4),
    Shape("one row", 2, 20, 1, 50, 8),
    Shape("one column", 2, 20, 7, 1, 8, 1),
    Shape("more clusters than a panel", 2, 100, 3, 3, 70, 3),
    Shape("many tiles, three images", 3, 40, 23, 23, 9),
    Shape("long features", 1, 1030, 6, 5, 17),
)


def map_in(
    layout: str, shape: Shape, dtype: torch.dtype, generator: torch.Generator, device: str = "cpu"
) -> Tensor:
    """A map ``[B, D, H, W]`` that lies in memory as ``layout`` says."""
    batch, dim, height, width = shape.batch, shape.dim, shape.height, shape.width
    extra = {"crop": (0, 3, 2, 3), "channels_last_crop": (0, 0, 2, 3), "batch_slice": (batch, 0, 0, 0)}
    sizes = [n + e for n, e in zip((batch, dim, height, width), extra.get(layout, (0,) * 4), strict=True)]
    x = torch.randn(sizes, dtype=torch.float64, generator=generator).to(device, dtype)
    if layout.startswith("channels_last"):
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "crop":
        x = x[:, 1 : dim + 1, 1 : height + 1, 2 : width + 2]
    elif layout == "channels_last_crop":
        x = x[:, :, 1 : height + 1, 2 : width + 2]
    elif layout == "batch_slice":
        x = x[::2]
    return x


def projection_of(result: Tensor) -> Tensor:
    """A fixed random gradient of a result."""
    g = torch.Generator().manual_seed(1)
    return torch.randn(result.shape, dtype=torch.float64, generator=g).to(result)


@dataclass
class Problem:
    """Tensors of one call, in the order of the raw operators' arguments; weight or logits is None."""

    x: Tensor
    weight: Tensor | None
    logits: Tensor | None
    centroids: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    ghosts: int

    NAMES = ("x", "weight", "logits", "centroids", "bias", "mask")

    @classmethod
    def make(
        cls,
        shape: Shape,
        dtype: torch.dtype,
        layout: str = "planes",
        seed: int = 0,
        bare: bool = False,
        given: str = "weight",
        device: str = "cpu",
    ):
        g = torch.Generator().manual_seed(seed)

        def randn(*size):
            return torch.randn(*size, dtype=torch.float64, generator=g).to(device, dtype)

        x = map_in(layout, shape, dtype, g, device)
        columns = shape.clusters + shape.ghosts
        weight = randn(columns, shape.dim) if given == "weight" else None
        logits = 2 * randn(shape.batch, columns, shape.height, shape.width) if given == "logits" else None
        if bare:
            return cls(x, weight, logits, None, None, None, shape.ghosts)
        centroids = 0.1 * randn(shape.clusters, shape.dim)
        bias = randn(columns)
        mask = torch.rand(shape.batch, shape.height, shape.width, dtype=torch.float64, generator=g)
        mask = mask.to(device, dtype)
        return cls(x, weight, logits, centroids, bias, mask, shape.ghosts)

    def tensors(self) -> list[Tensor | None]:
        return [getattr(self, name) for name in self.NAMES]

    def to(self, dtype: torch.dtype) -> "Problem":
        return Problem(*(t if t is None else t.to(dtype) for t in self.tensors()), self.ghosts)

    def call(self, operator, tensors: list[Tensor | None], **options) -> Tensor:
        """``operator`` on ``tensors``, which stand for those of this problem."""
        x, weight, logits, centroids, bias, mask = tensors
        options = dict(logits=logits, ghost_clusters=self.ghosts, mask=mask) | options
        return operator(x, weight, centroids, bias, **options)

    def results(self, operator, wanted: tuple[str, ...] = NAMES, **options) -> dict[str, Tensor]:
        """The result of ``operator`` and the wanted gradients of a fixed random projection of it."""
        tensors = dict(zip(self.NAMES, self.tensors(), strict=True))
        leaves = {n: t if t is None else t.detach().requires_grad_(n in wanted) for n, t in tensors.items()}
        out = self.call(operator, list(leaves.values()), **options)
        out.backward(projection_of(out))
        grads = {f"d{n}": t.grad for n, t in leaves.items() if t is not None and n in wanted}
        return {"result": out.detach(), **grads}
