"""Does SFRS help, and what of it? Variants over several seeds, against the baseline of equal length.

Every seed is a city of its own and a training of its own; its variants share the city, the initial network
and generation 1. All settings come from `experiment` and were chosen on validation quarters; the test
quarters are only counted here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sfrs.retrieval.evaluation import Evaluation
from sfrs.retrieval.plots import generation_curves
from sfrs.retrieval.recall import Paired, mcnemar
from sfrs.runtime.atomic_io import refuse_foreign, write_json
from sfrs.runtime.errors import UserError
from sfrs.synthetic.experiment import (
    GRADIENT,
    IMAGE_LABELS,
    PAPER_TEMPERATURES,
    REGIONS_AND_NEGATIVES,
    REGIONS_BY_LEVEL,
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
    """A way to train generations 2 and later.

    Attributes:
        name: of its folder.
        changes: to the configuration of generations 2 and later.
    """

    name: str
    label: str
    changes: dict = field(default_factory=dict)


GENERATION_1, BASELINE = "generation_1", "SARE-ind"
VARIANTS = (
    Variant("paper", "SFRS, the paper's temperatures", PAPER_TEMPERATURES),
    Variant("softer", "SFRS, softer teacher", SOFTER_TEACHER),
    Variant("negatives", "SFRS with soft negatives (ours)", SOFT_NEGATIVES),
    Variant("image", "SFRS, image-level labels", IMAGE_LABELS),
    Variant("regions", "SFRS with regions and soft negatives (ours)", REGIONS_AND_NEGATIVES),
    Variant("levels", "SFRS with regions by level and soft negatives (ours)", REGIONS_BY_LEVEL),
)


@dataclass(frozen=True)
class Study:
    """What is compared, in the folder ``out``.

    Attributes:
        generations: of every variant; SARE-ind is trained for as many passes as 2, 3, ... of them.
        scale: "demo", or "small" to rehearse.
        backbone: see `Experiment`.
        split: the quarter that is scored, "test", or "val" to choose a variant; then SARE-ind is trained for
            generation 1 only.
    """

    out: Path
    seeds: Sequence[int]
    variants: Sequence[Variant] = VARIANTS[:4]
    generations: int = 2
    scale: str = "demo"
    backbone: str = GRADIENT
    split: str = "test"

    @property
    def settings(self) -> dict:
        """What a folder's scores depend on, beside their seed and variant."""
        of_split = {} if self.split == "test" else {"split": self.split}
        return {"size": self.scale, "backbone": self.backbone, **of_split}


