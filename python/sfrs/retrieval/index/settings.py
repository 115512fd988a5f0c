"""The settings of an index, as the table of `sfrs.retrieval.index.store` keeps them: name -> JSON."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypedDict

from sfrs.data.images import Size
from sfrs.models.model import Digests
from sfrs.retrieval.index.quantised import KINDS as COMPRESSED
from sfrs.runtime.errors import UserError
from sfrs.runtime.records import Natural, Positive, as_record, parse_json

FORMAT = 1


class LaterSettings(TypedDict, total=False):
    """Settings that an older index lacks."""

    whiten_from: Positive | None  # images from which on the first generation is whitened
    compressed_digest: str  # of the compressed copy, see `sfrs.retrieval.index.quantised.digest_of`


class Settings(LaterSettings):
    """The settings in the table. Names of files are of the index's own directory."""

    format: int
    generation: Natural  # finished ones
    kind: Literal["exact", "float16", "pq", "ivf", "disk"]
    zone: str
    size: Size
    dim: Positive
    dtype: Literal["float32", "float16"]
    digests: Digests
    fingerprint: str
    descriptors: str
    quarters_shape: tuple[Positive, Positive, Positive]
    quarters: str | None
    compressed: str | None
    trained: Natural  # rows that the compressed copy was fitted to


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
