"""Modules around the operators, state-dict compatible with the paper's reference implementation."""

import math
import operator
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import sfrs_ext

from . import _checks

LAYER = ("centroids", "conv.weight", "conv.bias")
"""Keys of a layer's state dict."""


def _size(name: str, value: int, least: int) -> int:
    try:
        size = operator.index(value)
    except TypeError:
        plain = value is None or isinstance(value, (float, str))
        came = repr(value) if plain else f"a {type(value).__name__}"
        raise TypeError(f"NetVLAD: {name} must be an integer, but is {came}") from None
    if size < least:
        raise ValueError(f"NetVLAD: {name} is {size}, but must be at least {least}")
    return size


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, int):
        raise TypeError(f"NetVLAD: {name} must be True or False, but is a {type(value).__name__}")
    return bool(value)


def _prefixes(keys: Iterable[str]) -> list[str]:
    """What stands before ``centroids`` in the names of tensors: "" or "module.net_vlad.", say."""
    return sorted(key.removesuffix("centroids") for key in keys if f".{key}".endswith(".centroids"))


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

    Raises:
        TypeError, ValueError: a size is no integer or too small, or ``assignment`` is no module.
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
        self.num_clusters = _size("num_clusters", num_clusters, least=1)
        self.dim = _size("dim", dim, least=1)
        self.ghost_clusters = _size("ghost_clusters", ghost_clusters, least=0)
        self.normalize_input = _flag("normalize_input", normalize_input)
        if not isinstance(assignment, nn.Module | None):
            kind = type(assignment).__name__
            raise TypeError(f"NetVLAD: assignment must be a torch.nn.Module or None, but is a {kind}")
        self.assignment = assignment
        if assignment is None:
            self.conv = nn.Conv2d(
                self.dim, self.num_clusters + self.ghost_clusters, kernel_size=1, bias=_flag("bias", bias)
            )
        self.centroids = nn.Parameter(torch.rand(self.num_clusters, self.dim))

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
            ValueError: there is not exactly one such layer in the file, or it is damaged.
        """
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError("NetVLAD.load reads safetensors files: pip install safetensors") from error
        try:
            with safe_open(path, "pt") as file:
                names = set(file.keys())
                prefixes = _prefixes(names)
                prefix = prefixes[0] if len(prefixes) == 1 else ""
                state = {name: file.get_tensor(prefix + name) for name in LAYER if prefix + name in names}
        except SafetensorError as error:
            fault = f"NetVLAD.load: {path} is no safetensors file, or a damaged one ({error})"
            raise ValueError(fault) from error
        if len(prefixes) != 1 or "conv.weight" not in state:
            found = f" ({', '.join(prefix + 'centroids' for prefix in prefixes)})" if prefixes else ""
            raise ValueError(
                f"NetVLAD.load: {path} has {len(prefixes)} tensors named centroids{found}; expected one, "
                "with conv.weight beside it"
            )
        centroids, weight = state["centroids"], state["conv.weight"]
        if centroids.dim() != 2 or weight.dim() < 2:
            raise ValueError(
                f"NetVLAD.load: {path}: centroids are {list(centroids.shape)} and conv.weight is "
                f"{list(weight.shape)}; expected [K, D] and [K + G, D, 1, 1]"
            )
        ghosts = len(weight) - len(centroids)
        vlad = cls(*centroids.shape, bias="conv.bias" in state, ghost_clusters=ghosts)
        vlad.load_state_dict(state)
        return vlad.eval()

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """Load parameters of this layer, or of one for tokens, whose ``conv.weight`` is ``[K + G, D(, 1)]``.

        Raises:
            RuntimeError: as in `torch.nn.Module`; keys that are a larger network's are named by their
                prefixes.
        """
        prefixes = _prefixes(state_dict) if isinstance(state_dict, Mapping) else []
        if strict and prefixes and "" not in prefixes:
            found, first = " and ".join(map(repr, prefixes)), repr(prefixes[0])
            raise RuntimeError(
                f"NetVLAD.load_state_dict: the layer's keys have a prefix, {found}: load "
                f"{{k.removeprefix({first}): t for k, t in state_dict.items() if k.startswith({first})}}"
            )
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments):
        # torch hands over a copy of the dictionary. Conv1d and Linear weights are the same matrix.
        key = f"{prefix}conv.weight"
        if self.assignment is None and (weight := state_dict.get(key)) is not None:
            shape = self.conv.weight.shape
            if weight.shape in (shape[:2], shape[:3]):
                state_dict[key] = weight.reshape(shape)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @torch.no_grad()
    def init_from_clusters(self, centers: Tensor, features: Tensor) -> float:
        """Set weights and centroids from k-means; returns alpha.

        Args:
            centers: cluster centres ``[K, D]``.
            features: L2-normalised local features ``[n, D]`` the centres came from.

        ``alpha = -ln(0.01) / mean(top1 - top2)`` over the features' dot products with
        the unit centres, so that on average the runner-up gets one percent of the
        winner's assignment (NetVLAD, section 4, initialisation).

        Raises:
            TypeError, ValueError: an argument has another kind or shape, or holds NaN or infinity; or the
                layer has an ``assignment`` or ghost clusters, for which clusters say nothing.
        """
        if self.assignment is not None:
            raise ValueError("init_from_clusters: the assignment is a module of its own; initialise it there")
        if self.ghost_clusters:
            raise ValueError("init_from_clusters: ghost clusters have no centre; use ghost_clusters=0")
        self._check_clusters(centers, features)
        unit = nn.functional.normalize(centers, dim=1)
        best = (features @ unit.T).topk(min(2, len(unit)), dim=1).values
        margin = (best[:, 0] - best[:, -1]).mean().clamp_min(1e-6).item()
        alpha = -math.log(0.01) / margin
        self.conv.weight.copy_((alpha * unit)[:, :, None, None])
        self.centroids.copy_(centers)
        if self.conv.bias is not None:
            self.conv.bias.zero_()
        return alpha

    def _check_clusters(self, centers: Tensor, features: Tensor) -> None:
        clusters, dim = self.num_clusters, self.dim
        for name, value, rows, expected in (
            ("centers", centers, (clusters,), f"[{clusters}, {dim}] (K, D)"),
            ("features", features, range(1, sys.maxsize), f"[n, {dim}] with n of at least 1"),
        ):
            _checks.tensor("init_from_clusters", name, value)
            if not value.is_floating_point() or value.dtype != centers.dtype:
                allowed = "of a floating dtype" if value is centers else f"{centers.dtype} as centers is"
                raise TypeError(f"init_from_clusters: {name} must be {allowed}, but is {value.dtype}")
            _checks.same_device("init_from_clusters", name, value, "centers", centers)
            if value.dim() != 2 or value.shape[1] != dim or value.shape[0] not in rows:
                shape = _checks.shape_of(value)
                raise ValueError(f"init_from_clusters: {name} is {shape}, but must be {expected}")
            if wrong := int((~value.isfinite()).sum()):
                raise ValueError(
                    f"init_from_clusters: {name} must be finite, but {wrong} values are NaN or infinite"
                )

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

    ``forward`` is that of `NetVLAD`, so a network evaluates as before;
    training takes `quarters` of the gallery images and compares them with
    ``sfrs_ext.region_similarity``.
    """

    def quarters(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, D, H, W]`` -> un-normalised VLADs of the four quarters ``[B, 4, K, D]``."""
        return self._apply_to(sfrs_ext.region_vlad, x, mask)
