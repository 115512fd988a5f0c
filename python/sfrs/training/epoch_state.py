"""How far an epoch of training is: for who watches it, and for who goes on with it."""

import resource
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from sfrs.training.mining import Tuples


@dataclass(frozen=True)
class StepReport:
    """Losses of one optimisation step (or their means over several), and how far the epoch is.

    Attributes:
        step: counted from 1 within the generation.
        done, of: tuples of this epoch.
        hard, soft, total: total = hard + soft_weight * soft.
        tuples_per_second: since the epoch began (or was resumed), mining included.
        images_per_second: distinct images that steps and refreshes put through the student, likewise, in all
            processes.
        peak_bytes: largest memory so far, of the GPU where there is one, else of the process.
    """

    step: int
    done: int
    of: int
    hard: float
    soft: float
    total: float
    learning_rate: float
    tuples_per_second: float
    images_per_second: float
    peak_bytes: int


@dataclass
class EpochState:
    """Where an epoch stands after a step; with the networks and the miner, all that is needed to go on.

    Attributes:
        queries: of the epoch in the order they are trained in, int64 ``[T]``.
        done: how many of them have been.
        tuples: those mined at the last refresh, if not all of them are done.
        sums: hard and soft loss times tuples, summed over the steps; float64 ``[2]``.
    """

    queries: Tensor
    done: int
    tuples: Tuples | None
    sums: Tensor


def peak_bytes(device: torch.device) -> int:
    """The most memory ever allocated on a CUDA ``device``; elsewhere the most this process ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
