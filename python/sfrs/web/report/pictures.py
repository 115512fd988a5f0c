"""Photographs and maps of clusters in the form a page can hold."""

import base64
from functools import lru_cache
from pathlib import Path

import numpy as np

from sfrs.retrieval import explain

SMALL, LARGE = 240, 512  # longer side in pixels


@lru_cache(maxsize=4096)
def jpeg_uri(file: Path, longest: int) -> str:
    """A photograph as a JPEG data URI, its longer side at most ``longest`` pixels.

    Raises:
        BadImageError: it cannot be read.
    """
    return explain.jpeg_uri(explain.open_photograph(file), longest)


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
