"""A backbone without pretrained weights: frozen oriented gradients and a small trained head.

The same split as VGG16's conv1..conv4 and conv5, about a thousand times cheaper at this size, so that the
whole training path runs on a laptop: the trunk is a fixed descriptor of edges (in the manner of HOG, Dalal &
Triggs 2005), the head starts as a PCA of it (`init_pca`) with a convolutional branch whose last layer is
zero.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfrs.models.backbones import Backbone

BINS = 16  # signed orientations
CELL = 8  # pixels per position of the trunk's output
SCALES = 2
IMAGES_AT_ONCE = 4
TRUNK_CHANNELS = SCALES * BINS + 3


class OrientedGradients(nn.Module):
    """RGB [B, 3, H, W] in 0..1 -> [B, TRUNK_CHANNELS, H / 8, W / 8], without parameters.

    Per scale, the gradient of log luminance is split into 16 signed orientations, pooled over cells and
    divided by the local energy, so that the strength of the light cancels. Three channels of colour follow:
    two opponent colours and the luminance relative to the image.
    """

    bins: Tensor

    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(BINS) * (2 * math.pi / BINS)
        # Rows give the cosine of the angle to the bin minus that of 1.5 bins: negative beyond the neighbours.
        floor = torch.full((BINS,), -math.cos(1.5 * 2 * math.pi / BINS))
        self.register_buffer(
            "bins", torch.stack([torch.cos(angle), torch.sin(angle), floor], 1), persistent=False
        )

    def forward(self, images: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self._describe(images)  # an exported program cannot loop over a batch of any size
        # A few images at a time: their intermediate maps then stay in the cache.
        return torch.cat([self._describe(part) for part in images.split(IMAGES_AT_ONCE)])

    def _describe(self, images: Tensor) -> Tensor:
        red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
        luminance = 0.299 * red + 0.587 * green + 0.114 * blue
        log = luminance.add_(0.04).log_()
        parts = []
        for scale in range(SCALES):
            picture = F.avg_pool2d(log, 2**scale) if scale else log
            parts.append(self._orientations(picture, CELL // 2**scale))
        small = F.avg_pool2d(images, 2)
        red, green, blue = small[:, 0:1], small[:, 1:2], small[:, 2:3]
        total = small.sum(1, keepdim=True) + 0.15
        colour = torch.cat([(red - green) / total, (red + green - 2 * blue) / total], dim=1) * 2
        parts.append(F.avg_pool2d(colour, CELL // 2))
        parts.append(F.avg_pool2d(log - log.mean((2, 3), keepdim=True), CELL) * 0.3)
        rows, columns = parts[-1].shape[2:]
        return torch.cat([part[:, :, :rows, :columns] for part in parts], dim=1)

    def _orientations(self, picture: Tensor, cell: int) -> Tensor:
        """Map [B, 1, h, w] to [B, BINS, h / cell, w / cell]; nearest bins share a gradient."""
        padded = F.pad(picture, (1, 1, 1, 1), mode="replicate")
        smooth = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
        across = smooth[..., 2:] - smooth[..., :-2]
        smooth = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
        down = smooth[:, :, 2:] - smooth[:, :, :-2]
        gradient = torch.cat([across, down, torch.hypot(across, down)], dim=1).mul_(1 / 8)
        share = torch.matmul(self.bins, gradient.flatten(2)).relu_().unflatten(2, gradient.shape[2:])
        cells = F.avg_pool2d(share, cell)
        energy = F.avg_pool2d(cells.square().sum(1, keepdim=True), 3, 1, 1, count_include_pad=False)
        return (cells / (energy.sqrt() + 0.004)).sqrt() - 0.2


class GradientHead(nn.Module):
    """Trunk output -> local features [B, D, h, w]: a linear 3x3 projection plus a convolutional branch."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(TRUNK_CHANNELS, dim, 3, padding=1)
        self.branch = nn.Sequential(
            nn.Conv2d(TRUNK_CHANNELS, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, dim, 1)
        )
        for parameter in self.branch[2].parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not in its stub

    def forward(self, trunk: Tensor) -> Tensor:
        # With so few channels convolutions take half the time in this layout; NetVLAD reads it in place.
        trunk = trunk.contiguous(memory_format=torch.channels_last)
        return self.projection(trunk) + self.branch(trunk)


class GradientBackbone(Backbone):
    """Oriented gradients with a trained head, D = `dim` channels at stride 8; takes RGB in 0..1 as it is.

    Call `init_pca` before training: the projection is random otherwise.
    """

    head: GradientHead

    def __init__(self, dim: int = 64, width: int = 32) -> None:
        super().__init__(
            OrientedGradients(),
            GradientHead(dim, width),
            name="gradient",
            channels=dim,
            stride=CELL,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )

    @torch.no_grad()
    def init_pca(self, trunk: Tensor, power: float = 0.25) -> None:
        """Set the projection to the principal components of 3x3 patches of trunk outputs [n, C, h, w].

        Component i is divided by (its variance) ** power: 0 is plain PCA, 0.5 whitening.
        Raises ValueError if there are fewer patches than components.
        """
        patches = F.unfold(trunk.float(), 3).transpose(1, 2).reshape(-1, TRUNK_CHANNELS * 9).double()
        if len(patches) < self.channels:
            raise ValueError(f"init_pca: {len(patches)} patches for {self.channels} components")
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        order = values.argsort(descending=True)[: self.channels]
        components = vectors[:, order].T  # [D, C * 9]
        # Eigenvectors have no sign of their own; fix it, so that machines agree.
        components *= torch.sign(components.gather(1, components.abs().argmax(1, keepdim=True)))
        components /= values[order].clamp(min=1e-12).pow(power)[:, None]
        projection = self.head.projection
        projection.weight.copy_(components.reshape(projection.weight.shape))
        assert projection.bias is not None
        projection.bias.copy_(-(components @ mean))
