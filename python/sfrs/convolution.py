"""A 3x3 convolution whose weight gradient is nine matrix products on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Convolution3x3(nn.Conv2d):
    """``nn.Conv2d(channels, outputs, kernel_size=3, padding=1)`` with the same weights and values.

    Where a float32 weight is trained on a CPU its gradient is computed as nine matrix products, one per tap:
    two thirds of the time of the channels_last convolution that PyTorch runs for it. Everywhere else, and
    while a program is traced, it is the plain convolution.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self._by_products(x):
            return _Convolution3x3.apply(x, self.weight, self.bias)
        return super().forward(x)

    def _by_products(self, x: Tensor) -> bool:
        return (
            torch.is_grad_enabled()
            and self.weight.requires_grad
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.dim() == 4
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )


class _Convolution3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            torch.nn.grad.conv2d_input(x.shape, weight, grad, padding=1) if for_x else None,
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
