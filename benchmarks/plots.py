"""The plots of docs/performance.md, drawn from benchmarks/results: times of peers, roofline, scaling.

A PNG carries the SHA-256 of the JSON it was drawn from; ``python -m benchmarks.report --check`` compares it.
"""

import hashlib
import io
import json
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from sfrs.runtime.atomic_io import replaced

from . import goals
from .cases import OURS
from .scaling import AXES, DIRECTIONS, EAGER

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/plots"
DIGEST = "SHA-256 of the recorded results"
WIDTH_PIXELS, DPI, SHADES = 1200, 150, 64
# Okabe & Ito's colours, apart for every common kind of colour blindness.
OUR_COLOUR, COMPILED_COLOUR, EAGER_COLOUR = "#0072B2", "#E69F00", "#56B4E9"
INK, FAINT = "#1f2933", "#7b8794"
LOOK = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 8.5,
}


@dataclass(frozen=True)
class Plot:
    """A picture of a page.

    Attributes:
        name: of the PNG, docs/plots/PROCESSOR/NAME.png.
        results: the name of the recorded files it is drawn from.
        draw: maps the record to a figure; None if the record lacks what the plot is about.
    """

    name: str
    results: str
    draw: Callable[[dict], Figure | None]

    def path(self, recorded: Path) -> Path:
        return FOLDER / recorded.parent.name / f"{self.name}.png"


def blank(height: float) -> Figure:
    """A figure as wide as all; ``height`` in inches."""
    return Figure(figsize=(WIDTH_PIXELS / DPI, height), dpi=DPI, layout="constrained", facecolor="white")


def colour(peer: str) -> str:
    if peer == OURS:
        return OUR_COLOUR
    return COMPILED_COLOUR if peer.endswith("torch.compile") else EAGER_COLOUR


def peers(recorded: dict) -> Figure:
    """A bar per peer and case, ours first; of each peer the malloc that is kinder to it."""
    results = recorded["results"]
    pairs = [results[i : i + 2] for i in range(0, len(results), 2)]
    heights = [max(len(timed(result)) for result in pair) + 1.7 for pair in pairs]
    figure = blank(0.2 * sum(heights) + 0.5)
    panels = figure.subplots(len(pairs), 2, squeeze=False, height_ratios=heights)
    for row, pair in zip(panels, pairs, strict=True):
        for axes, result in zip(row, pair, strict=False):
            bars(axes, result, max(len(timed(other)) for other in pair))
        for axes in row[len(pair) :]:
            axes.set_axis_off()
    figure.supxlabel("time per image (region step, all pairs: per call); shorter is better", fontsize=8)
    return figure


def timed(result: dict) -> dict[str, float]:
    """Milliseconds of each peer, the malloc that is kinder to it."""
    return {peer: min(goals.milliseconds(result, peer)) for peer in next(iter(result["times"].values()))}


