"""Outputs of the frozen trunk, computed once and kept.

The trunk below the trained head never changes during training, is the same in student and teacher, and
costs most of the network's time. So its outputs are kept: mining and validation then cost the head and
NetVLAD only. Training steps cost no more than that if images are not jittered, or if jittered variants of
every image are kept, too.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from sfrs.data.images import Progress
from sfrs.data.jitter import ColorJitter, hashed
from sfrs.features.building import Heard, Rows, fill_disk, fill_memory, unheard
from sfrs.features.frozen import FrozenTrunk
from sfrs.features.on_the_fly import Draw, FreshTrunk
from sfrs.features.plan import CachePlan
from sfrs.models.network import DescriptorNetwork
from sfrs.runtime.distributed import Processes
from sfrs.runtime.errors import UserError


class TrunkCache:
    """Trunk outputs of a list of images; a `sfrs.features.source.TrunkSource` of images as they are.

    Args:
        outputs: ``[rows, C, h, w]``, in any floating type; on any device. Fastest in channels_last.
        device: where `__call__` puts what it returns.
        plan: what is in which row; by default row i is image i as it is.
        fresh: computes what the plan does not keep.
        file: that ``outputs`` is mapped from, opened: its name may go to another run's cache meanwhile.
    """

    def __init__(
        self,
        outputs: Tensor,
        device: str | torch.device = "cpu",
        *,
        plan: CachePlan | None = None,
        fresh: FreshTrunk | None = None,
        file: IO | None = None,
    ) -> None:
        self.outputs, self.device = outputs, torch.device(device)
        self.plan = plan or CachePlan(len(outputs), 0, len(outputs), 0)
        self.fresh, self.file = fresh, file

    def __len__(self) -> int:
        return self.plan.images

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        return self.outputs.numel() * self.outputs.itemsize

    def __call__(self, images: Tensor, *, step: int = 0) -> Tensor:
        """Trunk outputs of ``images`` (int64 ``[b]``), float32 ``[b, C, h, w]``; the same in every step."""
        return self.read([Draw(image) for image in images.tolist()])

    def load_ahead(self, images: Tensor, *, step: int = 0) -> None:
        """Begin to load what a call with the same arguments will ask for."""
        self.read_ahead([Draw(image) for image in images.tolist()])

    def jittered(self, seed: int) -> "JitteredCache":
        """The source of training steps: of every image one of its variants."""
        return JitteredCache(self, seed)

    def read(self, draws: Sequence[Draw]) -> Tensor:
        """Outputs of images as they are or of variants, float32 ``[len(draws), C, h, w]``, channels_last.

        What is not kept is computed and rounded to the cache's type, so that the budget changes nothing.
        """
        rows = torch.tensor([self.plan.row(draw) for draw in draws])
        kept, missing = (rows >= 0).nonzero().flatten(), (rows < 0).nonzero().flatten()
        if len(missing) == 0:
            return self._kept(rows)
        outputs = self.outputs
        out = torch.empty(len(rows), *outputs.permute(0, 2, 3, 1).shape[1:], device=self.device)
        out = out.permute(0, 3, 1, 2)
        computed = self.fresh.outputs(self._missing(draws), outputs.dtype)
        out.index_copy_(0, missing.to(self.device), computed.float())
        if len(kept):
            out.index_copy_(0, kept.to(self.device), self._kept(rows[kept]))
        return out

    def read_ahead(self, draws: Sequence[Draw]) -> None:
        """Begin to load what `read` will be asked for."""
        if self.fresh is not None:
            self.fresh.load_draws_ahead(self._missing(draws))
        if self.file is not None and hasattr(os, "posix_fadvise"):
            size = self.outputs[:1].numel() * self.outputs.itemsize
            for row in map(self.plan.row, draws):
                if row >= 0:
                    os.posix_fadvise(self.file.fileno(), row * size, size, os.POSIX_FADV_WILLNEED)

    def _missing(self, draws: Sequence[Draw]) -> list[Draw]:
        return [draw for draw in draws if self.plan.row(draw) < 0]

    def _kept(self, rows: Tensor) -> Tensor:
        # Whole rows of [rows, h, w, C] are copied as they lie, in half of float32's bytes as far as possible.
        chosen = self.outputs.permute(0, 2, 3, 1).index_select(
            0, rows.to(self.outputs.device, non_blocking=True)
        )
        if self.device.type == "cuda" and chosen.device.type == "cpu":
            chosen = chosen.pin_memory()
        return chosen.to(self.device, non_blocking=True).float().permute(0, 3, 1, 2)

    @classmethod
    def build(
        cls,
        network: DescriptorNetwork | FrozenTrunk,
        files: Sequence[Path],
        size: tuple[int, int],
        *,
        place: str = "ram",
        path: Path | None = None,
        dtype: torch.dtype = torch.float16,
        variants: int = 0,
        jitter: ColorJitter | None = None,
        budget: float | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 32,
        threads: int = 2,
        processes: Processes | None = None,
        say: Heard = unheard,
        progress: Progress | None = None,
    ) -> "TrunkCache":
        """Run the trunk over ``files`` once, or read what an earlier run left on the disk.

        Args:
            size: (height, width) the images are resized to.
            place: ram, gpu (``device``'s memory) or disk.
            path: of a cache on disk, without suffix (see `sfrs.features.disk`); used again if it fits.
            dtype: number format in the cache; float16 and bfloat16 halve the memory.
            variants: of every image, jittered by ``jitter``, that are kept beside the image as it is.
            budget: bytes to keep at most; what they do not hold is computed whenever asked for.
            processes: share the work; each has all the rows in the end.
            say: hears what the user should know: sizes, what is used again and what not.
            progress: called with (done, n).

        Raises:
            BadImageError: a file cannot be read.
            UserError: an output is not finite in ``dtype``; or there are no images; or memory or disk do
                not suffice.
        """
        if len(files) == 0:
            raise UserError("trunk cache: there are no images")
        trunk = network if isinstance(network, FrozenTrunk) else FrozenTrunk(network, device=device)
        fresh = FreshTrunk(trunk, files, size, jitter=jitter, threads=threads)
        channels, height, width = trunk.output_shape(tuple(size))
        row = height, width, channels
        row_bytes = height * width * channels * dtype.itemsize
        plan = CachePlan.within(len(files), variants, row_bytes, budget)
        rows = Rows(fresh, plan, row, dtype, batch_size, processes or Processes(), say, progress)
        outputs, file = fill_disk(rows, path) if place == "disk" else (fill_memory(rows, place), None)
        return cls(outputs.permute(0, 3, 1, 2), trunk.device, plan=plan, fresh=fresh, file=file)


class JitteredCache:
    """Training steps from a cache's variants: a `sfrs.features.source.TrunkSource`.

    An image's variant in a step is drawn by (seed, step, image) alone.
    """

    def __init__(self, cache: TrunkCache, seed: int) -> None:
        if not cache.plan.variants:
            raise ValueError("JitteredCache: the trunk cache holds no jittered variants")
        self.cache, self.seed = cache, seed

    def __call__(self, images: Tensor, *, step: int = 0) -> Tensor:
        """Trunk outputs of ``images`` (int64 ``[b]``), float32 ``[b, C, h, w]``, of one variant each."""
        return self.cache.read(self.draws(images, step))

    def load_ahead(self, images: Tensor, *, step: int = 0) -> None:
        """Begin to load what a call with the same arguments will ask for."""
        self.cache.read_ahead(self.draws(images, step))

    def draws(self, images: Tensor, step: int) -> list[Draw]:
        """Which variants a step gets."""
        variants = self.cache.plan.variants
        return [Draw(image, hashed(self.seed, step, image) % variants) for image in images.tolist()]
