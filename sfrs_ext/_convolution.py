"""The 3x3 convolution: Winograd's minimal filtering where it is compiled, torch's own elsewhere."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._dispatch import call, in_onnx_export, ops, public, refuse_tangents, register, will_differentiate

PRODUCTS = 16  # per tile of 2x2 outputs
WIDEST_PANEL = 64  # columns, see csrc/convolution.h


def _packed_shape(weight: Tensor) -> tuple[int, int, int]:
    outputs, channels = weight.shape[:2]
    return PRODUCTS, (outputs + WIDEST_PANEL - 1) // WIDEST_PANEL * WIDEST_PANEL, channels


@torch.library.register_fake("sfrs_ext::conv3x3_weight")
def _(weight):
    return weight.new_empty(_packed_shape(weight))


@torch.library.register_fake("sfrs_ext::conv3x3")
def _(x, weight, bias, packed, relu, save):
    batch, outputs, (height, width) = x.shape[0], weight.shape[0], x.shape[2:]
    y = torch.empty(
        (batch, outputs, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    saved = batch if save and relu else 0
    return y, x.new_empty(saved, height, width, (outputs + 7) // 8, dtype=torch.uint8)


@torch.library.register_fake("sfrs_ext::conv3x3_relu_backward")
def _(grad, passes):
    return torch.empty_like(grad, memory_format=torch.channels_last)


def _setup(ctx, inputs, output):
    x, weight, _, _, ctx.relu, ctx.saved = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1] if ctx.relu else None)


def _backward(ctx, grad, _):
    x, weight, passes = ctx.saved_tensors
    for_x, for_weight, for_bias, *_ = ctx.needs_input_grad
    if grad is None:
        return (None,) * 6
    if ctx.relu:
        if not ctx.saved:
            raise RuntimeError("sfrs_ext.conv3x3: called with save=False, nothing was kept for a backward")
        grad = call("conv3x3_relu_backward", grad, passes)
    backwards = weight.transpose(0, 1).flip(2, 3)
    return (
        call("conv3x3", grad, backwards, None, None, False, False)[0] if for_x else None,
        _weight_gradient(x, grad) if for_weight else None,
        grad.sum((0, 2, 3)) if for_bias else None,
        None,
        None,
        None,
    )


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Nine products, one per tap, two thirds of the time of torch's own; ``[O, C, 3, 3]``, channels_last."""
    height, width = x.shape[2:]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # [B, H + 2, W + 2, C]
    of_outputs = grad.permute(0, 2, 3, 1).flatten(0, 2).T  # [O, B * H * W]
    shifted = (padded[:, i : i + height, j : j + width].flatten(0, 2) for i in range(3) for j in range(3))
    taps = torch.stack([of_outputs @ s for s in shifted], dim=1)  # [O, 9, C]
    return taps.unflatten(1, (3, 3)).permute(0, 3, 1, 2)


def _setup_relu(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _backward_relu(ctx, grad):
    return call("conv3x3_relu_backward", grad, *ctx.saved_tensors), None


register("conv3x3", _backward, _setup)
register("conv3x3_relu_backward", _backward_relu, _setup_relu)
register("conv3x3_weight")


def _check_kind(name: str, value: Tensor, x: Tensor, autocasts: bool) -> None:
    _checks.floating("conv3x3", name, value)
    if autocasts and torch.float64 not in (x.dtype, value.dtype):  # which autocast leaves alone
        _checks.same_device("conv3x3", name, value, "x", x)
    else:
        _checks.same_kind("conv3x3", name, value, "x", x)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None, autocasts: bool) -> None:
    operator = "conv3x3"
    _checks.convolution_weight(operator, weight)
    outputs, channels = weight.shape[:2]
    if channels != x.shape[1]:
        raise ValueError(f"{operator}: weight is {_checks.shape_of(weight)}, but x has C = {x.shape[1]}")
    _check_kind("weight", weight, x, autocasts)
    if bias is not None:
        _check_kind("bias", bias, x, autocasts)
        if bias.dim() != 1 or bias.shape[0] != outputs:
            raise _checks.misshapen(operator, "bias", bias, f"[{outputs}]", ", one value per output")
    if packed is not None:
        _check_kind("packed", packed, x, autocasts)
        if packed.shape != _packed_shape(weight):
            raise _checks.misshapen(operator, "packed", packed, "what conv3x3_weight makes of weight")


@public()
def conv3x3_weight(weight: Tensor) -> Tensor:
    """Weights of `conv3x3`, transformed once for many calls.

    Args:
        weight: ``[O, C, 3, 3]``, float32 on a CPU.

    Returns:
        An opaque tensor, 16 / 9 of the size of ``weight`` with O rounded up to 64. It is of this process:
        processors with other vectors arrange it otherwise, so it belongs into no file. Not differentiable.

    Raises:
        TypeError, ValueError: as in `conv3x3`.
    """
    _checks.convolution_weight("conv3x3_weight", weight)
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise TypeError(
            f"conv3x3_weight: weight must be float32 on cpu, but is {weight.dtype} on {weight.device}"
        )
    return ops.conv3x3_weight(weight.detach())


@public()
def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False, packed: Tensor | None = None
) -> Tensor:
    """3x3 convolution with stride 1 and zero padding 1, and a ReLU if wanted.

    On a CPU in float32 it is Winograd's minimal filtering F(2x2, 3x3) (Lavin & Gray, CVPR 2016): 16
    products for four outputs instead of 36. Its rounding errors are those of the direct form, or smaller.
    One difference: an input that is not finite makes all outputs of the 2x2 tiles that it
    reaches, and so outputs up to two positions away, NaN or infinite. On other devices, in other dtypes
    and under autocast it is ``torch.nn.functional.conv2d``.

    Args:
        x: ``[B, C, H, W]``, read in place if channels_last. float32, float64, bfloat16 or float16.
        weight: ``[O, C, 3, 3]``; like all tensors in the dtype and on the device of ``x``.
        bias: ``[O]``; absent means zero.
        relu: return ``max(y, 0)``; NaN stays NaN.
        packed: ``conv3x3_weight(weight)`` of the present weight, which saves its transformation. That of
            another is noticed by a sample of its values.

    Returns:
        ``[B, O, H, W]``, channels_last on a CPU in float32. The same bits with any number of threads and
        in any batch. Differentiable in ``x``, ``weight`` and ``bias`` in reverse mode; of the ReLU one bit
        per output is saved.

    Raises:
        TypeError: a type or dtype does not fit.
        ValueError: a shape or device does not fit. Both name the argument.
        RuntimeError: ``packed`` holds other values than those of ``weight``.
        NotImplementedError: a tensor has a forward-mode tangent; ``conv2d`` of torch takes it.
    """
    _checks.floating("conv3x3", "x", x)
    if x.dim() != 4:
        raise _checks.misshapen("conv3x3", "x", x, "a map [B, C, H, W]")
    autocasts = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    _check(x, weight, bias, packed, autocasts)
    _checks.flags("conv3x3", relu=relu)
    if autocasts or x.dtype != torch.float32 or x.device.type != "cpu" or in_onnx_export():
        y = F.conv2d(x, weight, bias, padding=1)
        return F.relu(y) if relu else y
    refuse_tangents("conv3x3", "torch.nn.functional.conv2d", x, weight, bias)
    save = relu and will_differentiate(x, weight, bias)
    return call("conv3x3", x, weight, bias, packed, relu, save)[0]
