"""What a random call must give: what float64 gives but for rounding, or an error that names an argument.

A result or gradient may err by the floor of tests/ops/tolerance.py, in parts of its largest value. Random
arguments cancel anywhere, so an error beyond the floor is compared with what rounding does: float64 computes
the definition again with the operands of every step, those of the gradient too, moved at random by up to an
epsilon of the operator's dtype. Four times the largest change in `ROUNDED` such results is what the operator
may err, whose roundings are as many, but in other places.

Normalised, a single number is its sign. Moved operands leave it as it is, and its gradient is zero, while the
operators divide sums in which terms cancel by their size, and err in parts of the terms. With D = 1 therefore
such values are compared with nothing.
"""

import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from cases import Case, Maker, text
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import sfrs_ext
from sfrs_ext import reference

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import tolerance

ERRORS = (TypeError, ValueError, NotImplementedError, RuntimeError)
DIFFERENTIABLE = ("x", "weight", "logits", "centroids", "bias", "mask", "query", "quarters")
ROUNDED = 40


def check(case: Case) -> Iterator[str]:
    """One text for each call: what is wrong, or nothing."""
    values = Values(case)
    for calls, check_call in (
        ([(arguments,) for arguments in case.layouts], values.check),
        (case.wrong, partial(check_refusal, case.operator)),
        (case.planted, partial(check_isolation, case)),
    ):
        for arguments, *where in calls:
            try:
                check_call(arguments, *where)
            except (AssertionError, *ERRORS) as error:
                about = " ".join(f"{type(error).__name__}: {error}".split())
                yield f"{case.operator}({text(arguments)}) {where or ''}: {about[:600]}"
            else:
                yield ""


def check_refusal(operator: str, arguments: dict, wrong: str) -> None:
    try:
        getattr(sfrs_ext, operator)(**arguments)
    except ERRORS as error:
        named = re.match(rf"{operator}: .*\b{wrong}\b", str(error), re.DOTALL)
        assert named, f"{wrong} is not named in {error!r}"
    else:
        raise AssertionError(f"{wrong} was taken")


def check_isolation(case: Case, arguments: dict, name: str, row: int) -> None:
    """A value that is not finite stays in its image, query or list, and is not lost there."""
    operator, oracle = getattr(sfrs_ext, case.operator), getattr(reference, case.operator)
    found, clean = operator(**arguments), operator(**case.arguments)
    exact = oracle(**wide(arguments))
    if name == "quarters" and arguments[name].dim() == 4:
        found, clean, exact = (t.transpose(0, 1) for t in (found, clean, exact))
    assert not (exact.isnan() & found.isfinite()).any(), f"{name}[{row}]: a value that is none got lost"
    others = torch.arange(len(found)) != row
    assert torch.equal(found[others], clean[others]), f"{name}[{row}] changes others"


def wide(arguments: dict) -> dict:
    return {n: v.double() if n in DIFFERENTIABLE else v for n, v in arguments.items()}


class Rounding(TorchDispatchMode):
    """Moves the operands of every step by up to ``eps`` of their size."""

    def __init__(self, eps: float, generator: torch.Generator):
        super().__init__()
        self.eps, self.generator = eps, generator

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch loads its compiler, for seconds, to keep it away

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view and not function._schema.is_mutable:
            args = tree_map(self.moved, args)
        return function(*args, **(kwargs or {}))

    def moved(self, v):
        if not isinstance(v, Tensor) or v.dtype != torch.float64:
            return v
        moves = torch.rand(v.shape, generator=self.generator, dtype=v.dtype)
        return v * (1 + self.eps * (2 * moves - 1))


def convolution(x, weight, bias=None, relu=False):
    y = F.conv2d(x, weight, bias, padding=1)
    return y.relu() if relu else y


def packed_convolution(x, weight, **options):
    packed = sfrs_ext.conv3x3_weight(weight) if x.dtype == torch.float32 else None
    return sfrs_ext.conv3x3(x, weight, packed=packed, **options)


