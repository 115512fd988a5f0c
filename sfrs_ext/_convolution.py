"""The 3x3 convolution: Winograd's minimal filtering where it is compiled, torch's own elsewhere."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._autograd import ops, refuse_tangents

PRODUCTS = 16  # per tile of 2x2 outputs
WIDEST_PANEL = 64  # columns, see csrc/convolution.h


@torch.library.register_fake("sfrs_ext::conv3x3_weight")
def _(weight):
    columns = (weight.shape[0] + WIDEST_PANEL - 1) // WIDEST_PANEL * WIDEST_PANEL
    return weight.new_empty(PRODUCTS, columns, weight.shape[1])


@torch.library.register_fake("sfrs_ext::conv3x3")
def _(x, weight, bias, packed, relu):
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _setup(ctx, inputs, output):
    x, weight, _, _, ctx.relu = inputs
    ctx.save_for_backward(x, weight, *([output] if ctx.relu else []))


def _backward(ctx, grad):
    x, weight, *outputs = ctx.saved_tensors
    for_x, for_weight, for_bias, *_ = ctx.needs_input_grad
    if ctx.relu:
        grad = torch.where(outputs[0] <= 0, 0.0, grad)
    return (
        ops.conv3x3(grad, weight.transpose(0, 1).flip(2, 3), None, None, False) if for_x else None,
        torch.nn.grad.conv2d_weight(x, weight.shape, grad, padding=1) if for_weight else None,
        grad.sum((0, 2, 3)) if for_bias else None,
        None,
        None,
    )


torch.library.register_autograd("sfrs_ext::conv3x3", _backward, setup_context=_setup)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None) -> None:
    operator = "conv3x3"
    _checks.tensor(operator, "x", x)
    _checks.storage(operator, "x", x)
    _checks.shape(operator, "x", x, "a map [B, C, H, W]", x.dim() == 4, "")
    _checks.convolution_weight(operator, weight)
    outputs, channels = weight.shape[:2]
    if channels != x.shape[1]:
        raise ValueError(f"{operator}: weight is {_checks.shape_of(weight)}, but x has C = {x.shape[1]}")
    others = [("weight", weight)]
    if bias is not None:
        _checks.tensor(operator, "bias", bias)
        _checks.shape(
            operator, "bias", bias, f"[{outputs}]", bias.shape == (outputs,), ", one value per output"
        )
        others.append(("bias", bias))
    if packed is not None:
        _checks.tensor(operator, "packed", packed)
        columns = (outputs + WIDEST_PANEL - 1) // WIDEST_PANEL * WIDEST_PANEL
        fits = packed.shape == (PRODUCTS, columns, channels)
        _checks.shape(operator, "packed", packed, "what conv3x3_weight makes of weight", fits, "")
        others.append(("packed", packed))
    for name, value in others:
        _checks.same_device(operator, name, value, "x", x)
        if value.dtype != x.dtype:
            raise TypeError(f"{operator}: {name} is {value.dtype}, but x is {x.dtype}")


def conv3x3_weight(weight: Tensor) -> Tensor:
    """Weights of :func:`conv3x3`, transformed once for many calls.

    Args:
        weight: ``[O, C, 3, 3]``, float32 on a CPU.

    Returns:
        An opaque tensor, 16 / 9 of the size of ``weight`` with O rounded up to 64. It is of this process:
        processors with other vectors arrange it otherwise, so it belongs into no file. Not differentiable.

    Raises:
        TypeError, ValueError: as in :func:`conv3x3`.
    """
    _checks.convolution_weight("conv3x3_weight", weight)
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise TypeError(
            f"conv3x3_weight: weight must be float32 on cpu, but is {weight.dtype} on {weight.device}"
        )
    return ops.conv3x3_weight(weight.detach())


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
        packed: ``conv3x3_weight(weight)`` of the present weight, which saves its transformation.

    Returns:
        ``[B, O, H, W]``, channels_last on a CPU in float32. The same bits with any number of threads and
        in any batch. Differentiable in ``x``, ``weight`` and ``bias`` in reverse mode.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape or device does not fit. Both name the argument.
        NotImplementedError: a tensor has a forward-mode tangent; ``conv2d`` of torch takes it.
    """
    autocasts = isinstance(x, Tensor) and x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if not autocasts:
        _check(x, weight, bias, packed)
    if autocasts or x.dtype != torch.float32 or x.device.type != "cpu":
        y = F.conv2d(x, weight, bias, padding=1)
        return F.relu(y) if relu else y
    refuse_tangents("conv3x3", "torch.nn.functional.conv2d", x, weight, bias)
    return ops.conv3x3(x, weight, bias, packed, relu)
