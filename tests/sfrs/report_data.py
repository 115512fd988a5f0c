"""A small evaluation with failures and conditions, for the tests of reports."""

import json
from pathlib import Path

from pictures import picture

from sfrs.data.places import load_places
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork, save_network
from sfrs.retrieval.evaluation import Scoring, evaluate
from sfrs.retrieval.results import write_predictions
from sfrs.runtime.atomic_io import write_json

QUERIES = ("day", "dusk", "night", "rain")
"""Conditions of the queries, in turn; those of index 4, 5 and 6 show another place than where they stand."""


def photographs(folder: Path) -> Path:
    """12 places 60 m apart, one database image and one query each, with conditions in their names."""
    for scene in range(12):
        seen = {4: 9, 5: 10, 6: 11}.get(scene, scene)
        for role, east, note, shown, noise in (
            ("database", 0.0, "day", scene, 0.0),
            ("queries", 4.0, QUERIES[scene % 4], seen, 0.1),
        ):
            parent = folder / "town/images/test" / role
            parent.mkdir(parents=True, exist_ok=True)
            x, y = 500000 + 60 * scene + east, 4000000 + 60 * (scene % 3)
            name = f"@{x:.2f}@{y:.2f}@33@U@@@p{scene:02d}@0@0@0@0@2@20230101_120000@{note}@.jpg"
            picture(shown, noise=noise).save(parent / name, quality=95)
    return folder / "town"


def evaluated(folder: Path, network: DescriptorNetwork) -> Path:
    """Evaluate ``network`` on `photographs` and write what ``sfrs evaluate --out`` writes."""
    data, weights, out = photographs(folder), folder / "tiny.safetensors", folder / "evaluation"
    save_network(weights, network, {"image_size": [48, 64]})
    places = load_places(data)
    result = evaluate(Model(network, size=(48, 64)), places, workers=0, scoring=Scoring(recalls=(1, 5, 12)))
    out.mkdir()
    write_predictions(out / "predictions.csv", result, places)
    summary = {"data": str(data), "split": "test", "weights": str(weights), "radius_m": result.radius}
    summary["recalls"] = {str(n): recall for n, recall in result.recalls.items()}
    write_json(out / "results.json", json.loads(json.dumps(summary)))
    return out
