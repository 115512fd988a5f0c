"""A 3x3 convolution that is faster than PyTorch's on a CPU, forward and backward."""

import torch
from torch import Tensor, nn

import sfrs_ext

WINOGRAD_CHANNELS = 32
"""Inputs and outputs that a layer needs at least for `sfrs_ext.conv3x3` to be the faster one."""


class Convolution3x3(nn.Conv2d):
    """``nn.Conv2d(channels, outputs, kernel_size=3, padding=1)`` with the same weights and values.

    In float32 on a CPU it is `sfrs_ext.conv3x3`, half the time of the convolution that PyTorch runs, where
    the layer is wide enough. Everywhere else, and while a program is traced, it is the plain convolution.
    Without gradients the transformed weights, 16 / 9 of their size, are kept until the weight changes, or
    until a pass with gradients, since torch's fused optimizers leave no mark on the weights they change;
    writing through ``weight.data`` is not noticed.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs, kernel_size=3, padding=1)
        self._packed: tuple[tuple[int, int, str], Tensor] | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}  # of this processor: neither pickled nor copied

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_faster_fused(x):
            return super().forward(x)
        return sfrs_ext.conv3x3(x, self.weight, self.bias, packed=self._packed_weight())

    def _is_faster_fused(self, x: Tensor) -> bool:
        return (
            x.device.type == self.weight.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.dim() == 4
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and min(self.weight.shape[:2]) >= WINOGRAD_CHANNELS
            and sfrs_ext.kernels() != "portable"
        )

    def _packed_weight(self) -> Tensor | None:
        if torch.is_grad_enabled() or self.weight.is_inference():  # the latter do not tell when they change
            self._packed = None
            return None
        now = (self.weight.data_ptr(), self.weight._version, sfrs_ext.kernels())
        kept = self._packed
        if kept is None or kept[0] != now:
            kept = self._packed = (now, sfrs_ext.conv3x3_weight(self.weight))
        return kept[1]
