"""Check data sets before a network sees them: what they hold and what is wrong with it."""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sfrs.data.coordinates import nearest
from sfrs.data.images import check_images
from sfrs.data.neighbourhood import Neighbourhood, right_images
from sfrs.data.photo_files import LeftOutWarning
from sfrs.data.places import CoordinatesWarning, Places, PlacesError, Reading, format_of
from sfrs.data.places.formats import PLAIN
from sfrs.data.places.hold_out import SPLITS as HELD_OUT
from sfrs.data.ragged import Ragged
from sfrs.runtime.errors import UserError, counted
from sfrs.runtime.progress import Tasks, quiet

TRAINING, VALIDATION, ANY = "train", "val", "any"
"""The splits of training and of validation, and how a data set without splits is shown."""
IMAGES, QUERIES = ("image", "images"), ("query", "queries")
FAR = 1_000.0  # metres to the nearest database image from which on a query hardly belongs to the data set


@dataclass(frozen=True)
class Rules:
    """The radii (metres) and the number of negatives that a data set is held to, by default the paper's."""

    positive_radius: float = 10.0
    negative_radius: float = 25.0
    tuple_negatives: int = 10

    def __post_init__(self):
        if not 0 < self.positive_radius <= self.negative_radius:
            raise UserError(
                f"positive_radius is {self.positive_radius:g} and negative_radius {self.negative_radius:g}; "
                "expected more than 0, and the latter not below the former."
            )


