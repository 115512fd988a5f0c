"""Half precision where it is safe: the convolutions of trunk and head; all that follows is float32."""

from contextlib import AbstractContextManager

import torch


def autocast(name: str, device: str | torch.device) -> AbstractContextManager:
    """Run the block in the type ``name`` (off, bfloat16, float16) where torch deems that safe."""
    dtype = torch.float32 if name == "off" else getattr(torch, name)
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=name != "off")


def loss_scale(name: str) -> float:
    """Return the factor of losses before the backward pass, by which gradients are divided after it.

    In float16 the gradients of the head's convolutions would vanish. Descriptors are unit vectors and
    losses of a fixed scale, so a constant does, and a resumed run has no state of a scaler to restore.
    """
    return 4096.0 if name == "float16" else 1.0
