"""Frozen features that are computed once and kept.

The trunk below the trained head never changes during training, is the same in student and teacher, and
costs most of the network's time. So its outputs are kept: mining and validation then cost the head and
NetVLAD only. Training steps cost no more than that if images are not jittered, or if jittered variants of
every image are kept, too.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from sfrs.data.jitter import hashed
from sfrs.features.on_the_fly import OnTheFlyFeatures
from sfrs.features.source import Draw, FeatureSource


class CacheSettings(NamedTuple):
    """How frozen features are kept."""

    place: str = "ram"  # or gpu (memory of the trunk's device) or disk
    path: Path | None = None  # on disk, without suffix (see `sfrs.features.disk`); used again if it fits
    dtype: torch.dtype = torch.float16
    variants: int = 0  # jittered ones of every image that are kept, besides the image as it is
    budget: float | None = None  # bytes to keep at most; the rest is computed whenever asked for
    batch_size: int = 32  # features that are computed and written together


class CachePlan(NamedTuple):
    """Which features are kept: of the first images as they are, then the variants, image by image."""

    images: int  # of the data set
    variants: int  # of an image
    plain: int  # images, counted from the first, of which the features as they are are kept
    varied: int  # images, counted from the first, whose variants are kept; at most ``plain``

    @classmethod
    def within(cls, images: int, variants: int, row_bytes: int, budget: float | None) -> "CachePlan":
        """Keep what ``budget`` bytes hold; images as they are come first, because mining reads them most."""
        wanted = images * (1 + variants)
        rows = wanted if budget is None else min(wanted, int(budget // row_bytes))
        plain = min(images, rows)
        return cls(images, variants, plain, (rows - plain) // variants if variants else 0)

    @property
    def wanted(self) -> int:
        return self.images * (1 + self.variants)

    @property
    def rows(self) -> int:
        return self.plain + self.varied * self.variants

    def row(self, draw: Draw) -> int:
        """Return where a draw is kept; -1: it is not. The key of a variant is its number, from 0."""
        if draw.key is None:
            return draw.image if draw.image < self.plain else -1
        return self.plain + draw.image * self.variants + draw.key if draw.image < self.varied else -1

    def draws(self, images: Sequence[int]) -> list[Draw]:
        """List what is kept of ``images``, image by image."""
        keys = (None, *range(self.variants))
        return [Draw(i, key) for i in images for key in keys if key is None or i < self.varied]

    def row_ranges(self, images: range) -> list[range]:
        """Return the rows of a block: of its images as they are, and of their variants if those are kept."""
        found, many = [images], self.variants * len(images)
        if many and images.start < self.varied:
            first = self.row(Draw(images.start, 0))
            found.append(range(first, first + many))
        return found

    def blocks(self, size: int) -> list[range]:
        """Split the images of which something is kept: at most ``size``, as many draws of each."""
        parts = (range(self.varied), range(self.varied, self.plain))
        return [part[start : start + size] for part in parts for start in range(0, len(part), size)]


class FeatureCache(FeatureSource):
    """Kept features of images as they are; `sfrs.features.filling.build_cache` computes them.

    Args:
        features: ``[rows, C, h, w]``, in any floating type. Fastest in channels_last.
        plan: what is in which row; by default row i is image i as it is.
        source: computes what the plan does not keep.
        file: that ``features`` is mapped from, opened: its name may go to another run's cache meanwhile.
    """

    def __init__(
        self,
        features: Tensor,
        device: str | torch.device = "cpu",
        *,
        plan: CachePlan | None = None,
        source: OnTheFlyFeatures | None = None,
        file: IO | None = None,
    ) -> None:
        self.features, self.device = features, torch.device(device)
        self.plan = plan or CachePlan(len(features), 0, len(features), 0)
        self.source, self.file = source, file

    def __len__(self) -> int:
        return self.plan.images

    def read(self, draws: Sequence[Draw]) -> Tensor:
        """Return features of images as they are or of variants, float32 ``[len(draws), C, h, w]``.

        What is not kept is computed and rounded to the cache's type, so that the budget changes nothing.
        """
        rows = torch.tensor([self.plan.row(draw) for draw in draws])
        kept, missing = (rows >= 0).nonzero().flatten(), (rows < 0).nonzero().flatten()
        if len(missing) == 0:
            return self._kept(rows)
        shape = self.features.permute(0, 2, 3, 1).shape[1:]
        out = torch.empty(len(rows), *shape, device=self.device).permute(0, 3, 1, 2)
        assert self.source is not None  # a plan without one keeps everything
        computed = self.source.read(self._missing(draws), self.features.dtype)
        out.index_copy_(0, missing.to(self.device), computed.float())
        if len(kept):
            out.index_copy_(0, kept.to(self.device), self._kept(rows[kept]))
        return out

    def prefetch_draws(self, draws: Sequence[Draw]) -> None:
        if self.source is not None:
            self.source.prefetch_draws(self._missing(draws))
        if self.file is not None and hasattr(os, "posix_fadvise"):
            size = self.features[:1].nbytes
            for row in map(self.plan.row, draws):
                if row >= 0:
                    os.posix_fadvise(self.file.fileno(), row * size, size, os.POSIX_FADV_WILLNEED)

    def _missing(self, draws: Sequence[Draw]) -> list[Draw]:
        return [draw for draw in draws if self.plan.row(draw) < 0]

    def _kept(self, rows: Tensor) -> Tensor:
        # Whole rows of [rows, h, w, C] are copied as they lie, in half of float32's bytes as far as possible.
        lying = self.features.permute(0, 2, 3, 1)
        chosen = lying.index_select(0, rows.to(lying.device, non_blocking=True))
        if self.device.type == "cuda" and chosen.device.type == "cpu":
            chosen = chosen.pin_memory()
        return chosen.to(self.device, non_blocking=True).float().permute(0, 3, 1, 2)


class JitteredFeatures(FeatureSource):
    """Features of one kept variant of each image, drawn by (seed, step, image) alone."""

    def __init__(self, cache: FeatureCache, seed: int) -> None:
        if not cache.plan.variants:
            raise ValueError("JitteredFeatures: the cache holds no jittered variants")
        self.cache, self.seed = cache, seed

    def draws(self, images: Tensor, step: int) -> list[Draw]:
        variants = self.cache.plan.variants
        return [Draw(image, hashed(self.seed, step, image) % variants) for image in images.tolist()]

    def read(self, draws: Sequence[Draw]) -> Tensor:
        return self.cache.read(draws)

    def prefetch_draws(self, draws: Sequence[Draw]) -> None:
        self.cache.prefetch_draws(draws)
