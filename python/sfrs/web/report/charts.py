"""Line charts as SVG whose colours come from the page's style, so that they follow light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 300
LEFT, TOP, BOTTOM = 52, 14, 46
LINE = 17  # least distance of the labels at the ends of lines
LETTER = 8.8  # width of a letter of such a label, about, in the larger type of narrow screens


@dataclass(frozen=True)
class Axis:
    """The range of an axis and (value, text) of its ticks."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between low (0) and high (1)."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Series:
    """A line: (x, y, text shown when pointed at) of its points; marked with dots, or drawn through."""

    label: str
    points: Sequence[tuple[float, float, str]]
    dots: bool = True


def percent_axis(label: str, low: float = 0.0) -> Axis:
    """0 to 100 %, or from the multiple of 20 % below ``low``."""
    start = min(80, int(low * 5) * 20)
    step = 10 if start >= 60 else 20
    return Axis(label, start / 100, 1.0, [(tick / 100, f"{tick}%") for tick in range(start, 101, step)])


def count_axis(label: str, high: int) -> Axis:
    """1 to ``high``, with ticks at 1 and round numbers."""
    step = next(
        step for base in (1, 10, 100, 1000, 10**4) for step in (base, 2 * base, 5 * base) if high / step <= 6
    )
    ticks = sorted({1, *range(step, high + 1, step)})
    return Axis(label, 1 if high > 1 else 0, max(high, 2), [(tick, str(tick)) for tick in ticks])


def value_axis(label: str, low: float, high: float) -> Axis:
    """Round ticks over a range of any size."""
    span = max(high - low, 1e-6)
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [(i * step, f"{i * step:.10g}") for i in range(first, last + 1)]
    return Axis(label, first * step, last * step, ticks)


def metres_axis(label: str, high: float) -> Axis:
    """1 m to at least ``high``, logarithmic."""
    top = 10 ** max(2, math.ceil(math.log10(max(high, 1.0))))
    powers = [10**i for i in range(round(math.log10(top)) + 1)]
    shown = powers[:: math.ceil(len(powers) / 5)]
    texts = [(p, f"{p} m" if p < 1000 else f"{p // 1000:,} km") for p in shown]
    return Axis(label, 1.0, float(top), texts, logarithmic=True)


def line_chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, marks: Sequence[tuple[float, str]] = ()
) -> Markup:
    """Draw lines; several are named at their ends.

    Args:
        title: read out for the chart.
        marks: (x, text) of dashed verticals.
    """
    named = len(series) > 1
    right = max(20, LETTER * len(x.ticks[-1][1]) / 2)
    right += LETTER * max(len(line.label) for line in series) if named else 0
    width = WIDTH - LEFT - right
    height = HEIGHT - TOP - BOTTOM

    def place(point: tuple) -> tuple[float, float]:
        return LEFT + width * x.share(point[0]), TOP + height * (1 - y.share(point[1]))

    parts = [_axes(x, y, place, width, height)]
    for value, text in marks:
        at = place((value, y.low))[0]
        parts.append(Markup('<path class="mark" d="M{0:.1f} {1}v{2}"/>').format(at, TOP, height))
        note = Markup('<text class="note" x="{:.1f}" y="{}">{}</text>')
        parts.append(note.format(at + 5, TOP + height - 8, text))
    parts += [_line(i, line, place) for i, line in enumerate(series)]
    if named:
        parts += _names(series, place)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join(parts)
    )


def _axes(x: Axis, y: Axis, place, width: float, height: float) -> Markup:
    parts = []
    for value, text in y.ticks:
        at = place((x.low, value))[1]
        parts.append(Markup('<path class="rule" d="M{} {:.1f}h{:.1f}"/>').format(LEFT, at, width))
        parts.append(
            Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                LEFT - 8, at + 4.5, text
            )
        )
    for value, text in x.ticks:
        at = place((value, y.low))[0]
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                at, TOP + height + 19, text
            )
        )
    parts.append(
        Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            LEFT + width / 2, HEIGHT - 6, x.label
        )
    )
    return Markup("").join(parts)


def _line(number: int, line: Series, place) -> Markup:
    places = [place(point) for point in line.points]
    path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
    parts = [Markup('<path class="line" d="{}"/>').format(path)]
    if line.dots:
        for (px, py), point in zip(places, line.points, strict=True):
            parts.append(
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
                    px, py, point[2]
                )
            )
    return Markup('<g class="series-{}">{}</g>').format(number % 6, Markup("").join(parts))


def _names(series: Sequence[Series], place) -> list[Markup]:
    """Labels at the ends of the lines, moved apart where they would overlap."""
    ends = sorted((place(line.points[-1])[1], *place(line.points[-1]), i) for i, line in enumerate(series))
    lowest = TOP - LINE
    names = []
    for wanted, px, _, i in ends:
        lowest = max(wanted, lowest + LINE)
        names.append(
            Markup('<text class="name series-{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
                i % 6, px + 9, lowest + 4.5, escape(series[i].label)
            )
        )
    return names
