"""From the bytes of a photo to the endpoint's JSON: decode, locate, say which regions agree."""

import math
import time
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from sfrs.data.coordinates import to_metres
from sfrs.data.exif import gps
from sfrs.data.images import BadImageError
from sfrs.retrieval.explain import REGION_BOXES, REGION_NAMES
from sfrs.retrieval.index import Index
from sfrs.retrieval.locate import as_json, locate
from sfrs.retrieval.region_matching import region_matches
from sfrs.runtime.errors import UserError
from sfrs.web.serve.uploads import Limits, decode_photo

NAMED_BOXES = [{"name": name, "box": box} for name, box in zip(REGION_NAMES, REGION_BOXES, strict=True)]


def answer(
    index: Index,
    data: bytes,
    limits: Limits,
    *,
    top: int,
    rerank: Literal["regions"] | None,
    explain: bool,
) -> dict:
    """Locate one photo; `as_json` of it, and with ``explain`` which regions agree.

    Raises:
        Refusal: the photo is turned down.
    """
    started = time.perf_counter()
    photo = decode_photo(data, limits, index.model.size)
    decoded = time.perf_counter()
    (found,) = locate(index, [photo], top=top, rerank=rerank)
    result = as_json(found, index)
    for match in result["matches"]:
        match["file"] = Path(match["file"]).name  # where the images lie is nobody's business over the wire
    _add_truth(result, photo, index)
    located = time.perf_counter()
    if explain:
        result["region_boxes"] = NAMED_BOXES
        explanations = _explain(index, photo, [match["row"] for match in result["matches"]])
        for match, explanation in zip(result["matches"], explanations, strict=True):
            match["explanation"] = explanation
        result["milliseconds"]["explain"] = round(1000 * (time.perf_counter() - located), 2)
    result["milliseconds"]["decode"] = round(1000 * (decoded - started), 2)
    return result


def _add_truth(result: dict, photo: Image.Image, index: Index) -> None:
    """Where the photo's own GPS says it was taken, and how many metres from there it was located."""
    degrees = gps(photo)
    if degrees is None or not index.zone:
        return
    try:
        ((easting, northing),), _ = to_metres([degrees], index.zone)
    except UserError:  # in another part of the world, where the index's zone does not reach
        return
    latitude, longitude = degrees
    result["truth"] = {
        "easting": round(easting, 2),
        "northing": round(northing, 2),
        "latitude": round(latitude, 7),
        "longitude": round(longitude, 7),
    }
    location = result["location"]
    if location["easting"] is not None:
        error = math.hypot(location["easting"] - easting, location["northing"] - northing)
        result["error"] = round(error, 2)


@torch.no_grad()
def _explain(index: Index, photo: Image.Image, rows: list[int]) -> list[dict | None]:
    """Region similarities of the photo with each image; None where an image's file is gone."""
    query = index.model.quarters([photo])
    explanations: list[dict | None] = []
    for row in rows:
        try:
            quarters = index.quarters([row]).float()
        except BadImageError:
            explanations.append(None)
            continue
        explanations.append(_explanation(region_matches(query, quarters)[0, 0].cpu()))
    return explanations


def _explanation(similarities: Tensor) -> dict:
    """The similarities ``[9, 9]`` of one match, and which regions of photo and image are the most alike."""
    part = divmod(int(similarities[1:, 1:].argmax()), 8)
    return {
        "best": divmod(int(similarities.argmax()), 9),
        "best_part": (part[0] + 1, part[1] + 1),  # of halves and quarters only
        "similarities": [[round(value, 3) for value in line] for line in similarities.tolist()],
    }
