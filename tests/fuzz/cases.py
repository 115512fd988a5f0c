"""Random calls of every operator: a seed is the same calls on any machine and with any kernels."""

from dataclasses import dataclass, field
from math import prod
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATORS = ("netvlad", "netvlad", "region_vlad", "region_similarity", "conv3x3")
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 33, 48, 49, 64, 65, 97)
MAGNITUDES = (-25, -20, -15, 12, 19, 25)
NOT_FINITE = (torch.nan, torch.inf, -torch.inf)
LAYOUTS, WRONG, PLANTED = 8, 3, 1  # calls of a seed


@dataclass
class Case:
    """Calls of one operator with the same values.

    Attributes:
        arguments: the values and options.
        layouts: the arguments elsewhere in memory.
        wrong: the arguments but for one that no operator takes, and its name.
        planted: the arguments but for one with a value that is not finite, its name, and the index of that
            value along its first dimension.
    """

    seed: int
    operator: str
    arguments: dict[str, Any]
    layouts: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    planted: list[tuple[dict[str, Any], str, int]] = field(default_factory=list)


def text(value: Any) -> str:
    """An argument, or all, as a report names them."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={text(v)}" for name, v in value.items())
    if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
        return f"({', '.join(map(text, value))})"
    if not isinstance(value, Tensor):
        return repr(value)[:40]
    strides = f"strides {list(value.stride())}" if value.layout == torch.strided else value.layout
    return f"{str(value.dtype)[6:]} {list(value.shape)} {strides}"


class Maker:
    """Draws a case; one generator for choices, one for values."""

    def __init__(self, seed: int):
        self.r = Random(seed)
        self.g = torch.Generator().manual_seed(seed)

    def chance(self, share: float) -> bool:
        return self.r.random() < share

    def sizes(self, *most: int) -> list[int]:
        """One size for each bound; most products are small, as calls of all sizes find what there is."""
        budget = 10**6 if self.chance(0.05) else 4 * 10**4
        while True:
            sizes = [self.r.choice(SIZES) for _ in most]
            if all(n <= m for n, m in zip(sizes, most, strict=True)) and prod(sizes) <= budget:
                return sizes

    def or_empty(self, size: int) -> int:
        return 0 if self.chance(0.03) else size

    def tensor(self, *shape: int, dtype: torch.dtype, unit: bool = False) -> Tensor:
        t = torch.randn(shape, dtype=torch.float64, generator=self.g)
        kind = self.r.random()
        if kind < 0.1:
            t = (3 * t).round()
        elif kind < 0.15:
            t *= torch.rand(shape, dtype=torch.float64, generator=self.g) < 0.7
        elif kind < 0.2 and t.numel():
            t[self.r.randrange(len(t))] = 0
        elif kind < 0.23 and dtype != torch.float16 and not unit:
            t *= 10.0 ** self.r.choice(MAGNITUDES)
        elif kind < 0.26:
            t = t[:1].expand_as(t)
        return (F.normalize(t, dim=1) if unit else t).to(dtype)

    def lay_out(self, t: Tensor) -> Tensor:
        """The same values elsewhere in memory."""
        kind, dim = self.r.randrange(9), self.r.randrange(t.dim())
        if kind == 4 and t.dim() == 4:
            return t.contiguous(memory_format=torch.channels_last)
        if kind in (5, 6):  # a crop, or every second element
            step = kind - 4
            room = t.new_full([step * n + 3 for n in t.shape], 7.0)
            return room[tuple(slice(1, 1 + step * n, step) for n in t.shape)].copy_(t)
        if kind == 7:
            return t.movedim(dim, 0).contiguous().movedim(0, dim)
        if kind == 8:
            return torch._neg_view(-t)
        return t.contiguous()

    def aggregation(self, netvlad: bool) -> dict[str, Any]:
        dtype = self.r.choice(DTYPES)
        kind = dict(dtype=torch.float32 if dtype in DTYPES[3:] and self.chance(0.5) else dtype)
        batch, dim, clusters, height, width = map(self.or_empty, self.sizes(3, 97, 65, 9, 17))
        dim, clusters, ghosts = max(dim, 1), max(clusters, 1), self.r.choice((0, 0, 1, 2))
        columns, tokens = clusters + ghosts, netvlad and self.chance(0.3)
        grid = (height * width,) if tokens else (height, width)
        given = dict(x=self.tensor(batch, *((*grid, dim) if tokens else (dim, *grid)), dtype=dtype))
        if self.chance(0.7):
            given["weight"] = self.tensor(columns, dim, **kind)
        elif tokens or self.chance(0.5):
            given["logits"] = self.tensor(batch, height * width, columns, **kind)
        else:
            given["logits"] = self.tensor(batch, columns, height, width, **kind)
        for name, shape in (("centroids", (clusters, dim)), ("bias", (columns,)), ("mask", (batch, *grid))):
            if self.chance(0.5):
                given[name] = self.tensor(*shape, **kind)
        if ghosts:
            given["ghost_clusters"] = ghosts
        flags = ("normalize_input", *(("intra_norm", "l2_norm", "flatten") if netvlad else ()))
        return given | {name: self.chance(0.5) for name in flags if self.chance(0.4)}

    def netvlad(self) -> dict[str, Any]:
        return self.aggregation(netvlad=True)

    def region_vlad(self) -> dict[str, Any]:
        return self.aggregation(netvlad=False)

    def region_similarity(self) -> dict[str, Any]:
        kind = dict(dtype=self.r.choice(DTYPES))
        queries, gallery, clusters, dim = self.sizes(33, 33, 16, 97)
        queries, gallery = self.or_empty(queries), self.or_empty(gallery)
        lists = (queries,) if self.chance(0.5) else ()
        quarters = self.tensor(*lists, gallery, 4, clusters, dim, **kind)
        if self.chance(0.2):  # two or all quarters cancel
            a, b, c, _ = quarters.unbind(-3)
            quarters = torch.stack((a, b, c, -a - b - c if self.chance(0.5) else -c), -3)
        return dict(query=self.tensor(queries, clusters * dim, unit=True, **kind), quarters=quarters)

    def conv3x3(self) -> dict[str, Any]:
        kind = dict(dtype=self.r.choice(DTYPES))
        batch, channels, outputs, height, width = self.sizes(3, 97, 97, 17, 17)
        given = dict(x=self.tensor(self.or_empty(batch), channels, height, width, **kind))
        given["weight"] = self.tensor(outputs, channels, 3, 3, **kind)
        if self.chance(0.5):
            given["bias"] = self.tensor(outputs, **kind)
        return given | dict(relu=self.chance(0.5))

    def plant(self, given: dict[str, Any]) -> tuple[dict[str, Any], str, int]:
        """A value that is not finite, in an argument that has images or lists."""
        name = self.r.choice([n for n in ("x", "logits", "mask", "query", "quarters") if n in given])
        t = given[name].clone()
        row = self.r.randrange(len(t))
        t[row].view(-1)[self.r.randrange(t[row].numel())] = self.r.choice(NOT_FINITE)
        return given | {name: t}, name, row

    def spoil(self, given: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """One argument becomes what no operator takes."""
        name = self.r.choice(list(given))
        value = given[name]
        wrong: list[Any] = ["1", 1.5, [1], (), {}, torch.tensor([1, 2])]
        if isinstance(value, Tensor):
            wrong += [
                value.int(),
                value.to(torch.complex64),
                value.bool(),
                value.to("meta"),
                value.to_sparse(),
            ]
            wrong += [value[..., None, None, None], value.new_zeros([n + 1 for n in value.shape]), [value]]
        else:
            wrong += [2, -1, None] if isinstance(value, bool) else [-1, 10**6, True, None]
        return given | {name: self.r.choice(wrong)}, name


def make(seed: int) -> Case:
    """The calls of a seed."""
    m = Maker(seed)
    operator = m.r.choice(OPERATORS)
    case = Case(seed, operator, getattr(m, operator)())
    a = case.arguments
    for _ in range(LAYOUTS):
        case.layouts.append({n: m.lay_out(v) if isinstance(v, Tensor) else v for n, v in a.items()})
    case.wrong = [m.spoil(a) for _ in range(WRONG)]
    if operator != "conv3x3" and all(v.numel() for v in a.values() if isinstance(v, Tensor)):
        case.planted = [m.plant(a) for _ in range(PLANTED)]
    return case
