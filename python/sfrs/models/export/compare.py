"""How far an exported file's descriptors are from the original's."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfrs.runtime.progress import Progress


@dataclass(frozen=True)
class Agreement:
    """Descriptors of a file beside the original's, on the same images.

    Attributes:
        images: how many were compared.
        largest_difference: of two numbers.
        relative_error: largest length of a difference of descriptors, whose own length is one.
        cosine: smallest, of a descriptor with the original.
    """

    images: int
    largest_difference: float
    relative_error: float
    cosine: float

    def __str__(self) -> str:
        return (
            f"{self.images} images, largest difference {self.largest_difference:.1e}, relative error "
            f"{self.relative_error:.1e}, smallest cosine {self.cosine:.9f}"
        )


@torch.no_grad()
def compare(
    original: Callable[[Tensor], Tensor],
    exported: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    progress: Progress | None = None,
    total: int = 0,
) -> Agreement:
    """Describe all batches both ways; differences are taken in float64.

    A NaN anywhere, or another shape, is an infinite error.
    """
    images, largest, error, cosine = 0, 0.0, 0.0, 1.0
    for done, batch in enumerate(batches, start=1):
        expected, found = original(batch).double().cpu(), exported(batch).double().cpu()
        images += len(batch)
        if found.shape != expected.shape or not (found.isfinite() & expected.isfinite()).all():
            return Agreement(images, float("inf"), float("inf"), 0.0)
        difference = found - expected
        largest = max(largest, difference.abs().max().item())
        error = max(error, (difference.norm(dim=1) / expected.norm(dim=1)).max().item())
        cosine = min(cosine, torch.cosine_similarity(found, expected).min().item())
        if progress is not None:
            progress(done, total)
    return Agreement(images, largest, error, cosine)