@dataclass(frozen=True)
class Finding:
    """A fact about a split: whether training or evaluating stops at it, and the images it is about."""

    text: str
    stops: bool = False
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class SplitCheck:
    """The content of one split: numbers of images, and of places (positions or panoramas) in the database."""

    split: str
    database: int = 0
    queries: int = 0
    places: int = 0
    radius: float = 0.0  # metres within which a database image is a positive
    without_positive: int = 0  # queries that have none
    median_positives: float = 0.0  # of the queries that have one; 0 if none has
    missing: int = 0
    unreadable: int = 0
    unplaced: int = 0  # images that say nowhere where they were taken
    serves: tuple[str, ...] = ()  # "evaluate", "train" and "index", as far as nothing stands in the way
    findings: tuple[Finding, ...] = ()  # what is wrong or noteworthy, what stops first

    @property
    def ok(self) -> bool:
        return not any(finding.stops for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        findings = [vars(f) | {"files": [str(file) for file in f.files]} for f in self.findings]
        return vars(self) | {"ok": self.ok, "findings": findings}


def check_data(
    path: Path,
    splits: Sequence[str] = (),
    rules: Rules = Rules(),
    *,
    reading: Reading = PLAIN,
    decode: bool = False,
    workers: int = 2,
    tasks: Tasks = quiet,
) -> tuple[str, list[SplitCheck]]:
    """Check the splits of a data set; by default all that are there.

    With ``decode`` every image is read whole, not only the beginning of its file. Photographs without a
    position are counted all the same. Returns (name of the format, checks, the training split first). Raises
    `PlacesError` if ``path`` is no data set.
    """
    reading = replace(reading, lenient=not reading.skip_unplaced)
    kind = format_of(path, reading)
    checks, training = [], None
    # The training split first: the others are compared with it.
    found = HELD_OUT if reading.hold_out else kind.splits(path)
    for split in sorted(splits or found or [ANY], key=lambda name: name != TRAINING):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                places = kind.read(path, split, reading)
            except PlacesError as error:
                checks.append(SplitCheck(split, findings=(Finding(str(error), stops=True),)))
                continue
        known = [
            Finding(str(w.message), stops=w.category is CoordinatesWarning)
            for w in caught
            if w.category in (CoordinatesWarning, LeftOutWarning)
        ]
        files = list(dict.fromkeys((*places.database.files, *places.queries.files)))
        show = tasks(f"images of {split}")
        bad = check_images(files, decode=decode, workers=workers, progress=show)
        checks.append(_check_split(places, rules, bad, training, known))
        training = places if split == TRAINING else training
    return kind.name, checks


def _check_split(
    places: Places, rules: Rules, bad: list[tuple[Path, str]], training: Places | None, known: list[Finding]
) -> SplitCheck:
    findings = [*known]
    if places.split == TRAINING:
        radius = rules.positive_radius
        near = Neighbourhood.of_places(places, radius, rules.negative_radius)
        positives = near.positives
        findings += _training_findings(near, rules)
    else:
        radius = rules.negative_radius
        positives = right_images(places, radius)
    # Not Path.is_file, which raises for a name that no file can have.
    missing = {file: why for file, why in bad if not os.path.isfile(file)}
    unreadable = {file: why for file, why in bad if file not in missing}
    findings += _file_findings(missing, unreadable)
    if len(places.queries):
        findings += _position_findings(places, positives, radius)
    findings += _listing_findings(places)
    findings += _shared_findings(places, training, rules.negative_radius)
    counts = positives.counts()
    unplaced = sum(
        int(np.isnan(images.positions).any(axis=1).sum()) for images in (places.database, places.queries)
    )
    stops = any(finding.stops for finding in findings)
    return SplitCheck(
        places.split,
        database=len(places.database),
        queries=len(places.queries),
        places=len(np.unique(places.database.place_ids)),
        radius=radius,
        without_positive=int((counts == 0).sum()),
        median_positives=float(np.median(counts[counts > 0])) if counts.any() else 0.0,
        missing=len(missing),
        unreadable=len(unreadable),
        unplaced=unplaced,
        serves=tuple(_serves(places, positives, rules, stops, bool(bad))),
        findings=tuple(sorted(findings, key=lambda finding: not finding.stops)),
    )


def serves(checks: Sequence[SplitCheck]) -> dict[str, list[str]]:
    """Return the splits that can be evaluated on, trained on, validated on, and indexed."""

    def of(purpose: str) -> list[str]:
        return [found.split for found in checks if purpose in found.serves]

    validated = [split for split in of("evaluate") if split in (VALIDATION, ANY)]
    return {"evaluate": of("evaluate"), "train": of("train"), "validate": validated, "index": of("index")}


def _serves(places: Places, positives: Ragged, rules: Rules, stops: bool, bad: bool) -> Iterator[str]:
    if positives.values.size and not stops:
        yield "evaluate"
    if places.split in (TRAINING, ANY) and not stops:
        near = Neighbourhood.of_places(places, rules.positive_radius, rules.negative_radius)
        if near.positives.values.size and not [*_training_findings(near, rules)]:
            yield "train"
    if np.isfinite(places.database.positions).all(axis=1).any() and not bad:
        yield "index"


def _training_findings(near: Neighbourhood, rules: Rules) -> Iterator[Finding]:
    left = (near.database - near.excluded.counts())[near.positives.counts() > 0]
    if len(left) and left.min() < rules.tuple_negatives:
        yield Finding(
            f"a query has only {left.min()} database images beyond {rules.negative_radius:g} m, but a "
            f"tuple has {rules.tuple_negatives} negatives (--tuple-negatives)",
            stops=True,
        )


def _file_findings(missing: dict[Path, str], unreadable: dict[Path, str]) -> Iterator[Finding]:
    if missing:
        text = f"{_are(len(missing), *IMAGES)} listed but not there, the first: {[*missing][0]}"
        yield Finding(text, stops=True, files=tuple(missing))
    if unreadable:
        file, why = next(iter(unreadable.items()))
        text = f"{_are(len(unreadable), *IMAGES)} there but cannot be read, the first: {file} ({why})"
        yield Finding(text, stops=True, files=tuple(unreadable))


def _position_findings(places: Places, positives: Ragged, radius: float) -> Iterator[Finding]:
    if positives.values.size == 0:
        text = f"none of the {len(positives)} queries has a positive within {radius:g} m"
        yield Finding(text, stops=True)
    metres = nearest(places.queries.positions, places.database.positions)
    far = tuple(places.queries.files[i] for i in np.flatnonzero((metres > FAR) & np.isfinite(metres)))
    if far:
        yield Finding(
            f"{_are(len(far), *QUERIES)} more than {FAR / 1000:g} km from every database image, the first: "
            f"{far[0]}; are both in one coordinate system?",
            files=far,
        )


def _listing_findings(places: Places) -> Iterator[Finding]:
    for role, images in (("database", places.database), ("queries", places.queries)):
        again = len(images) - len(set(images.files))
        if again:
            yield Finding(f"{_are(again, *IMAGES)} listed in the {role} more than once")
    known = set(places.database.files)
    same = tuple(file for file in places.queries.files if file in known)
    if same and places.queries.time_stamps is None:
        also = f"{_are(len(same), *QUERIES)} images of the database too"
        yield Finding(f"{also} and find themselves, the first: {same[0]}", files=same)


def _shared_findings(places: Places, training: Places | None, radius: float) -> Iterator[Finding]:
    if training is None:
        return
    trained = np.concatenate((training.database.positions, training.queries.positions))
    near = int((nearest(places.queries.positions, trained) <= radius).sum())
    if near:
        yield Finding(
            f"{_are(near, *QUERIES)} within {radius:g} m of images of the split {TRAINING}, so recall on "
            f"{places.split} is in part that of places trained on"
        )


def _are(count: int, one: str, many: str) -> str:
    return counted(count, f"{one} is", f"{many} are")
