"""``python -m benchmarks.confidence [--places DIR] [--work DIR]``: can the confidence of ``sfrs locate`` be
believed, and is a photograph of another place refused?

Real photographs and a rendered city are described as ``sfrs index`` does it, and searched in indexes of all
photographs, of a fifth, and of one photograph per place. What speaks for their answers is collected, to
queries, to their own photographs and to pictures of other places and of none. The constants of
`sfrs.retrieval.confidence` are fitted to it. Every set is judged by constants fitted to the others.

Descriptors and evidence stay in ``--work``, so that an interrupted run goes on. Figures go to
benchmarks/results/confidence.json; `make report` puts them into docs/locate.md.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

from benchmarks import nowhere
from benchmarks.confidence_tables import BINS, SETS, tables
from benchmarks.pages import show
from benchmarks.record import machine, write_json
from sfrs.data.coordinates import metres_between
from sfrs.data.places import load_places
from sfrs.models.fitting import WHITENED_FROM, learn_whitening
from sfrs.models.model import Model
from sfrs.retrieval import confidence
from sfrs.retrieval.confidence import sameness
from sfrs.retrieval.location import RADIUS, locate_weighed
from sfrs.retrieval.matches import Matches, WeighedMatches
from sfrs.retrieval.region_rerank import DEPTH
from sfrs.retrieval.search import search
from sfrs.retrieval.self_test import Asked, Shown, examine, leave_one_out, own_sameness
from sfrs.retrieval.strangers import strangers
from sfrs.runtime.progress import quiet
from sfrs.runtime.terminal import messages
from sfrs.synthetic.city.write import city_config, write_city

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/confidence.json"
PAGE = ROOT / "docs/locate.md"
QUERIES, OWN, ELSEWHERE, NOWHERE = 100, 100, 12, 6
"""Pictures shown to each index: queries, its own, of each other set, and of each kind of no place."""
PENALTY = 1.0
"""Of squared weights of standardised evidence; each index counts as 100 answers."""
FOREIGN_WEIGHT = 0.25
"""Weight of pictures of elsewhere among the answers that may be right."""
WEAK = 0.1
"""Share of right answers with less of the weight than `sfrs.retrieval.confidence.WEAK_SHARE`."""
LOST = 0.07
"""Share of right answers that may be refused where the least probability of a known place is chosen."""


def photographs(name: str, places: Path, work: Path) -> tuple[list[Path], np.ndarray, list[Path], np.ndarray]:
    """Database and queries of a set: files, and positions in metres."""
    if name == "city":
        write_city(work / "city", city_config("demo", 0), quiet)
    found = load_places(work / "city" if name == "city" else places / name, "test")
    database, queries = found.database, found.queries
    chosen = _spread(len(queries.files), QUERIES)
    return (
        list(database.files),
        database.positions,
        [queries.files[i] for i in chosen],
        queries.positions[chosen],
    )


def parts(positions: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of the photographs of each index that is built of a set."""
    rows = {"all": np.arange(len(positions))}
    if len(positions) >= 100:
        shuffled = np.random.default_rng(0).permutation(len(positions))
        rows["a fifth"] = np.sort(shuffled[: max(40, len(positions) // 5)])
        kept: list[int] = []
        for row in shuffled.tolist():
            if (metres_between(positions[kept], positions[row]) > RADIUS).all():
                kept.append(row)
        rows["one per place"] = np.sort(kept)
    return rows


@dataclass(frozen=True)
class Described:
    """Pictures as a set's network describes them."""

    descriptors: np.ndarray
    quarters: np.ndarray

    @classmethod
    def of(cls, model: Model, pictures: Sequence) -> "Described":
        quarters = np.empty((len(pictures), *model.quarters_shape), np.float16)
        return cls(model.encode(pictures, workers=1, quarters=quarters), quarters)

    def shown_to(self, index: "Part") -> Shown:
        found = zip(*index.search(self.descriptors, DEPTH), strict=True)
        return Shown([Matches.searched(*one) for one in found], sameness(torch.from_numpy(self.quarters)))


def describe(pictures: dict[str, Sequence], kept: Path) -> dict[str, Described]:
    """Describe pictures by a network whose clusters are made from the database, once."""
    if not kept.is_file():
        model = Model.load()
        model.fit_clusters(pictures["database"])
        made = {name: Described.of(model, those) for name, those in pictures.items()}
        np.savez(kept, **{f"{key}/{name}": v for name, one in made.items() for key, v in vars(one).items()})
    with np.load(kept) as stored:
        return {
            name: Described(stored[f"descriptors/{name}"], stored[f"quarters/{name}"]) for name in pictures
        }


class Part:
    """An index of some photographs of a set; its clusters are those of the whole set."""

    has_regions = True

    def __init__(self, files: Sequence[Path], positions: np.ndarray, described: Described) -> None:
        self.files, self.positions, self._described = files, positions, described

    def descriptors(self, rows: np.ndarray) -> np.ndarray:
        return self._described.descriptors[rows]

    def quarters(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._described.quarters[rows]).float()

    def search(self, descriptors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return search(self._described.descriptors, descriptors, k)


def whitened_by(descriptors: np.ndarray, shown: dict[str, Described]) -> dict[str, Described]:
    """Whiten what an index is made of and shown, as ``sfrs index`` does."""
    whitening = learn_whitening(descriptors)
    return {
        name: replace(one, descriptors=whitening.apply(torch.from_numpy(one.descriptors)).numpy())
        for name, one in shown.items()
    }


def collect(index: Part, pictures: dict[str, Described], truth: np.ndarray) -> dict[str, np.ndarray]:
    """Evidence of all answers, by way and by what was asked: rows of evidence, and metres off.

    Args:
        pictures: "query", "strangers", and pictures of elsewhere.
        truth: positions of the queries.
    """
    rows = _spread(len(index.files), OWN)
    matches, answerable = leave_one_out(index, rows, quiet("own"))
    own = Asked(rows, answerable, Shown(matches, own_sameness(index, rows)))
    asked = {name: (described.shown_to(index), described.quarters) for name, described in pictures.items()}
    result = {"answerable": answerable}
    for way in confidence.RIGHT:
        if way == "regions":
            own = replace(own, shown=own.shown.reranked(index, index.quarters(rows)))
            asked = {k: (s.reranked(index, torch.from_numpy(q)), q) for k, (s, q) in asked.items()}
        calibration = examine(index, way, own, asked["strangers"][0])[0].calibration
        every = {"own": own.shown} | {
            name: found for name, (found, _) in asked.items() if name != "strangers"
        }
        places = {"own": index.positions[rows], "query": truth}
        for name, found in every.items():
            weighed = found.weighed(index, calibration)
            result[f"{way}/{name}"] = np.array(
                [(*astuple(one.evidence), _off(one, places, name, i)) for i, one in enumerate(weighed)]
            )
    return result


def _off(found: WeighedMatches, places: dict[str, np.ndarray], name: str, i: int) -> float:
    """Metres from where a picture was taken; none of elsewhere is right."""
    if name not in places:
        return np.inf
    at = locate_weighed(found.weighed, found.positions, "")
    return float(metres_between((at.easting, at.northing), places[name][i]))


class Answers:
    """The evidence of one index."""

    def __init__(self, name: str, part: str, kept: dict[str, np.ndarray], images: int) -> None:
        self.name, self.part, self.images = name, part, images
        self.answerable = kept.pop("answerable")
        self.lines = kept

    def of(self, way: str, what: str) -> tuple[np.ndarray, np.ndarray]:
        """(evidence ``[n, 4]``, whether the answers are right)."""
        lines = self.lines[f"{way}/{what}"]
        return lines[:, :4], lines[:, 4] <= RADIUS

    def foreign(self, way: str) -> dict[str, np.ndarray]:
        """Evidence of pictures of elsewhere, by kind."""
        kinds = [key.split("/")[1] for key in self.lines if key.startswith(f"{way}/")]
        return {kind: self.of(way, kind)[0] for kind in kinds if kind not in ("query", "own")}


def regress(groups: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> np.ndarray:
    """Constant and weights of a logistic regression of (evidence, label, weight of the group)."""
    x = np.vstack([group[0] for group in groups])
    y = np.concatenate([group[1] for group in groups]).astype(float)
    w = np.concatenate([np.full(len(group[1]), group[2] / max(1, len(group[1]))) for group in groups])
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-9
    z = np.column_stack([np.ones(len(x)), (x - mean) / deviation])

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        odds = z @ b
        value = (w * (np.logaddexp(0, odds) - y * odds)).sum() + PENALTY / 2 * (b[1:] ** 2).sum()
        return value, z.T @ (w * (1 / (1 + np.exp(-odds)) - y)) + PENALTY * np.concatenate([[0], b[1:]])

    b = minimize(loss, np.zeros(z.shape[1]), jac=True, method="L-BFGS-B").x
    weights = b[1:] / deviation
    return np.concatenate([[b[0] - weights @ mean], weights])


def fit_right(indexes: Sequence[Answers], way: str) -> np.ndarray:
    """The constants `sfrs.retrieval.confidence.RIGHT` of a way."""
    groups = []
    for answers in indexes:
        x, y = answers.of(way, "query")
        groups.append((x[:, :3], y, 100.0))
        foreign = answers.foreign(way).values()
        groups += [(x[:, :3], np.zeros(len(x)), 100.0 * FOREIGN_WEIGHT / len(foreign)) for x in foreign]
    return regress(groups)


def fit_known(indexes: Sequence[Answers]) -> tuple[np.ndarray, float, float]:
    """The constants `KNOWN`; `LEAST_KNOWN`: of right answers `LOST` are refused; and `WEAK_SHARE`."""
    groups, good = [], []
    for answers in indexes:
        x, y = answers.of("search", "query")
        groups.append((x[y][:, [1, 3]], np.ones(y.sum()), 100.0))
        foreign = answers.foreign("search").values()
        groups += [(x[:, [1, 3]], np.zeros(len(x)), 100.0 / len(foreign)) for x in foreign]
        good.append(x[y][:, [1, 3]])
    weights = regress(groups)
    least = float(
        np.mean([np.quantile(logistic(weights[0] + x @ weights[1:]), LOST) for x in good if len(x)])
    )
    weak = float(np.mean([np.quantile(x[:, 0], WEAK) for x in good if len(x)]))
    return weights, least, weak


def logistic(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))


def judge(
    answers: Answers, way: str, right: np.ndarray, known: np.ndarray, least: float, weak: float
) -> dict:
    """How good an index's confidences are, by constants that were fitted to other sets."""
    own, own_right = answers.of(way, "own")
    asked = answers.answerable
    share = np.where(asked, own[:, 1], np.maximum(own[:, 1], weak))
    own_known = logistic(known[0] + np.column_stack([share, own[:, 3]]) @ known[1:])
    least = min(least, float(np.quantile(own_known, confidence.REFUSED_OWN)))
    odds = right[0] + own[:, :3] @ right[1:]
    slope, intercept = confidence.fit(odds[asked], own_right[asked])

    def said(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probable = logistic(slope * (right[0] + x[:, :3] @ right[1:]) + intercept)
        place = logistic(known[0] + x[:, [1, 3]] @ known[1:])
        return np.where(place >= least, probable, probable * place), place >= least

    x, y = answers.of(way, "query")
    probable, kept = said(x)
    elsewhere = {kind: said(x) for kind, x in answers.foreign(way).items()}
    return {
        "name": answers.name,
        "part": answers.part,
        "way": way,
        "images": answers.images,
        "queries": len(y),
        "right": int(y.sum()),
        "own_right": float(own_right[asked].mean()) if asked.any() else None,
        "mean_confidence": float(probable.mean()),
        "bins": _bins(probable, y),
        "sure": [int((probable >= 0.9).sum()), int(y[probable >= 0.9].sum())],
        "lost": [int(y.sum()), int((y & ~kept).sum())],
        "refused": {kind: [len(k), int((~k).sum())] for kind, (_, k) in elsewhere.items()},
        "foreign_sure": sum(int((p >= 0.9).sum()) for p, _ in elsewhere.values()),
    }


def _bins(probable: np.ndarray, right: np.ndarray) -> list[list[float]]:
    inside = np.digitize(probable, BINS[1:-1])
    return [
        [
            int((inside == b).sum()),
            int(right[inside == b].sum()),
            round(float(probable[inside == b].sum()), 3),
        ]
        for b in range(len(BINS) - 1)
    ]


def _spread(total: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(total, wanted)).astype(int))


def record(places: Path, work: Path) -> None:
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    sets = {name: photographs(name, places, work) for name in SETS}
    indexes = []
    for name, (files, positions, queries, truth) in sets.items():
        others = {other: found[2] for other, found in sets.items() if other != name}
        chosen = parts(positions)
        kept = {part: work / f"{name}-{part.replace(' ', '-')}.npz" for part in chosen}
        if not all(file.is_file() for file in kept.values()):
            messages.print(f"{name}: {len(files)} photographs")
            foreign = {o: [f[i] for i in _spread(len(f), ELSEWHERE)] for o, f in others.items()}
            foreign |= nowhere.pictures([file for asked in others.values() for file in asked], NOWHERE)
            pictures = {"database": files, "query": queries, "strangers": strangers(), **foreign}
            described = describe(pictures, work / f"{name}-described.npz")
            database = described.pop("database")
            for part, rows in chosen.items():
                few = Described(database.descriptors[rows], database.quarters[rows])
                shown = {"database": few, **described}
                shown = whitened_by(few.descriptors, shown) if len(rows) >= WHITENED_FROM else shown
                index = Part([files[i] for i in rows], positions[rows], shown.pop("database"))
                np.savez(kept[part], **collect(index, shown, truth))
        for part, rows in chosen.items():
            with np.load(kept[part]) as stored:
                indexes.append(Answers(name, part, dict(stored), len(rows)))
    judged = []
    for answers in indexes:
        others = [other for other in indexes if other.name != answers.name]
        known = fit_known(others)
        judged += [judge(answers, way, fit_right(others, way), *known) for way in confidence.RIGHT]
    known, least, weak = fit_known(indexes)
    constants = {
        "RIGHT": {way: fit_right(indexes, way).round(3).tolist() for way in confidence.RIGHT},
        "KNOWN": known.round(3).tolist(),
        "LEAST_KNOWN": round(least, 3),
        "WEAK_SHARE": round(weak, 3),
    }
    about = machine(1) | {"command": "python -m benchmarks.confidence"}
    write_json(RESULTS, {"machine": about, "constants": constants, "indexes": judged})
    messages.print_json(json.dumps(constants))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.confidence", description=__doc__)
    parser.add_argument("--places", type=Path, default=ROOT.parent / "shared/places")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/confidence")
    arguments = parser.parse_args()
    record(arguments.places, arguments.work)
    show(PAGE, "confidence", tables(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
