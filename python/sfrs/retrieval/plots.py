"""Recall curves, curves of training runs and contact sheets as PNG."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image, ImageDraw, ImageFont, ImageOps

from sfrs.data.images import BadImageError
from sfrs.runtime.atomic_io import replaced

# Okabe & Ito's colours, apart for every common kind of colour blindness; markers tell lines apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
RIGHT, WRONG = "#1a9850", "#d73027"

TILE = (240, 180)  # width, height of a picture on the contact sheet, pixels
BORDER, GAP, MARGIN = 7, 14, 36
CAPTION = 64  # height of the column titles
SCALE = 2  # badges are drawn larger and shrunk, which smooths their edges

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class SheetRow:
    """A query, the files found for it, best first, and whether each is right."""

    query: Path
    found: Sequence[Path]
    correct: Sequence[bool]


def recall_curves(curves: Mapping[str, Mapping[int, float]], path: str | Path, *, title: str = "") -> None:
    """Draw recall@N over N, one line per label.

    Args:
        curves: label -> {N: recall in 0..1}.
    """
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 11, "text.color": INK}):
        figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained", facecolor=PAPER)
        axes = figure.add_subplot()
        for i, (label, recalls) in enumerate(curves.items()):
            ns = sorted(recalls)
            axes.plot(
                ns,
                [recalls[n] for n in ns],
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=5,
                linewidth=2,
                label=label,
                clip_on=False,
                zorder=3,
            )
        _style(axes, curves)
        if title:
            axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=12)
        _save(path, lambda partial: figure.savefig(partial, format="png"))


@dataclass(frozen=True)
class RunCurves:
    """How a training run went; positions are epochs over all generations, generations are apart.

    Attributes:
        steps: "hard" and "soft" -> that loss of single steps.
        epochs: the same -> its means over epochs.
        recalls: validation recall in 0..1, beginning with the network a generation starts from.
        best: where each generation's best network stands.
    """

    steps: Mapping[str, Sequence[Points]]
    epochs: Mapping[str, Sequence[Points]]
    recalls: Sequence[Points]
    best: Points


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
    size = (8.4, sum(heights) + 0.7 + 0.24 * rows)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 11, "text.color": INK}):
        figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor=PAPER)
        *losses, recalls = figure.subplots(
            len(heights), 1, sharex=True, height_ratios=heights, squeeze=False
        )[:, 0]
        for i, (label, run) in enumerate(runs.items()):
            look = _look(i)
            for part, axes in zip(parts, losses, strict=True):
                _draw_losses(axes, run.steps[part], run.epochs[part], look)
            _draw_recalls(recalls, run, look, label)
        for part, axes in zip(parts, losses, strict=True):
            means = [points for run in runs.values() for points in run.epochs[part]]
            single = [points for run in runs.values() for points in run.steps[part]]
            axes.set_ylim(*_loss_range(means or single))
            axes.set_ylabel(f"{part} loss", color=INK)
        recalls.set_ylabel(f"validation recall@{n}", color=INK)
        recalls.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        recalls.set_xlabel("epochs, all generations; a ring is a generation's best network", color=INK)
        recalls.xaxis.set_major_locator(MaxNLocator(integer=True))
        _mark_generations((*losses, recalls), generations)
        figure.legend(
            *recalls.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
        )
        _save(path, lambda partial: figure.savefig(partial, format="png"))


def _look(i: int) -> dict:
    # After the last colour they come round again, in dashes.
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3],
        "markersize": 4.5,
        "linewidth": 1.8,
    }


def _draw_losses(axes, steps: Sequence[Points], epochs: Sequence[Points], look: dict) -> None:
    for points in steps:
        axes.plot(*_xy(points), color=look["color"], linewidth=0.7, alpha=0.3, zorder=2)
    for points in epochs:
        axes.plot(*_xy(points), **look, zorder=3)


def _draw_recalls(axes, run: RunCurves, look: dict, label: str) -> None:
    for points in run.recalls:
        axes.plot(*_xy(points), **look, zorder=3, clip_on=False)
    ring = {"marker": "o", "markersize": 12, "fillstyle": "none", "linestyle": "", "clip_on": False}
    axes.plot(*_xy(run.best), color=look["color"], **ring)
    axes.plot([], [], **look, label=label)  # one entry of the legend, whatever there is to draw


def _mark_generations(panels, generations: Sequence[int]) -> None:
    for axes in panels:
        for first in generations:
            axes.axvline(first, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        _plain(axes)
    for number, first in enumerate(generations, start=2):
        at = panels[0].get_xaxis_transform()
        panels[0].text(first, 1.01, f"generation {number}", transform=at, color=FAINT, fontsize=9)


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _loss_range(curves: Iterable[Points]) -> tuple[float, float]:
    """Around the means of the epochs (single steps may lie beyond), or, before there are any, the steps."""
    values = [y for points in curves for _, y in points]
    low, high = min(values), max(values)
    room = 0.5 * (high - low) or 0.1 * abs(high) or 1.0
    return max(0.0, low - room), high + room


def _style(axes, curves: Mapping[str, Mapping[int, float]]) -> None:
    deepest = max(max(recalls) for recalls in curves.values())
    lowest = min(min(recalls.values()) for recalls in curves.values())
    axes.set_xlim(0.5, deepest + 0.5)
    axes.set_xticks([1, *range(5, deepest + 1, 5)] if deepest >= 5 else range(1, deepest + 1))
    # Start at a round number below the lowest point, so that close curves come apart.
    axes.set_ylim(min(0.8, max(0.0, int(10 * lowest - 0.5) / 10)), 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_xlabel("N, images looked at", color=INK)
    axes.set_ylabel("recall@N", color=INK)
    _plain(axes)
    if len(curves) > 1:
        # Listed as the lines end, from top to bottom.
        lines = sorted(axes.get_lines(), key=lambda line: -line.get_ydata()[-1])
        axes.legend(
            handles=lines, loc="lower right", frameon=True, facecolor=PAPER, edgecolor="none", framealpha=0.9
        )


def _plain(axes) -> None:
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.tick_params(colors=FAINT, labelcolor=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def contact_sheet(
    rows: Sequence[SheetRow], path: str | Path, *, title: str = "", subtitle: str = "", top: int = 5
) -> None:
    """Draw each query beside the first ``top`` images found for it.

    Right ones have a green border and a tick, wrong ones a red border and a cross.

    Raises:
        BadImageError: an image cannot be read.
    """
    step = TILE[0] + GAP
    header = MARGIN + (40 if title else 0) + (28 if subtitle else 0) + CAPTION
    width = 2 * MARGIN + (top + 1) * step - GAP + GAP  # one more gap sets the query apart
    height = header + len(rows) * (TILE[1] + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _heading(draw, title, subtitle)
    for column in range(top + 1):
        left = _column(column)
        text = "query" if column == 0 else f"{column}"
        draw.text((left + BORDER, header - 12), text, font=_font(19, bold=column == 0), fill=INK, anchor="ls")
    for i, row in enumerate(rows):
        y = header + i * (TILE[1] + GAP)
        sheet.paste(_picture(row.query, TILE), (_column(0), y))
        for column, (file, right) in enumerate(zip(row.found[:top], row.correct[:top], strict=True), start=1):
            _result(sheet, file, right, (_column(column), y))
    _save(path, lambda partial: sheet.save(partial, format="PNG"))


def _column(column: int) -> int:
    return MARGIN + column * (TILE[0] + GAP) + (GAP if column else 0)


def _heading(draw: ImageDraw.ImageDraw, title: str, subtitle: str) -> None:
    y = MARGIN
    if title:
        draw.text((MARGIN, y), title, font=_font(28, bold=True), fill=INK)
        y += 40
    if subtitle:
        draw.text((MARGIN, y), subtitle, font=_font(17), fill=FAINT)


def _result(sheet: Image.Image, file: Path, right: bool, corner: tuple[int, int]) -> None:
    x, y = corner
    colour = RIGHT if right else WRONG
    ImageDraw.Draw(sheet).rectangle((x, y, x + TILE[0] - 1, y + TILE[1] - 1), fill=colour)
    inner = (TILE[0] - 2 * BORDER, TILE[1] - 2 * BORDER)
    sheet.paste(_picture(file, inner), (x + BORDER, y + BORDER))
    badge = _badge(right, 34)
    sheet.paste(
        badge, (x + TILE[0] - badge.width - BORDER - 4, y + TILE[1] - badge.height - BORDER - 4), badge
    )


def _badge(right: bool, size: int) -> Image.Image:
    """A disc with a tick or a cross, RGBA."""
    s = size * SCALE
    image = Image.new("RGBA", (s, s), (255, 255, 255, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((0, 0, s - 1, s - 1), fill=PAPER)
    draw.ellipse((0.07 * s, 0.07 * s, 0.93 * s, 0.93 * s), fill=RIGHT if right else WRONG)
    strokes = (
        [((0.29, 0.52), (0.44, 0.67), (0.72, 0.36))]
        if right
        else [((0.34, 0.34), (0.66, 0.66)), ((0.66, 0.34), (0.34, 0.66))]
    )
    for stroke in strokes:
        points = [(x * s, y * s) for x, y in stroke]
        draw.line(points, fill=PAPER, width=round(0.1 * s), joint="curve")
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _picture(file: Path, size: tuple[int, int]) -> Image.Image:
    """The image cropped to fill (width, height)."""
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise BadImageError(f"{file}: this image cannot be read ({error}).") from error
    return ImageOps.fit(upright, size, Image.Resampling.LANCZOS)


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib ships DejaVu Sans, so the sheet looks the same on every machine.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _save(path: str | Path, write) -> None:
    with replaced(Path(path)) as partial:
        write(partial)
