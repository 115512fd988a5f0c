"""Photographs that come over the wire: read within limits, decoded only if they are what they should be."""

import asyncio
import io
import logging
import time
import warnings
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from anyio import move_on_after
from fastapi import Request
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sfrs.data.images import Size, decode_reduced, target_size
from sfrs.web.serve.refusal import Refusal

FORMATS = ("JPEG", "PNG", "WEBP")
RAW_TYPES = (
    "image/jpeg",
    "image/jpg",
    "image/png",
    "image/webp",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
)
"""Of bodies that are the photo itself; the last is what curl says of ``--data-binary``."""
ENVELOPE_BYTES = 64 * 1024
"""What a multipart body may hold beside the photo: boundaries, headers, other fields."""
GRACE_SECONDS, SLOWEST = 5.0, 1000
"""Bytes a second at which a body must have arrived, after a while."""
SMALLEST_SIDE = 16
NETWORK_MEGAPIXELS = 2.1
"""What passes through the network at most where the index keeps each image's own shape: 1920 x 1080."""


# Malformed forms are told to who sent them; a line each in the terminal would let anybody fill it.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        megabytes: size of a photo's file, in 1,000,000 bytes.
        megapixels: its width times its height, checked before any pixel is decoded.
        waiting: requests that may wait for the one that is being located.
        reading_seconds: for the body to arrive in.
    """

    megabytes: float = 20.0
    megapixels: float = 50.0
    waiting: int = 16
    reading_seconds: float = 30.0


async def read_photo(request: Request, limits: Limits) -> bytes:
    """The bytes of the photo a request carries: its raw body, or the one file of a multipart form.

    Raises:
        Refusal: 408 it takes too long, 413 too large (known by Content-Length or while reading), 415 another
            type of body or no JPEG, PNG or WebP by its first bytes, 422 empty or a malformed form.
    """
    kind = request.headers.get("content-type", "application/octet-stream").split(";")[0].strip().lower()
    if kind not in (*RAW_TYPES, "multipart/form-data"):
        await discard(request, limits)
        raise Refusal(
            415,
            f"The body is {kind or 'of no type'}; expected a JPEG, PNG or WebP photo, sent as image/jpeg, "
            "image/png or image/webp, or as the file of a multipart/form-data form.",
            Connection="close",
        )
    read = _read_form if kind == "multipart/form-data" else _read_body
    try:
        photo = await asyncio.wait_for(read(request, limits), limits.reading_seconds)
    except asyncio.TimeoutError:
        raise Refusal(
            408, f"The photo did not arrive within {limits.reading_seconds:g} s.", Connection="close"
        ) from None
    if not photo:
        raise Refusal(422, "The body is empty; expected a photo.")
    if not _looks_like_photo(photo):
        raise Refusal(415, "This is no JPEG, PNG or WebP photo.")
    return photo


async def _read_body(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    async for chunk in _bounded(request, limits, 0):
        body += chunk
    return bytes(body)


async def _read_form(request: Request, limits: Limits) -> bytes:
    parser = MultiPartParser(
        request.headers, _bounded(request, limits, ENVELOPE_BYTES), max_files=1, max_fields=8
    )
    parser.max_part_size = ENVELOPE_BYTES
    # The photo stays in memory: the stream is bounded, and nothing of it should reach the disk.
    parser.spool_max_size = int(limits.megabytes * 1e6) + ENVELOPE_BYTES + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(422, f"The form cannot be read: {error.message}", Connection="close") from error
    try:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if not files:
            raise Refusal(422, "The form has no whole file; expected one, as by curl -F photo=@photo.jpg.")
        return await files[0].read()
    finally:
        await form.close()


async def _bounded(request: Request, limits: Limits, more: int) -> AsyncGenerator[bytes, None]:
    """The body in chunks; stops as soon as it is known to be too large."""
    most = int(limits.megabytes * 1e6) + more
    received = _announced(request)
    if received <= most:
        received, began = 0, time.monotonic()
        async for chunk in request.stream():
            received += len(chunk)
            if received > most:
                break
            if time.monotonic() - began > GRACE_SECONDS and received < SLOWEST * (time.monotonic() - began):
                raise Refusal(
                    408, f"The photo arrives at less than {SLOWEST} bytes a second.", Connection="close"
                )
            yield chunk
    if received > most:
        await discard(request, limits)
        message = f"The photo is larger than {limits.megabytes:g} MB, the limit here."
        raise Refusal(413, message, Connection="close")


async def discard(request: Request, limits: Limits) -> None:
    """Read the rest of a body that is refused, without keeping it.

    Many clients see an answer only once they have sent everything. Bodies of more than twice the limit are
    cut off all the same, and who asks before sending (``Expect``) need not send at all.
    """
    most = 2 * limits.megabytes * 1e6 + ENVELOPE_BYTES
    if "expect" in request.headers or _announced(request) > most:
        return
    received = 0
    with move_on_after(limits.reading_seconds):
        async for chunk in request.stream():
            received += len(chunk)
            if received > most:
                return


def _announced(request: Request) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def _looks_like_photo(data: bytes) -> bool:
    return (
        data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
        or data.startswith(b"RIFF")
        and data[8:12] == b"WEBP"
    )


def decode_photo(data: bytes, limits: Limits, size: Size) -> Image.Image:
    """Decode a photo to RGB, upright, with no more pixels than the network should see.

    Where the index keeps images' own sizes, larger ones are shrunk to `NETWORK_MEGAPIXELS`.

    Args:
        size: of the index's images.

    Raises:
        Refusal: 413 too many pixels, 415 not decodable, 422 too small or too elongated.
    """
    try:
        with _quiet(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_shape(image.size, limits, size)
            decode_reduced(image, size)  # as the index's images were
            image.load()
            # EXIF stays, for GPS; image_tensor turns the photo by it. 16-bit greys keep their mode: it scales
            # them where convert() would clip.
            photo = image if image.mode.startswith("I;16") else image.convert("RGB")
    except Refusal:
        raise
    except Image.DecompressionBombError:
        raise _too_many_pixels(limits) from None
    except Exception as error:  # a decoder that meets hostile bytes raises anything, struct.error for one
        # What they say speaks of objects and places in here.
        raise Refusal(415, "The photo cannot be decoded; it is damaged or cut off.") from error
    if size is None and _megapixels(photo.size) > NETWORK_MEGAPIXELS:
        scale = (NETWORK_MEGAPIXELS / _megapixels(photo.size)) ** 0.5
        photo = photo.resize([max(1, round(side * scale)) for side in photo.size], Image.Resampling.LANCZOS)
    return photo


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warning of many pixels, which `Limits` decides on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _check_shape(shape: tuple[int, int], limits: Limits, size: Size) -> None:
    width, height = shape
    if _megapixels(shape) > limits.megapixels:
        raise _too_many_pixels(limits, shape)
    if min(shape) < SMALLEST_SIDE:
        raise Refusal(
            422, f"The photo is {width} x {height} pixels; expected {SMALLEST_SIDE} or more each way."
        )
    longest = _megapixels(target_size((height, width), size)) if isinstance(size, int) else 0.0
    square = size * size / 1e6 if isinstance(size, int) else 1.0
    if longest > max(NETWORK_MEGAPIXELS, 8 * square):
        raise Refusal(422, f"The photo is {width} x {height} pixels, which is too elongated to be located.")


def _too_many_pixels(limits: Limits, shape: tuple[int, int] | None = None) -> Refusal:
    which = f"The photo is {shape[0]} x {shape[1]} pixels" if shape else "The photo has far more pixels"
    return Refusal(413, f"{which}, but {limits.megapixels:g} megapixels are the limit here.")


def _megapixels(shape: tuple[int, int]) -> float:
    return shape[0] * shape[1] / 1e6
