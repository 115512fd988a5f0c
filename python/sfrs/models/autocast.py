"""Half precision where it is safe: the convolutions of trunk and head; everything behind them is float32."""

from contextlib import AbstractContextManager

import torch


def autocast(name: str, device: str | torch.device) -> AbstractContextManager:
    """Run what stands inside in the type ``name`` (off, bfloat16, float16) where torch deems that safe."""
    dtype = torch.float32 if name == "off" else getattr(torch, name)
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=name != "off")


def loss_scale(name: str) -> float:
    """What losses are multiplied by before the backward pass, and gradients divided by behind it.

    In float16 the gradients of the head's convolutions would vanish. Descriptors are unit vectors and
    losses of a fixed scale, so a constant does, and a resumed run has no state of a scaler to restore.
    """
    return 4096.0 if name == "float16" else 1.0
