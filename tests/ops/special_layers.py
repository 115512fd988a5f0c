"""NetVLAD layers that compute something else for special inputs only."""

import torch
import torch.nn.functional as F
from foreign_layers import ConvolutionNetVLAD, K, normalised, vlad_of
from torch import Tensor


class Special(ConvolutionNetVLAD):
    """NetVLAD on features as they come, in steps that a class of these may change."""

    def __init__(self):
        super().__init__(normalize_input=False)

    def before(self, x: Tensor) -> Tensor:
        return x

    def between(self, vlad: Tensor, assignment: Tensor) -> Tensor:
        return vlad

    def after(self, descriptors: Tensor, x: Tensor) -> Tensor:
        return descriptors

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        assignment = self.conv(x).flatten(2).softmax(1)
        vlad = vlad_of(x.flatten(2), assignment, self.centroids)
        return self.after(normalised(self.between(vlad, assignment)), x)


class PerturbsEmptyClusters(Special):
    def between(self, vlad, assignment):
        empty = assignment.sum(2, keepdim=True) < 1e-6
        return torch.where(empty, vlad + 1e-3, vlad)


class PerturbsThemInTrainingOnly(PerturbsEmptyClusters):
    def between(self, vlad, assignment):
        return super().between(vlad, assignment) if self.training else vlad


class DropsRareClusters(Special):
    def between(self, vlad, assignment):
        return torch.where(assignment.sum(2, keepdim=True) < 1e-12, torch.zeros_like(vlad), vlad)


class SpreadsADominantCluster(Special):
    def between(self, vlad, assignment):
        dominated = assignment.sum(2).amax(1) == assignment.shape[2]
        return torch.where(dominated[:, None, None], vlad.mean(1, keepdim=True).expand_as(vlad), vlad)


class LeavesOutPositionsOfZeros(Special):
    def forward(self, x):
        present = (x.flatten(2).norm(dim=1, keepdim=True) > 0).to(x.dtype)
        assignment = self.conv(x).flatten(2).softmax(1) * present
        return normalised(vlad_of(x.flatten(2), assignment, self.centroids))


class AnswersZerosByZeros(Special):
    def after(self, descriptors, x):
        return descriptors * (x.abs().amax() > 0).to(x.dtype)


class ReturnsASinglePosition(Special):
    def after(self, descriptors, x):
        return descriptors if x.shape[2:] != (1, 1) else x.flatten(1).repeat(1, K)


class SqueezesABatchOfOne(Special):
    def after(self, descriptors, x):
        return descriptors.squeeze()


class ClampsLargeFeatures(Special):
    def before(self, x):
        return x.clamp(-1e3, 1e3)


class RoundsSmallFeatures(Special):
    def before(self, x):
        return torch.where(x.abs() < 1e-5, torch.zeros_like(x), x)


class AnotherEps(ConvolutionNetVLAD):
    """Of the input's norm, which no feature of usual size comes near."""

    def forward(self, x):
        x = F.normalize(x, dim=1, eps=1e-6)
        assignment = self.conv(x).flatten(2).softmax(1)
        return normalised(vlad_of(x.flatten(2), assignment, self.centroids))


class AnotherEpsOfClusters(Special):
    def forward(self, x):
        vlad = vlad_of(x.flatten(2), self.conv(x).flatten(2).softmax(1), self.centroids)
        return F.normalize(F.normalize(vlad, dim=2, eps=1e-8).flatten(1), dim=1)


class EqualFeaturesAreOne(Special):
    def before(self, x):
        equal = torch.equal(x, x[..., :1, :1].expand_as(x)) and x.shape[2:] != (1, 1)
        return x * 2 if equal else x


SPECIAL = {
    PerturbsEmptyClusters: "for one dominant cluster|for empty clusters",
    PerturbsThemInTrainingOnly: "for (one dominant cluster|empty clusters)",
    DropsRareClusters: "for (one dominant cluster|rare clusters)",
    SpreadsADominantCluster: "for one dominant cluster",
    LeavesOutPositionsOfZeros: "for a position without features",
    AnswersZerosByZeros: "for zeros alone",
    ReturnsASinglePosition: "for a single position",
    SqueezesABatchOfOne: "for one image",
    ClampsLargeFeatures: "for large features",
    RoundsSmallFeatures: "for (small features|a position without features)",
    AnotherEps: "for (features below every eps|a position without features)",
    AnotherEpsOfClusters: "for rare clusters",
    EqualFeaturesAreOne: "for (equal features everywhere|zeros alone)",
}
"""Class -> the end of the reason for leaving it alone."""
