"""Images from files to normalised tensors: decode, resize, normalise."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sfrs.runtime.errors import UserError
from sfrs.runtime.threads import single_threads

Size = tuple[int, int] | int | None
"""(height, width), the length of the shorter side, or None to keep each image's own size; in pixels."""

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""


class BadImageError(UserError, RuntimeError):
    """An image cannot be read; the message names the file and says why.

    Takes one string, so that data loader workers can hand it on.
    """


def load_image(path: str | Path, size: Size = None) -> Tensor:
    """Decode an image to float32 RGB ``[3, H, W]`` in 0..1, turned upright by its EXIF orientation.

    Resized bilinearly with antialiasing, in 8 bits, as the paper's implementation does.

    Raises:
        BadImageError: the file is missing, no image, or cut off.
    """
    try:
        with Image.open(path) as image:
            return image_tensor(image, size)
    except FileNotFoundError:
        raise BadImageError(f"{path}: there is no such image file.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadImageError(f"{path}: this image cannot be read ({error}).") from error


def image_tensor(image: Image.Image, size: Size = None) -> Tensor:
    """What :func:`load_image` makes of a file, of an image in memory."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # convert() would clip 16 bits to white instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    target = target_size(image.size[::-1], size)
    if image.size != target[::-1]:
        image = image.resize(target[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)


def target_size(original: tuple[int, int], size: Size) -> tuple[int, int]:
    """(height, width) after resizing an image of ``original`` (height, width) to ``size``."""
    if size is None:
        return original
    if isinstance(size, int):
        height, width = original
        scale = size / min(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    return tuple(size)


class ImageFiles(torch.utils.data.Dataset):
    """Images of a list of files as normalised float32 tensors ``[3, H, W]``.

    Args:
        files: paths.
        size: see :data:`Size`.
        mean, std: per channel, for pixels in 0..1: ``(x - mean) / std``.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        size: Size = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ):
        self.files = tuple(Path(file) for file in files)
        self.size = size
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return load_image(self.files[index], self.size).sub_(self.mean).div_(self.std)


def batches(
    images: torch.utils.data.Dataset, batch_size: int, *, threads: int = 2, order: Sequence[int] | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (indices, images ``[B, 3, H, W]``), B at most ``batch_size``, in order.

    Images of unequal size never share a batch: a batch ends where the size changes. Threads decode ahead
    (Pillow releases the interpreter lock); at most two batches are held. With ``threads=0`` images are
    loaded one after the other.
    """
    indices = list(range(len(images)) if order is None else order)
    batch: list[Tensor] = []
    first = 0
    for i, image in enumerate(_in_order(images.__getitem__, indices, threads, 2 * batch_size)):
        if batch and (len(batch) == batch_size or image.shape != batch[0].shape):
            yield indices[first:i], torch.stack(batch)
            batch, first = [], i
        batch.append(image)
    if batch:
        yield indices[first:], torch.stack(batch)


def check_images(
    files: Sequence[Path], *, decode: bool = True, progress: Progress | None = None, threads: int = 2
) -> list[tuple[Path, str]]:
    """Decode every file (or read its header only) and return those that fail with the reason, in order."""
    bad = []
    why_unreadable = partial(_why_unreadable, decode=decode)
    for i, (file, why) in enumerate(zip(files, _in_order(why_unreadable, files, threads, 64), strict=True)):
        if why is not None:
            bad.append((file, why))
        if progress is not None:
            progress(i + 1, len(files))
    return bad


def _why_unreadable(file: Path, decode: bool) -> str | None:
    try:
        with Image.open(file) as image:
            if decode:
                image.draft("RGB", (1, 1))  # JPEG: decode at 1/8 of the size; still reads every byte
                image.load()
    except FileNotFoundError:
        return "there is no such file"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error)
    return None


def _in_order(function: Callable, items: Sequence, threads: int, ahead: int) -> Iterator:
    """``map(function, items)`` on threads, at most ``ahead`` results waiting."""
    if threads == 0:
        yield from map(function, items)
        return
    with single_threads(threads) as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
