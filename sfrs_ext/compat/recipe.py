"""How the tensors and habits of somebody else's NetVLAD layer map to the operator's arguments."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import _operators
from ..reference import EPS, positions_first
from .forms import Form, Lists, Mask


@dataclass(frozen=True)
class Recipe:
    """What `aggregate` needs to know to stand in for a layer's ``forward``.

    Tensors are named and read at every call, so that optimisers, ``.to()`` and replaced parameters are seen.
    """

    assignment: str  # a child with ``weight`` (1x1 convolution, linear), or a parameter [K + G, D]
    clusters: int  # K
    ghost_clusters: int  # G
    dim: int  # D
    assignment_transposed: bool = False  # that parameter is [D, K + G]
    bias: str | None = None  # [K + G]: a parameter beside one, or the child's, "conv.bias"
    ignores_bias: bool = False  # the child has one that takes no part
    scale: str | None = None  # attribute the logits are multiplied by
    scale_divides: bool = False  # or divided by
    batch_norm: str | None = None  # child that normalises the logits
    centroids: str | None = None  # parameter or buffer [K, D]; of K + G rows the last G are ignored
    centroids_transposed: bool = False  # it is [D, K]
    normalize_input: bool = True
    intra_norm: bool = True
    l2_norm: bool = True
    forms: tuple[Form, ...] = ()  # on which the layer runs; where an input fits several, the first holds
    lists: Lists | None = None
    mask: str | None = None  # the argument that weighs the positions,
    masks: tuple[Mask, ...] = ()  # and the forms in which it may come
    ignored: tuple[str, ...] = ()  # arguments that change nothing
    unforeseen: tuple[str, ...] = ()  # arguments with which the layer's own ``forward`` has to be called

    @property
    def kind(self) -> str:
        """The layer in the field's words."""
        parts = [
            "NetVLAD" if self.centroids else "VLAD without centroids",
            self.bias and "bias",
            self.batch_norm and "batch norm",
            self.scale and f"scale {self.scale}",
            self.ghost_clusters and f"ghost clusters: {self.ghost_clusters}",
        ]
        return ", ".join(part for part in parts if part)

    @property
    def steps(self) -> str:
        """The optional normalisations in their order."""
        present = {"input": self.normalize_input, "intra": self.intra_norm, "L2": self.l2_norm}
        return (" + ".join(name for name in present if present[name]) or "no") + " norm"

    @property
    def calls(self) -> str:
        """The forms of call: which of them are fused, and which are not."""
        fused = [f"{form.layout.text} -> {form.result}" for form in self.forms if form.result]
        own = [form.layout.text for form in self.forms if not form.result and form.layout.batched]
        masks = " or ".join(dict.fromkeys(mask.form for mask in self.masks))
        parts = [
            "; ".join(fused),
            self.lists and f"lists of {self.lists.form.layout.text}: {self.lists.way}",
            self.mask and f"mask: {self.mask} {masks}",
            self.ignored and f"ignored: {', '.join(self.ignored)}",
            (own or self.unforeseen) and f"own forward: {', '.join((*own, *self.unforeseen))}",
        ]
        return "; ".join(part for part in parts if part)


def aggregate(layer: nn.Module, recipe: Recipe, form: Form, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute ``layer(x)`` by the fused operator, in the layer's own form of result; ``mask`` is ``[B, N]``.

    Under autocast it computes in float32 and returns float32, as sums over residuals in eager torch do.
    """
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return _aggregate(layer, recipe, form, x if x.dtype == torch.float64 else x.float(), mask)
    return _aggregate(layer, recipe, form, x, mask)


def _aggregate(layer: nn.Module, recipe: Recipe, form: Form, x: Tensor, mask: Tensor | None) -> Tensor:
    maps = form.layout.as_map(x)
    weight, bias = _assignment(layer, recipe)
    norm = None if recipe.batch_norm is None else getattr(layer, recipe.batch_norm)
    arguments: dict = dict(weight=weight, bias=bias)
    if norm is not None and (norm.training or norm.running_mean is None):
        arguments = dict(logits=_normalised_logits(maps, weight, bias, norm, recipe.normalize_input))
    elif norm is not None:
        arguments = _folded(weight, bias, norm)
    vlad = _operators.netvlad(
        maps,
        centroids=_centroids(layer, recipe),
        mask=None if mask is None else mask.to(x.dtype),
        ghost_clusters=recipe.ghost_clusters,
        normalize_input=recipe.normalize_input,
        intra_norm=recipe.intra_norm,
        l2_norm=recipe.l2_norm,
        flatten=form.is_flat,
        **arguments,
    )
    return form.arranged(vlad, x)


def as_matrix(tensor: Tensor) -> Any:
    """A view without dimensions of size one in front (``[1, D, K]``) or behind (1x1 kernels), or None."""
    sizes = tensor.shape
    if len(sizes) == 3 and sizes[0] == 1:
        return tensor[0]
    if len(sizes) > 2 and all([size == 1 for size in sizes[2:]]):
        return tensor.flatten(1)
    return tensor if len(sizes) == 2 else None


def _assignment(layer: nn.Module, recipe: Recipe) -> tuple[Tensor, Tensor | None]:
    """Weights ``[K + G, D]`` and bias ``[K + G]``, times the scale."""
    owner: Any = getattr(layer, recipe.assignment)
    if isinstance(owner, Tensor):
        weight = as_matrix(owner).T if recipe.assignment_transposed else as_matrix(owner)
        bias = None if recipe.bias is None else getattr(layer, recipe.bias).flatten()
    else:
        weight, bias = as_matrix(owner.weight), None if recipe.ignores_bias else owner.bias
    if recipe.scale is None:
        return weight, bias
    scale: Any = getattr(layer, recipe.scale)
    scale = scale.reshape(()) if isinstance(scale, Tensor) else scale
    scale = 1 / scale if recipe.scale_divides else scale
    return weight * scale, None if bias is None else bias * scale


def _centroids(layer: nn.Module, recipe: Recipe) -> Tensor | None:
    if recipe.centroids is None:
        return None
    centroids = as_matrix(getattr(layer, recipe.centroids))
    centroids = centroids.T if recipe.centroids_transposed else centroids
    return centroids if len(centroids) == recipe.clusters else centroids[: recipe.clusters]


def _normalised_logits(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: nn.Module, normalize_input: bool
) -> Tensor:
    """Logits ``[B, P, K + G]`` after batch norm with the statistics of this batch."""
    positions = positions_first(x)
    logits = positions @ weight.T  # [B, P, K + G]
    if normalize_input:
        logits = logits / positions.norm(dim=-1, keepdim=True).clamp_min(EPS)
    logits = logits if bias is None else logits + bias
    rows = logits.flatten(0, 1)
    rows = norm(rows[..., None, None]).flatten(1) if isinstance(norm, nn.BatchNorm2d) else norm(rows)
    return rows.view_as(logits)


def _folded(weight: Tensor, bias: Tensor | None, norm: Any) -> dict[str, Tensor]:
    """Batch norm with fixed statistics is another weight and bias: ``(W x + b - mean) g / s + h``."""
    gain = (norm.running_var + norm.eps).rsqrt()
    gain = gain if norm.weight is None else gain * norm.weight
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    shift = shift * gain if norm.bias is None else shift * gain + norm.bias
    return dict(weight=weight * gain[:, None], bias=shift)
