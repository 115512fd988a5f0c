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
from PIL import Image, ImageDraw, ImageFont, ImageOps

from sfrs.retrieval.explain import open_photograph
from sfrs.runtime.atomic_io import replaced

# Okabe & Ito's colours, apart for every common kind of colour blindness; markers tell lines apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
RIGHT, WRONG = "#1a9850", "#d73027"
STYLE: dict[Any, Any] = {
    **{"font.family": "DejaVu Sans", "font.size": 11, "text.color": INK, "legend.edgecolor": "none"},
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
BORDER, GAP, MARGIN = 7, 14, 36
CAPTION = 64  # height of the column titles
BADGE = 34


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
    columns = [MARGIN + i * (TILE[0] + GAP) + (GAP if i else 0) for i in range(top + 2)]
    header = MARGIN + 68 + CAPTION
    height = header + len(rows) * (TILE[1] + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (columns[-1] - GAP + MARGIN, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, font=_font(28, bold=True), fill=INK)
    draw.text((MARGIN, MARGIN + 40), subtitle, font=_font(17), fill=FAINT)
    for i, left in enumerate(columns[:-1]):
        text, font = str(i or "query"), _font(19, bold=i == 0)
        draw.text((left + BORDER, header - 12), text, font=font, fill=INK, anchor="ls")
    for i, row in enumerate(rows):
        y = header + i * (TILE[1] + GAP)
        sheet.paste(ImageOps.fit(open_photograph(row.query), TILE, Image.Resampling.LANCZOS), (columns[0], y))
        for left, file, right in zip(columns[1:], row.found[:top], row.correct[:top], strict=False):
            sheet.paste(_result(file, right), (left, y))
    with replaced(Path(path)) as partial:
        sheet.save(partial, format="PNG")


def _result(file: Path, right: bool) -> Image.Image:
    """The image in a border and with a badge that say whether it is right."""
    inner = (TILE[0] - 2 * BORDER, TILE[1] - 2 * BORDER)
    picture = ImageOps.fit(open_photograph(file), inner, Image.Resampling.LANCZOS)
    tile = ImageOps.expand(picture, BORDER, fill=RIGHT if right else WRONG)
    badge = Image.new("RGBA", (2 * BADGE, 2 * BADGE))  # drawn larger and shrunk, which smooths its edges
    draw = ImageDraw.Draw(badge)
    draw.ellipse((0, 0, 2 * BADGE - 1, 2 * BADGE - 1), fill=RIGHT if right else WRONG, outline=PAPER, width=5)
    draw.text((BADGE, BADGE), "✓" if right else "✗", font=_font(54), fill=PAPER, anchor="mm")
    badge = badge.resize((BADGE, BADGE), Image.Resampling.LANCZOS)
    tile.paste(badge, (TILE[0] - BADGE - BORDER - 4, TILE[1] - BADGE - BORDER - 4), badge)
    return tile


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib ships DejaVu Sans, so the sheet looks the same on every machine.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
