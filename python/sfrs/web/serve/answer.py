"""From the bytes of a photo to the endpoint's JSON: decode, locate, say which regions agree."""

import time
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from sfrs.data.images import BadImageError
from sfrs.retrieval.explain import REGION_BOXES, REGION_NAMES, PairExplanation
from sfrs.retrieval.index import Index
from sfrs.retrieval.near import Near
from sfrs.retrieval.region_rerank import region_matches
from sfrs.runtime.errors import UserError
from sfrs.web.serve.refusal import Refusal
from sfrs.web.serve.uploads import Limits, decode_photo

NAMED_BOXES = [{"name": name, "box": box} for name, box in zip(REGION_NAMES, REGION_BOXES, strict=True)]


def answer(
    index: Index,
    data: bytes,
    limits: Limits,
    *,
    top: int,
    rerank: Literal["regions", "none"] | None,
    explain: bool,
    near: str | None = None,
) -> dict:
    """Locate one photo; its JSON, and with ``explain`` which regions agree.

    ``near`` is a circle to keep to, see `Near.parse`.

    Raises:
        Refusal: the photo is turned down, or the circle is none, or empty.
    """
    circle = None if near is None else _circle(index, near)
    started = time.perf_counter()
    photo = decode_photo(data, limits, index.model.size)
    decoded = time.perf_counter()
    result = index.locate(photo, top=top, rerank=rerank, near=circle).as_json()
    for match in result["matches"]:
        match["file"] = Path(match["file"]).name  # where the images lie is nobody's business over the wire
    located = time.perf_counter()
    if explain:
        result["region_boxes"] = NAMED_BOXES
        explanations = _explain(index, photo, [match["row"] for match in result["matches"]])
        for match, explanation in zip(result["matches"], explanations, strict=True):
            match["explanation"] = explanation
        result["milliseconds"]["explain"] = round(1000 * (time.perf_counter() - located), 2)
    result["milliseconds"]["decode"] = round(1000 * (decoded - started), 2)
    return result


def _circle(index: Index, text: str) -> Near:
    try:
        near = Near.parse(text)
        inside = near.holds(index.positions, index.zone)
    except UserError as error:
        raise Refusal(422, str(error).removeprefix("--")) from error
    if not inside.any():
        raise Refusal(404, f"near is {near}: no image of this index is in the circle.")
    return near


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
        pair = PairExplanation(region_matches(query, quarters)[0, 0].cpu().numpy())
        similarities = [[round(value, 3) for value in line] for line in pair.similarities.tolist()]
        explanations.append({"best": pair.best, "best_part": pair.best_part, "similarities": similarities})
    return explanations