@dataclass(frozen=True)
class Score:
    """One row for one seed: hits@N (bool [m]) on the queries, validation recall, and the passes it
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


def run_study(study: Study, *, tasks: Tasks, say: Callable[[str], None]) -> list[Line]:
    """Run every variant for every seed, or those that are missing in the study's folder.

    Writes seed_N/ (city and runs), seed_N/NAME.scores.json as each is done, and at the end study.json,
    study.md and study.png.

    Raises:
        UserError: the folder holds something else, or a study of another size or backbone.
    """
    watch = Stopwatch()
    _claim(study)
    scores: dict[int, list[Score]] = {}
    for seed in study.seeds:
        folder = study.out / f"seed_{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        experiment = Experiment(
            folder,
            SCALES[study.scale],
            seed,
            tasks=tasks,
            say=say,
            stopwatch=watch,
            shared=study.out / "pretext",
            backbone=study.backbone,
        )
        scores[seed] = []
        for name, changes, train in _trainings(study, experiment, watch):
            file = folder / f"{name}.scores.json"
            if not file.exists():
                _write_scores(file, changes, train())
            scores[seed] += _read_scores(file, changes)
            last = scores[seed][-1]
            say(
                f"seed {seed}: {last.label}, {last.passes} passes: recall@1 on the {study.split} queries "
                f"{100 * last.hits[1].mean():.1f}"
            )
    lines = summarise(list(scores.values()))
    _write_study(study, lines, len(scores[study.seeds[0]][0].hits[1]) * len(study.seeds), watch)
    return lines


def _claim(study: Study) -> None:
    refuse_foreign(study.out, "seed_", "pretext", "study.", "settings.json")
    study.out.mkdir(parents=True, exist_ok=True)
    file = study.out / "settings.json"
    if file.exists() and (found := json.loads(file.read_text("utf-8"))) != study.settings:
        raise UserError(
            f"{study.out} holds a study of {found}, expected {study.settings}; take another --out"
        )
    if not file.exists():  # several processes may share a folder, each with its seeds
        write_json(file, study.settings)


Training = tuple[str, dict, Callable[[], list[Score]]]


def _trainings(study: Study, experiment: Experiment, watch: Stopwatch) -> Iterator[Training]:
    """Every run of a seed: the name of its folder, its changes, and what trains and scores it."""
    epochs, last = experiment.epochs, study.generations
    scored = partial(_scored, experiment, watch, study.split)

    def first() -> list[Score]:
        run = experiment.train(GENERATION_1, (epochs,), label=BASELINE)
        return [scored(BASELINE, run, g, g * epochs) for g in (0, 1)]

    def as_long(generations: int) -> list[Score]:
        passes = generations * epochs
        run = experiment.train(f"sare_{generations}", (passes,), label=BASELINE)
        return [scored(BASELINE, run, 1, passes)]

    def generations(name: str, variant: Variant) -> list[Score]:
        lengths = (epochs,) * last
        run = experiment.train(name, lengths, label=variant.label, after=GENERATION_1, **variant.changes)
        return [scored(variant.label, run, g, g * epochs) for g in range(2, last + 1)]

    yield GENERATION_1, {}, first
    for count in range(2, last + 1) if study.split == "test" else ():
        yield f"sare_{count}", {}, partial(as_long, count)
    for variant in study.variants:
        name = variant.name if last == 2 else f"{variant.name}_{last}"
        yield name, variant.changes, partial(generations, name, variant)


def _scored(
    experiment: Experiment,
    watch: Stopwatch,
    split: str,
    label: str,
    run: RunResult,
    generation: int,
    passes: int,
) -> Score:
    result: Evaluation = experiment.test(run.network(generation), split)
    kept = (run.initial, *run.generations)[generation]
    hits = {n: result.hits(n)[result.answerable] for n in RECALLS}
    seconds = watch.seconds.get(f"train: {label}", 0.0)
    return Score(label if generation else "before training", passes, hits, kept.recalls[1], round(seconds, 1))


def summarise(scores: list[list[Score]]) -> list[Line]:
    """Pool the seeds' scores (one list a seed, same rows in each) and test each row against its baseline.

    The baseline of a row is SARE-ind with as many passes. Queries of all seeds are pooled.
    """
    lines = []
    baselines = {s.passes: i for i, s in enumerate(scores[0]) if s.label == BASELINE}
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


def markdown(lines: Sequence[Line], seeds: Sequence[int], queries: int, split: str = "test") -> str:
    """The study's table in Markdown."""
    means = "one seed" if len(seeds) == 1 else f"means of {len(seeds)} seeds"
    text = [
        f"Recall on the {split} quarters in %, {means}; {queries:,} queries in all.",
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


def _write_scores(file: Path, changes: dict, scores: list[Score]) -> None:
    write_json(
        file,
        {
            "changes": changes,
            "scores": [
                {
                    "label": s.label,
                    "passes": s.passes,
                    "hits": {str(n): "".join("01"[int(hit)] for hit in hits) for n, hits in s.hits.items()},
                    "validation": s.validation,
                    "seconds": s.seconds,
                }
                for s in scores
            ],
        },
    )


def _read_scores(file: Path, changes: dict) -> list[Score]:
    kept = json.loads(file.read_text("utf-8"))
    if (found := kept.get("changes")) != json.loads(json.dumps(changes)):
        raise UserError(f"{file} is of a variant with {found}, expected {changes}; delete it or rename yours")
    return [
        Score(
            s["label"],
            s["passes"],
            {int(n): np.array(list(bits)) == "1" for n, bits in s["hits"].items()},
            s["validation"],
            s["seconds"],
        )
        for s in kept["scores"]
    ]


def _write_study(study: Study, lines: Sequence[Line], queries: int, watch: Stopwatch) -> None:
    rows = [
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
    ]
    write_json(
        study.out / "study.json",
        {
            "seeds": list(study.seeds),
            **study.settings,
            "generations": study.generations,
            "queries": queries,
            "rows": rows,
            "variants": {variant.label: variant.changes for variant in study.variants},
            "threads": torch.get_num_threads(),
            "seconds": {stage: round(seconds, 1) for stage, seconds in watch.seconds.items()},
        },
    )
    (study.out / "study.md").write_text(markdown(lines, study.seeds, queries, study.split))
    generation_curves(_curves(lines), study.out / "study.png", dashed=BASELINE)


def _curves(lines: Sequence[Line]) -> dict[str, dict[float, float]]:
    """Return label -> {generation, or as many passes: recall@1}; all curves begin at generation 1."""
    epochs = min(line.passes for line in lines if line.passes)
    curves: dict[str, dict[float, float]] = {}
    for line in lines:
        if line.passes:
            curves.setdefault(line.label, {})[line.passes / epochs] = line.recalls[1]
    return {label: {1.0: curves[BASELINE][1.0], **curve} for label, curve in curves.items()}
