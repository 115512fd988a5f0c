"""Photographs and maps of clusters in the form a page can hold."""

import base64
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from sfrs.retrieval.explain import open_photograph

SMALL, LARGE = 240, 512  # longer side in pixels
QUALITY = 80


@lru_cache(maxsize=4096)
def jpeg_uri(file: Path, longest: int) -> str:
    """A photograph as a JPEG data URI, shrunk so that its longer side has at most ``longest`` pixels.

    Nothing but the pixels is kept: no EXIF, so no name of a camera or coordinates beyond those on the page.

    Raises:
        BadImageError: it cannot be read.
    """
    image = open_photograph(file)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def packed_clusters(clusters: np.ndarray, weights: np.ndarray) -> dict:
    """A map of clusters for the page's script: little-endian 16-bit numbers, weights in 1/255."""
    numbers = clusters.astype("<u2").tobytes()
    shares = (255 * weights.clip(0, 1)).round().astype(np.uint8).tobytes()
    height, width = clusters.shape
    return {
        "width": width,
        "height": height,
        "clusters": base64.b64encode(numbers).decode("ascii"),
        "weights": base64.b64encode(shares).decode("ascii"),
    }
