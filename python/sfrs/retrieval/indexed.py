"""Score what an index finds for queries whose positions are known."""

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sfrs.data.coordinates import to_degrees, to_system
from sfrs.data.images import Size
from sfrs.data.photo_files import images_at
from sfrs.data.places import Places, Reading, format_of, load_places
from sfrs.data.places.formats import MOVED_APART
from sfrs.data.places.reading import read_shots
from sfrs.data.places.sets import Shot, make_places
from sfrs.retrieval.evaluation import Evaluation, Scoring, check_answerable, score_stages, search_depth
from sfrs.retrieval.index import Index
from sfrs.retrieval.region_rerank import (
    KeptQuarters,
    RememberedQuarters,
    Reranking,
    rerank_all,
    temporary_quarters,
)
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Tasks, quiet


def read_queries(data: Path | None, split: str, reading: Reading, index: Index) -> Places:
    """Read the queries of a data set, or with None all photographs of ``reading.queries``, and put the images
    of an index in place of the database.

    Metres that do not say their zone are those of the index.

    Raises:
        UserError: besides what the readers raise, the index does not say the zone of its metres, but the
            queries theirs; or the database is known apart from the queries by time stamps alone.
    """
    if data is None:
        reading = replace(reading, zone=reading.zone or index.zone)
        shots, zone = read_shots({"queries": images_at(Path(reading.queries))}, reading)
        name = Path(reading.queries).resolve().name
        places = make_places(name, split, {"database": [], **shots}, zone=zone)
    else:
        if (name := format_of(data).name) in MOVED_APART:
            raise UserError(
                f"{data}: the cities of {name} are moved apart, so they have no place in an index; "
                "give their photographs as --queries DIR."
            )
        places = load_places(data, split, reading)
    queries = places.queries
    if queries.time_stamps is not None:
        raise UserError(f"{data}: its queries are images of its database; an index cannot leave them out.")
    positions, zone = _in_system(places, index)
    conditions = queries.conditions or ("",) * len(queries)
    shots = {
        "database": [Shot(*image) for image in zip(index.files, *index.positions.T.tolist(), strict=True)],
        "queries": [
            Shot(file, easting, northing, condition=condition)
            for file, (easting, northing), condition in zip(
                queries.files, positions.tolist(), conditions, strict=True
            )
        ],
    }
    return make_places(places.name, split, shots, zone=zone)


def _in_system(places: Places, index: Index) -> tuple[Any, str]:
    """Return the positions of queries in the coordinate system of an index, and the system."""
    positions = places.queries.positions
    if places.zone in ("", index.zone):
        return positions, index.zone
    if not index.zone:
        raise UserError(
            f"{index.path}: its positions are metres of an unknown UTM zone, but those of the queries are of "
            f"{places.zone}. sfrs index --zone says which."
        )
    return to_system(to_degrees(positions, places.zone), index.zone)


def evaluate_index(
    index: Index,
    places: Places,
    *,
    scoring: Scoring | None = None,
    rerank: Reranking | None = None,
    query_size: Size | Literal["same"] = "same",
    tasks: Tasks = quiet,
    **reading: Any,
) -> Evaluation:
    """Search the queries of `read_queries` in an index, and score what it finds.

    Args: as those of `sfrs.retrieval.evaluation.evaluate`.

    Raises:
        UserError: no query has an image within the radius, or the temporary file of their quarters does not
            fit.
        BadImageError: a query cannot be read; or an image, where regions are compared and the index keeps
            none.
    """
    scoring = scoring or Scoring()
    check_answerable(places, scoring.radius)
    model = index.model if query_size == "same" else index.model.at(query_size)
    deepest = search_depth(places, max(scoring.recalls), nms=scoring.nms)
    clock = [time.perf_counter()]
    with nullcontext() if rerank is None else temporary_quarters(model, len(places.queries)) as rows:
        asked = model.encode(places.queries.files, progress=tasks("queries"), quarters=rows, **reading)
        clock.append(time.perf_counter())
        found = index.search(asked, deepest if rerank is None else max(deepest, rerank.depth))[1]
        clock.append(time.perf_counter())
        reranked = None
        if rerank is not None and rows is not None:
            give = index.quarters if index.has_regions else RememberedQuarters(index.quarters)
            how: dict[str, Any] = dict(score=rerank.score, depth=rerank.depth, progress=tasks("re-ranking"))
            reranked = rerank_all(KeptQuarters(rows), found, give, **how)
            clock.append(time.perf_counter())
    return score_stages(places, found[:, :deepest], reranked, scoring, clock)
