"""NetVLAD layers that can be called in more ways than ``layer(map)``."""

import torch
import torch.nn.functional as F
from foreign_layers import BatchNormNetVLAD, ConvolutionNetVLAD, D, K, normalised, vlad_of
from torch import Tensor, nn


class PositionsNetVLAD(nn.Module):
    """A linear layer on tokens; what its inputs are like, its ``positions`` says."""

    def __init__(self, raw: bool = False):
        super().__init__()
        self.raw = raw
        self.fc = nn.Linear(D, K)
        self.centroids = nn.Parameter(torch.rand(K, D))

    def describe(self, tokens: Tensor, weights: Tensor | None = None) -> Tensor:
        """``[B, N, D]`` and weights ``[B, N]``."""
        x = F.normalize(tokens, dim=2)
        assignment = self.fc(x).softmax(2)
        assignment = assignment if weights is None else assignment * weights.unsqueeze(2)
        vlad = vlad_of(x.transpose(1, 2), assignment.transpose(1, 2), self.centroids)
        return vlad if self.raw else normalised(vlad)

    def forward(self, x: Tensor) -> Tensor:
        return self.describe(x)


class AnyFormNetVLAD(PositionsNetVLAD):
    """Takes maps, positions in a row, and both without a batch, then without one in the result."""

    def forward(self, x: Tensor) -> Tensor:
        batched = x.dim() == 4 or (x.dim() == 3 and x.shape[1] == D)
        x = x if batched else x.unsqueeze(0)
        descriptors = self.describe(x.flatten(2).transpose(1, 2))
        return descriptors if batched else descriptors[0]


class ChannelsLastNetVLAD(PositionsNetVLAD):
    """Takes ``[B, H, W, D]``, and ``[N, D]`` as a batch of one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.describe(x.flatten(1, 2) if x.dim() == 4 else x.unsqueeze(0))


class WeightedNetVLAD(PositionsNetVLAD):
    """Weighs its positions, ``[B, N]``."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.describe(x, mask)


class WeightedMapNetVLAD(PositionsNetVLAD):
    """Weighs the positions of maps, ``[B, 1, H, W]``, as reweighting networks give them."""

    def forward(self, x: Tensor, *, reweighting: Tensor | None = None) -> Tensor:
        weights = None if reweighting is None else reweighting.flatten(1)
        return self.describe(x.flatten(2).transpose(1, 2), weights)


class PaddedNetVLAD(PositionsNetVLAD):
    """Leaves out what is true in a mask."""

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.describe(x, None if padding is None else (~padding).to(x.dtype))


class FilledNetVLAD(BatchNormNetVLAD):
    """Leaves out where a mask of any dtype is zero; its logits have batch norm."""

    def forward(self, x: Tensor, x_mask: Tensor | None = None, flatten: bool = True) -> Tensor:
        assignment = self.batch_norm(x.flatten(0, 1) @ self.clusters).softmax(1).view(*x.shape[:2], -1)
        if x_mask is not None:
            assignment = assignment.masked_fill(x_mask.unsqueeze(-1) == 0, 0)
        vlad = vlad_of(x.transpose(1, 2), assignment.transpose(1, 2), self.clusters2[0].T)
        return normalised(vlad) if flatten else vlad


class PassesItsMaskOn(BatchNormNetVLAD):
    """Hands its mask to a layer that ignores it, and has an option that nothing reads."""

    def forward(self, x: Tensor, mask: Tensor | None = None, verbose: bool = False) -> Tensor:
        return super().forward(x, mask)


class MasksItsInput(PositionsNetVLAD):
    """Zeroes features, which then still take part: not what the operator's mask does."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.describe(x if mask is None else x * mask.unsqueeze(2))


class Options(PositionsNetVLAD):
    """Flags and names of files that change what happens."""

    touched: list[str] = []

    def forward(self, x: Tensor, save_to: str = "", raw: bool = False, **options) -> Tensor:
        if save_to:
            self.touched.append(save_to)
        return self.describe(x).unflatten(1, (K, D)) if raw else self.describe(x)


class OneOfEach(PositionsNetVLAD):
    """A list of descriptors for a list of inputs."""

    def forward(self, x):
        return [self.describe(item) for item in x] if isinstance(x, list) else self.describe(x)


class Frames(PositionsNetVLAD):
    """Sequences ``[N, D]`` of any lengths, one below the other in the result; a tensor is iterated too."""

    def forward(self, x):
        return torch.cat([self.describe(item[None]) for item in x])


class Scales(ConvolutionNetVLAD):
    """Maps of several sizes, whose positions are aggregated together."""

    def forward(self, x):
        if isinstance(x, (list, tuple)):
            x = torch.cat([item.flatten(2) for item in x], 2).unsqueeze(2)
        return super().forward(x)


class LastOfPyramid(ConvolutionNetVLAD):
    """Takes the last of a backbone's maps."""

    def forward(self, x):
        return super().forward(x[-1] if isinstance(x, (list, tuple)) else x)


class WithToken(ConvolutionNetVLAD):
    """Takes a map and a token, of which it has no use."""

    def forward(self, x):
        if isinstance(x, tuple):
            x, _ = x
        return super().forward(x)


class SumOfMaps(ConvolutionNetVLAD):
    """Adds up the descriptors of several maps, which the fused form does not."""

    def forward(self, x):
        return (
            sum(super(SumOfMaps, self).forward(item) for item in x)
            if isinstance(x, list)
            else super().forward(x)
        )
