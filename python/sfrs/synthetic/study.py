"""Does SFRS help, and what of it? Variants over several seeds, against the baseline of equal length.

Every seed is a city of its own and a training of its own; its variants share the city, the initial network
and generation 1. All settings come from `experiment` and were chosen on validation quarters; the test
quarters are only counted here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from sfrs.retrieval.evaluation import Evaluation
from sfrs.retrieval.mcnemar import Paired, mcnemar
from sfrs.runtime.atomic_io import refuse_foreign, write_json
from sfrs.synthetic.experiment import (
    IMAGE_LABELS,
    PAPER_TEMPERATURES,
    SCALES,
    SOFT_NEGATIVES,
    SOFTER_TEACHER,
    Experiment,
    Stopwatch,
    Tasks,
)
from sfrs.training.run_folder import RunResult

RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        generations: of `Scale.epochs` epochs each; the first is the shared SARE-ind. 0: SARE-ind in one
            piece, as long as two generations (`long` of them).
        changes: to the configuration of generations 2 and later.
        scored: the generations that become rows of the table.
    """

    name: str
    label: str
    generations: int
    changes: dict = field(default_factory=dict)
    scored: tuple[int, ...] = ()
    long: int = 0


GENERATION_1 = "generation_1"
VARIANTS = (
    Variant(GENERATION_1, "SARE-ind", 1, scored=(0, 1)),
    Variant("sare_2", "SARE-ind", 0, long=2),
    Variant("paper", "SFRS, the paper's temperatures", 2, PAPER_TEMPERATURES, scored=(2,)),
    Variant("softer", "SFRS, softer teacher", 2, SOFTER_TEACHER, scored=(2,)),
    Variant("negatives", "SFRS with soft negatives (ours)", 2, SOFT_NEGATIVES, scored=(2,)),
    Variant("image", "SFRS, image-level labels", 2, IMAGE_LABELS, scored=(2,)),
)


@dataclass(frozen=True)
class Score:
    """One row for one seed: hits@N (bool [m]) on the test queries, validation recall, and the passes it
    took.
    """

    label: str
    passes: int
    hits: dict[int, np.ndarray]
    validation: float
    seconds: float


@dataclass(frozen=True)
class Line:
    """One row of the table, pooled over the seeds.

    Attributes:
        recalls: N -> mean of the seeds' recall@N in 0..1.
        against: paired test of recall@1 with SARE-ind of as many passes; None for baselines.
        by_seed: differences of recall@1, in the order of the seeds.
    """

    label: str
    passes: int
    recalls: dict[int, float]
    validation: float
    against: Paired | None
    by_seed: list[float]


def run_study(
    out: str | Path,
    seeds: Sequence[int],
    *,
    scale: str = "demo",
    tasks: Tasks,
    say: Callable[[str], None],
) -> list[Line]:
    """Run every variant for every seed in the folder `out`, or those that are missing there.

    Writes seed_N/ (city and runs), seed_N/NAME.scores.json as each variant is done, and at the end study.json
    and study.md.
    """
    out, watch = Path(out), Stopwatch()
    refuse_foreign(out, "seed_", "pretext", "study.")
    scores: dict[int, list[Score]] = {}
    for seed in seeds:
        folder = out / f"seed_{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        experiment = Experiment(
            folder, SCALES[scale], seed, tasks=tasks, say=say, stopwatch=watch, shared=out / "pretext"
        )
        scores[seed] = []
        for variant in VARIANTS:
            file = folder / f"{variant.name}.scores.json"
            if not file.exists():
                _write_scores(file, _score(experiment, variant, watch))
            scores[seed] += _read_scores(file)
            last = scores[seed][-1]
            say(
                f"seed {seed}: {last.label}, {last.passes} passes: recall@1 on the test queries "
                f"{100 * last.hits[1].mean():.1f}"
            )
    lines = summarise(list(scores.values()))
    _write_study(out, lines, seeds, scale, watch)
    return lines


def _score(experiment: Experiment, variant: Variant, watch: Stopwatch) -> list[Score]:
    epochs = experiment.scale.epochs
    if variant.generations:
        after = None if variant.name == GENERATION_1 else GENERATION_1
        lengths = (epochs,) * variant.generations
        run = experiment.train(variant.name, lengths, label=variant.label, after=after, **variant.changes)
        return [_scored(experiment, variant, run, g, g * epochs, watch) for g in variant.scored]
    run = experiment.train(variant.name, (variant.long * epochs,), label=variant.label)
    return [_scored(experiment, variant, run, 1, variant.long * epochs, watch)]


