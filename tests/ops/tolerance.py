"""How close is close enough, for all operator tests.

A kernel and eager torch compute the same function in the same dtype, and both are compared with
``sfrs_ext.reference`` in float64. The kernel may err twice as much as eager torch, which rounds in other
places, plus a floor of a few units in the last place of the largest value: where eager torch happens to be
exact (one position, one cluster), there is nothing to be twice as large as. In float64 the reference is no
more exact than the kernel, so the floor there is what rounding alone makes of the longest sums. Tensor cores
cut digits off where they add float32, which does not average out as rounding does.
"""

import torch
from torch import Tensor

FLOOR_ULPS = {torch.float64: 2000, torch.float32: 16, torch.bfloat16: 1, torch.float16: 1}
TENSOR_CORE_FLOOR_ULPS = FLOOR_ULPS | {torch.float32: 64}


def largest_error(value: Tensor, exact: Tensor) -> float:
    return (value.double() - exact.double()).abs().max().item() if exact.numel() else 0.0


def assert_as_exact_as_eager(name: str, kernel: Tensor, eager: Tensor, exact: Tensor, scale: float = 0.0):
    """Checks the rule above; ``scale`` is the size of terms that cancel in ``exact``, where they do."""
    assert kernel.shape == exact.shape, f"{name}: shape {tuple(kernel.shape)}, expected {tuple(exact.shape)}"
    assert kernel.dtype == eager.dtype, f"{name}: {kernel.dtype}, expected {eager.dtype}"
    if exact.numel() == 0:
        return
    assert torch.isfinite(kernel).all(), f"{name}: not finite"
    ulps = (TENSOR_CORE_FLOOR_ULPS if kernel.is_cuda else FLOOR_ULPS)[kernel.dtype]
    floor = ulps * torch.finfo(kernel.dtype).eps * max(exact.abs().max().item(), scale)
    ours, theirs = largest_error(kernel, exact), largest_error(eager, exact)
    assert ours <= 2 * theirs + floor, (
        f"{name}: error {ours:.2e}, eager torch {theirs:.2e}, floor {floor:.2e}"
    )
