"""A 3x3 convolution that is faster than PyTorch's on a CPU, forward and backward."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import sfrs_ext
from sfrs_ext import _C

WINOGRAD_CHANNELS = 32
"""Inputs and outputs that a layer needs at least for `sfrs_ext.conv3x3` to be the faster one."""


class Convolution3x3(nn.Conv2d):
    """``nn.Conv2d(channels, outputs, kernel_size=3, padding=1)`` with the same weights and values.

    In float32 on a CPU it is `sfrs_ext.conv3x3`, half the time of the convolution that PyTorch runs, where
    the layer is wide enough; and the gradient of a trained weight is computed as nine matrix products, one
    per tap, two thirds of PyTorch's time. Everywhere else, and while a program is traced, it is the plain
    convolution. Without gradients the transformed weights, 16 / 9 of their size, are kept until the weight
    changes; writing through ``weight.data`` is not noticed.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs, kernel_size=3, padding=1)
        self._packed: tuple[tuple[int, int], Tensor] | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}  # of this processor: neither pickled nor copied

    def forward(self, x: Tensor) -> Tensor:
        if not self._in_float_on_cpu(x):
            return super().forward(x)
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return _Convolution3x3.apply(x, self.weight, self.bias)
        if not winograd_wins(self.weight):
            return super().forward(x)
        return sfrs_ext.conv3x3(x, self.weight, self.bias, packed=self._packed_weight())

    def _in_float_on_cpu(self, x: Tensor) -> bool:
        return (
            x.device.type == self.weight.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.dim() == 4
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
        )

    def _packed_weight(self) -> Tensor | None:
        if torch.is_grad_enabled() or self.weight.is_inference():  # the latter do not tell when they change
            return None
        now = (self.weight.data_ptr(), self.weight._version)
        kept = self._packed
        if kept is None or kept[0] != now:
            kept = self._packed = (now, sfrs_ext.conv3x3_weight(self.weight))
        return kept[1]


def winograd_wins(weight: Tensor) -> bool:
    """Whether `sfrs_ext.conv3x3` is faster than PyTorch's convolution with this weight ``[O, C, 3, 3]``."""
    return min(weight.shape[:2]) >= WINOGRAD_CHANNELS and _C.cpu_kernels() != "portable"


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if winograd_wins(weight):
        return sfrs_ext.conv3x3(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)


class _Convolution3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _convolve(grad, weight.transpose(0, 1).flip(2, 3), None) if for_x else None,
            weight_gradient(x, grad) if for_weight else None,
            grad.sum((0, 2, 3)) if for_bias else None,
        )


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Of a 3x3 convolution with padding 1.

    Args:
        x: its input, ``[B, C, H, W]``.
        grad: the gradient of its output, ``[B, O, H, W]``.

    Returns:
        ``[O, C, 3, 3]``, channels_last in memory.
    """
    height, width = x.shape[2:]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # [B, H + 2, W + 2, C]
    of_outputs = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1]).T  # [O, B * H * W]
    gradient = x.new_empty(grad.shape[1], 3, 3, x.shape[1])
    for row in range(3):
        for column in range(3):
            shifted = padded[:, row : row + height, column : column + width].reshape(-1, x.shape[1])
            torch.mm(of_outputs, shifted, out=gradient[:, row, column])
    return gradient.permute(0, 3, 1, 2)
