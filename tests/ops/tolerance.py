"""How close is close enough, for all operator tests.

A kernel and eager torch compute the same function in the same dtype, and both are compared with
``sfrs_ext.reference`` in float64. The kernel may err twice as much as eager torch, which rounds in other
places, plus a floor of a few units in the last place of the largest value: where eager torch happens to be
exact (one position, one cluster), there is nothing to be twice as large as. In float64 the reference is no
more exact than the kernel, so the floor there is what rounding alone makes of the longest sums. Tensor cores
cut digits off where they add float32, which does not average out as rounding does.

Where squares overflow or vanish eager float32 is no measure: there the kernel may err by what ordinary values
of the same shapes make it err, in parts of the largest value, or of the terms that add up to it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfrs_ext import reference

FLOOR_ULPS = {torch.float64: 2000, torch.float32: 16, torch.bfloat16: 1, torch.float16: 1}
TENSOR_CORE_FLOOR_ULPS = FLOOR_ULPS | {torch.float32: 64}
BEYOND_EAGER = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


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


def assert_exact_beyond_eager(name: str, kernel: Tensor, exact: Tensor, scale: float = 0.0):
    """Checks the kernel against float64 alone; ``scale`` as above."""
    assert torch.isfinite(kernel).all(), f"{name}: not finite"
    if exact.numel() == 0:
        return
    error, largest = largest_error(kernel, exact), max(exact.abs().max().item(), scale)
    assert error <= BEYOND_EAGER[kernel.dtype] * largest, f"{name}: error {error:.2e} of {largest:.2e}"


def times_size_of_x(x: Tensor, dx: Tensor, normalize_input: bool = True) -> Tensor:
    """The gradient of normalised features is the smaller, the larger they are; float64 ``[B, P, D]``."""
    x, dx = reference.positions_first(x).double(), reference.positions_first(dx).double()
    return dx * x.norm(dim=-1, keepdim=True).clamp_min(reference.EPS) if normalize_input else dx


def gradient_terms(arguments: dict, grad: Tensor) -> dict[str, float]:
    """How large the terms are that add up to the gradients of an aggregation, and may cancel.

    Args:
        arguments: of ``netvlad``, or of ``region_vlad`` if there is no ``intra_norm`` or ``l2_norm``.
        grad: of the result.

    Returns:
        By argument; that of ``x`` times the size of ``x``.
    """
    a = {name: t.detach().double() if isinstance(t, Tensor) else t for name, t in arguments.items()}
    intra_norm, l2_norm = a.pop("intra_norm", None), a.pop("l2_norm", None)
    a.pop("flatten", None)
    if intra_norm is None:
        vlad = reference.region_vlad(**a)
    else:
        vlad = reference.netvlad(**a, intra_norm=False, l2_norm=False, flatten=False)
    result = vlad.requires_grad_()
    if intra_norm:
        result = F.normalize(result, dim=-1, eps=reference.EPS)
    if l2_norm:
        result = F.normalize(result.flatten(1), dim=-1, eps=reference.EPS).view_as(result)
    (dvlad,) = torch.autograd.grad(result, vlad, grad.double().view_as(result))

    def largest(name: str, absent: float, dim: int | None = None) -> float:
        t = a.get(name)
        if t is None or not t.numel():
            return absent
        return (t.abs() if dim is None else t.norm(dim=dim)).max().item()

    length = largest("x", 0.0, dim=1 if a["x"].dim() == 4 else 2)
    length = min(1.0, length / reference.EPS) if a.get("normalize_input", True) else length
    onto = dvlad.norm(dim=-1).max().item() if dvlad.numel() else 0.0
    mask, weight = largest("mask", 1.0), largest("weight", 0.0, dim=1)
    of_assignment = onto * (length + largest("centroids", 0.0, dim=1))
    of_logits = mask * of_assignment
    return {
        "x": mask * onto + of_logits * weight,
        "weight": of_logits * length,
        "logits": of_logits,
        "bias": of_logits,
        "centroids": mask * onto,
        "mask": of_assignment,
    }
