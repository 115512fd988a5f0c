"""Filling a trunk cache: in memory or on disk, by one process or several."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from sfrs.data.images import BadImageError, Progress
from sfrs.features.disk import DiskCache
from sfrs.features.on_the_fly import Draw, FreshTrunk
from sfrs.features.plan import CachePlan
from sfrs.runtime.distributed import Processes
from sfrs.runtime.errors import UserError

Heard = Callable[[str], None]
"""Takes a message to the user."""


def unheard(message: str) -> None:
    """Takes a message to nobody."""


@dataclass(frozen=True)
class Rows:
    """The rows of a cache that is to be filled.

    Attributes:
        fresh: computes them.
        plan: what they are.
        shape: of one row, (h, w, C).
        dtype: in which they are kept.
        batch_size: outputs computed and written together.
        processes: share the work.
        say, progress: watch.
    """

    fresh: FreshTrunk
    plan: CachePlan
    shape: tuple[int, int, int]
    dtype: torch.dtype
    batch_size: int
    processes: Processes
    say: Heard
    progress: Progress | None

    @property
    def bytes(self) -> int:
        return self.plan.rows * prod(self.shape) * self.dtype.itemsize

    @property
    def block(self) -> int:
        """Images in a block."""
        return max(1, self.batch_size // (1 + self.plan.variants))

    def announce(self, where: str) -> None:
        """Say how large the cache will be, and what it does not hold."""
        plan = self.plan
        kind = f"{plan.images} images" + (
            f" and {plan.variants} jittered variants of each" * bool(plan.variants)
        )
        self.say(f"Trunk outputs of {kind}: {self.bytes / 1e9:.2f} GB {where} ({_name(self.dtype)})")
        if not plan.complete:
            wanted = plan.images * (1 + plan.variants)
            gigabytes = wanted * prod(self.shape) * self.dtype.itemsize / 1e9
            self.say(
                f"--cache-gigabytes holds {plan.rows} of {wanted} outputs ({100 * plan.rows / wanted:.0f} %; "
                f"all would be {gigabytes:.2f} GB); the others are computed whenever they are needed"
            )

    def compute(self, images: range) -> Tensor:
        """Outputs of the draws of a block's images, ``[images, draws, h, w, C]``."""
        draws = self._draws(images)
        outputs = self.fresh.outputs(draws, self.dtype)
        bad = ~outputs.isfinite().flatten(1).all(dim=1)
        if bad.any():
            file = self.fresh.files[draws[int(bad.nonzero()[0])].image]
            raise UserError(
                f"trunk cache: the trunk's outputs of {file} are not finite as {_name(self.dtype)}; try "
                "--cache-dtype float32"
            )
        per_image = len(draws) // max(1, len(images))
        return outputs.permute(0, 2, 3, 1).unflatten(0, (len(images), per_image))

    def load_ahead(self, images: range) -> None:
        self.fresh.load_draws_ahead(self._draws(images))

    def _draws(self, images: range) -> list[Draw]:
        return [draw for image in images for draw in self.plan.draws(image)]


def fill_memory(rows: Rows, place: str) -> Tensor:
    """Compute all rows ``[rows, h, w, C]``; processes share every block and give each other the rest."""
    plan, joined = rows.plan, rows.processes
    device = rows.fresh.device if place == "gpu" else torch.device("cpu")
    if place == "gpu" and device.type == "cpu":
        raise UserError("trunk_cache is gpu, but the device is cpu; expected ram, disk or off")
    rows.announce(f"in the memory of {device}" if place == "gpu" else "in memory")
    _refuse_too_large(rows.bytes, device, joined.local_count)
    out = torch.empty(plan.rows, *rows.shape, dtype=rows.dtype, device=device)
    blocks = plan.blocks(rows.block * joined.count)
    for number, images in enumerate(blocks):
        for soon in blocks[number : number + 2]:
            rows.load_ahead(soon[joined.share(len(soon))])
        block = _gathered(rows, images).to(device)
        out[images.start : images.stop] = block[:, 0]
        if block.shape[1] > 1:
            first = plan.row(Draw(images.start, 0))
            out[first : first + len(images) * plan.variants] = block[:, 1:].flatten(0, 1)
        if rows.progress is not None:
            rows.progress(images.stop, plan.plain)
    return out


def fill_disk(rows: Rows, path: Path) -> tuple[Tensor, IO]:
    """Compute the rows ``[rows, h, w, C]`` that are not on the disk yet; processes share the blocks.

    Returns:
        The rows, mapped into memory, and the opened file they lie in.
    """
    plan, joined = rows.plan, rows.processes
    blocks = plan.blocks(rows.block)
    cache = DiskCache(path, _facts(rows), (plan.rows, *rows.shape), rows.dtype, len(blocks))
    try:
        if joined.is_main:
            rows.announce(f"in {cache.rows}")
            cache.open(rows.say)
        joined.barrier()
        done = cache.done()
        left = [number for number in range(len(blocks)) if not done[number]]
        mine = left[joined.rank :: joined.count]
        for place, number in enumerate(mine):
            for soon in mine[place : place + 2]:
                rows.load_ahead(blocks[soon])
            _write(cache, rows, blocks[number])
            cache.finish(number)
            if rows.progress is not None:
                filled = len(blocks) - len(left) + min(len(left), (place + 1) * joined.count)
                rows.progress(blocks[filled - 1].stop, plan.plain)
        joined.barrier()
        file, outputs = open(cache.rows, "rb"), cache.read()
        joined.barrier()  # once the lock is let go, another run may put its own cache here
    finally:
        cache.close()
    return outputs, file


def _gathered(rows: Rows, images: range) -> Tensor:
    joined = rows.processes
    if joined.count == 1:
        return rows.compute(images)
    local = images[joined.share(len(images))]
    draws = len(rows.plan.draws(images.start))
    shape = (draws, *rows.shape)
    computed = rows.compute(local) if len(local) else torch.empty(0, *shape, dtype=rows.dtype)
    # As bytes, because not every back end knows every float type.
    content = computed.contiguous().view(torch.uint8).flatten(1) if len(local) else None
    width = prod(shape) * rows.dtype.itemsize
    if content is None:
        content = torch.empty(0, width, dtype=torch.uint8, device=rows.fresh.device)
    gathered = joined.gather_rows(content, len(images))
    return gathered.view(rows.dtype).unflatten(1, shape)


def _write(cache: DiskCache, rows: Rows, images: range) -> None:
    block = rows.compute(images).cpu()
    cache.write(images.start, block[:, 0])
    if block.shape[1] > 1:
        cache.write(rows.plan.row(Draw(images.start, 0)), block[:, 1:].flatten(0, 1))


def _facts(rows: Rows) -> dict:
    """What decides the content of the rows."""
    plan, fresh = rows.plan, rows.fresh
    return {
        "trunk": fresh.trunk.fingerprint(),
        "images": _fingerprint(fresh.files),
        "image size": list(fresh.size),
        "autocast": fresh.trunk.autocast,
        "plain outputs": plan.plain,
        "jittered images": plan.varied,
        "variants": plan.variants,
        "jitter": [*fresh.jitter.amounts, fresh.jitter.seed] if plan.variants else None,
        "block size": rows.block,
    }


def _fingerprint(files: tuple[Path, ...]) -> str:
    """Of names and sizes in bytes: folders may move, and an edited image hardly keeps its size."""
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
    """Bytes that can be used without swapping; None where the system does not tell."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
