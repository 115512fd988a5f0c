"""Reading an evaluation back from the folder it was written to."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import numpy as np

from sfrs.data.images import Size
from sfrs.data.places import ImageSet, Places, is_data_set, load_places
from sfrs.data.places.reading import Reading
from sfrs.models.model import TRAINED, Model
from sfrs.models.network import DescriptorNetwork, Meta, load_network
from sfrs.retrieval.evaluation import Evaluation, Scoring, check_answerable, score
from sfrs.runtime.errors import UserError
from sfrs.runtime.records import Positive, read_record

RESULTS, PREDICTIONS = "results.json", "predictions.csv"
Recalls = dict[int, float]


@dataclass(frozen=True)
class Subject:
    """An evaluation with everything that its pages show.

    Attributes:
        model: None if its matches cannot be explained; ``unexplained`` then says why.
        query_size: of queries, see `sfrs.data.images.Size`; "same" as the others.
        facts: label -> text, shown at the head of the page.
        histories: training run -> lines of its metrics.jsonl.
        compared: label -> recalls on the same queries: of several networks, or before and after re-ranking.
    """

    places: Places
    result: Evaluation
    model: Model | None
    query_size: Size | Literal["same"] = "same"
    unexplained: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    histories: dict[str, list[dict]] = field(default_factory=dict)
    compared: dict[str, dict[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Overrides:
    """What the user says instead of what the folder recorded."""

    data: Path | None = None
    weights: Path | None = None
    split: str | None = None


class Skipped(TypedDict):
    file: str


class Reranked(TypedDict):
    by: str
    depth: Positive
    score: str
    recalls_before: Recalls


class LaterResults(TypedDict, total=False):
    """What only some evaluations have."""

    size: tuple[Positive, Positive] | Positive | None
    query_size: tuple[Positive, Positive] | Positive | Literal["same"] | None
    backbone: str
    network: Meta
    whitening: str | None
    whitening_learned: bool
    nms: bool
    rerank: Reranked
    skipped: list[Skipped]
    reading: Reading
    index: str


class Results(LaterResults):
    """What of results.json a report needs."""

    data: str
    split: str
    recalls: Recalls
    radius_m: Annotated[float, 0]
    weights: str


def read_evaluation(source: Path, overrides: Overrides) -> Subject:
    """Read what ``sfrs evaluate --out`` wrote, and the data set and network it names.

    Raises:
        UserError: a file in it is damaged, or of another program, or what it names has moved.
    """
    summary: Results = read_record(source / RESULTS, Results)
    if index := summary.get("index"):
        raise UserError(f"{source}: the database of these queries is an index; sfrs report {index} shows it.")
    data = overrides.data or find_path(summary["data"], source, "--data")
    root = data if data.is_dir() else data.parent
    reading = summary.get("reading", Reading())
    places = _without(load_places(data, summary["split"], reading), root, summary.get("skipped", []))
    predictions = read_predictions(source / PREDICTIONS, places, root)
    depths = sorted(summary["recalls"])
    if not depths or depths[0] < 1:
        raise UserError(f"{source / RESULTS}: recalls are of {depths}, expected depths from 1.")
    check_answerable(places, summary["radius_m"])
    result = score(places, predictions, Scoring(depths, summary["radius_m"]))
    network, why = _open_network(summary, source, overrides)
    model = None if network is None else Model(network, size=summary.get("size", TRAINED))
    query_size = summary.get("query_size", "same")
    facts = _facts(summary, network)
    compared = {}
    if "rerank" in summary:
        compared["searched"] = summary["rerank"]["recalls_before"]
        compared["re-ranked"] = result.recalls
    return Subject(places, result, model, query_size, why, facts, compared=compared)


def read_predictions(path: Path, places: Places, root: Path) -> np.ndarray:
    """Database indices int64 ``[m, k]``, -1 past the end, from `write_predictions`'s file.

    Files are found again below ``root`` wherever the data set has moved since.

    Raises:
        UserError: a line is wrong, names a file the data set does not have, or a query is missing.
    """
    find_query, find_image = (_finder(images, root) for images in (places.queries, places.database))
    found: list[dict[int, int]] = [{} for _ in range(len(places.queries))]
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
        reader = csv.DictReader(lines)
        if not {"query", "rank", "file"} <= set(reader.fieldnames or ()):
            raise UserError(f"{path}: expected the columns query, rank and file.")
        for line in reader:
            query, image = find_query(line["query"] or ""), find_image(line["file"] or "")
            if query is None or image is None:
                raise UserError(
                    f"{path}, line {reader.line_num}: {line['query' if query is None else 'file']} is not in "
                    f"{places.name}/{places.split}. Has the data set changed since it was evaluated?"
                )
            if not re.fullmatch("[0-9]{1,9}", line["rank"] or ""):
                raise UserError(
                    f"{path}, line {reader.line_num}: rank is {line['rank']!r}, expected a number."
                )
            found[query][int(line["rank"]) - 1] = image
    for query, ranks in enumerate(found):
        if sorted(ranks) != list(range(len(ranks))) or not ranks:
            raise UserError(
                f"{path}: predictions of {places.queries.files[query]} are missing. Has the data set changed "
                "since it was evaluated?"
            )
    rows = np.full((len(found), max(map(len, found))), -1, np.int64)
    for query, ranks in enumerate(found):
        rows[query, : len(ranks)] = [ranks[rank] for rank in range(len(ranks))]
    return rows


def _finder(images: ImageSet, root: Path) -> Callable[[str], int | None]:
    """Looks a recorded path up by its longest tail that names an image below ``root``; None if none does."""
    rows = {}
    for i, file in enumerate(images.files):
        rows[(file.relative_to(root) if file.is_relative_to(root) else file).as_posix()] = i

    def find(recorded: str) -> int | None:
        parts = Path(recorded).parts
        tails = (Path(*parts[first:]).as_posix() for first in range(len(parts)))
        return next((rows[tail] for tail in tails if tail in rows), None)

    return find


def _open_network(
    summary: Results, source: Path, overrides: Overrides
) -> tuple[DescriptorNetwork | None, str]:
    """The network that made the predictions, or None and why not."""
    recorded = overrides.weights or summary["weights"]
    if summary.get("network", {}).get("clusters_from"):
        return None, "Its clusters were made from the images of the database, and not kept."
    try:
        file = overrides.weights or find_path(str(recorded), source, "--weights")
        network = load_network(file, ignore_keys=summary.get("network", {}).get("ignore_keys", ()))
    except UserError:
        if overrides.weights:
            raise

        return None, f"The weights {Path(recorded).name} are not where they were."
    if network.meta.get("untrained_vlad"):
        return None, "NetVLAD of these weights is untrained; its clusters were not kept."
    return network, ""


def _facts(summary: Results, network: DescriptorNetwork | None) -> dict[str, str]:
    facts = {"weights": Path(summary["weights"]).name if summary["weights"] != "random" else "random"}
    if backbone := summary.get("backbone"):
        facts["backbone"] = backbone
    if network is not None:
        facts["clusters"] = str(network.vlad.num_clusters)
        meta = network.meta
        if "generation" in meta and "epoch" in meta:
            facts["trained"] = f"generation {meta['generation']}, epoch {meta['epoch']}"
    if whitening := summary.get("whitening"):
        facts["whitening"] = Path(whitening).name
    elif summary.get("whitening_learned"):
        facts["whitening"] = "learned from the database"
    if rerank := summary.get("rerank"):
        facts["re-ranked by"] = f"{rerank['by']}, the first {rerank['depth']}, score {rerank['score']}"
    if summary.get("nms"):
        facts["suppression"] = "one image per panorama"
    if skipped := summary.get("skipped"):
        facts["unreadable images"] = f"{len(skipped)}, left out"
    return facts


def _without(places: Places, root: Path, skipped: Sequence[Skipped]) -> Places:
    """The data set without the images that the evaluation left out."""
    sets = []
    for images in (places.database, places.queries):
        find, kept = _finder(images, root), np.ones(len(images), dtype=bool)
        for entry in skipped:
            row = find(entry["file"])
            if row is not None:
                kept[row] = False
        sets.append(images.subset(kept))
    return replace(places, database=sets[0], queries=sets[1])


def find_path(recorded: str, source: Path, option: str) -> Path:
    """A path as it was recorded, from here or from a folder above ``source``.

    Raises:
        UserError: there is nothing; the message names the option that says where it is now.
    """
    for folder in (Path(), *source.resolve().parents):
        if (folder / recorded).exists() or is_data_set(folder / recorded):
            return folder / recorded
    raise UserError(f"{source}: it names {recorded}, which is not there any more; say where with {option}.")
