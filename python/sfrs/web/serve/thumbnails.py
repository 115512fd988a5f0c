"""Small pictures of the index's images, named by their row: no path ever comes from a client."""

import hashlib
import io
from functools import lru_cache
from pathlib import Path

import anyio
from PIL import Image

from sfrs.data.images import turned
from sfrs.retrieval.index import Index
from sfrs.web.serve.refusal import Refusal

SIDES = (256, 640, 1280)
"""Longest sides there are, in pixels; fixed, so that clients cannot fill the cache with sizes."""
CACHED = 512


class Thumbnails:
    """JPEG thumbnails, the latest `CACHED` kept in memory; two are decoded at a time."""

    def __init__(self, index: Index):
        self.index = index
        self._decoders = anyio.CapacityLimiter(2)

    async def tag(self, row: int, side: int) -> str:
        """ETag of a thumbnail, which changes with the image's file."""
        return (await self._find(row, side))[1]

    async def jpeg(self, row: int, side: int) -> bytes:
        """The thumbnail of one image, upright.

        Raises:
            Refusal: 404 there is no such row, or its file is gone or cannot be read any more.
        """
        file, tag = await self._find(row, side)
        try:
            return await anyio.to_thread.run_sync(_thumbnail, file, side, tag, limiter=self._decoders)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            # Pillow's message names the path, which is nobody's business over the wire.
            raise Refusal(404, f"Image {row} cannot be read any more.") from error

    async def _find(self, row: int, side: int) -> tuple[Path, str]:
        if not 0 <= row < len(self.index):
            raise Refusal(404, f"There is no image {row}; expected 0 to {len(self.index) - 1}.")
        file = Path(self.index.files[row])
        try:
            state = await anyio.to_thread.run_sync(file.stat)
        except OSError:
            raise Refusal(404, f"Image {row} is not where it was when it was indexed.") from None
        identity = f"{file}\0{state.st_mtime_ns}\0{state.st_size}\0{side}"
        return file, f'"{hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]}"'


@lru_cache(CACHED)
def _thumbnail(file: Path, side: int, tag: str) -> bytes:
    with Image.open(file) as image:
        image.draft("RGB", (side, side))
        image = turned(image).convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=82, optimize=True)
    return encoded.getvalue()