def duration(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def bars(axes, result: dict, places: int) -> None:
    """One case in room for so many bars: times, and ratios to ours; logarithmic if one is above ten."""
    times = timed(result)
    names = [OURS, *sorted(times.keys() - {OURS}, key=times.__getitem__)]
    ours, longest = times[OURS], max(times.values())
    labels = [name.replace(" torch.compile", ", compiled") for name in names]
    axes.barh(labels, [times[name] for name in names], color=[colour(name) for name in names], height=0.74)
    logarithmic = longest > 10 * ours
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(ours / 4, ours / 4 * (4 * longest / ours) ** 1.7)  # room for the text beside the bars
    else:
        axes.set_xlim(0, longest * 1.7)
    for place, name in enumerate(names):
        text = duration(times[name]) + ("" if name == OURS else f"   {times[name] / ours:.1f}x")
        axes.annotate(
            text, (times[name], place), (4, 0), textcoords="offset points", va="center", fontsize=7.5,
            fontweight="bold" if name == OURS else "normal",
        )  # fmt: skip
    axes.set_ylim(places - 0.4, -0.6)
    axes.spines["left"].set_bounds(-0.5, len(names) - 0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    about = textwrap.fill(result["about"].replace(", float32", "").replace(" = ", "\xa0=\xa0"), 60)
    axes.set_title(about, loc="left", x=-0.83, fontsize=8)
    if logarithmic:
        axes.text(
            1, 0.9, "log scale", ha="right", va="top", fontsize=7, color=FAINT, transform=axes.transAxes
        )


def roofline(recorded: dict) -> Figure | None:
    """Speed over operations per byte of inputs and results: measured roofs, ours and the fastest peer."""
    machine = recorded["machine"]
    roof, threads = machine.get("roof") or {}, str(machine["threads"])
    results = [result for result in recorded["results"] if "bytes" in result]
    if "flops_per_second" not in roof or not results:
        return None
    results.sort(key=lambda result: (result["flops"] / result["bytes"], result["threads"]))
    figure = blank(4.2 + 0.14 * len(results))
    axes, legend = figure.subplots(2, 1, height_ratios=(30, len(results)))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    highest = max(result["flops"] / result["bytes"] for result in results)
    draw_roofs(axes, roof, threads, (0.5, 2 * highest))
    speeds = [draw_speeds(axes, result) for result in results]
    top = axes.get_ylim()[1] * 1.12
    spread = spread_out([math.log2(result["flops"] / result["bytes"]) for result in results], 0.36)
    for number, (place, result, (ours, _)) in enumerate(zip(spread, results, speeds, strict=True), 1):
        dot = (result["flops"] / result["bytes"], ours)
        leader = dict(arrowstyle="-", color=FAINT, linewidth=0.6, shrinkA=0, shrinkB=3)
        axes.annotate(str(number), dot, (2.0**place, top), ha="center", fontweight="bold", arrowprops=leader)
    axes.set_ylim(min(low for _, low in speeds) / 1.5, top * 1.25)
    axes.set_xlabel("FLOP per byte of inputs and results")
    axes.set_ylabel("GFLOP/s")
    for of_axis in (axes.xaxis, axes.yaxis):
        of_axis.set_major_formatter("{x:g}")
    listed = "\n".join(f"{number}  {result['about']}" for number, result in enumerate(results, 1))
    legend.text(0.02, 1, listed, va="top", fontsize=7.5, linespacing=1.4, transform=legend.transAxes)
    legend.set_axis_off()
    axes.legend(loc="lower left", frameon=False)
    return figure


def draw_roofs(axes, roof: dict, threads: str, limits: tuple[float, float]) -> None:
    """The peak of all threads and of one, and the bandwidths that lead up to it."""
    memory = roof["bytes_per_second"]["memory"][threads]["best"]
    right_of_roofs = roof["flops_per_second"][threads]["best"] / memory
    for by in sorted({threads, "1"}, key=int, reverse=True):
        peak = roof["flops_per_second"][by]["best"] / 1e9
        style = (
            dict(color=INK, linewidth=1.4) if by == threads else dict(color=FAINT, linewidth=1, linestyle=":")
        )
        axes.plot(limits, (peak, peak), **style)
        text = f"{peak:.0f} GFLOP/s, {by} thread{'s' * (by != '1')}"
        place = limits[0] if by == threads else right_of_roofs
        axes.annotate(text, (place, peak), (4, 3), textcoords="offset points", fontsize=7.5)
    peak = roof["flops_per_second"][threads]["best"]
    for number, (level, by_threads) in enumerate(roof["bytes_per_second"].items()):
        bandwidth = by_threads[threads]["best"]
        ridge = peak / bandwidth
        axes.plot((ridge / 64, ridge), (peak / 64e9, peak / 1e9), color=INK, linewidth=1)
        below = 1.6 * 2**number  # one label below the other, each at its line
        axes.annotate(
            f"{level} {bandwidth / 1e9:.0f} GB/s", (ridge / below, peak / below / 1e9), (5, -3),
            textcoords="offset points", va="top", fontsize=7.5,
            bbox=dict(facecolor="white", edgecolor="none", pad=1),
        )  # fmt: skip
    axes.set_xlim(*limits)


def draw_speeds(axes, result: dict) -> tuple[float, float]:
    """GFLOP/s of ours and of the fastest peer, as two dots of one case."""
    peers = [peer for peer in next(iter(result["times"].values())) if peer != OURS]
    fastest = min(peers, key=lambda peer: goals.least_ratio(result, OURS, peer))
    speeds = [
        result["flops"] / result["images"] / min(goals.milliseconds(result, peer)) / 1e6
        for peer in (OURS, fastest)
    ]
    intensity = result["flops"] / result["bytes"]
    axes.plot((intensity, intensity), speeds, color=FAINT, linewidth=0.8, zorder=2)
    known = axes.get_legend_handles_labels()[1]
    for speed, marker, shade, label in zip(
        speeds, "os", (OUR_COLOUR, COMPILED_COLOUR), (OURS, "fastest peer"), strict=True
    ):
        axes.plot(
            intensity, speed, marker, color=shade, markersize=6, markeredgecolor="white", linestyle="none",
            label=None if label in known else label, zorder=3,
        )  # fmt: skip
    return speeds[0], min(speeds)


def spread_out(places: list[float], least: float) -> list[float]:
    """Sorted places moved apart to ``least`` distance, around the same mean."""
    spread: list[float] = []
    for place in places:
        spread.append(max(place, spread[-1] + least) if spread else place)
    shift = (sum(places) - sum(spread)) / len(places)
    return [place + shift for place in spread]


def scaling(recorded: dict) -> Figure:
    """GFLOP/s of ours and the eager two-GEMM form over each axis, forward and with backward."""
    figure = blank(4.6)
    panels = figure.subplots(len(DIRECTIONS), len(AXES), sharey="row")
    peak = (recorded["machine"].get("roof") or {}).get("flops_per_second", {})
    peak = peak.get(str(recorded["machine"]["threads"]))
    for row, direction in zip(panels, DIRECTIONS, strict=True):
        for axes, axis in zip(row, AXES, strict=True):
            points = [p for p in recorded["points"] if (p["axis"], p["direction"]) == (axis, direction)]
            for peer, marker in ((OURS, "o"), (EAGER, "s")):
                curve(axes, points, peer, marker)
            if peak:
                axes.axhline(peak["best"] / 1e9, color=INK, linewidth=1, linestyle=":", label="measured peak")
            axes.set_xscale("log", base=2)
            axes.set_ylim(0, None)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.tick_params(axis="x", labelsize=7, which="both", rotation=0)
            axes.grid(axis="y", color="#e4e7eb", linewidth=0.6)
        row[0].set_ylabel(f"{direction}\nGFLOP/s")
    titles = {"P": "positions P", "D": "dimensions D", "K": "clusters K", "B": "images B"}
    for axes, axis in zip(panels[-1], AXES, strict=True):
        others = ", ".join(f"{name} = {value}" for name, value in recorded["base"].items() if name != axis)
        axes.set_xlabel(f"{titles[axis]}\n({others})", fontsize=7)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def curve(axes, points: list[dict], peer: str, marker: str) -> None:
    """A line through all points; those beside the powers of two are hollow."""
    shade = OUR_COLOUR if peer == OURS else COMPILED_COLOUR
    values = [point["value"] for point in points]
    speeds = [point["flops"] / point["peers"][peer]["median_ms"] / 1e6 for point in points]
    axes.plot(values, speeds, marker=marker, markersize=3.5, color=shade, linewidth=1.4, label=peer)
    odd = [(v, s) for v, s in zip(values, speeds, strict=True) if v & (v - 1)]
    axes.plot(
        *zip(*odd, strict=True) if odd else ((), ()),
        marker,
        markersize=3.5,
        color=shade,
        markerfacecolor="white",
    )


PLOTS = (
    Plot("peers", "cpu", peers),
    Plot("roofline", "cpu", roofline),
    Plot("scaling", "scaling", scaling),
)


def digest(recorded: Path) -> str:
    return hashlib.sha256(recorded.read_bytes()).hexdigest()


def write(figure: Figure, path: Path, digest: str) -> None:
    """The PNG in few colours, which is a third of its size, with the digest of its source."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    about = PngImagePlugin.PngInfo()
    about.add_text(DIGEST, digest)
    picture = Image.open(drawn).convert("RGB").quantize(SHADES, dither=Image.Dither.NONE)
    with replaced(path) as partial:
        picture.save(partial, format="PNG", optimize=True, pnginfo=about)


def show(plot: Plot, recorded: Path, *, check: bool = False) -> None:
    """Draw a plot of a recorded file; with ``check`` leave the program if the PNG is of another one."""
    path, name = plot.path(recorded), f"{recorded.parent.name}/{recorded.name}"
    with matplotlib.rc_context(LOOK):
        figure = plot.draw(json.loads(recorded.read_text("utf-8")))
        if figure is None:
            print(f"{path.name} is not drawn: {name} holds no roof")
        elif not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(figure, path, digest(recorded))
        elif drawn_from(path) != digest(recorded):
            raise SystemExit(f"{path.name} was not drawn from {name}; run `make report`")


def drawn_from(picture: Path) -> str | None:
    """The digest that a PNG carries; None without one, or without the PNG."""
    if not picture.exists():
        return None
    with Image.open(picture) as opened:
        return opened.info.get(DIGEST)
