"""How a call reaches an operator, whatever torch does at the moment: run, compile, export, transform."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from . import _cuda  # noqa: F401  registers the operators

ops = torch.ops.sfrs_ext

NO_FORWARD_MODE = (
    "forward-mode differentiation (torch.func.jvp, torch.autograd.forward_ad) is not implemented"
)


def in_onnx_export() -> bool:
    """Whether ``torch.onnx.export`` is at work, whose files know no operator of ours."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return tracing and "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


# What torch.compiler.assume_constant_result sets; to call it would load the compiler, a second and a half,
# with every import of sfrs_ext.
in_onnx_export._dynamo_marked_constant = True


def public(plain: Callable | None = None) -> Callable:
    """Decorates a public function so that others can take its calls.

    An argument with ``__torch_function__`` does so as with torch's own functions; ``torch.fx.symbolic_trace``
    records the call in this way. In an ONNX export ``plain``, the same in torch's operators, takes them.
    """

    def decorate(operator: Callable) -> Callable:
        @functools.wraps(operator)
        def function(*arguments, **options):
            given = (*arguments, *options.values())
            if has_torch_function(given) and not any(isinstance(value, type) for value in given):
                return handle_torch_function(function, given, *arguments, **options)
            if plain is not None and in_onnx_export():
                return plain(*arguments, **options)
            return operator(*arguments, **options)

        return function

    return decorate


def _transforms_are_active() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def will_differentiate(*tensors: Tensor | None) -> bool:
    """Whether the backward will want what the forward can save for it."""
    if _transforms_are_active():
        return True  # what they wrap does not always say so
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def writes_go_unseen(x: Tensor) -> bool:
    """Whether the result may be written into without `_saved` noticing.

    Compiled graphs save it without its version, ``torch.func`` wraps it anew.
    """
    return (
        torch.compiler.is_compiling()
        or _transforms_are_active()
        or (type(x) is not Tensor and type(x) is not torch.nn.Parameter)
    )


def _one_by_one(operator: Callable) -> Callable:
    """The rule of ``torch.func.vmap``: a call for every example, which the kernels thread by themselves."""

    def batched(info, in_dims, *arguments):
        if info.batch_size == 0:  # shapes by an example of zeros
            arguments = [
                a if dim is None else a.new_zeros((*a.shape[:dim], 1, *a.shape[dim + 1 :]))
                for a, dim in zip(arguments, in_dims, strict=True)
            ]
        results = []
        for i in range(max(info.batch_size, 1)):
            given = zip(arguments, in_dims, strict=True)
            results.append(operator(*(a if dim is None else a.select(dim, i) for a, dim in given)))
        if isinstance(results[0], Tensor):
            return torch.stack(results)[: info.batch_size], 0
        stacked = tuple(torch.stack(parts)[: info.batch_size] for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return batched


def _no_forward_mode(ctx, *tangents):
    raise NotImplementedError(f"sfrs_ext: {NO_FORWARD_MODE}; use sfrs_ext.reference where you need it")


_differentiable: dict[str, type[torch.autograd.Function]] = {}
_transformable: dict[str, type[torch.autograd.Function]] = {}
"""The operators once more: eager, without the 50 us that torch.library takes to fill in defaults which no
operator has, and as ``torch.func`` takes them, which refuses what torch.library makes of a gradient."""


def register(
    name: str, backward: Callable | None = None, setup: Callable = lambda ctx, inputs, output: None
) -> None:
    """Register gradient and batching rule of an operator."""
    operator = getattr(ops, name)
    torch.library.register_vmap(f"sfrs_ext::{name}", _one_by_one(operator))
    if backward is None:
        return
    torch.library.register_autograd(f"sfrs_ext::{name}", backward, setup_context=setup)

    def forward(ctx, *arguments):
        result = _without_gradient(operator, arguments)
        setup(ctx, arguments, result)
        return result

    def function(**contents) -> type[torch.autograd.Function]:
        contents = {key: staticmethod(value) for key, value in contents.items()}
        return type(name, (torch.autograd.Function,), contents)

    _differentiable[name] = function(forward=forward, backward=backward)
    _transformable[name] = function(
        forward=lambda *arguments: operator(*arguments),
        setup_context=setup,
        backward=backward,
        jvp=_no_forward_mode,
    )
    _transformable[name].generate_vmap_rule = True


def _without_gradient(operator: Callable, arguments: tuple[object, ...]) -> Any:
    """Calls past torch's part of autograd, of which the part in Python costs as much as a small call."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def call(name: str, *arguments: object) -> Any:
    """Calls an operator by its name, in whatever way torch runs at the moment."""
    if torch.compiler.is_compiling():
        return getattr(ops, name)(*arguments)
    if torch._C._are_functorch_transforms_active():
        return _transformable[name].apply(*arguments)
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
        return _differentiable[name].apply(*arguments)
    return _without_gradient(getattr(ops, name), arguments)


def refuse_tangents(operator: str, instead: str, *tensors: Tensor | None) -> None:
    """The kernels drop tangents, and forward mode would take that for a derivative of zero."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(f"{operator}: {NO_FORWARD_MODE}; use {instead}")
