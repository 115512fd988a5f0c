"""PCA whitening of descriptors (Jegou & Chum, ECCV 2012), as NetVLAD and SFRS apply it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfrs.models.foreign import WHITENING, Weights, read_weights
from sfrs.models.weights_file import WeightsError
from sfrs.runtime.tensor_files import write_tensors

SMALLEST_VARIANCE = 1e-9
"""Relative to the largest; what varies less is rounding, which whitening would blow up."""


@dataclass(frozen=True)
class Whitening:
    """``y = L2(P x + b)`` with ``P = diag(variance^-1/2) U^T`` and ``b = -P mean``."""

    projection: Tensor  # float32 [dim, input_dim]
    bias: Tensor  # float32 [dim]

    @property
    def dim(self) -> int:
        return self.projection.shape[0]

    @property
    def input_dim(self) -> int:
        return self.projection.shape[1]

    def check(self, dim: int) -> None:
        """Raise `WeightsError` unless it takes descriptors of ``dim`` numbers."""
        if dim != self.input_dim:
            raise WeightsError(
                f"whitening: fitted to descriptors of {self.input_dim} numbers, but this network's have "
                f"{dim}. Whitening belongs to the network it was fitted with."
            )

    def apply(self, descriptors: Tensor) -> Tensor:
        """Whiten and normalise ``[B, input_dim]`` to ``[B, dim]``. Raises as `check` does."""
        self.check(descriptors.shape[1])
        projection, bias = self.projection.to(descriptors), self.bias.to(descriptors)
        return F.normalize(F.linear(descriptors, projection, bias), dim=1)

    @classmethod
    def fit(
        cls,
        descriptors: np.ndarray,
        dim: int = 4096,
        *,
        max_images: int = 10_000,
        shrinkage: float = 0.0,
        seed: int = 0,
    ) -> "Whitening":
        """Fit to descriptors ``[n, d]`` (a random ``max_images`` of them), keeping ``dim`` directions.

        With n <= d the eigenvectors come from the n x n Gram matrix, otherwise from the d x d covariance,
        both in float64 and in blocks. n centred points span n - 1 directions at most: directions without
        variance are dropped, so the result can have fewer than ``dim``.

        All n - 1 directions of n descriptors, whitened, make these very descriptors equally unlike. With
        ``shrinkage`` the variance of the direction at that share of them, by falling variance, is added to
        all variances: ``P = diag((variance + added)^-1/2) U^T``. What few images say of rare directions then
        counts less.

        Raises `ValueError` if there are fewer than two different descriptors, or ``dim`` is more than d.
        """
        n, d = descriptors.shape
        if n < 2 or not 0 < dim <= d:
            raise ValueError(
                f"Whitening.fit: {n} descriptors of {d} numbers to {dim}; expected n >= 2 and dim in 1..{d}"
            )
        if n > max_images:
            rows = np.sort(np.random.default_rng(seed).choice(n, max_images, replace=False))
            descriptors, n = descriptors[rows], max_images
        mean = descriptors.mean(axis=0, dtype=np.float64)
        directions = min(d, n - 1)
        project = _project_by_gram if n <= d else _project_by_covariance
        projection = project(descriptors, mean, min(dim, directions), int(shrinkage * directions))
        return cls(torch.from_numpy(projection), torch.from_numpy((-projection @ mean).astype(np.float32)))

    def save(self, path: str | Path) -> None:
        """Write ``projection`` and ``bias`` to a safetensors file, replacing it in one step."""
        write_tensors(path, {"projection": self.projection, "bias": self.bias})

    @classmethod
    def load(cls, path: str | Path, *, ignore_keys: Sequence[str] = ()) -> "Whitening":
        """Read `save`'s file, or the whitening in a network of ours or of other origin.

        The latter are listed in `sfrs.models.foreign.LAYOUTS`; also read is ``pca_params_*.h5`` of the
        paper's implementation. For ``ignore_keys`` see `sfrs.models.network.load_network`. Raises
        `WeightsError` if the file cannot be read, or no whitening is in it.
        """
        found = cls.of(read_weights(path, ignore_keys))
        if found is None:
            raise WeightsError(f"{path}: no whitening in it, but a network without one.")
        return found

    @classmethod
    def of(cls, weights: Weights) -> "Whitening | None":
        """Return the whitening in a file of weights, if there is one."""
        projection = weights.tensors.get(f"{WHITENING}projection")
        bias = weights.tensors.get(f"{WHITENING}bias")
        if projection is None and bias is None:
            return None
        if projection is None or bias is None or projection.dim() != 2 or bias.shape != projection.shape[:1]:
            shapes = " and ".join("missing" if t is None else str(list(t.shape)) for t in (projection, bias))
            raise WeightsError(
                f"{weights.path}: projection and bias of the whitening are {shapes}; expected [dim, K * D] "
                "and [dim]."
            )
        return cls(projection, bias)


def _project_by_gram(descriptors: np.ndarray, mean: np.ndarray, dim: int, added: int) -> np.ndarray:
    n, d = descriptors.shape
    gram = np.zeros((n, n))
    for columns in _blocks(d):
        centred = descriptors[:, columns] - mean[columns]
        gram += centred @ centred.T
    variance, vectors, shrunk = _largest(gram / (n - 1), dim, added)
    # An eigenvector v of the Gram matrix gives the direction X^T v / sqrt((n - 1) variance).
    weights = vectors / np.sqrt((n - 1) * variance * shrunk)
    projection = np.empty((len(variance), d), dtype=np.float32)
    for columns in _blocks(d):
        projection[:, columns] = weights.T @ (descriptors[:, columns] - mean[columns])
    return projection


def _project_by_covariance(descriptors: np.ndarray, mean: np.ndarray, dim: int, added: int) -> np.ndarray:
    n, d = descriptors.shape
    covariance = np.zeros((d, d))
    for rows in _blocks(n):
        centred = descriptors[rows] - mean
        covariance += centred.T @ centred
    _, directions, shrunk = _largest(covariance / (n - 1), dim, added)
    return np.ascontiguousarray((directions / np.sqrt(shrunk)).T, dtype=np.float32)


def _blocks(n: int, size: int = 2048) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _largest(matrix: np.ndarray, k: int, added: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most k largest eigenvalues above zero, falling, of a symmetric matrix, and their eigenvectors.

    Also the eigenvalues plus that of rank ``added``; plus nothing for rank 0.
    """
    values, vectors = np.linalg.eigh(matrix)
    shrunk = values[::-1][:k] + (values[::-1][added] if added else 0.0)
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    if values[0] <= 0:
        raise ValueError("Whitening.fit: all descriptors are equal; expected at least two different ones")
    kept = values > SMALLEST_VARIANCE * values[0]
    return values[kept], vectors[:, kept], shrunk[kept]
