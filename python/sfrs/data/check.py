"""What a data set holds and what is wrong with it, before a network sees it."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from sfrs.training.config import TrainConfig
from sfrs.data.images import Progress, check_images
from sfrs.data.neighbourhood import Neighbourhood, right_images
from sfrs.data.places import CoordinatesWarning, Places, PlacesError, Ragged, format_of

TRAINING, ANY = "train", "any"
"""The split that is held to the rules of training; and how a manifest without a split column is shown."""

FAR = 1_000.0
"""Metres to the nearest database image from which on a query hardly belongs to the data set."""

Tasks = Callable[[str], Progress]


@dataclass(frozen=True)
class Finding:
    """Something to know about a split.

    Attributes:
        text: what it is.
        stops: whether training or evaluating on the split stops at it.
        files: the images it is about, if it is about images.
    """

    text: str
    stops: bool = False
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class SplitCheck:
    """What one split holds.

    Attributes:
        places: positions (or panoramas) of the database.
        radius: metres within which a database image is a positive.
        without_positive: queries that have none.
        median_positives: of the queries that have one; 0 if none has.
        findings: what is wrong or noteworthy, what stops first.
    """

    split: str
    database: int = 0
    queries: int = 0
    places: int = 0
    radius: float = 0.0
    without_positive: int = 0
    median_positives: float = 0.0
    missing: int = 0
    unreadable: int = 0
    findings: tuple[Finding, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not any(finding.stops for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        values = {name: value for name, value in vars(self).items() if name != "findings"}
        findings = [vars(f) | {"files": [str(file) for file in f.files]} for f in self.findings]
        return values | {"ok": self.ok, "findings": findings}


def check_data(
    path: Path,
    splits: Sequence[str] = (),
    *,
    config: TrainConfig | None = None,
    decode: bool = False,
    threads: int = 2,
    tasks: Tasks | None = None,
) -> tuple[str, list[SplitCheck]]:
    """Check the splits of a data set.

    Args:
        splits: names; none: all that are there.
        config: its radii and number of negatives are the rules; the paper's by default.
        decode: read every image whole, not only the beginning of its file.
        tasks: opens a progress display with a name.

    Returns:
        (name of the format, what was found in each split, the training split first).

    Raises:
        PlacesError: ``path`` is no data set.
    """
    kind = format_of(path)
    config = config or TrainConfig()
    checks, training = [], None
    # The training split first: the others are compared with it.
    for split in sorted(splits or kind.splits(path) or [ANY], key=lambda name: name != TRAINING):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CoordinatesWarning)
            try:
                places = kind.read(path, split)
            except PlacesError as error:
                checks.append(SplitCheck(split, findings=(Finding(str(error), stops=True),)))
                continue
        degrees = [Finding(str(w.message), stops=True) for w in caught if w.category is CoordinatesWarning]
        checks.append(_check_split(places, config, decode, threads, tasks, training, degrees))
        training = places if split == TRAINING else training
    return kind.name, checks


def _check_split(
    places: Places,
    config: TrainConfig,
    decode: bool,
    threads: int,
    tasks: Tasks | None,
    training: Places | None,
    known: list[Finding],
) -> SplitCheck:
    if places.split == TRAINING:
        radius, near = config.positive_radius, Neighbourhood.of_places(places, config)
        positives, findings = near.positives, [*known, *_training_findings(near, config)]
    else:
        radius, findings = config.negative_radius, list(known)
        positives = right_images(places, radius)
    files = list(dict.fromkeys((*places.database.files, *places.queries.files)))
    bad = check_images(
        files, decode=decode, threads=threads, progress=tasks(f"images of {places.split}") if tasks else None
    )
    missing = [(file, why) for file, why in bad if not file.is_file()]
    unreadable = [(file, why) for file, why in bad if file.is_file()]
    findings += _file_findings(missing, unreadable)
    findings += _position_findings(places, positives, radius)
    findings += _listing_findings(places)
    findings += _shared_findings(places, training, config.negative_radius)
    counts = positives.counts()
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
        findings=tuple(sorted(findings, key=lambda finding: not finding.stops)),
    )


def _training_findings(near: Neighbourhood, config: TrainConfig) -> list[Finding]:
    left = (near.database - near.excluded.counts())[near.positives.counts() > 0]
    if len(left) and left.min() < config.tuple_negatives:
        return [
            Finding(
                f"a query has only {left.min()} database images beyond {config.negative_radius:g} m, but a "
                f"tuple has {config.tuple_negatives} negatives (--tuple-negatives)",
                stops=True,
            )
        ]
    return []


def _file_findings(missing: list[tuple[Path, str]], unreadable: list[tuple[Path, str]]) -> list[Finding]:
    findings = []
    if missing:
        text = f"{_images(len(missing))} listed but not there, the first: {missing[0][0]}"
        findings.append(Finding(text, stops=True, files=tuple(file for file, _ in missing)))
    if unreadable:
        file, why = unreadable[0]
        text = f"{_images(len(unreadable))} there but cannot be read, the first: {file} ({why})"
        findings.append(Finding(text, stops=True, files=tuple(file for file, _ in unreadable)))
    return findings


def _position_findings(places: Places, positives: Ragged, radius: float) -> list[Finding]:
    findings = []
    if positives.values.size == 0:
        text = f"none of the {len(positives)} queries has a positive within {radius:g} m"
        findings.append(Finding(text, stops=True))
    metres = cKDTree(places.database.positions).query(places.queries.positions)[0]
    far = np.flatnonzero(metres > FAR)
    if len(far):
        findings.append(
            Finding(
                f"{_queries(len(far))} more than {FAR / 1000:g} km from every database image, the first: "
                f"{places.queries.files[far[0]]}; are both in one coordinate system?",
                files=tuple(places.queries.files[i] for i in far),
            )
        )
    return findings


def _listing_findings(places: Places) -> list[Finding]:
    findings = []
    for role, images in (("database", places.database), ("queries", places.queries)):
        again = len(images) - len(set(images.files))
        if again:
            findings.append(Finding(f"{_images(again)} listed in the {role} more than once"))
    known = set(places.database.files)
    same = tuple(file for file in places.queries.files if file in known)
    if same and places.queries.time_stamps is None:
        text = f"{_queries(len(same))} images of the database too and find themselves, the first: {same[0]}"
        findings.append(Finding(text, files=same))
    return findings


def _shared_findings(places: Places, training: Places | None, radius: float) -> list[Finding]:
    if training is None:
        return []
    trained = np.concatenate((training.database.positions, training.queries.positions))
    near = int((cKDTree(trained).query(places.queries.positions)[0] <= radius).sum())
    if not near:
        return []
    return [
        Finding(
            f"{_queries(near)} within {radius:g} m of images of the split {TRAINING}, so recall on "
            f"{places.split} is in part that of places trained on"
        )
    ]


def _images(count: int) -> str:
    return f"{count:,} images are" if count > 1 else "1 image is"


def _queries(count: int) -> str:
    return f"{count:,} queries are" if count > 1 else "1 query is"
