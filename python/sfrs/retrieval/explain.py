"""Why two images match: which regions are alike, and which clusters their local features fell into."""

from colorsys import hsv_to_rgb
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from sfrs.data.images import BadImageError, Size
from sfrs.models.model import Model, Photograph
from sfrs.retrieval.region_matching import region_matches
from sfrs_ext import REGIONS
from sfrs_ext.reference import assignments, positions_first, region_descriptors

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in 0..1 of an image's width and height."""

REGION_NAMES = (
    "whole image",
    "top half",
    "bottom half",
    "left half",
    "right half",
    "top left quarter",
    "top right quarter",
    "bottom left quarter",
    "bottom right quarter",
)
"""In the order of ``sfrs_ext.REGIONS``."""


def region_boxes(height: int, width: int) -> tuple[Box, ...]:
    """Where the nine regions of a feature map of ``height`` x ``width`` positions lie in its image.

    Rows split at ``height // 2``, columns at ``width // 2``, as :func:`sfrs_ext.region_vlad` does.
    """
    x, y = (width // 2) / width, (height // 2) / height
    quarters = ((0.0, 0.0, x, y), (x, 0.0, 1.0, y), (0.0, y, x, 1.0), (x, y, 1.0, 1.0))
    boxes = []
    for parts in REGIONS:
        lefts, tops, rights, bottoms = zip(*(quarters[part] for part in parts), strict=True)
        boxes.append((min(lefts), min(tops), max(rights), max(bottoms)))
    return tuple(boxes)


REGION_BOXES = region_boxes(2, 2)
"""The boxes of a map with even sides, as the usual image sizes give."""


@dataclass(frozen=True)
class PairExplanation:
    """How alike the regions of a query and of another image are.

    Attributes:
        similarities: float32 ``[9, 9]``, region i of the query with region j of the image, in the order of
            ``sfrs_ext.REGIONS``.
        clusters: float32 ``[K]``, what each cluster adds to the similarity of the whole images; sums to it.
        query_boxes, image_boxes: where the regions lie in each of the two.
    """

    similarities: np.ndarray
    clusters: np.ndarray
    query_boxes: tuple[Box, ...] = REGION_BOXES
    image_boxes: tuple[Box, ...] = REGION_BOXES

    @property
    def best(self) -> tuple[int, int]:
        """(query region, image region) of the largest similarity."""
        i, j = np.unravel_index(self.similarities.argmax(), self.similarities.shape)
        return int(i), int(j)

    @property
    def best_part(self) -> tuple[int, int]:
        """The same of halves and quarters only, also where the whole images are the most alike."""
        i, j = np.unravel_index(self.similarities[1:, 1:].argmax(), (8, 8))
        return int(i) + 1, int(j) + 1

    @property
    def whole(self) -> float:
        """Similarity of the whole images: the inner product of their descriptors without whitening."""
        return float(self.similarities[0, 0])


def explain_pair(
    model: Model, query: Photograph, image: Photograph, *, query_size: Size | str = "same"
) -> PairExplanation:
    """Compare the nine regions of a query with those of another image.

    Args:
        query_size: of the query where it differs; "same" otherwise.

    Raises:
        BadImageError: a file cannot be read.
    """
    sized = model if query_size == "same" else model.at(query_size)
    return explain_features(model, sized.features(query), model.features(image))


@torch.no_grad()
def explain_features(model: Model, query: Tensor, image: Tensor) -> PairExplanation:
    """:func:`explain_pair` of local features that are there already, ``[1, D, h, w]`` each."""
    quarters = [model.network.vlad.quarters(features).float() for features in (query, image)]
    whole = [region_descriptors(part)[0, 0] for part in quarters]  # [K, D] each
    return PairExplanation(
        region_matches(*quarters)[0, 0].cpu().numpy(),
        (whole[0] * whole[1]).sum(-1).cpu().numpy(),
        region_boxes(*query.shape[-2:]),
        region_boxes(*image.shape[-2:]),
    )


def assignment_map(model: Model, image: Photograph) -> tuple[np.ndarray, np.ndarray]:
    """Find the cluster that every position of an image belongs to most.

    Returns:
        (clusters int64 ``[h, w]``, their soft assignments float32 ``[h, w]`` in 0..1: NetVLAD, equation 3).

    Raises:
        BadImageError: a file cannot be read.
    """
    return strongest_clusters(model, model.features(image))


@torch.no_grad()
def strongest_clusters(model: Model, features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """:func:`assignment_map` of local features ``[1, D, h, w]``."""
    positions = positions_first(features)
    vlad = model.network.vlad
    if vlad.normalize_input:
        positions = torch.nn.functional.normalize(positions, dim=-1)
    soft = assignments(positions, vlad.weight, bias=vlad.conv.bias, ghost_clusters=vlad.ghost_clusters)
    weights, clusters = soft[0].max(dim=-1)
    shape = features.shape[-2:]
    return clusters.view(shape).cpu().numpy(), weights.float().view(shape).cpu().numpy()


def cluster_colours(count: int) -> np.ndarray:
    """Colours of the clusters 0..count - 1, uint8 ``[count, 3]``; the same cluster always has the same one.

    Hues go round by the golden angle. They come close again after 8, 13, 21, ... clusters (Fibonacci
    numbers); tones that repeat after four set most of these apart.
    """
    tones = ((1.0, 1.0), (0.67, 0.84), (0.9, 0.84), (0.67, 1.0))  # saturation, value
    colours = [hsv_to_rgb((0.58 + 0.381966 * i) % 1, *tones[i % 4]) for i in range(count)]
    return (255 * np.array(colours)).round().astype(np.uint8)


def assignment_overlay(clusters: np.ndarray, weights: np.ndarray) -> Image.Image:
    """A transparent picture with one pixel per position: the cluster as colour, its weight as opacity.

    Args:
        clusters, weights: of :func:`assignment_map`, ``[h, w]`` each.

    Returns:
        RGBA, h x w pixels, to be laid over the photograph.
    """
    opacity = (160 * weights.clip(0, 1)).round().astype(np.uint8)  # never quite hides the photograph
    return Image.fromarray(np.dstack([cluster_colours(int(clusters.max()) + 1)[clusters], opacity]), "RGBA")


def draw_assignments(image: Image.Image, clusters: np.ndarray, weights: np.ndarray) -> Image.Image:
    """The photograph under its :func:`assignment_overlay`, RGB, at the photograph's size."""
    photograph = ImageOps.exif_transpose(image).convert("RGBA")
    overlay = assignment_overlay(clusters, weights).resize(photograph.size, Image.Resampling.NEAREST)
    return Image.alpha_composite(photograph, overlay).convert("RGB")


def draw_region(
    image: Image.Image,
    region: int,
    *,
    boxes: tuple[Box, ...] = REGION_BOXES,
    colour: tuple[int, int, int] = (255, 196, 0),
) -> Image.Image:
    """The photograph with one of the nine regions framed and the rest dimmed, RGB, at the same size."""
    photograph = ImageOps.exif_transpose(image).convert("RGB")
    width, height = photograph.size
    left, top, right, bottom = boxes[region]
    corners = (round(left * width), round(top * height), round(right * width), round(bottom * height))
    dimmed = Image.blend(photograph, Image.new("RGB", photograph.size), 0.5)
    dimmed.paste(photograph.crop(corners), corners[:2])
    line = max(2, round(min(width, height) / 80))
    frame = (corners[0], corners[1], corners[2] - 1, corners[3] - 1)
    ImageDraw.Draw(dimmed).rectangle(frame, outline=colour, width=line)
    return dimmed


def open_photograph(file: str | Path) -> Image.Image:
    """A photograph as RGB, turned upright, for showing.

    Raises:
        BadImageError: it cannot be read.
    """
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadImageError(f"{file}: this image cannot be read ({error}).") from error
