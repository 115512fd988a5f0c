"""Train and evaluate image localisation by retrieval with SFRS on fused operators.

The library in four lines:

    model = sfrs.load("sfrs.safetensors")
    descriptors = model.encode(["a.jpg", "b.jpg"])
    recalls = sfrs.evaluate(model, sfrs.load_places("pitts30k", "test")).recalls
    result = sfrs.train("pitts30k", sfrs.TrainConfig(weights="vgg16.safetensors"), "runs/sfrs")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfrs.data.places import load_places
    from sfrs.models.model import Model
    from sfrs.retrieval.evaluation import evaluate
    from sfrs.retrieval.index import Index
    from sfrs.training.config import TrainConfig
    from sfrs.training.trainer import train

    load = Model.load

__all__ = ["Index", "Model", "TrainConfig", "evaluate", "load", "load_places", "train"]

_HOMES = {
    "Index": "sfrs.retrieval.index",
    "Model": "sfrs.models.model",
    "TrainConfig": "sfrs.training.config",
    "evaluate": "sfrs.retrieval.evaluation",
    "load_places": "sfrs.data.places",
    "train": "sfrs.training.trainer",
}


def __getattr__(name: str) -> Any:  # torch takes a second to import: too slow for `sfrs --help`
    if name == "load":
        return import_module(_HOMES["Model"]).Model.load
    if name not in _HOMES:
        raise AttributeError(f"module 'sfrs' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
