"""The report as one HTML file that refers to nothing outside itself."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

import sfrs_ext
from sfrs.runtime.atomic_io import write_text
from sfrs.runtime.errors import counted
from sfrs.runtime.progress import Tasks, quiet
from sfrs.web.report.cases import choose_cases, conditions, difficulty, errors
from sfrs.web.report.figures import condition_rows, error_figure, recall_figure, training_figures
from sfrs.web.report.recorded import Subject
from sfrs.web.report.views import case_views, colours_of, printable, short_name

STYLES = (
    ("sfrs.web", "style.css"),
    ("sfrs.web.report", "report.css"),
    ("sfrs.web.report", "cases.css"),
    ("sfrs.web.report", "media.css"),
)
SCRIPTS = (("sfrs.web", "map.js"), ("sfrs.web.report", "report.js"))

LINES_AT_MOST = 3000
"""Wrong queries whose line to the image found first is drawn on the map."""


def write_report(
    subject: Subject, out: Path, *, cases: int = 12, device: str = "cpu", tasks: Tasks = quiet
) -> Path:
    """Write ``out/index.html``, replacing it in one step.

    Args:
        cases: failures and successes shown, of each.
        device: where matches are explained.

    Raises:
        BadImageError: an image cannot be read.
    """
    labels, named = _labels(subject)
    worst, best = choose_cases(subject.places, subject.result, labels, cases)
    progress = tasks("explaining matches" if subject.model else "reading images")
    if subject.model is not None:
        subject.model.to(device)
    views = case_views(subject, [*worst, *best], labels, progress)
    page = render(subject, views, labels, named)
    path = out / "index.html"
    write_text(path, page)
    return path


def render(subject: Subject, cases: Sequence[dict], labels: Sequence[str], named: bool) -> str:
    """The page as text.

    Args:
        cases: of `sfrs.web.report.views.case_views`.
        labels: the group of every query.
        named: whether the groups are conditions the data set names, not grades of difficulty.
    """
    metres = errors(subject.places, subject.result)
    return template("page.html.j2").render(
        title=printable(f"{subject.places.name}, {subject.places.split}"),
        subject=subject,
        places=subject.places,
        result=subject.result,
        facts=subject.facts,
        unanswerable=int((~subject.result.answerable).sum()),
        median=float(np.median(metres[subject.result.answerable])),
        recall_figure=recall_figure(subject.result, subject.compared),
        error_figure=error_figure(subject.places, subject.result),
        training=training_figures(subject.histories),
        conditions=condition_rows(subject.result, labels, metres) if named else [],
        groups=list(dict.fromkeys(sorted(set(labels), key=_group_order))),
        named=named,
        cases=cases,
        data=page_data(subject, cases, labels, metres),
        **frame(STYLES, SCRIPTS),
    )


def page_data(subject: Subject, cases: Sequence[dict], labels: Sequence[str], metres: np.ndarray) -> dict:
    """What the page's script needs: the map, and the colours of the clusters."""
    places, result = subject.places, subject.result
    shown = {case["id"] for case in cases}
    database = np.unique(places.database.positions.round(1), axis=0)
    found = places.database.positions[result.predictions[:, 0]]
    lines = np.flatnonzero(~result.correct[:, 0] & result.answerable)[:LINES_AT_MOST]
    queries = [
        {
            "x": round(float(places.queries.positions[q, 0]), 1),
            "y": round(float(places.queries.positions[q, 1]), 1),
            "kind": difficulty(metres[q], result.radius) if result.answerable[q] else "unanswerable",
            "group": labels[q],
            "success": bool(result.correct[q, 0]),
            "title": f"{short_name(file)}\n{show_metres(metres[q])} off",
        }
        | ({"id": q} if q in shown else {})
        for q, file in enumerate(places.queries.files)
    ]
    for q in lines:
        queries[q]["found"] = [round(float(value), 1) for value in found[q]]
    model = subject.model
    return {
        "database": database.tolist(),
        "queries": queries,
        "colours": colours_of(model.network.vlad.num_clusters) if model else [],
    }


def _labels(subject: Subject) -> tuple[list[str], bool]:
    """The group of every query, and whether the data set names it."""
    labels = conditions(subject.places)
    if any(labels):
        return [printable(label) for label in labels], True
    radius = subject.result.radius
    names = {
        "right": f"within {radius:g} m",
        "near": f"{radius:g} to {4 * radius:g} m",
        "far": f"beyond {4 * radius:g} m",
    }
    metres = errors(subject.places, subject.result)
    return [names[difficulty(value, radius)] for value in metres], False


def _group_order(label: str) -> tuple:
    order = ("within", "day", "overcast", "sunset", "dusk", "night")
    known = [i for i, name in enumerate(order) if label.startswith(name)]
    return (known[0] if known else len(order), label.startswith("beyond"), label)


def show_metres(metres: float) -> str:
    """A distance with two significant digits below 100 m: 3.4 m, 87 m, 312 m, 4.8 km."""
    if metres < 9.95:
        return f"{metres:.1f} m"
    return f"{metres:.0f} m" if metres < 9950 else f"{metres / 1000:,.1f} km"


def show_percent(share: float) -> str:
    return f"{100 * share:.1f}"


@cache
def template(name: str) -> Template:
    """A page whose text is given to `render`."""
    environment = Environment(
        loader=PackageLoader("sfrs.web.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metres": show_metres, "percent": show_percent, "counted": counted}
    return environment.get_template(name)


def frame(styles: Sequence[tuple[str, str]], scripts: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What the frame of every page needs."""
    return {"version": sfrs_ext.__version__, "style": _assets(styles), "script": _assets(scripts)}


def _assets(names: Sequence[tuple[str, str]]) -> Markup:
    return Markup("\n").join(
        Markup(files(package).joinpath(name).read_text("utf-8")) for package, name in names
    )
