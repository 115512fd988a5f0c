"""The settings of an index, as the table of `sfrs.retrieval.index.store` keeps them: name -> JSON."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import NotRequired, TypedDict

from sfrs.data.images import Size
from sfrs.models.model import Digests, Model, read_architecture
from sfrs.retrieval.index.quantised import KINDS as COMPRESSED
from sfrs.runtime.errors import UserError
from sfrs.runtime.records import Natural, Positive, as_record, parse_json

FORMAT = 1


class ModelSettings(TypedDict):
    """What an index's settings say of its model, see `model_settings`."""

    size: Size
    dim: Positive
    digests: Digests
    fingerprint: str
    quarters_shape: tuple[Positive, Positive, Positive]


class Settings(ModelSettings):
    """The settings in the table. Names of files are of the index's own directory."""

    format: int
    generation: Natural  # finished ones
    kind: Literal["exact", "float16", "pq", "ivf", "disk"]
    zone: str
    dtype: Literal["float32", "float16"]
    descriptors: str
    quarters: str | None
    compressed: str | None
    trained: Natural  # rows that the compressed copy was fitted to
    whiten_from: NotRequired[Positive | None]  # images from which on the first generation is whitened
    compressed_digest: NotRequired[str]  # see `sfrs.retrieval.index.quantised.digest_of`


def read_settings(texts: Mapping[str, str], table: Path) -> Settings:
    """Read settings. Raises `UserError` if they are damaged, or of another format."""
    values = {name: parse_json(value, f"{table}, {name}") for name, value in texts.items()}
    if values.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{table.parent}: this index has format {values['format']}; this version of sfrs reads format "
            f"{FORMAT}. Build a new one."
        )
    settings: Settings = as_record(values, Settings, table)
    for name in ("descriptors", "quarters", "compressed"):
        file = settings[name]
        if file is not None and not re.fullmatch(r"[a-z]+-\d{1,18}\.[a-z]+\d*", file):
            raise UserError(f"{table}: {name} is {file!r}, expected a file in the index's directory.")
    if settings["compressed"] and settings["kind"] not in COMPRESSED:
        raise UserError(f"{table}: compressed is not null, but kind is {settings['kind']}.")
    return settings


def model_settings(model: Model) -> ModelSettings:
    """Return what an index's settings say of its model."""
    return {
        "size": model.size,
        "dim": model.dim,
        "digests": model.digests(),
        "fingerprint": model.fingerprint(),
        "quarters_shape": model.quarters_shape,
    }


def check_same(path: Path, model: Model, settings: Settings) -> None:
    """Raise `UserError` that names the first part in which the model is not the index's."""
    ours, theirs = model.digests(), settings["digests"]
    here, there = _in_words(ours, model.fingerprint()), _in_words(theirs, settings["fingerprint"])
    taken = left_to_index(model, settings)
    for part in here:
        if part not in taken and ours[part] != theirs[part]:
            raise UserError(
                f"{path}: the {part} of this index: {there[part]}; of these options: {here[part]}. Their "
                "descriptors could not be compared. Leave the options out to go on with the index's own "
                "network, or choose another --out."
            )


def left_to_index(model: Model, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the parts of a model that it lacks and the index made of its photographs."""
    if not model.has_clusters:
        return "weights", "whitening"
    learned = settings.get("whiten_from") is not None and settings["digests"]["whitening"]
    return ("whitening",) if learned and model.whitening is None else ()


def _in_words(digests: Digests, fingerprint: str) -> dict[str, str]:
    """Say what a model is by its parts; weights by the fingerprint of the whole, which --info shows too."""
    backbone, options, clusters = read_architecture(digests["architecture"], "the index")
    size, whole = digests["size"], f"those of fingerprint {fingerprint[:12]}"
    return {
        "architecture": f"K = {clusters}, {backbone} {options}",
        "weights": whole,
        "whitening": whole if digests["whitening"] else "none",
        "size": "own size" if size == "null" else size.strip("[]").replace(", ", "x"),
    }


def facts_of(
    path: str | Path,
    settings: Mapping[str, Any],
    positions: np.ndarray,
    sizes: dict[str, int],
    *,
    removed_rows: int = 0,
) -> dict[str, Any]:
    """Say what is in an index with these settings and positions of images, as JSON takes it."""
    placed = positions[np.isfinite(positions).all(axis=1)]
    backbone, _, clusters = read_architecture(settings["digests"]["architecture"], path)
    return {
        "path": str(path),
        "finished": settings["generation"] > 0,
        "generation": settings["generation"],
        "images": len(positions),
        "without_position": len(positions) - len(placed),
        "removed_rows": removed_rows,
        "kind": settings["kind"],
        "compressed": settings.get("compressed") is not None,
        "descriptor_dim": settings["dim"],
        "stored_as": settings["dtype"],
        "regions": bool(settings["quarters"]),
        "zone": settings["zone"],
        "west_south_east_north": [*placed.min(axis=0), *placed.max(axis=0)] if len(placed) else None,
        "backbone": backbone,
        "clusters": clusters,
        "whitened": settings["digests"]["whitening"] != "",
        "size": settings["size"],
        "fingerprint": settings["fingerprint"],
        "bytes": sizes,
    }
