"""Vision transformers as a trunk and a head: patch tokens are the map, the last blocks the head.

What passes between them is one map, so that it can be kept like any other trunk's output: class and register
tokens fill the first rows.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tokens_to_map(tokens: Tensor, prefix: int, width: int) -> Tensor:
    """Turn tokens ``[B, prefix + h * width, C]`` into ``[B, C, rows + h, width]``: the first rows hold the
    ``prefix`` tokens, and zeros after them."""
    rows = _rows(prefix, width)
    first = F.pad(tokens[:, :prefix], (0, 0, 0, rows * width - prefix))
    filled = torch.cat([first, tokens[:, prefix:]], dim=1)
    return filled.unflatten(1, (-1, width)).permute(0, 3, 1, 2)


def map_to_tokens(map: Tensor, prefix: int) -> Tensor:
    """Undo `tokens_to_map`."""
    rows = _rows(prefix, map.shape[3])
    tokens = map.flatten(2).transpose(1, 2)
    return torch.cat([tokens[:, :prefix], tokens[:, rows * map.shape[3] :]], dim=1)


def _rows(prefix: int, width: int) -> int:
    return (prefix + width - 1) // width


class TokenTrunk(nn.Module):
    """Images -> map of tokens after the first blocks. Sides are cut to whole patches, as pooling cuts them.

    Args:
        embedding: images -> tokens with class token, registers and positions.
        blocks: the frozen ones.
        positions: (h, w) -> what each block takes beside the tokens, such as rotations; None if nothing.
    """

    def __init__(self, embedding: nn.Module, blocks: nn.ModuleList, prefix: int, patch: int, positions=None):
        super().__init__()
        self.embedding, self.blocks, self.positions = embedding, blocks, positions
        self.prefix, self.patch = prefix, patch

    def forward(self, images: Tensor) -> Tensor:
        height, width = (side // self.patch for side in images.shape[2:])
        tokens = self.embedding(images[:, :, : height * self.patch, : width * self.patch])
        tokens = _pass(self.blocks, tokens, self.positions, (height, width))
        return tokens_to_map(tokens, self.prefix, width)


class TokenHead(nn.Module):
    """Map of tokens -> normalised patch tokens ``[B, C, h, w]`` after the last blocks."""

    def __init__(self, blocks: nn.ModuleList, norm: nn.Module, prefix: int, positions=None):
        super().__init__()
        self.blocks, self.norm, self.positions = blocks, norm, positions
        self.prefix = prefix

    def forward(self, trunk: Tensor) -> Tensor:
        width = trunk.shape[3]
        size = (trunk.shape[2] - _rows(self.prefix, width), width)
        tokens = _pass(self.blocks, map_to_tokens(trunk, self.prefix), self.positions, size)
        return tokens_to_map(self.norm(tokens)[:, self.prefix :], 0, width)


def _pass(
    blocks: nn.ModuleList, tokens: Tensor, positions: Callable[..., Tensor] | None, size: tuple[int, int]
) -> Tensor:
    extra = () if positions is None else (positions(size),)
    for block in blocks:
        tokens = block(tokens, *extra)
    return tokens


class TimmEmbedding(nn.Module):
    """What timm's VisionTransformer and Eva do before their blocks, at any size."""

    def __init__(self, network: Any):
        super().__init__()
        network.blocks = nn.ModuleList()
        for unused in ("norm", "fc_norm", "attn_pool", "head"):
            setattr(network, unused, nn.Identity())
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        network: Any = self.network
        tokens = network._pos_embed(network.patch_embed(images))
        return network.norm_pre(tokens[0] if isinstance(tokens, tuple) else tokens)


class Rotations(nn.Module):
    """Rotary positions of a timm network; its parameters, if it has any, stay frozen."""

    def __init__(self, rope: Any):
        super().__init__()
        self.rope: Any = rope.requires_grad_(False)

    def forward(self, size: tuple[int, int]) -> Tensor:
        return self.rope.get_embed(shape=list(size))


class TorchvisionEmbedding(nn.Module):
    """What torchvision's VisionTransformer does before its blocks, positions interpolated to any size."""

    def __init__(self, network: Any):
        super().__init__()
        self.projection, self.class_token = network.conv_proj, network.class_token
        self.positions: Tensor = network.encoder.pos_embedding

    def forward(self, images: Tensor) -> Tensor:
        x = self.projection(images)
        first = self.class_token.expand(x.shape[0], -1, -1)
        tokens = torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1)
        return tokens + self._positions(x.shape[2], x.shape[3])

    def _positions(self, height: int, width: int) -> Tensor:
        of_class, of_patches = self.positions[:, :1], self.positions[:, 1:]
        side = round(of_patches.shape[1] ** 0.5)
        map = of_patches.transpose(1, 2).unflatten(2, (side, side))
        map = F.interpolate(map, (height, width), mode="bicubic", align_corners=True)
        return torch.cat([of_class, map.flatten(2).transpose(1, 2)], dim=1)
