"""The figures of a report: recall, errors, conditions, training."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from sfrs.data.places import Places
from sfrs.retrieval.evaluation import RADIUS, Evaluation
from sfrs.retrieval.tested import FEW, Answer
from sfrs.web.report.charts import (
    Axis,
    Series,
    count_axis,
    line_chart,
    metres_axis,
    percent_axis,
    value_axis,
)

SHOWN_POINTS = 400  # of a cumulative curve
CALLED = 2  # tenths, width of a class of confidences
SMOOTHED = 0.05  # share of all steps that a point of the loss curve averages


def recall_figure(result: Evaluation, compared: dict[str, dict[int, float]]) -> Markup:
    """Recall@N over N, of this evaluation or of several of the same queries."""
    curves = compared or {"": result.curve()}
    series = [
        Series(label, [(n, recalls[n], f"recall@{n}: {100 * recalls[n]:.1f} %") for n in sorted(recalls)])
        for label, recalls in curves.items()
    ]
    lowest = min(y for line in series for _, y, _ in line.points)
    x = count_axis("N, images looked at", max(n for recalls in curves.values() for n in recalls))
    return line_chart("Recall at N", series, x, percent_axis("recall@N", lowest))


def error_figure(places: Places, result: Evaluation) -> Markup:
    """Share of queries located within x metres by the first image, and by the best of the first five."""
    found = np.maximum(result.predictions[:, :5], 0)
    metres = places.metres(np.arange(len(found))[:, None], found)  # [m, 5]
    metres[result.predictions[:, :5] < 0] = np.inf
    metres = metres[result.answerable]
    axis = metres_axis("metres to the query", float(metres[:, 0].max()))
    curves = {"first": metres[:, 0]}
    if metres.shape[1] > 1:
        curves["best of 5"] = metres.min(axis=1)
    series = [Series(label, _cumulative(values, axis), dots=False) for label, values in curves.items()]
    marks = [(result.radius, f"{result.radius:g} m")] if axis.low < result.radius < axis.high else []
    title = "Share of queries located within x metres"
    return line_chart(title, series, axis, percent_axis("share of queries"), marks=marks)


def _cumulative(metres: np.ndarray, axis: Axis) -> list[tuple[float, float, str]]:
    at = np.geomspace(axis.low, axis.high, SHOWN_POINTS)
    shares = np.searchsorted(np.sort(metres), at, side="right") / len(metres)
    return [(float(x), float(y), "") for x, y in zip(at, shares, strict=True)]


def trust_figure(answers: Sequence[Answer]) -> list[tuple[str, Markup]]:
    """(caption, chart) of the share of right answers by how likely they were called; empty for too few."""
    counted = [answer for answer in answers if answer.answerable]
    points = []
    for tenths in range(0, 10, CALLED):
        right = [a.right for a in counted if tenths <= min(10 * a.confidence, 9.99) < tenths + CALLED]
        if len(right) >= FEW:
            called = f"called {10 * tenths} to {10 * (tenths + CALLED)} % likely"
            text = f"{called}: {sum(right)} of {len(right)} right"
            points.append(((tenths + CALLED / 2) / 10, sum(right) / len(right), text))
    if not points:
        return []
    caption = "Share of answers that are right, by how likely they were called"
    series = [Series("as found", points), Series("as called", [(0, 0, ""), (1, 1, "")], dots=False)]
    return [(caption, line_chart(caption, series, percent_axis("called likely"), percent_axis("right")))]


def located_figure(answers: Sequence[Answer]) -> list[tuple[str, Markup]]:
    """(caption, chart) of the share of photographs located within x metres; empty if none could be."""
    metres = np.array([answer.off for answer in answers if answer.answerable])
    if not len(metres):
        return []
    axis = metres_axis("metres off", float(metres.max()))
    caption = "Share of photographs located within so many metres among the others"
    series = [Series("", _cumulative(metres, axis), dots=False)]
    shares, marks = percent_axis("share of photographs"), [(RADIUS, f"{RADIUS:g} m")]
    return [(caption, line_chart(caption, series, axis, shares, marks=marks))]


def condition_rows(result: Evaluation, labels: Sequence[str], metres: np.ndarray) -> list[dict]:
    """For each condition its queries, recalls and median error, the most frequent first."""
    names = sorted(set(labels), key=lambda label: (-list(labels).count(label), label))
    rows = []
    for name in names:
        chosen = np.array([label == name for label in labels]) & result.answerable
        if not chosen.any():
            continue
        depths = [n for n in result.recalls if n <= result.predictions.shape[1]]
        rows.append(
            {
                "name": name,
                "queries": int(chosen.sum()),
                "recalls": {n: float(result.hits(n)[chosen].mean()) for n in depths},
                "median": float(np.median(metres[chosen])),
            }
        )
    return rows


def training_figures(histories: dict[str, list[dict]]) -> list[tuple[str, Markup]]:
    """(caption, chart) of validation recall and of the loss; empty if nothing was logged."""
    recalls, losses, starts = [], [], []
    for run, lines in histories.items():
        epochs = [line for line in lines if line["kind"] == "epoch"]
        if not epochs:
            continue
        depths = [n for n in (1, 5, 10) if all(n in epoch["recalls"] for epoch in epochs)]
        if len(histories) > 1:
            depths = depths[-2:-1] or depths
        for n in depths:
            label = f"recall@{n}" if len(histories) == 1 else run.replace("_", " ")
            points = [(i + 1, e["recalls"][n], _epoch_text(e, n)) for i, e in enumerate(epochs)]
            recalls.append(Series(label, points))
        losses.append(_loss_series(run, lines, len(histories) > 1))
        if len(histories) == 1:
            changes = zip(epochs, epochs[1:], strict=False)
            starts = [
                (i + 1.5, f"generation {b['generation']}")
                for i, (a, b) in enumerate(changes)
                if a["generation"] != b["generation"]
            ]
    return [*_recall_chart(recalls, starts, len(histories)), *_loss_chart([s for s in losses if s], starts)]


def _recall_chart(series: list[Series], starts: list, runs: int) -> list[tuple[str, Markup]]:
    if not series:
        return []
    lowest = min(y for line in series for _, y, _ in line.points)
    epochs = count_axis("epoch", max(len(line.points) for line in series))
    caption = "Validation recall after each epoch" + (" (recall@5)" if runs > 1 else "")
    return [(caption, line_chart(caption, series, epochs, percent_axis("recall", lowest), marks=starts))]


def _loss_chart(series: list[Series], starts: list) -> list[tuple[str, Markup]]:
    if not series:
        return []
    values = [y for line in series for _, y, _ in line.points]
    longest = max(line.points[-1][0] for line in series)
    epochs = count_axis("epoch", max(1, round(longest)))
    x = Axis(epochs.label, 0.0, max(longest, 1.0), epochs.ticks)
    caption = "Loss, moving average"
    marks = [(start - 0.5, text) for start, text in starts]
    return [
        (caption, line_chart(caption, series, x, value_axis("loss", min(values), max(values)), marks=marks))
    ]


def _loss_series(run: str, lines: list[dict], several: bool) -> Series | None:
    steps = [line for line in lines if line["kind"] == "step"]
    if len(steps) < 2:
        return None
    passed, points = 0, []
    for line in lines:
        if line["kind"] == "epoch":
            passed += 1
        if line["kind"] == "step":
            points.append((passed + line["done"] / line["of"], line["total"]))
    window = max(1, round(SMOOTHED * len(points)))
    totals = np.convolve([y for _, y in points], np.ones(window) / window, mode="valid")
    kept = points[window - 1 :]
    label = run.replace("_", " ") if several else "loss"
    return Series(label, [(x, float(y), "") for (x, _), y in zip(kept, totals, strict=True)], dots=False)


def _epoch_text(line: dict, n: int) -> str:
    return (
        f"generation {line['generation']}, epoch {line['epoch']}: recall@{n} {100 * line['recalls'][n]:.1f} %"
        + (", best" if line.get("best") else "")
    )