def _scored(
    experiment: Experiment, variant: Variant, run: RunResult, generation: int, passes: int, watch: Stopwatch
) -> Score:
    result: Evaluation = experiment.test(run.network(generation))
    kept = (run.initial, *run.generations)[generation]
    hits = {n: result.hits(n)[result.answerable] for n in RECALLS}
    label = variant.label if generation else "before training"
    seconds = watch.seconds.get(f"train: {variant.label}", 0.0)
    return Score(label, passes, hits, kept.recalls[1], round(seconds, 1))


def summarise(scores: list[list[Score]]) -> list[Line]:
    """Pool the seeds' scores (one list a seed, same rows in each) and test each row against its baseline.

    The baseline of a row is SARE-ind with as many passes. Queries of all seeds are pooled.
    """
    lines = []
    baselines = {s.passes: i for i, s in enumerate(scores[0]) if s.label == VARIANTS[0].label}
    for i, row in enumerate(scores[0]):
        of_seeds = [seed[i] for seed in scores]
        against, by_seed = None, []
        base = baselines.get(row.passes)
        if base is not None and base != i:
            others = [seed[base] for seed in scores]
            pairs = [(a.hits[1], b.hits[1]) for a, b in zip(of_seeds, others, strict=True)]
            against = mcnemar(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
            by_seed = [float(a.mean() - b.mean()) for a, b in pairs]
        recalls = {n: float(np.mean([s.hits[n].mean() for s in of_seeds])) for n in RECALLS}
        validation = float(np.mean([s.validation for s in of_seeds]))
        lines.append(Line(row.label, row.passes, recalls, validation, against, by_seed))
    return sorted(lines, key=lambda line: line.against is not None)  # baselines first, else as they came


def markdown(lines: Sequence[Line], seeds: Sequence[int], queries: int) -> str:
    """The study's table in Markdown."""
    text = [
        f"Recall on the test quarters in %, means of {len(seeds)} seeds; {queries:,} test queries in all.",
        "",
        "| | query passes | recall@1 | recall@5 | recall@10 | @1 against SARE-ind as long | by seed | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        cells = [line.label, f"{line.passes}", *[f"{100 * line.recalls[n]:.1f}" for n in RECALLS]]
        if line.against is None:
            cells += ["", "", ""]
        else:
            each = ", ".join(f"{100 * d:+.1f}" for d in line.by_seed)
            cells += [f"{100 * line.against.difference:+.1f}", each, f"{line.against.p_value:.1g}"]
        text.append("| " + " | ".join(cells) + " |")
    text += [
        "",
        "p: exact McNemar test on the pooled queries, two-sided, not corrected for the number of rows.",
    ]
    return "\n".join(text) + "\n"


def _write_scores(file: Path, scores: list[Score]) -> None:
    write_json(
        file,
        {
            "scores": [
                {
                    "label": s.label,
                    "passes": s.passes,
                    "hits": {str(n): "".join("01"[int(hit)] for hit in hits) for n, hits in s.hits.items()},
                    "validation": s.validation,
                    "seconds": s.seconds,
                }
                for s in scores
            ]
        },
    )


def _read_scores(file: Path) -> list[Score]:
    return [
        Score(
            s["label"],
            s["passes"],
            {int(n): np.array(list(bits)) == "1" for n, bits in s["hits"].items()},
            s["validation"],
            s["seconds"],
        )
        for s in json.loads(file.read_text())["scores"]
    ]


def _write_study(
    out: Path, lines: Sequence[Line], seeds: Sequence[int], scale: str, watch: Stopwatch
) -> None:
    first = _read_scores(out / f"seed_{seeds[0]}" / f"{GENERATION_1}.scores.json")[0]
    queries = len(first.hits[1]) * len(seeds)
    write_json(
        out / "study.json",
        {
            "seeds": list(seeds),
            "size": scale,
            "queries": queries,
            "rows": [
                {
                    "label": line.label,
                    "passes": line.passes,
                    "recalls": line.recalls,
                    "validation_recall@1": line.validation,
                    "difference": line.against and line.against.difference,
                    "by_seed": line.by_seed,
                    "gained": line.against and line.against.gained,
                    "lost": line.against and line.against.lost,
                    "p_value": line.against and line.against.p_value,
                }
                for line in lines
            ],
            "variants": {v.name: v.changes for v in VARIANTS},
            "threads": torch.get_num_threads(),
            "seconds": {stage: round(seconds, 1) for stage, seconds in watch.seconds.items()},
        },
    )
    (out / "study.md").write_text(markdown(lines, seeds, queries))
