"""Which queries a report shows, and under which conditions they were taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfrs.data.coordinates import metres_between, within
from sfrs.data.places import Places
from sfrs.retrieval.evaluation import Evaluation

FULL_FORM_FIELDS, NOTE_FIELD = 16, 14
MANY = 6
TOKYO = ("day", "sunset", "night")


@dataclass(frozen=True)
class Case:
    """A query that is shown.

    Attributes:
        query: its row.
        success: whether its first prediction is right.
        found: rows of the first predictions, best first.
        answer: for a failure, the row of the right image that comes first among the predictions; -1 if there
            is none among them.
        answer_rank: its rank, from 1; 0 if there is none.
    """

    query: int
    success: bool
    found: tuple[int, ...]
    answer: int = -1
    answer_rank: int = 0


def errors(places: Places, result: Evaluation) -> np.ndarray:
    """Metres from each query to the image found first, float64 ``[m]``."""
    return places.metres(np.arange(len(places.queries)), result.predictions[:, 0])


def first_right(result: Evaluation) -> np.ndarray:
    """Rank of the first right prediction of each query, from 1; 0 if none is right, int64 ``[m]``."""
    return np.where(result.correct.any(axis=1), result.correct.argmax(axis=1) + 1, 0)


def conditions(places: Places) -> list[str]:
    """The condition each query was taken under, or "" everywhere if the data set does not say.

    As the data set's format gives it. Else read from the note of full @ names (its first word, where notes
    are many), from subfolders of the queries, or, for Tokyo 24/7, from the order of the files: day, sunset
    and night of one place after the other.
    """
    files = places.queries.files
    for labels in (list(places.queries.conditions), _notes(files), _folders(files)):
        if 2 <= len(set(labels)) <= len(files) / 2 and all(labels):
            return labels
    if "tokyo" in places.name.lower() and len(files) % 3 == 0:
        return [TOKYO[i % 3] for i in range(len(files))]
    return [""] * len(files)


def _notes(files: Sequence[Path]) -> list[str]:
    fields = [file.name.split("@") for file in files]
    notes = [parts[NOTE_FIELD] if len(parts) == FULL_FORM_FIELDS else "" for parts in fields]
    if len(set(notes)) > MANY:
        notes = [note.split("-")[0] for note in notes]
    return notes if len(set(notes)) <= MANY else [""] * len(files)


def _folders(files: Sequence[Path]) -> list[str]:
    names = [file.parent.name for file in files]
    return names if len(set(names)) <= MANY else [""] * len(files)


def difficulty(metres: float, radius: float) -> str:
    """right, near (up to four times the radius) or far: how wrong the first prediction is."""
    return "right" if metres <= radius else "near" if metres <= 4 * radius else "far"


def choose_cases(
    places: Places, result: Evaluation, labels: Sequence[str], count: int, *, top: int = 5
) -> tuple[list[Case], list[Case]]:
    """The worst failures and the best successes, at most ``count`` of each.

    Worst: no right image among the predictions, or a late one; then the largest error. Best: the most right
    images among the first ``top``; then the smallest error. The conditions take turns, and of queries
    closer together than the radius one is shown, as long as there are others.
    """
    metres, rank = errors(places, result), first_right(result)
    success = result.correct[:, 0]
    late = np.where(rank == 0, np.iinfo(np.int64).max, rank)
    right = result.correct[:, :top].sum(axis=1)
    worst = [q for q in np.lexsort((-metres, -late)) if result.answerable[q] and not success[q]]
    best = [q for q in np.lexsort((metres, -right)) if success[q]]
    positions, radius = places.queries.positions, result.radius

    def cases(ranked: list) -> list[Case]:
        spread = _spread(ranked, labels, positions, radius, count)
        return [_case(result, int(q), rank, top) for q in spread]

    return cases(worst), cases(best)


def _case(result: Evaluation, query: int, rank: np.ndarray, top: int) -> Case:
    found = tuple(int(row) for row in result.predictions[query, :top] if row >= 0)
    first = int(rank[query])
    if first == 1:
        return Case(query, True, found)
    answer = int(result.predictions[query, first - 1]) if first else -1
    return Case(query, False, found, answer, first)


def _spread(
    ranked: Sequence[int], labels: Sequence[str], positions: np.ndarray, radius: float, count: int
) -> list[int]:
    """``count`` of the ranked queries, conditions in turn, apart from each other; in the order of rank."""
    chosen: list[int] = []
    for apart in (radius, 0.0):
        waiting = {label: [q for q in ranked if labels[q] == label] for label in dict.fromkeys(labels)}
        while len(chosen) < count and any(waiting.values()):
            for queue in waiting.values():
                taken = positions[chosen]
                while queue:
                    query = queue.pop(0)
                    near = len(chosen) and metres_between(taken, positions[query]).min() < apart
                    if query not in chosen and not near:
                        chosen.append(query)
                        break
                if len(chosen) == count:
                    break
    order = {query: i for i, query in enumerate(ranked)}
    return sorted(chosen, key=order.__getitem__)


def right_images(places: Places, query: int, radius: float, count: int) -> list[int]:
    """The ``count`` right images nearest to a query, nearest first."""
    position = places.queries.positions[query : query + 1]
    rows = within(position, places.database.positions, radius)[0]
    metres = metres_between(places.database.positions[rows], position)
    return [int(row) for row in rows[np.argsort(metres, kind="stable")][:count]]
