"""The report on an index: what its self-test says, its coverage map, and places that look alike."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sfrs.data.coordinates import metres_between
from sfrs.data.images import BadImageError
from sfrs.retrieval.coverage import look_alikes
from sfrs.retrieval.index import Index
from sfrs.retrieval.location import RADIUS
from sfrs.retrieval.tested import SelfTest
from sfrs.runtime.atomic_io import write_text
from sfrs.runtime.errors import UserError
from sfrs.web.overview import overview
from sfrs.web.report import page
from sfrs.web.report.figures import located_figure, trust_figure
from sfrs.web.report.page import frame, template
from sfrs.web.report.pictures import SMALL, jpeg_uri
from sfrs.web.report.views import printable, short_name

STYLES = (*page.STYLES, ("sfrs.web.report", "index.css"))
SCRIPTS = (("sfrs.web", "map.js"), ("sfrs.web", "coverage.js"), ("sfrs.web.report", "index.js"))

NAMED = 50
"""Photographs whose coordinates disagree that are named."""


def write_index_report(index: Index, out: Path, *, pairs: int = 12) -> Path:
    """Write ``out/index.html`` about an index, replacing it in one step.

    Args:
        pairs: look-alikes shown with their photographs.

    Raises:
        UserError: the index has no self-test, or a photograph to be shown cannot be read.
    """
    test = index.self_test
    if test is None:
        raise UserError(
            f"{index.path}: there is no self-test of this index as it is; sfrs index --check --out "
            f"{index.path} makes it."
        )
    path = out / "index.html"
    write_text(path, _render(index, test, pairs))
    return path


def _render(index: Index, test: SelfTest, pairs: int) -> str:
    search, taken = test.ways.get("search"), look_alikes(index, test.answers, len(test.answers))
    return template("index.html.j2").render(
        title=printable(index.path.absolute().name),
        test=test,
        search=search,
        taken=taken,
        facts={
            "network": f"{index.model.network.backbone.name}, {index.model.dim:,} numbers",
            "kind": index.kind,
            "positions": f"UTM zone {index.zone}" if index.zone else "plain metres",
        },
        lines=[printable(line) for line in test.lines()],
        figures=[*trust_figure(test.answers), *located_figure(test.answers)],
        disagreeing=[printable(file) for file in test.disagreeing[:NAMED]],
        alike=_look_alikes(index, test, _apart(index.positions, taken, pairs)),
        data=overview(index),
        **frame(STYLES, SCRIPTS),
    )


def _look_alikes(index: Index, test: SelfTest, pairs: Sequence[tuple[int, int]]) -> list[dict]:
    """Pairs of rows with their photographs, and where they are."""
    confidence = {answer.row: answer.confidence for answer in test.answers}
    shown = []
    for one, two in pairs:
        files = [index.files[row] for row in (one, two)]
        ends = index.positions[[one, two]]
        shown.append(
            {
                "sides": [{"name": short_name(file), "picture": _picture(file)} for file in files],
                "metres": float(metres_between(*ends, system=index.zone)),
                "confidence": confidence[one],
                "ends": ends.round(1).tolist(),
            }
        )
    return shown


def _apart(positions: np.ndarray, pairs: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """At most ``most`` pairs, none of the places of one before, in either order."""
    kept: list[tuple[int, int]] = []
    for one, two in pairs:
        ends = positions[[one, two]]
        known = (positions[list(other)] for pair in kept for other in (pair, pair[::-1]))
        if len(kept) < most and not any((metres_between(ends, of) <= 2 * RADIUS).all() for of in known):
            kept.append((one, two))
    return kept


def _picture(file: Path) -> str:
    try:
        return jpeg_uri(file, SMALL)
    except BadImageError as error:
        raise UserError(f"{error} --cases 0 leaves the photographs out.") from error
