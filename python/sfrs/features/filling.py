"""Filling a cache of frozen features: in memory or on disk, by one process or several."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from sfrs.data.images import BadImageError
from sfrs.features.cache import CachePlan, CacheSettings, FeatureCache
from sfrs.features.disk import DiskRows
from sfrs.features.on_the_fly import OnTheFlyFeatures
from sfrs.runtime.distributed import Processes
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress

Say = Callable[[str], None]


def build_cache(
    source: OnTheFlyFeatures,
    settings: CacheSettings | None = None,
    *,
    processes: Processes | None = None,
    say: Say = lambda text: None,
    progress: Progress | None = None,
) -> FeatureCache:
    """Compute the features of all images of ``source`` once, or read what an earlier run left on the disk.

    Args:
        processes: share the work; each has all the rows in the end.
        say: is given what the user should know: sizes, what is used again and what not.
        progress: called with (done, n) images.

    Raises:
        BadImageError: a file cannot be read.
        UserError: a feature is not finite in ``settings.dtype``; or there are no images; or memory or disk do
            not suffice.
    """
    settings = settings or CacheSettings()
    if len(source) == 0:
        raise UserError("trunk cache: there are no images")
    channels, height, width = source.trunk.output_shape(source.size)
    row_bytes = channels * height * width * settings.dtype.itemsize
    plan = CachePlan.within(len(source), settings.variants, row_bytes, settings.budget)
    filling = _Filling(source, settings, plan, (plan.rows, height, width, channels), processes or Processes())
    rows, file = (filling.disk if settings.place == "disk" else filling.memory)(say, progress)
    return FeatureCache(rows.permute(0, 3, 1, 2), source.device, plan=plan, source=source, file=file)


@dataclass
class _Filling:
    """The rows ``[rows, h, w, C]`` of a cache that is to be filled, by several processes together."""

    source: OnTheFlyFeatures
    settings: CacheSettings
    plan: CachePlan
    shape: tuple[int, int, int, int]
    processes: Processes

    def __post_init__(self) -> None:
        self.dtype = self.settings.dtype
        self.block_size = max(1, self.settings.batch_size // (1 + self.plan.variants))
        self.blocks = self.plan.blocks(self.block_size)

    def memory(self, say: Say, progress: Progress | None) -> tuple[Tensor, None]:
        """Compute all rows; each process computes its blocks and is given the others'."""
        joined, device = self.processes, torch.device("cpu")
        if self.settings.place == "gpu":
            device = self.source.device
            if device.type == "cpu":
                raise UserError("trunk_cache is gpu, but the device is cpu; expected ram, disk or off")
        self._announce(f"in the memory of {device}" if self.settings.place == "gpu" else "in memory", say)
        _refuse_too_large(prod(self.shape) * self.dtype.itemsize, device, joined.local_count)
        out = torch.empty(self.shape, dtype=self.dtype, device=device)

        def write(first: int, rows: Tensor) -> None:
            out[first : first + len(rows)] = rows

        self._fill(list(range(len(self.blocks))), write, lambda block: None, progress)
        for number, images in enumerate(self.blocks if joined.count > 1 else ()):
            for where in self.plan.row_ranges(images):
                # As bytes, because not every back end knows every float type.
                content = out[where.start : where.stop].view(torch.uint8)
                joined.broadcast_(content, number % joined.count)
        return out, None

    def disk(self, say: Say, progress: Progress | None) -> tuple[Tensor, IO]:
        """Compute the rows that are not on the disk yet; return them mapped, and their file, opened."""
        joined = self.processes
        rows = DiskRows(self.settings.path, self._facts(), self.shape, self.dtype, len(self.blocks))
        try:
            if joined.is_main:
                self._announce(f"in {rows.path}", say)
                rows.open(say)
            joined.barrier()
            self._fill(rows.left(), rows.write, rows.finish, progress)
            joined.barrier()
            mapped = rows.read(), open(rows.path, "rb")
            joined.barrier()  # once the lock is let go, another run may put its own cache here
        finally:
            rows.close()
        return mapped

    def _fill(
        self,
        left: list[int],
        write: Callable[[int, Tensor], None],
        finish: Callable[[int], None],
        progress: Progress | None,
    ) -> None:
        """Compute and write this process's share of the blocks that are left."""
        joined, plan, blocks = self.processes, self.plan, self.blocks
        mine = left[joined.rank :: joined.count]
        for place, number in enumerate(mine):
            for soon in mine[place : place + 2]:
                self.source.prefetch_draws(plan.draws(blocks[soon]))
            features = self._computed(blocks[number])
            parts = features.split([1, features.shape[1] - 1], dim=1) if features.shape[1] > 1 else [features]
            for where, part in zip(plan.row_ranges(blocks[number]), parts, strict=True):
                write(where.start, part.flatten(0, 1))
            finish(number)
            if progress is not None:
                filled = len(blocks) - len(left) + min(len(left), (place + 1) * joined.count)
                progress(blocks[filled - 1].stop, plan.plain)

    def _computed(self, images: range) -> Tensor:
        """Return ``[images, draws, h, w, C]``."""
        draws = self.plan.draws(images)
        features = self.source.compute(draws, self.dtype)
        bad = ~features.isfinite().flatten(1).all(dim=1)
        if bad.any():
            file = self.source.files[draws[int(bad.nonzero()[0])].image]
            raise UserError(
                f"trunk cache: the trunk's outputs of {file} are not finite as {_name(self.dtype)}; try "
                "--cache-dtype float32"
            )
        return features.permute(0, 2, 3, 1).unflatten(0, (len(images), -1))

    def _announce(self, where: str, say: Say) -> None:
        """Say how large the cache will be, and what it does not hold."""
        plan, row = self.plan, prod(self.shape[1:]) * self.dtype.itemsize / 1e9
        kind = f"{plan.images} images"
        if plan.variants:
            kind += f" and {plan.variants} jittered variants of each"
        say(f"Frozen features of {kind}: {plan.rows * row:.2f} GB {where} ({_name(self.dtype)})")
        if plan.rows < plan.wanted:
            say(
                f"--cache-gigabytes holds {plan.rows} of {plan.wanted} features "
                f"({100 * plan.rows / plan.wanted:.0f} %; all would be {plan.wanted * row:.2f} GB); "
                "the others are computed whenever they are needed"
            )

    def _facts(self) -> dict:
        """Collect what decides the content of the rows."""
        plan, source = self.plan, self.source
        return {
            "trunk": source.trunk.fingerprint(),
            "images": _fingerprint(source.files),
            "image size": list(source.size),
            "autocast": source.trunk.autocast,
            "plain outputs": plan.plain,
            "jittered images": plan.varied,
            "variants": plan.variants,
            "jitter": [*source.jitter.amounts, source.jitter.seed] if plan.variants else None,
            "block size": self.block_size,
        }


def _fingerprint(files: tuple[Path, ...]) -> str:
    """Digest names and sizes in bytes: folders may move, and an edited image hardly keeps its size."""
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode(errors="surrogateescape"))
        except OSError:
            raise BadImageError(f"{file}: there is no such image file.") from None
    return digest.hexdigest()[:16]


def _refuse_too_large(needed: int, device: torch.device, processes: int) -> None:
    """Raise `UserError` before the system kills the process for the memory it takes.

    Args:
        processes: of this machine; each has a GPU of its own, but all share the host's memory.
    """
    if device.type == "cuda":
        free, processes = torch.cuda.mem_get_info(device)[0], 1
    else:
        free = _available_memory()
    if free is not None and needed * processes > free:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"trunk cache: {needed / 1e9:.1f} GB are needed in the memory of {device}{each}, but "
            f"{free / 1e9:.1f} GB are free; set --cache-gigabytes or --trunk-cache disk"
        )


def _available_memory() -> int | None:
    """Return the bytes that can be used without swapping; None where the system does not tell."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
