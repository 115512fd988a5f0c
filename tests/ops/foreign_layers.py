"""NetVLAD layers with the tensors, layouts and habits of other projects, each written from its formula."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

K, D = 6, 10


def vlad_of(x: Tensor, assignment: Tensor, centroids: Tensor) -> Tensor:
    """``[B, D, P]``, ``[B, K, P]``, ``[K, D]`` -> residuals weighted and added up, ``[B, K, D]``."""
    residuals = x.unsqueeze(1) - centroids[None, :, :, None]
    return (residuals * assignment.unsqueeze(2)).sum(-1)


def normalised(vlad: Tensor) -> Tensor:
    return F.normalize(F.normalize(vlad, dim=2).flatten(1), dim=1)


class ConvolutionNetVLAD(nn.Module):
    """1x1 convolution and centroids ``[K, D]`` on a map; raw: without the normalisations behind."""

    def __init__(self, bias: bool = False, normalize_input: bool = True, raw: bool = False):
        super().__init__()
        self.normalize_input, self.raw, self.alpha = normalize_input, raw, 100.0
        self.conv = nn.Conv2d(D, K, kernel_size=(1, 1), bias=bias)
        self.centroids = nn.Parameter(torch.rand(K, D))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1) if self.normalize_input else x
        vlad = vlad_of(x.flatten(2), self.conv(x).flatten(2).softmax(1), self.centroids)
        return vlad if self.raw else normalised(vlad)


class TokenNetVLAD(nn.Module):
    """1x1 convolution in one dimension on tokens ``[B, N, D]``."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(D, K, kernel_size=1, bias=False)
        self.centroids = nn.Parameter(torch.rand(K, D))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x.transpose(1, 2), dim=1)
        return normalised(vlad_of(x, self.conv(x).softmax(1), self.centroids))


class ClusterMinorNetVLAD(nn.Module):
    """Centres ``[D, K]``, features ``[B, D, N]`` normalised by the caller, result with clusters innermost."""

    def __init__(self, score_bias: bool = False, intranorm: bool = True):
        super().__init__()
        self.score_proj = nn.Conv1d(D, K, kernel_size=1, bias=score_bias)
        self.centers = nn.Parameter(torch.rand(D, K))
        self.intranorm = intranorm

    def forward(self, x: Tensor) -> Tensor:
        vlad = vlad_of(x, self.score_proj(x).softmax(1), self.centers.T).transpose(1, 2)
        vlad = F.normalize(vlad, dim=1) if self.intranorm else vlad
        return F.normalize(vlad.flatten(1), dim=1)


class BatchNormNetVLAD(nn.Module):
    """Matrices ``[D, K + G]`` and ``[1, D, K]``, batch norm on the logits, ghost clusters, a mask unused."""

    def __init__(self, ghost_clusters: int = 0, add_batch_norm: bool = True):
        super().__init__()
        self.clusters = nn.Parameter(torch.randn(D, K + ghost_clusters) / D**0.5)
        self.batch_norm = nn.BatchNorm1d(K + ghost_clusters) if add_batch_norm else None
        self.clusters2 = nn.Parameter(torch.randn(1, D, K) / D**0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        logits = x.flatten(0, 1) @ self.clusters
        logits = logits if self.batch_norm is None else self.batch_norm(logits)
        assignment = logits.softmax(1)[:, :K].view(*x.shape[:2], K)
        vlad = torch.einsum("bnk,bnd->bdk", assignment, x) - assignment.sum(1, keepdim=True) * self.clusters2
        return F.normalize(F.normalize(vlad, dim=1).flatten(1), dim=1)


class NormalisedBatchNormNetVLAD(nn.Module):
    """Linear layer with bias, then batch norm, on a normalised map; centroids are a buffer of K + G rows."""

    def __init__(self):
        super().__init__()
        self.assign = nn.Linear(D, K + 2)
        self.norm = nn.BatchNorm2d(K + 2, affine=False)
        self.register_buffer("centroids", torch.rand(K + 2, D))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1)
        logits = self.norm(self.assign(x.movedim(1, -1)).movedim(-1, 1))
        vlad = vlad_of(x.flatten(2), logits.flatten(2).softmax(1), self.centroids)
        return normalised(vlad[:, :K])


class GhostVLADWithoutCentroids(nn.Module):
    """Sums of features instead of residuals, with ghost clusters."""

    def __init__(self, ghost_clusters: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(D, K + ghost_clusters, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1)
        assignment = self.conv(x).flatten(2).softmax(1)
        return normalised(torch.einsum("bkp,bdp->bkd", assignment, x.flatten(2))[:, :K])


class TemperatureNetVLAD(ConvolutionNetVLAD):
    """The logits are divided by a number, and the result is ``[B, D, K]``."""

    def __init__(self):
        super().__init__(raw=True)
        self.temperature = 0.1

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1)
        assignment = (self.conv(x) / self.temperature).flatten(2).softmax(1)
        return vlad_of(x.flatten(2), assignment, self.centroids).transpose(1, 2)


