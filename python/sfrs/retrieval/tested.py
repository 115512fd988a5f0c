"""The result of an index's self-test: how it is kept, and what it says in words."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from sfrs.data.coordinates import geodesic
from sfrs.retrieval.confidence import Calibration
from sfrs.retrieval.coverage import Gap
from sfrs.retrieval.near import Near
from sfrs.runtime.atomic_io import write_json
from sfrs.runtime.errors import UserError
from sfrs.runtime.records import Natural, RecordError, as_record, parse_json

VERSION = 1
FILE = "self-test.json"

FEW = 10  # answers below which nothing is said of their share
SAID = 3  # files that a line names


class Kept(TypedDict):
    """What says whether a file is of this index as it is."""

    version: int
    generation: int
    fingerprint: str


@dataclass(frozen=True)
class Answer:
    """What was found for one photograph of the index among the others."""

    row: Natural  # of the photograph
    match: Natural  # row of the best match near the position found
    off: float  # metres from where the photograph says it was taken
    confidence: float  # of the answer, calibrated
    agreeing: int  # matches near the position
    right: bool
    answerable: bool  # whether a photograph of another moment is within 25 m


@dataclass(frozen=True)
class Way:
    """Answers by one way of searching."""

    calibration: Calibration
    # Share of the answerable photographs that were located within 25 m; None if there are none.
    found: float | None
    tested: int  # answerable photographs
    refused: int  # pictures of nowhere that were refused, of foreign
    foreign: int
    gain: float = 0.0  # found more than by the search alone, of the same photographs; by re-ranking
    p_value: float = 1.0  # of that gain, by an exact McNemar test
    recommended: bool = False


@dataclass(frozen=True)
class SelfTest:
    """What a self-test found; of an index of another generation or fingerprint it says nothing."""

    generation: int
    fingerprint: str
    images: int  # in the index
    placed: int  # those with a position
    tested: int = 0  # those that were located
    ways: dict[str, Way] = field(default_factory=dict)  # by "search", and by "regions" where they are kept
    answers: list[Answer] = field(default_factory=list)  # of the search, for each that was located
    disagreeing: list[str] = field(default_factory=list)  # files that others, which look the same, place far
    gaps: list[Gap] = field(default_factory=list)  # places that want photographs, the worst first

    @property
    def recommends_regions(self) -> bool:
        """Whether re-ranking by regions finds more of this index's photographs."""
        return "regions" in self.ways and self.ways["regions"].recommended

    def within(self, near: Near | None) -> "SelfTest":
        """Keep what holds for the images in a circle alone, whose rows are others; None is everywhere."""
        if near is None:
            return self
        center = near.latitude, near.longitude
        where = [np.array([gap.latitude, gap.longitude], np.float64) for gap in self.gaps]
        held = [g for g, at in zip(self.gaps, where, strict=True) if geodesic(center, at) <= near.radius]
        return replace(self, answers=[], gaps=held)

    def calibration(self, way: str) -> Calibration | None:
        return self.ways[way].calibration if way in self.ways else None

    def save(self, folder: Path) -> None:
        """Write it into the directory of the index, replacing the one before."""
        write_json(folder / FILE, {"version": VERSION, **asdict(self)})

    @classmethod
    def load(cls, folder: Path, generation: int, fingerprint: str, images: int) -> "SelfTest | None":
        """Read the self-test of an index; None if there is none, or it is of the index as it was before.

        Raises `UserError` if the file is damaged.
        """
        file = folder / FILE
        if not file.is_file():
            return None
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(
                f"{file}: this file cannot be read ({error.strerror}). sfrs index --check --out "
                f"{folder} makes it again."
            ) from error
        return cls.from_json(content, folder, generation, fingerprint, images)

    def to_json(self) -> str:
        """Write it as a text for `from_json`."""
        return json.dumps({"version": VERSION, **asdict(self)})

    @classmethod
    def from_json(
        cls, text: str | bytes, index: str | Path, generation: int, fingerprint: str, images: int | None
    ) -> "SelfTest | None":
        """Read the self-test of ``index`` from a text, as `load` does from its file.

        ``images`` are counted in the index; None where nobody has, and its answers are not asked for.
        """
        file = Path(index) / FILE
        try:
            kept: Kept = as_record(parse_json(text, file), Kept, file)
            if tuple(kept[name] for name in Kept.__annotations__) != (VERSION, generation, fingerprint):
                return None
            test = as_record({name: kept[name] for name in kept if name != "version"}, cls, file)
            if images is not None and any(max(a.row, a.match) >= images for a in test.answers):
                raise RecordError(f"{file}: answers are of images beyond the {images:,} of the index.")
            return test
        except RecordError as error:
            raise UserError(f"{error} sfrs index --check --out {index} makes it again.") from error

    def summary(self) -> dict[str, Any]:
        """Sum it up for JSON; the answers stay in the file."""
        ways = {
            name: {**asdict(way), "calibration": asdict(way.calibration)} for name, way in self.ways.items()
        }
        said = {"tested": self.tested, "ways": ways, "unsure_below": self.unsure_below()}
        weak = [asdict(gap) for gap in self.gaps]
        return {**said, "disagreeing": self.disagreeing, "gaps": weak, "says": self.lines()}

    def unsure_below(self) -> float | None:
        """The highest confidence, in tenths, below which less than half of the answers are right, or None."""
        counted = [answer for answer in self.answers if answer.answerable]
        for tenths in range(9, 0, -1):
            below = [answer.right for answer in counted if answer.confidence < tenths / 10]
            if len(below) >= FEW and sum(below) < len(below) / 2:
                return tenths / 10
        return None

    def lines(self) -> list[str]:
        """Say it in words."""
        if not self.ways:
            return [f"only {self.placed:,} of {self.images:,} images have a position: too few to test"]
        search = self.ways["search"]
        lines = [self._found(search), f"{search.refused} of {search.foreign} pictures of nowhere are refused"]
        unsure, sure = self.unsure_below(), [a.right for a in self.answers if a.confidence >= 0.9]
        if unsure is not None:
            lines.append(f"answers below {unsure:g} are right less than half of the time")
        if len(sure) >= FEW:
            lines.append(
                f"of {len(sure):,} answers of 0.9 and more, {100 * sum(sure) / len(sure):.0f} % are right"
            )
        if self.disagreeing:
            lines.append(
                f"{len(self.disagreeing):,} photos' own coordinates disagree with those of five or more that "
                f"look the same: {', '.join(self.disagreeing[:SAID])}"
                + (", ..." if len(self.disagreeing) > SAID else "")
            )
        if "regions" in self.ways:
            lines.append(self._reranked(self.ways["regions"]))
        if self.gaps:
            where = ", ".join(map(_named, self.gaps[:SAID]))
            lines.append(f"photograph here next (photos not found there): {where}")
        return lines

    def _found(self, search: Way) -> str:
        alone = sum(not answer.answerable for answer in self.answers)
        if search.found is None:
            return (
                f"none of {self.tested:,} photos has another within 25 m, taken at another moment: how many "
                "can be found is not known"
            )
        said = (
            f"{100 * search.found:.0f} % of {search.tested:,} photos are found within 25 m among the others"
        )
        return said + (f"; {alone:,} more have no other within 25 m" if alone else "")

    def _reranked(self, regions: Way) -> str:
        points = f"{100 * regions.gain:+.0f} points, p {regions.p_value:.2g}"
        if regions.recommended:
            return f"re-ranking by regions helps here ({points}): sfrs locate does it"
        return f"re-ranking by regions does not help here ({points}): sfrs locate leaves it out"


def _named(gap: Gap) -> str:
    """A place, and how many photographs want another there."""
    if gap.latitude is None:
        return f"{gap.easting:.0f} E {gap.northing:.0f} N ({gap.photos})"
    return f"{gap.latitude:.5f}, {gap.longitude:.5f} ({gap.photos})"
