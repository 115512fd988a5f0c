"""Recall curves, curves of training runs and contact sheets as PNG."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
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

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class SheetRow:
    """A query, the files found for it, best first, and whether each is right."""

    query: Path
    found: Sequence[Path]
    correct: Sequence[bool]


@dataclass(frozen=True)
class RunCurves:
    """The course of a training run; positions are epochs over all generations, generations are apart."""

    steps: Mapping[str, Sequence[Points]]  # "hard" and "soft" -> that loss of single steps
    epochs: Mapping[str, Sequence[Points]]  # the same -> its means over epochs
    recalls: Sequence[Points]  # validation recall in 0..1, from the network a generation starts from on
    best: Points  # where each generation's best network stands


def recall_curves(curves: Mapping[str, Mapping[int, float]], path: str | Path, *, title: str = "") -> None:
    """Draw recall@N over N, one line per label.

    Args:
        curves: label -> {N: recall in 0..1}.
    """
    with _drawn(path, (7.2, 4.6)) as figure:
        axes = figure.add_subplot()
        for i, (label, recalls) in enumerate(curves.items()):
            look = {**_look(i), "linestyle": "-", "markersize": 5, "linewidth": 2}
            axes.plot(*_xy(sorted(recalls.items())), **look, label=label, clip_on=False, zorder=3)
        deepest = max(max(recalls) for recalls in curves.values())
        lowest = min(min(recalls.values()) for recalls in curves.values())
        axes.set_xlim(0.5, deepest + 0.5)
        axes.set_xticks([1, *range(5, deepest + 1, 5)] if deepest >= 5 else range(1, deepest + 1))
        # Start at a round number below the lowest point, so that close curves come apart.
        axes.set_ylim(min(0.8, max(0.0, int(10 * lowest - 0.5) / 10)), 1.0)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.set_xlabel("N, images looked at")
        axes.set_ylabel("recall@N")
        if len(curves) > 1:
            # Listed as the lines end, from top to bottom.
            lines = sorted(axes.get_lines(), key=lambda line: -np.asarray(line.get_ydata())[-1])
            axes.legend(handles=lines, loc="lower right", framealpha=0.9)
        if title:
            axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=12)


def training_curves(
    runs: Mapping[str, RunCurves], path: str | Path, *, n: int = 5, generations: Sequence[int] = ()
) -> None:
    """Draw hard and soft losses over validation recall@n, one colour per label.

    Args:
        generations: first epochs of generations 2, 3, ..., where they are the same in all runs; marked.
    """
    parts = [
        part for part in ("hard", "soft") if any(run.epochs[part] or run.steps[part] for run in runs.values())
    ]
    heights = [2.0] * len(parts) + [3.2]
    rows = -(-len(runs) // 3)  # of the legend
    with _drawn(path, (8.4, sum(heights) + 0.7 + 0.24 * rows)) as figure:
        panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        for part, axes in zip(parts, panels, strict=False):
            _draw_losses(axes, part, list(runs.values()))
        recalls = panels[-1]
        for i, (label, run) in enumerate(runs.items()):
            for points in run.recalls:
                recalls.plot(*_xy(points), **_look(i), zorder=3, clip_on=False)
            ring = {"marker": "o", "markersize": 12, "fillstyle": "none", "linestyle": "", "clip_on": False}
            recalls.plot(*_xy(run.best), color=_look(i)["color"], **ring)
            recalls.plot([], [], **_look(i), label=label)  # one entry of the legend, whatever is drawn
        recalls.set_ylabel(f"validation recall@{n}")
        recalls.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        recalls.set_xlabel("epochs, all generations; a ring is a generation's best network")
        recalls.xaxis.set_major_locator(MaxNLocator(integer=True))
        for number, first in enumerate(generations, start=2):
            for axes in panels:
                axes.axvline(first, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            at = panels[0].get_xaxis_transform()
            panels[0].text(first, 1.01, f"generation {number}", transform=at, color=FAINT, fontsize=9)
        legend = recalls.get_legend_handles_labels()
        figure.legend(*legend, loc="outside lower center", ncols=3, frameon=False)


@contextmanager
def _drawn(path: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor=PAPER)
        yield figure
        with replaced(Path(path)) as partial:
            figure.savefig(partial, format="png")


def _look(i: int) -> dict:
    # After the last colour they come round again, in dashes.
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3],
        "markersize": 4.5,
        "linewidth": 1.8,
    }


def _draw_losses(axes, part: str, runs: Sequence[RunCurves]) -> None:
    for i, run in enumerate(runs):
        for points in run.steps[part]:
            axes.plot(*_xy(points), color=_look(i)["color"], linewidth=0.7, alpha=0.3, zorder=2)
        for points in run.epochs[part]:
            axes.plot(*_xy(points), **_look(i), zorder=3)
    # Around the means of the epochs (single steps may lie beyond), or, before there are any, the steps.
    curves = [curve for run in runs for curve in run.epochs[part]]
    curves = curves or [curve for run in runs for curve in run.steps[part]]
    values = [y for curve in curves for _, y in curve]
    low, high = min(values), max(values)
    room = 0.5 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(max(0.0, low - room), high + room)
    axes.set_ylabel(f"{part} loss")


def _xy(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    points = list(points)
    return [x for x, _ in points], [y for _, y in points]


def contact_sheet(
    rows: Sequence[SheetRow], path: str | Path, *, title: str = "", subtitle: str = "", top: int = 5
) -> None:
    """Draw each query next to the first ``top`` images found for it.

    Right ones have a green border and a tick, wrong ones a red border and a cross.

    Raises:
        BadImageError: an image cannot be read.
    """
    columns = [MARGIN + i * (TILE[0] + GAP) + (GAP if i else 0) for i in range(top + 2)]
    header = MARGIN + (40 if title else 0) + (28 if subtitle else 0) + CAPTION
    height = header + len(rows) * (TILE[1] + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (columns[-1] - GAP + MARGIN, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, MARGIN), title, font=_font(28, bold=True), fill=INK)
    if subtitle:
        draw.text((MARGIN, MARGIN + (40 if title else 0)), subtitle, font=_font(17), fill=FAINT)
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