class ContiguousNetVLAD(TemperatureNetVLAD):
    """The same result ``[B, D, K]``, which lies so in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).contiguous()


class StridesOfItsInputNetVLAD(TemperatureNetVLAD):
    """A result ``[B, K, D]`` whose order in memory follows that of its input."""

    def forward(self, x: Tensor) -> Tensor:
        vlad = super().forward(x)
        return vlad.mT.contiguous() if x.is_contiguous() else vlad.contiguous().mT


class UnusedPartsNetVLAD(ConvolutionNetVLAD):
    """Has a batch norm that an option leaves out, a convolution of old and a table, and uses none of them."""

    def __init__(self, add_batch_norm: bool = False):
        super().__init__()
        self.batch_norm, self.add_batch_norm = nn.BatchNorm2d(K), add_batch_norm
        self.conv1 = nn.Conv2d(D, K, kernel_size=1)
        self.register_buffer("table", torch.rand(K, D))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1)
        logits = self.batch_norm(self.conv(x)) if self.add_batch_norm else self.conv(x)
        return normalised(vlad_of(x.flatten(2), logits.flatten(2).softmax(1), self.centroids))


class OneClusterNetVLAD(nn.Module):
    """Everything goes to the one cluster, whatever the assignment's weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(D, 1, kernel_size=1)
        self.centroids = nn.Parameter(torch.rand(1, D))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1)
        return normalised(vlad_of(x.flatten(2), self.conv(x).flatten(2).softmax(1), self.centroids))


class UnusedBiasNetVLAD(ConvolutionNetVLAD):
    """Takes the weight of a convolution, and not its bias."""

    def __init__(self):
        super().__init__(bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1)
        assignment = F.conv2d(x, self.conv.weight).flatten(2).softmax(1)
        return normalised(vlad_of(x.flatten(2), assignment, self.centroids))


class LearntScaleNetVLAD(ConvolutionNetVLAD):
    """The logits are multiplied by a parameter of one number, in the form that broadcasts over them."""

    def __init__(self):
        super().__init__(bias=True)
        self.alpha = nn.Parameter(torch.full((1, 1, 1), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1)
        assignment = (self.conv(x).flatten(2) * self.alpha).softmax(1)
        return normalised(vlad_of(x.flatten(2), assignment, self.centroids))


class TwoLayoutsNetVLAD(TokenNetVLAD):
    """Takes ``[B, D, N]`` and ``[B, N, D]``; where N = D, it takes the one it prefers."""

    def __init__(self, prefers_tokens: bool):
        super().__init__()
        self.prefers_tokens = prefers_tokens

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[2] == D if self.prefers_tokens else x.shape[1] != D
        return super().forward(x if tokens else x.transpose(1, 2))


class RegionNetwork(nn.Module):
    """Describes in evaluation; in training compares nine regions of one image with those of the others."""

    def __init__(self):
        super().__init__()
        self.base_model = nn.Conv2d(3, D, kernel_size=3, padding=1)
        self.net_vlad = ConvolutionNetVLAD(raw=True)

    def forward(self, images: Tensor):
        x = self.base_model(images)
        if not self.training:
            return x.amax((2, 3)), normalised(self.net_vlad(x))
        quarters = x.unflatten(3, (2, -1)).unflatten(2, (2, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        a, b, c, d = self.net_vlad(quarters.flatten(0, 1)).unflatten(0, (-1, 4)).unbind(1)
        regions = torch.stack((a + b + c + d, a + b, c + d, a + c, b + d, a, b, c, d), 1)
        regions = F.normalize(F.normalize(regions, dim=3).flatten(2), dim=2)
        return regions[:1] @ regions[1:].transpose(1, 2), regions


MAP, TOKENS, CHANNELS_FIRST, IMAGES = (3, D, 6, 4), (3, 24, D), (3, D, 24), (3, 3, 6, 4)

LAYERS = {
    "convolution": (ConvolutionNetVLAD, {}, MAP),
    "convolution with bias": (ConvolutionNetVLAD, dict(bias=True), MAP),
    "convolution, input as it comes": (ConvolutionNetVLAD, dict(normalize_input=False), MAP),
    "convolution, raw": (ConvolutionNetVLAD, dict(raw=True), MAP),
    "tokens": (TokenNetVLAD, {}, TOKENS),
    "cluster-minor": (ClusterMinorNetVLAD, {}, CHANNELS_FIRST),
    "cluster-minor with bias, without intra-normalisation": (
        ClusterMinorNetVLAD,
        dict(score_bias=True, intranorm=False),
        CHANNELS_FIRST,
    ),
    "batch norm": (BatchNormNetVLAD, {}, TOKENS),
    "batch norm and ghost clusters": (BatchNormNetVLAD, dict(ghost_clusters=3), TOKENS),
    "matrices and ghost clusters": (BatchNormNetVLAD, dict(ghost_clusters=3, add_batch_norm=False), TOKENS),
    "batch norm on a normalised map": (NormalisedBatchNormNetVLAD, {}, MAP),
    "without centroids": (GhostVLADWithoutCentroids, {}, MAP),
    "temperature": (TemperatureNetVLAD, {}, MAP),
    "contiguous": (ContiguousNetVLAD, {}, MAP),
    "strides of its input": (StridesOfItsInputNetVLAD, {}, MAP),
    "unused parts": (UnusedPartsNetVLAD, {}, MAP),
    "parts of which one is used": (UnusedPartsNetVLAD, dict(add_batch_norm=True), MAP),
    "unused bias": (UnusedBiasNetVLAD, {}, MAP),
    "one cluster": (OneClusterNetVLAD, {}, MAP),
    "learnt scale": (LearntScaleNetVLAD, {}, MAP),
    "two layouts": (TwoLayoutsNetVLAD, dict(prefers_tokens=True), TOKENS),
    "region network": (RegionNetwork, {}, IMAGES),
}
"""Name -> class, its arguments, shape of an input."""


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A layer with seeded parameters and statistics, and an input, both float64."""
    layer, arguments, shape = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = layer(**arguments).double()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        return model, torch.randn(shape, dtype=torch.float64)
