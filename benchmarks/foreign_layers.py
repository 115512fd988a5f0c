"""NetVLAD layers in the forms other projects compute them, written from their formulas, for ``drop_in``."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import peers


class LoopNetVLAD(nn.Module):
    """1x1 convolution and centroids, one cluster after the other."""

    def __init__(self, clusters: int, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, clusters, kernel_size=1, bias=False)
        self.centroids = nn.Parameter(torch.rand(clusters, dim))

    def forward(self, x: Tensor) -> Tensor:
        return peers.cluster_loop(x, self.conv.weight.flatten(1), self.centroids)


class LoopTokenNetVLAD(LoopNetVLAD):
    """The same on tokens ``[B, N, D]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2).unsqueeze(2))


class ResidualNetVLAD(LoopNetVLAD):
    """1x1 convolution and centroids, all residuals at once, un-normalised ``[B, K, D]``."""

    def forward(self, x: Tensor) -> Tensor:
        features = F.normalize(x, dim=1).flatten(2)
        assignment = torch.einsum("kd,bdp->bkp", self.conv.weight.flatten(1), features).softmax(1)
        residuals = features.unsqueeze(1) - self.centroids[None, :, :, None]
        residuals *= assignment.unsqueeze(2)
        return residuals.sum(-1)


class ClusterMinorNetVLAD(nn.Module):
    """Centres ``[D, K]`` and features ``[B, D, N]`` normalised outside, all residuals at once."""

    def __init__(self, clusters: int, dim: int):
        super().__init__()
        self.score_proj = nn.Conv1d(dim, clusters, kernel_size=1, bias=False)
        self.centers = nn.Parameter(torch.rand(dim, clusters))

    def forward(self, x: Tensor) -> Tensor:
        assignment = self.score_proj(x).softmax(1)
        residuals = x.unsqueeze(2) - self.centers[None, :, :, None]  # [B, D, K, N]
        vlad = (residuals * assignment.unsqueeze(1)).sum(-1)
        return F.normalize(F.normalize(vlad, dim=1).flatten(1), dim=1)


class BatchNormNetVLAD(nn.Module):
    """Matrices ``[D, K + G]`` and ``[1, D, K]`` with batch norm on the logits, as two products."""

    def __init__(self, clusters: int, dim: int, ghost_clusters: int = 16):
        super().__init__()
        self.clusters = nn.Parameter(torch.randn(dim, clusters + ghost_clusters) / dim**0.5)
        self.batch_norm = nn.BatchNorm1d(clusters + ghost_clusters)
        self.clusters2 = nn.Parameter(torch.randn(1, dim, clusters) / dim**0.5)

    def forward(self, x: Tensor) -> Tensor:
        clusters = self.clusters2.shape[2]
        logits = self.batch_norm(x.flatten(0, 1) @ self.clusters)
        assignment = logits.softmax(1)[:, :clusters].view(*x.shape[:2], clusters)
        vlad = (assignment.transpose(1, 2) @ x).transpose(1, 2)
        vlad = vlad - assignment.sum(1, keepdim=True) * self.clusters2
        return F.normalize(F.normalize(vlad, dim=1).flatten(1), dim=1)


class LoopSumVLAD(nn.Module):
    """No centroids, one ghost cluster, one cluster after the other."""

    def __init__(self, clusters: int, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, clusters + 1, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        features = F.normalize(x, dim=1).flatten(2)
        assignment = self.conv(F.normalize(x, dim=1)).flatten(2).softmax(1)
        sums = [(features * assignment[:, k : k + 1]).sum(-1) for k in range(assignment.shape[1] - 1)]
        return F.normalize(F.normalize(torch.stack(sums, 1), dim=2).flatten(1), dim=1)


@dataclass(frozen=True)
class Case:
    """A layer, where its form is found, and the input it is measured on."""

    name: str
    layer: type[nn.Module]
    found_in: str
    clusters: int
    shape: tuple[int, ...]

    @property
    def dim(self) -> int:
        return self.shape[2] if self.name.endswith("tokens") else self.shape[1]

    def build(self) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        layer, x = self.layer(self.clusters, self.dim), torch.randn(self.shape)
        return layer, F.normalize(x, dim=1) if self.layer is ClusterMinorNetVLAD else x


CASES = (
    Case(
        "cluster by cluster",
        LoopNetVLAD,
        "pytorch-NetVlad, Patch-NetVLAD, geo-localization benchmark",
        64,
        (8, 512, 30, 40),
    ),
    Case("all residuals, raw", ResidualNetVLAD, "SFRS reference implementation", 64, (8, 512, 30, 40)),
    Case("all residuals, cluster-minor", ClusterMinorNetVLAD, "hloc", 64, (8, 512, 1200)),
    Case("cluster by cluster, tokens", LoopTokenNetVLAD, "the benchmark with ViT", 64, (8, 196, 768)),
    Case("no centroids, 1 ghost cluster", LoopSumVLAD, "SuperVLAD with DINOv2", 4, (8, 768, 16, 16)),
    Case(
        "batch norm, 16 ghost clusters, tokens",
        BatchNormNetVLAD,
        "collaborative-experts, KernelBench 46",
        32,
        (256, 100, 512),
    ),
)
