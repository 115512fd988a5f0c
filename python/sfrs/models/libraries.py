"""Networks of timm and torchvision as backbones: ``timm:NAME`` and ``torchvision:NAME``.

A convolutional network is used up to its last map of stride 14 or 16, or else 32, and trained from the first
module that makes this map on; a vision transformer is used whole, its last blocks are trained. A name may say
otherwise: ``timm:resnet50,stride=32,trained=2``.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from torch import nn

from sfrs.models.backbones import Backbone, BackboneError, PretrainedWeightsError, Published
from sfrs.models.module_chain import ChainPart, Link, find_chain
from sfrs.models.tokens import Rotations, TimmEmbedding, TokenHead, TokenTrunk, TorchvisionEmbedding
from sfrs.models.weights_file import reason

STRIDES = (14, 16, 32)
ODD_SIZE = (69, 101)
TRAINED_BLOCKS = 4  # last blocks that are trained where all of a network's are of one stride


@dataclass(frozen=True)
class Spec:
    """What a name asks for, taken apart."""

    full: str
    library: str
    network: str
    stride: int = 0  # pixels per position of the local features; 0 for 14 or 16 if there are such, else 32
    # How many of the last modules with parameters, or blocks, are trained; 0 for the default.
    trained: int = 0

    @classmethod
    def parse(cls, name: str) -> "Spec":
        """Raises `BackboneError` if the name is not LIBRARY:NAME[,stride=N][,trained=N]."""
        match = re.fullmatch(r"(timm|torchvision):([^,=]+)((?:,(?:stride|trained)=\d+)*)", name)
        if match is None:
            raise BackboneError(
                f"backbone: {name!r} cannot be read; expected timm:NAME or torchvision:NAME, with "
                ",stride=N or ,trained=N after it."
            )
        options = dict(part.split("=") for part in match[3].split(",")[1:])
        spec = cls(name, match[1], match[2], **{key: int(value) for key, value in options.items()})
        if spec.stride not in (0, *STRIDES):
            raise BackboneError(f"backbone: {name!r} has stride {spec.stride}; expected 14, 16 or 32.")
        return spec


@dataclass(frozen=True)
class Transformer:
    """The parts of a vision transformer."""

    embedding: nn.Module
    blocks: list[nn.Module]
    norm: nn.Module
    channels: int
    prefix: int
    patch: int
    positions: nn.Module | None = None


class Timm:
    """A network of timm, before it is built; `build` raises what timm does without its weights."""

    def __init__(self, name: str):
        self.timm, self.name = _library("timm"), name
        self.transformers = (
            import_module("timm.models.vision_transformer").VisionTransformer,
            import_module("timm.models.eva").Eva,
        )
        config = self.timm.get_pretrained_cfg(name) if self.timm.is_model(name.partition(".")[0]) else None
        if config is None:
            raise BackboneError(f"backbone: timm {self.timm.__version__} has no network {name!r}.")
        self.mean, self.std = tuple(config.mean), tuple(config.std)
        source = config.hf_hub_id or config.url
        self.published = Published(source, config.license or "not stated") if source else None

    def build(self, pretrained: bool = False) -> nn.Module:
        with torch.device("meta"):
            kind = self.timm.create_model(self.name, num_classes=0)
        any_size = {"dynamic_img_size": True} if isinstance(kind, self.transformers) else {}
        return self.timm.create_model(self.name, pretrained=pretrained, num_classes=0, **any_size)

    def tokens(self, network: Any) -> Transformer | None:
        """Take a vision transformer apart; None for other networks."""
        if not isinstance(network, self.transformers):
            return None
        if getattr(network, "rope_mixed", False):
            raise BackboneError(f"backbone: timm:{self.name} rotates positions by depth, which is not read.")
        blocks, norm, rope = list(network.blocks), network.norm, getattr(network, "rope", None)
        patch = network.patch_embed.patch_size[0]
        positions = None if rope is None else Rotations(rope)
        sizes = (network.embed_dim, network.num_prefix_tokens, patch)
        return Transformer(TimmEmbedding(network), blocks, norm, *sizes, positions)


class Torchvision:
    """A network of torchvision, before it is built, see `Timm`."""

    def __init__(self, name: str):
        self.models, self.name = _library("torchvision").models, name
        if name not in self.models.list_models(module=self.models):
            raise BackboneError(f"backbone: torchvision has no classification network {name!r}.")
        weights = next(iter(self.weights), None)
        self.mean, self.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.published = None
        if weights is not None:
            transforms = weights.transforms()
            self.mean, self.std = tuple(transforms.mean), tuple(transforms.std)
            self.published = Published(weights.url, weights.meta.get("license", "BSD-3-Clause"))

    @cached_property
    def weights(self) -> Any:
        return self.models.get_model_weights(self.name)

    def build(self, pretrained: bool = False) -> nn.Module:
        return self.models.get_model(self.name, weights=next(iter(self.weights)) if pretrained else None)

    def tokens(self, network: Any) -> Transformer | None:
        if not isinstance(network, self.models.VisionTransformer):
            return None
        blocks, norm = list(network.encoder.layers), network.encoder.ln
        sizes = (network.hidden_dim, 1, network.patch_size)
        return Transformer(TorchvisionEmbedding(network), blocks, norm, *sizes)


class LibraryBackbone(Backbone):
    """A network of timm or torchvision by its name (`Spec`), in evaluation mode while it is trained, too:
    batch norm keeps the statistics of its weights, and nothing is dropped.

    Raises `BackboneError` if the library does not import, or has no such network, or that has no such map.
    """

    default_size = 224  # a multiple of all strides

    def __init__(self, name: str, *, pretrained: bool = False):
        spec = Spec.parse(name)
        source = (Timm if spec.library == "timm" else Torchvision)(spec.network)
        network = source.build(pretrained).eval()
        transformer = source.tokens(network)
        if transformer is None:
            trunk, head, channels, stride = _split_chain(spec, _chain(spec, network))
        else:
            trunk, head, channels, stride = _split_transformer(spec, transformer)
        super().__init__(
            trunk, head, name=name, channels=channels, stride=stride, mean=source.mean, std=source.std
        )
        self.published, self.exports_any_size = source.published, transformer is None
        self.train(False)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not in its stub

    def train(self, mode: bool = True) -> "LibraryBackbone":
        super().train(False)
        return self

    def load_pretrained(self) -> None:
        if self.published is None:
            return super().load_pretrained()
        try:
            pretrained = LibraryBackbone(self.name, pretrained=True)
        except Exception as error:  # of whatever the library downloads with
            raise PretrainedWeightsError(
                f"{self.name}: its weights could not be read from {self.published.source} ({reason(error)})."
            ) from error
        self.load_state_dict(pretrained.state_dict())


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except Exception as error:  # torchvision beside another torch than its own fails with RuntimeError
        raise BackboneError(
            f"backbone: {name} does not import beside torch {torch.__version__} ({reason(error)}); a "
            "pair that does is torch 2.14.1 with torchvision 0.29.1."
        ) from error


def _chain(spec: Spec, network: nn.Module) -> list[Link]:
    """Find the chain of a network that takes images of any size."""
    try:
        links = find_chain(network)
        with torch.no_grad():
            network(torch.zeros(1, 3, *ODD_SIZE, device=next(network.parameters()).device))
    except Exception as error:  # each network refuses a size in its own way
        raise BackboneError(
            f"backbone: {spec.full} does not take images of any size ({reason(error)}), as it has to."
        ) from error
    return links


def _split_chain(spec: Spec, links: list[Link]) -> tuple[nn.Module, nn.Module, int, int]:
    """Split a chain into trunk and head; returns them with the head's channels and stride."""
    strides = [link.stride for link in links]
    wanted = next((s for s in ((spec.stride,) if spec.stride else STRIDES) if s in strides), None)
    if wanted is None:
        raise BackboneError(
            f"backbone: {spec.full} has no map of stride {spec.stride or '14, 16 or 32'} at the end of a "
            f"chain of modules; it has {', '.join(map(str, dict.fromkeys(filter(None, strides)))) or 'none'}."
        )
    links = links[: len(strides) - strides[::-1].index(wanted)]
    while not links[-1].has_parameters:
        links.pop()
    first = strides.index(wanted)
    with_parameters = [i for i, link in enumerate(links) if link.has_parameters]
    _check_trained(spec, len(with_parameters))
    if not any(i < first for i in with_parameters):
        first = with_parameters[-min(TRAINED_BLOCKS, len(with_parameters) - 1)]
    if spec.trained:
        first = with_parameters[-spec.trained]
    while not links[first].has_parameters:
        first += 1
    trunk = ChainPart(links[:first])
    return trunk, ChainPart(links[first:], takes_channels_last=trunk.gives), links[-1].channels, wanted


def _split_transformer(spec: Spec, parts: Transformer) -> tuple[nn.Module, nn.Module, int, int]:
    if parts.patch not in ((spec.stride,) if spec.stride else STRIDES):
        raise BackboneError(
            f"backbone: {spec.full} has patches of {parts.patch} pixels; expected "
            f"{spec.stride or '14, 16 or 32'}."
        )
    _check_trained(spec, len(parts.blocks))
    trained = spec.trained or min(TRAINED_BLOCKS, len(parts.blocks) - 1)
    frozen, last = (nn.ModuleList(part) for part in (parts.blocks[:-trained], parts.blocks[-trained:]))
    trunk = TokenTrunk(parts.embedding, frozen, parts.prefix, parts.patch, parts.positions)
    head = TokenHead(last, parts.norm, parts.prefix, parts.positions)
    return trunk, head, parts.channels, parts.patch


def _check_trained(spec: Spec, count: int) -> None:
    trained = spec.trained or 1
    if trained >= count:
        raise BackboneError(
            f"backbone: {spec.full} would train {trained} of the {count} modules with parameters up to its "
            "map; expected fewer, since what comes before is frozen."
        )
