"""Filling a cache of frozen features: in memory or on disk, by one process or several."""

import hashlib
import re
from collections.abc import Callable, Iterator
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
from sfrs.runtime.progress import Progress, silent

Say = Callable[[str], None]


def build_cache(
    source: OnTheFlyFeatures,
    settings: CacheSettings | None = None,
    *,
    processes: Processes | None = None,
    say: Say = lambda text: None,
    progress: Progress = silent,
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
    if len(source) == 0:
        raise UserError("trunk cache: there are no images")
    filling = _Filling(source, settings or CacheSettings(), processes or Processes(), progress)
    rows, file = filling.disk(say) if filling.settings.place == "disk" else filling.memory(say)
    features = rows.permute(0, 3, 1, 2)
    return FeatureCache(features, source.device, plan=filling.plan, source=source, file=file)


class _Filling:
    """The rows ``[rows, h, w, C]`` of a cache that is to be filled, by several processes together."""

    def __init__(
        self, source: OnTheFlyFeatures, settings: CacheSettings, processes: Processes, progress: Progress
    ) -> None:
        self.source, self.settings, self.processes, self.progress = source, settings, processes, progress
        channels, height, width = source.trunk.output_shape(source.size)
        self.dtype = settings.dtype
        self.row_bytes = channels * height * width * self.dtype.itemsize
        self.plan = CachePlan.within(len(source), settings.variants, self.row_bytes, settings.budget)
        self.shape = self.plan.rows, height, width, channels
        self.block_size = max(1, settings.batch_size // (1 + settings.variants))
        self.blocks = self.plan.blocks(self.block_size)

    def memory(self, say: Say) -> tuple[Tensor, None]:
        """Compute all rows; each process computes its blocks and is given the others'."""
        joined, on_gpu = self.processes, self.settings.place == "gpu"
        device = self.source.device if on_gpu else torch.device("cpu")
        if on_gpu and device.type == "cpu":
            raise UserError("trunk_cache is gpu, but the device is cpu; expected ram, disk or off")
        self._announce(f"in the memory of {device}" if on_gpu else "in memory", say)
        _refuse_too_large(self.plan.rows * self.row_bytes, device, joined.local_count)
        out = torch.empty(self.shape, dtype=self.dtype, device=device)
        for _, parts in self._computed(list(range(len(self.blocks)))):
            for where, rows in parts:
                out[where.start : where.stop] = rows
        for number, images in enumerate(self.blocks if joined.count > 1 else ()):
            for where in self.plan.row_ranges(images):
                # As bytes, because not every back end knows every float type.
                joined.broadcast_(out[where.start : where.stop].view(torch.uint8), number % joined.count)
        return out, None

    def disk(self, say: Say) -> tuple[Tensor, IO]:
        """Compute the rows that are not on the disk yet; return them mapped, and their file, opened."""
        joined = self.processes
        assert self.settings.path is not None
        kept = DiskRows(self.settings.path, self._facts(), self.shape, self.dtype, len(self.blocks))
        try:
            if joined.is_main:
                self._announce(f"in {kept.path}", say)
                kept.open(say)
            joined.barrier()
            for number, parts in self._computed(kept.left()):
                for where, rows in parts:
                    kept.write(where.start, rows)
                kept.finish(number)
            joined.barrier()
            mapped = kept.read(), open(kept.path, "rb")
            joined.barrier()  # once the lock is let go, another run may put its own cache here
        finally:
            kept.close()
        return mapped

    def _computed(self, left: list[int]) -> Iterator[tuple[int, list[tuple[range, Tensor]]]]:
        """Compute this process's share of the blocks that are left: of each, rows and what belongs there."""
        joined, blocks = self.processes, self.blocks
        mine = left[joined.rank :: joined.count]
        for place, number in enumerate(mine):
            for soon in mine[place : place + 2]:
                self.source.prefetch_draws(self.plan.draws(blocks[soon]))
            images, draws = blocks[number], self.plan.draws(blocks[number])
            features = self.source.read(draws, self.dtype)
            bad = ~features.isfinite().flatten(1).all(dim=1)
            if bad.any():
                file = self.source.files[draws[int(bad.nonzero()[0])].image]
                raise UserError(
                    f"trunk cache: the trunk's outputs of {file} are not finite as {_name(self.dtype)}; try "
                    "--cache-dtype float32"
                )
            features = features.permute(0, 2, 3, 1).unflatten(0, (len(images), -1))
            parts = features[:, :1].flatten(0, 1), features[:, 1:].flatten(0, 1)  # as they are, and variants
            yield number, list(zip(self.plan.row_ranges(images), parts, strict=False))
            filled = len(blocks) - len(left) + min(len(left), (place + 1) * joined.count)
            self.progress(blocks[filled - 1].stop, self.plan.plain)

    def _announce(self, where: str, say: Say) -> None:
        """Say how large the cache will be, and what it does not hold."""
        plan, row = self.plan, self.row_bytes / 1e9
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
        plan, source, jitter = self.plan, self.source, self.source.jitter
        return {
            "trunk": source.trunk.fingerprint(),
            "images": _fingerprint(source.files),
            "image size": list(source.size),
            "autocast": source.trunk.autocast,
            "plain outputs": plan.plain,
            "jittered images": plan.varied,
            "variants": plan.variants,
            "jitter": [*jitter.amounts, jitter.seed] if jitter and plan.variants else None,
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

    Each of the ``processes`` of this machine has a GPU of its own, but all share its memory.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _available_memory()
    count = 1 if device.type == "cuda" else processes
    if free is not None and needed * count > free:
        each = f" in each of {count} processes" if count > 1 else ""
        raise UserError(
            f"trunk cache: {needed / 1e9:.1f} GB are needed in the memory of {device}{each}, but "
            f"{free / 1e9:.1f} GB are free; set --cache-gigabytes or --trunk-cache disk"
        )


def _available_memory() -> int | None:
    """Return the bytes that can be used without swapping; None where the system does not tell."""
    table = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", table.read_text() if table.exists() else "")
    return None if found is None else 1024 * int(found[1])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
