"""Recall curves and contact sheets as PNG."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter
from PIL import Image, ImageOps

from sfrs.retrieval.explain import open_photograph
from sfrs.runtime.atomic_io import replaced

# Okabe & Ito's colours, apart for every common kind of colour blindness; markers tell lines apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
RIGHT, WRONG = "#1a9850", "#d73027"
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # titles are names of folders
    **{
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "text.color": INK,
        "legend.edgecolor": "none",
    },
    **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
    **{"axes.edgecolor": FAINT, "axes.labelcolor": INK, "grid.color": "#e4e7eb"},
    **{"axes.grid": True, "axes.grid.axis": "y", "xtick.major.size": 0, "ytick.major.size": 0},
    **{
        f"{axis}tick.{part}": colour
        for axis in "xy"
        for part, colour in (("color", FAINT), ("labelcolor", INK))
    },
}

TILE = (240, 180)  # width, height of a picture on the contact sheet, pixels


@dataclass(frozen=True)
class SheetRow:
    """A query, the files found for it, best first, and whether each is right."""

    query: Path
    found: Sequence[Path]
    correct: Sequence[bool]


def recall_curves(curves: Mapping[str, Mapping[int, float]], path: str | Path, *, title: str = "") -> None:
    """Draw recall@N over N, one line per label of ``curves``, label -> {N: recall in 0..1}."""
    with _drawn(path, (7.2, 4.6)) as figure:
        axes = figure.add_subplot()
        _draw_lines(axes, curves)
        deepest = max(max(recalls) for recalls in curves.values())
        lowest = min(min(recalls.values()) for recalls in curves.values())
        axes.set_xlim(0.5, deepest + 0.5)
        axes.set_xticks([1, *range(5, deepest + 1, 5)] if deepest >= 5 else range(1, deepest + 1))
        # Start at a round number below the lowest point, so that close curves come apart.
        axes.set_ylim(min(0.8, max(0.0, int(10 * lowest - 0.5) / 10)), 1.0)
        axes.set_xlabel("N, images looked at")
        axes.set_ylabel("recall@N")
        if len(curves) > 1:
            # Listed as the lines end, from top to bottom.
            lines = sorted(axes.get_lines(), key=lambda line: -np.asarray(line.get_ydata())[-1])
            axes.legend(handles=lines, loc="lower right", framealpha=0.9)
        if title:
            axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=12)


def generation_curves(curves: Mapping[str, Mapping[float, float]], path: str | Path, *, dashed: str) -> None:
    """Draw recall@1 over generations, one line per label, label -> {generation: recall in 0..1}."""
    with _drawn(path, (7.2, 4.2)) as figure:
        axes = figure.add_subplot()
        _draw_lines(axes, curves, dashed)
        axes.set_xticks(range(1, 1 + int(max(max(recalls) for recalls in curves.values()))))
        axes.yaxis.set_major_locator(MultipleLocator(0.05))
        axes.set_xlabel(f"generation ({dashed}: as many passes in one training)")
        axes.set_ylabel("recall@1")
        figure.legend(loc="outside upper left", frameon=False)


@contextmanager
def _drawn(path: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor=PAPER)
        yield figure
        with replaced(Path(path)) as partial:
            figure.savefig(partial, format="png")


def _draw_lines(axes: Any, curves: Mapping[str, Mapping], dashed: str = "") -> None:
    """Draw a line per label, that of ``dashed`` in dashes; after the last colour they come round again."""
    look = {"markersize": 5, "linewidth": 2, "clip_on": False, "zorder": 3}
    for i, (label, values) in enumerate(curves.items()):
        look |= {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        look["linestyle"] = "--" if label == dashed else "-"
        axes.plot(*zip(*sorted(values.items()), strict=True), label=label, **look)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def contact_sheet(
    rows: Sequence[SheetRow], path: str | Path, *, title: str = "", subtitle: str = "", top: int = 5
) -> None:
    """Draw each query next to the first ``top`` images found for it.

    Right ones have a green border and a tick, wrong ones a red border and a cross. Raises `BadImageError` if
    an image cannot be read.
    """
    with _drawn(path, (1.7 * (top + 1), 1.3 * len(rows) + 0.9)) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold")
        figure.supxlabel(subtitle, x=0.01, ha="left", fontsize=10, color=FAINT)
        cells = figure.subplots(len(rows), top + 1, squeeze=False)
        for axes in cells.flat:
            axes.set_axis_off()
        for i, axes in enumerate(cells[0]):
            axes.set_title(str(i or "query"), loc="left", fontweight="normal" if i else "bold")
        for row, line in zip(rows, cells, strict=True):
            shown = [(row.query, None), *zip(row.found[:top], row.correct[:top], strict=False)]
            for axes, (file, right) in zip(line, shown, strict=False):
                axes.imshow(ImageOps.fit(open_photograph(file), TILE, Image.Resampling.LANCZOS))
                if right is not None:
                    _frame(axes, right)


def _frame(axes: Any, right: bool) -> None:
    """Say by a border and a badge whether an image is right."""
    colour = RIGHT if right else WRONG
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=4)
    badge = {"boxstyle": "circle", "facecolor": colour, "edgecolor": PAPER}
    at = {"transform": axes.transAxes, "ha": "right", "va": "bottom"}
    axes.text(0.94, 0.08, "✓" if right else "✗", **at, color=PAPER, fontsize=10, bbox=badge)
