"""Explain why two images match: by regions that are alike, and clusters of their local features."""

import base64
import io
from colorsys import hsv_to_rgb
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from sfrs.data.images import Photograph, opened, upright
from sfrs.models.model import Model
from sfrs.retrieval.region_rerank import region_matches
from sfrs_ext import REGIONS
from sfrs_ext.reference import assignments, positions_first, region_descriptors

Box = tuple[float, float, float, float]  # (left, top, right, bottom) in 0..1 of an image's width and height
REGION_NAMES = ("whole image", "top half", "bottom half", "left half", "right half") + (
    *("top left quarter", "top right quarter"),
    *("bottom left quarter", "bottom right quarter"),
)
"""In the order of ``sfrs_ext.REGIONS``."""
FRAME = (255, 196, 0)


def region_boxes(height: int, width: int) -> tuple[Box, ...]:
    """Locate the nine regions of a feature map of ``height`` x ``width`` positions in its image.

    Rows split at ``height // 2``, columns at ``width // 2``, as `sfrs_ext.region_vlad` does.
    """
    x, y = (width // 2) / width, (height // 2) / height
    quarters = ((0.0, 0.0, x, y), (x, 0.0, 1.0, y), (0.0, y, x, 1.0), (x, y, 1.0, 1.0))
    boxes = []
    for parts in REGIONS:
        lefts, tops, rights, bottoms = zip(*(quarters[part] for part in parts), strict=True)
        boxes.append((min(lefts), min(tops), max(rights), max(bottoms)))
    return tuple(boxes)


REGION_BOXES = region_boxes(2, 2)  # the boxes of a map with even sides, as the usual image sizes give


@dataclass(frozen=True)
class PairExplanation:
    """Similarities of the regions of a query and of another image, and where they lie in each."""

    similarities: np.ndarray  # float32 [9, 9], region i of the query with region j of the image
    clusters: np.ndarray | None = None  # float32 [K], share of each in the similarity of the whole images
    query_boxes: tuple[Box, ...] = REGION_BOXES
    image_boxes: tuple[Box, ...] = REGION_BOXES

    @property
    def best(self) -> tuple[int, int]:
        """(query region, image region) of the largest similarity."""
        return divmod(int(self.similarities.argmax()), 9)

    @property
    def best_part(self) -> tuple[int, int]:
        """The same of halves and quarters only, also where the whole images are the most alike."""
        i, j = divmod(int(self.similarities[1:, 1:].argmax()), 8)
        return i + 1, j + 1

    @property
    def whole(self) -> float:
        """Similarity of the whole images: the inner product of their descriptors without whitening."""
        return float(self.similarities[0, 0])


@torch.no_grad()
def explain_pair(model: Model, query: Tensor, image: Tensor) -> PairExplanation:
    """Compare the nine regions of two images, given their local features ``[1, D, h, w]``."""
    quarters = [model.network.vlad.quarters(features).float() for features in (query, image)]
    whole = [region_descriptors(part)[0, 0] for part in quarters]  # [K, D] each
    return PairExplanation(
        region_matches(*quarters)[0, 0].cpu().numpy(),
        (whole[0] * whole[1]).sum(-1).cpu().numpy(),
        region_boxes(*query.shape[-2:]),
        region_boxes(*image.shape[-2:]),
    )


@torch.no_grad()
def strongest_clusters(model: Model, features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Find the cluster that every position of local features ``[1, D, h, w]`` belongs to most, int64 ``[h,
    w]``, and their soft assignments float32 ``[h, w]`` in 0..1 (NetVLAD, equation 3).
    """
    positions = positions_first(features)
    vlad = model.network.vlad
    if vlad.normalize_input:
        positions = F.normalize(positions, dim=-1)
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


def draw_region(image: Image.Image, region: int, *, boxes: tuple[Box, ...] = REGION_BOXES) -> Image.Image:
    """Frame one of the nine regions of a photograph and dim the rest; RGB, at the same size."""
    photograph = open_photograph(image)
    width, height = photograph.size
    corners = zip(boxes[region], 2 * photograph.size, strict=True)
    left, top, right, bottom = (round(at * side) for at, side in corners)
    dimmed = Image.blend(photograph, Image.new("RGB", photograph.size), 0.5)
    dimmed.paste(photograph.crop((left, top, right, bottom)), (left, top))
    line = max(2, round(min(width, height) / 80))
    ImageDraw.Draw(dimmed).rectangle(
        (left, top, max(left, right - 1), max(top, bottom - 1)), outline=FRAME, width=line
    )
    return dimmed


def open_photograph(photo: Photograph) -> Image.Image:
    """Open a photograph for showing: RGB, turned upright. Raises `BadImageError`."""
    if isinstance(photo, Tensor):
        pixels = (255 * photo.detach().clamp(0, 1)).round().byte().permute(1, 2, 0)
        return Image.fromarray(pixels.cpu().numpy())
    if isinstance(photo, Image.Image):
        return upright(photo)
    with opened(photo) as image:
        return upright(image)


def jpeg_uri(image: Image.Image, longest: int) -> str:
    """Make a JPEG data URI of at most ``longest`` pixels a side; without EXIF, so without coordinates."""
    image = image.copy()
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
