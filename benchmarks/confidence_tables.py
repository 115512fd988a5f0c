"""Tables of docs/locate.md from benchmarks/results/confidence.json."""

from collections.abc import Sequence

import numpy as np

SETS = ("corridor", "lund", "tower", "city")
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
"""Borders of confidence between which answers are counted."""


def tables(recorded: dict) -> str:
    about, rows = recorded["machine"], recorded["indexes"]
    lines = [
        f"{about['cpu']}, torch {about['torch']}, commit {about['commit']}, {about['date']}: "
        "`python -m benchmarks.confidence`.",
        "",
    ]
    bins = [f"{low:g} to {high:g}" for low, high in zip(BINS[:-1], BINS[1:], strict=True)]
    lines += [
        f"| index, way | photos | right | own photos | mean | {' | '.join(bins)} | calibration error |",
        "|---|---|---|---|---|" + "---|" * len(bins) + "---|",
    ]
    lines += [_reliability(row) for row in rows]
    lines += [
        "",
        "| index, way | 0.9 and more: right | good answers refused | elsewhere refused | no place refused |",
    ]
    lines += ["|---|---|---|---|---|"]
    return "\n".join([*lines, *(_refusals(row) for row in rows), _total(rows)])


def _reliability(row: dict) -> str:
    cells = [
        f"{100 * right / asked:.0f} % of {asked}" if asked else "none" for asked, right, _ in row["bins"]
    ]
    own = "none" if row["own_right"] is None else f"{100 * row['own_right']:.0f} %"
    right = _percent(row["queries"], row["right"])
    mean, error = f"{100 * row['mean_confidence']:.0f} %", f"{calibration_error(row['bins']):.2f}"
    about = (f"{row['name']}, {row['part']}, {row['way']}", f"{row['images']:,}", right, own, mean)
    return f"| {' | '.join((*about, *cells, error))} |"


def _refusals(row: dict) -> str:
    towns = [count for kind, count in row["refused"].items() if kind in SETS]
    none = [count for kind, count in row["refused"].items() if kind not in SETS]
    cells = (row["sure"], row["lost"], np.sum(towns, axis=0), np.sum(none, axis=0))
    return f"| {row['name']}, {row['part']}, {row['way']} | {' | '.join(_percent(*cell) for cell in cells)} |"


def _total(rows: Sequence[dict]) -> str:
    counts = [np.sum([row[key] for row in rows], axis=0) for key in ("sure", "lost")]
    for towns in (True, False):
        kinds = [c for row in rows for kind, c in row["refused"].items() if (kind in SETS) == towns]
        counts.append(np.sum(kinds, axis=0))
    return f"| **all** | {' | '.join(f'**{_percent(*count)}**' for count in counts)} |"


def _percent(asked: int, counted: int) -> str:
    return f"{100 * counted / asked:.0f} % of {asked}" if asked else "none"


def calibration_error(bins: Sequence[Sequence[float]]) -> float:
    """Expected calibration error of bins (answers, right ones, sum of confidences)."""
    return sum(abs(right - said) for _, right, said in bins) / max(1, sum(asked for asked, _, _ in bins))