class Values:
    """Results and gradients of the definition in float64, with which calls of the operator are compared."""

    def __init__(self, case: Case):
        a, self.maker = case.arguments, Maker(case.seed)
        self.storage = self.dtype = next(iter(a.values())).dtype
        self.operators = [getattr(sfrs_ext, case.operator)]
        if case.operator == "conv3x3":
            self.oracle, self.operators = convolution, [*self.operators, packed_convolution]
        else:
            self.oracle = getattr(reference, case.operator)
        self.wide, self.sizes = wide(a), {}  # a gradient is the smaller, the larger a size is
        self.names = tuple(n for n in a if n in DIFFERENTIABLE)
        self.compared = {"result", *self.names}
        if case.operator == "region_similarity":
            self.oracle = partial(self.oracle, storage=self.storage)
            self.dtype = torch.float64 if self.storage == torch.float64 else torch.float32
            if a["quarters"].shape[-1] == 1:
                self.compared = set()
        elif case.operator != "conv3x3":
            x, dim = self.wide["x"], 1 if a["x"].dim() == 4 else 2
            if a.get("normalize_input", True):
                self.sizes["x"] = x.norm(dim=dim, keepdim=True).clamp_min(reference.EPS)
                self.compared -= {"x"} if x.shape[dim] == 1 else set()
            if case.operator == "netvlad" and a.get("intra_norm", True) and x.shape[dim] == 1:
                self.compared = {"result"}
        self.grad = None
        self.exact = self.results(self.oracle, self.wide, self.names)
        self.moves: list[dict[str, float]] = []

    def results(self, function, arguments: dict, needs: tuple[str, ...]) -> dict[str, Tensor]:
        """The result, and the gradients of the arguments that need one."""
        leaves = {
            n: v.detach().requires_grad_(n in needs) if n in self.names else v for n, v in arguments.items()
        }
        out = function(**leaves)
        if self.grad is None:
            self.grad = torch.randn(out.shape, generator=self.maker.g).to(self.dtype)
            if arguments.get("relu") and out.numel():  # rounding decides what passes near zero
                self.grad *= out.abs() > 1e-2 * out.abs().max()
        if needs:
            out.backward(self.maker.lay_out(self.grad).to(out))
        return {"result": out.detach()} | {n: leaves[n].grad for n in needs}

    def check(self, arguments: dict) -> None:
        all_of_them = self.maker.chance(0.5)
        needs = tuple(n for n in self.names if all_of_them or self.maker.chance(0.5))
        found = self.results(self.maker.r.choice(self.operators), arguments, needs)
        assert found["result"].dtype == self.dtype, f"result is {found['result'].dtype}, not {self.dtype}"
        for name, value in found.items():
            info, truth = torch.finfo(value.dtype), self.exact[name]
            assert value.shape == truth.shape, f"{name} is {list(value.shape)}, not {list(truth.shape)}"
            largest = truth.abs().max().item() if truth.numel() else 0.0
            representable = largest < info.max / 4 and not 0 < largest < info.tiny / info.eps
            if name not in self.compared or not representable:  # or not a number in float64 either
                continue
            if not value.isfinite().all():
                allowed = self.allowed(name, torch.inf)
                assert allowed >= info.max / 4, f"{name}: not finite"
                continue
            error = self.size(name, value.double() - truth)
            floor = tolerance.FLOOR_ULPS[value.dtype] * info.eps * self.size(name, truth)
            floor += info.tiny * self.size(name, torch.ones_like(truth))
            allowed = floor + (self.allowed(name, error) if error > floor else 0.0)
            assert error <= allowed, f"{name}: {error:.1e} beyond {allowed:.1e}, of {largest:.1e}"

    def size(self, name: str, t: Tensor) -> float:
        return (t * self.sizes.get(name, 1.0)).abs().max().item() if t.numel() else 0.0

    def allowed(self, name: str, error: float) -> float:
        """Four times what rounding moves a value; no more is computed than justifies the error."""
        info, most = torch.finfo(self.storage), 0.0
        for i in range(ROUNDED):
            if i == len(self.moves):
                with Rounding(info.eps, self.maker.g):
                    moved = self.results(self.oracle, self.wide, self.names)
                self.moves.append({n: self.size(n, t - self.exact[n]) for n, t in moved.items()})
            if self.moves[i][name] >= most / 4:  # a number
                most = 4 * self.moves[i][name]
            if most >= error:
                return most
        return most
