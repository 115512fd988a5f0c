"""Modules around the operators, state-dict compatible with the paper's reference implementation."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import sfrs_ext


class NetVLAD(nn.Module):
    """NetVLAD layer: soft assignment, residual aggregation, intra-normalisation, L2.

    Parameters carry the names and shapes of the paper's reference implementation:
    ``conv.weight`` ``[K + G, D, 1, 1]``, optionally ``conv.bias`` ``[K + G]``, and
    ``centroids`` ``[K, D]``, so that its state dicts load unchanged.

    Args:
        num_clusters: K.
        dim: D, channels of the feature map.
        bias: give the assignment a bias (NetVLAD v2); the paper's network has none.
        ghost_clusters: G clusters that take part in the softmax and are then dropped.
        normalize_input: L2-normalise the local features first.
        assignment: a module that takes the place of ``conv``: it maps the layer's input, as it
            comes, to logits ``[B, K + G, H, W]`` or ``[B, N, K + G]``, for example a 1x1
            convolution followed by batch norm.
    """

    def __init__(
        self,
        num_clusters: int = 64,
        dim: int = 512,
        *,
        bias: bool = False,
        ghost_clusters: int = 0,
        normalize_input: bool = True,
        assignment: nn.Module | None = None,
    ):
        super().__init__()
        self.num_clusters = num_clusters
        self.dim = dim
        self.ghost_clusters = ghost_clusters
        self.normalize_input = normalize_input
        self.assignment = assignment
        if assignment is None:
            self.conv = nn.Conv2d(dim, num_clusters + ghost_clusters, kernel_size=1, bias=bias)
        self.centroids = nn.Parameter(torch.rand(num_clusters, dim))

    @property
    def weight(self) -> Tensor:
        """Assignment weights ``[K + G, D]``, a view of ``conv.weight``."""
        return self.conv.weight.flatten(1)

    @classmethod
    def load(cls, path: str | Path) -> "NetVLAD":
        """The NetVLAD layer in a safetensors file, a whole network's or its own; reads nothing else of it.

        K, D, ghost clusters and bias follow from the shapes of the file's one ``centroids``, and of
        ``conv.weight`` and ``conv.bias`` beside it. In evaluation mode.

        Raises:
            ImportError: ``safetensors`` is not installed.
            ValueError: there is not exactly one such layer in the file.
        """
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ImportError("NetVLAD.load reads safetensors files: pip install safetensors") from error
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            prefixes = [name.removesuffix("centroids") for name in names if f".{name}".endswith(".centroids")]
            if len(prefixes) != 1 or prefixes[0] + "conv.weight" not in names:
                raise ValueError(
                    f"NetVLAD.load: {path} has {len(prefixes)} tensors named centroids; expected one, with "
                    "conv.weight beside it"
                )
            layer = ("centroids", "conv.weight", "conv.bias")
            state = {
                name: file.get_tensor(prefixes[0] + name) for name in layer if prefixes[0] + name in names
            }
        clusters, dim = state["centroids"].shape
        ghosts = len(state["conv.weight"]) - clusters
        vlad = cls(clusters, dim, bias="conv.bias" in state, ghost_clusters=ghosts)
        vlad.load_state_dict(state)
        return vlad.eval()

    @torch.no_grad()
    def init_from_clusters(self, centers: Tensor, features: Tensor) -> float:
        """Set weights and centroids from k-means; returns alpha.

        Args:
            centers: cluster centres ``[K, D]``.
            features: L2-normalised local features ``[n, D]`` the centres came from.

        ``alpha = -ln(0.01) / mean(top1 - top2)`` over the features' dot products with
        the unit centres, so that on average the runner-up gets one percent of the
        winner's assignment (NetVLAD, section 4, initialisation).
        """
        if self.assignment is not None:
            raise ValueError("init_from_clusters: the assignment is a module of its own; initialise it there")
        if self.ghost_clusters:
            raise ValueError("init_from_clusters: ghost clusters have no centre; use ghost_clusters=0")
        unit = nn.functional.normalize(centers, dim=1)
        best = (features @ unit.T).topk(min(2, len(unit)), dim=1).values
        margin = (best[:, 0] - best[:, -1]).mean().clamp_min(1e-6).item()
        alpha = -math.log(0.01) / margin
        self.conv.weight.copy_((alpha * unit)[:, :, None, None])
        self.centroids.copy_(centers)
        if self.conv.bias is not None:
            self.conv.bias.zero_()
        return alpha

    def extra_repr(self) -> str:
        return f"K={self.num_clusters}, D={self.dim}, ghost_clusters={self.ghost_clusters}"

    def _apply_to(self, operator: Callable[..., Tensor], x: Tensor, mask: Tensor | None) -> Tensor:
        if self.assignment is None:
            assignment = dict(weight=self.weight, bias=self.conv.bias)
        else:
            assignment = dict(logits=self.assignment(x))
        options = dict(ghost_clusters=self.ghost_clusters, normalize_input=self.normalize_input)
        return operator(x, centroids=self.centroids, mask=mask, **assignment, **options)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, D, H, W]`` or ``[B, N, D]`` -> descriptors ``[B, K * D]``."""
        return self._apply_to(sfrs_ext.netvlad, x, mask)


class RegionNetVLAD(NetVLAD):
    """NetVLAD whose ``quarters`` serve all nine regions of SFRS.

    ``forward`` is that of :class:`NetVLAD`, so a network evaluates as before;
    training takes :meth:`quarters` of the gallery images and compares them with
    ``sfrs_ext.region_similarity``.
    """

    def quarters(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, D, H, W]`` -> un-normalised VLADs of the four quarters ``[B, 4, K, D]``."""
        return self._apply_to(sfrs_ext.region_vlad, x, mask)
