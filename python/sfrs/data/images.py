"""Images from files to normalised tensors: decode, resize, normalise."""

import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from sfrs.data.photo_files import HEIF, HEIF_SUFFIXES, NOT_READ
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress, silent
from sfrs.runtime.threads import single_threads

Size = tuple[int, int] | int | None
"""(height, width), the length of the shorter side, or None to keep each image's own size; in pixels."""
Photograph = str | Path | Image.Image | Tensor
"""A file, an image in memory, or RGB in 0..1 ``[3, H, W]``, which is taken at its own size."""
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""Pillow's errors about files that are no images, or damaged ones."""
BROKEN_EXIF = (*UNREADABLE[:3], EOFError, TypeError, AttributeError, LookupError, struct.error)
"""Pillow's errors about damaged EXIF."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn an image upright, by its EXIF orientation."""
ACROSS = tuple(TURNS[orientation] for orientation in (5, 6, 7, 8))
"""Turns that make of a wide image a tall one."""
METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Where Pillow keeps blocks that hold an orientation."""
MOST_PIXELS = 32_000_000  # pixels that resizing may make of an image
REDUCED = 2
"""A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where it stays this many times larger than wanted."""

Image.MAX_IMAGE_PIXELS = (
    1_000_000_000  # panoramas of one's own disk; whoever takes others' files has own limits
)


class BadImageError(UserError, RuntimeError):
    """An image cannot be read; the message names the file and says why (one string, which workers pickle)."""

    skip = "skip_bad_images"


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image. Raises `BadImageError` if the file is missing or the block finds no image in it."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise BadImageError(f"{path}: there is no such image file.") from None
    except UNREADABLE as error:
        raise BadImageError(f"{path}: this image cannot be read ({_why(Path(path), error)}).") from error


def _why(file: Path, error: Exception) -> str:
    if file.suffix.lower() in HEIF_SUFFIXES and not HEIF:
        return NOT_READ[HEIF_SUFFIXES][-1]
    return str(error)


def load_image(path: str | Path, size: Size = None) -> Tensor:
    """Decode an image to float32 RGB ``[3, H, W]`` in 0..1, turned upright by its EXIF orientation.

    Resized bilinearly with antialiasing, in 8 bits, as the paper's implementation does. Raises
    `BadImageError` if the file is missing, no image, or cut off.
    """
    with opened(path) as image:
        decode_reduced(image, size)
        return image_tensor(image, size)


def decode_reduced(image: Image.Image, size: Size) -> None:
    """Let an opened JPEG that is much larger than ``size`` be decoded reduced, which takes less time.

    The decoder leaves out the finest waves of each block of 8x8, and what it decodes is still resized by at
    least `REDUCED`. Smaller images, and other formats, are decoded as they are.
    """
    if size is None:
        return
    across = _turn(image) in ACROSS
    shape = (image.width, image.height) if across else (image.height, image.width)
    height, width = target_size(shape, size)
    wanted = (height, width) if across else (width, height)
    image.draft(None, (REDUCED * wanted[0], REDUCED * wanted[1]))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how the image is turned upright by its EXIF orientation; None if it is, or none can be read."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except BROKEN_EXIF:
        return None


def turned(image: Image.Image) -> Image.Image:
    """Turn an image by its EXIF orientation, if one can be read; a turned image has no EXIF left."""
    turn = _turn(image)
    if turn is None:
        return image
    result = image.transpose(turn)
    result.info = {name: value for name, value in result.info.items() if name not in METADATA}
    return result


def upright(image: Image.Image) -> Image.Image:
    """Turn an image by its EXIF orientation and make it RGB of 8 bits."""
    image = turned(image)
    if image.mode == "F":
        raise ValueError("mode F, floating-point numbers of an unknown scale; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # convert() would clip 16 bits to white instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def image_tensor(image: Image.Image, size: Size = None) -> Tensor:
    """Convert an image in memory as `load_image` does a file."""
    image = upright(image)
    height, width = target_size((image.height, image.width), size)
    if height * width > max(MOST_PIXELS, image.height * image.width):
        raise ValueError(f"{image.height}x{image.width} pixels, too elongated to become {height}x{width}")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)


def target_size(original: tuple[int, int], size: Size) -> tuple[int, int]:
    """Return the (height, width) of an image of ``original`` (height, width) resized to ``size``."""
    if size is None:
        return original
    if isinstance(size, int):
        height, width = original
        scale = size / min(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    height, width = size
    return height, width


class Photographs(torch.utils.data.Dataset):
    """Images as float32 RGB ``[3, H, W]`` in 0..1, resized to ``size``; no side may be below ``least``."""

    def __init__(self, images: Sequence[Photograph], size: Size = None, least: int = 1):
        self.images, self.size, self.least = images, size, least

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index]
        if isinstance(image, Tensor):
            pixels = image
        elif isinstance(image, Image.Image):
            pixels = image_tensor(image, self.size)
        else:
            pixels = load_image(image, self.size)
        height, width = pixels.shape[-2:]
        if min(height, width) < self.least:
            name = image if isinstance(image, str | Path) else f"image {index}"
            raise BadImageError(
                f"{name}: {height}x{width} pixels are too few; this network needs {self.least} each way."
            )
        return pixels


def batches(images: Photographs, batch_size: int, *, workers: int = 2) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (indices, images ``[B, 3, H, W]``), B at most ``batch_size``, in order.

    Images of unequal size never share a batch: a batch ends where the size changes. ``workers`` threads
    decode ahead (Pillow releases the interpreter lock), none if 0; at most two batches are held.
    """
    indices = list(range(len(images)))
    batch: list[Tensor] = []
    first = 0
    for i, image in enumerate(_in_order(images.__getitem__, indices, workers, 2 * batch_size)):
        if batch and (len(batch) == batch_size or image.shape != batch[0].shape):
            yield indices[first:i], torch.stack(batch)
            batch, first = [], i
        batch.append(image)
    if batch:
        yield indices[first:], torch.stack(batch)


def check_images(
    files: Sequence[Path], *, decode: bool = True, progress: Progress = silent, workers: int = 2
) -> list[tuple[Path, str]]:
    """Decode every file (or read its header only) and return those that fail with the reason, in order."""
    bad = []
    reasons = _in_order(partial(_why_unreadable, decode=decode), files, workers, 64)
    for i, (file, why) in enumerate(zip(files, reasons, strict=True)):
        if why is not None:
            bad.append((file, why))
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
    except UNREADABLE as error:
        return _why(file, error)
    return None


def _in_order(function: Callable, items: Sequence, workers: int, ahead: int) -> Iterator:
    """Map ``function`` over ``items`` in threads, at most ``ahead`` results waiting."""
    if workers == 0:
        yield from map(function, items)
        return
    with single_threads(workers) as pool:
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
