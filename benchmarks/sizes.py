"""``python -m benchmarks.sizes [--places DIR]``: would the self-test choose the size well?

Database photographs of every set are indexed at several sizes, as ``sfrs index`` does without ``--weights``.
Beside the share of them that the self-test finds among the others stand the recalls of the queries, which
the index has never seen; of one also with the roles exchanged. Writes benchmarks/results/sizes.json,
which `make report` puts into docs/photographs.md.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sfrs.data.places import Places, load_places
from sfrs.models.model import Model
from sfrs.retrieval.evaluation import Scoring, score
from sfrs.retrieval.index import Index
from sfrs.retrieval.recall import mcnemar
from sfrs.retrieval.region_rerank import DEPTH
from sfrs.runtime.progress import Tasks
from sfrs.runtime.terminal import progress_tasks

from .photographs import CHOSEN_ON, NETWORKS, RECALLS, ROOT
from .record import RESULTS, command, machine, write_json

FILE = RESULTS / "sizes.json"
SETS = (("corridor", False), ("corridor", True), ("tower", False))
"""Sets, and whether queries are indexed and the database asks; tower's queries have no second photograph of
their place, so that a self-test of them finds nothing to say."""
SIZES = (160, 240, 320)
DEFAULT = 240


def sets(folder: Path) -> Iterator[tuple[str, Places, Path]]:
    """Every set: its name, the photographs, and the folder of those that are indexed."""
    for name, exchanged in SETS:
        places, images = load_places(folder / name, "test"), folder / name / "images" / "test"
        if exchanged:
            swapped = replace(places, database=places.queries, queries=places.database)
            yield f"{name}, roles exchanged", swapped, images / "queries"
        else:
            yield name, places, images / "database"


def of_size(places: Places, indexed: Path, size: int, tasks: Tasks) -> dict:
    """Index a set's database at a size: what its self-test finds, and which queries are answered."""
    with tempfile.TemporaryDirectory() as temporary:
        model = Model.load(NETWORKS[0], size=size)
        index = Index.build(indexed, model, out=Path(temporary) / "set.index", tasks=tasks)
        assert index.self_test is not None  # build ends with it
        way = index.self_test.ways["search"]
        queries = index.model.encode(
            places.queries.files, progress=tasks(f"{places.name} at {size}: queries")
        )
        number = {file: i for i, file in enumerate(places.database.files)}
        of_row = np.array([number[Path(file)] for file in index.files])
        evaluation = score(places, of_row[index.search(queries, DEPTH)[1]], Scoring(RECALLS))
    return {
        "tested": way.tested,
        "self_test": way.found,
        "recalls": [evaluation.recalls[n] for n in RECALLS],
        "hits": "".join(str(int(hit)) for hit in evaluation.hits(1)[evaluation.answerable]),
    }


def chosen(by_size: dict[str, dict]) -> dict:
    """Compare the size that the self-test would choose with the default, on the queries."""
    best = max(by_size, key=lambda size: by_size[size]["self_test"])
    hits = [np.array(list(by_size[size]["hits"])) == "1" for size in (best, str(DEFAULT))]
    paired = mcnemar(*hits)
    return {"size": int(best), "difference": paired.difference, "p_value": paired.p_value}


def table(recorded: dict) -> str:
    """Share found by the self-test and recall@1 of the queries by size, in Markdown."""
    sizes, about = recorded["sizes"], recorded["machine"]
    text = (
        f"`{recorded['command']}`, commit {about['commit']}, {about['date']}; {about['kernels']} kernels. "
        "The share of photographs that the self-test finds / recall@1 of the queries, in %. *Chosen*: the "
        f"size at which the self-test finds most, and what the queries gain by it over {DEFAULT}, which was "
        f"chosen on {CHOSEN_ON}."
    )
    heads = [*map(str, sizes), "chosen", "gain", "p"]
    lines = [text, "", f"| shorter side | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name, of in recorded["sets"].items():
        found = [of["by_size"][str(size)] for size in sizes]
        cells = [f"{100 * one['self_test']:.1f} / {100 * one['recalls'][0]:.1f}" for one in found]
        best = of["chosen"]
        cells += [str(best["size"]), f"{100 * best['difference']:+.1f}", f"{best['p_value']:.1g}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__)
    parser.add_argument("--places", type=Path, default=ROOT.parent / "shared/places")
    given = parser.parse_args()
    found = {}
    with progress_tasks() as tasks:
        for name, places, indexed in sets(given.places):
            by_size = {str(size): of_size(places, indexed, size, tasks) for size in SIZES}
            found[name] = {"by_size": by_size, "chosen": chosen(by_size)}
    about = {"command": command("benchmarks.sizes"), "machine": machine(torch.get_num_threads())}
    write_json(FILE, about | {"sizes": SIZES, "sets": found})


if __name__ == "__main__":
    main()
