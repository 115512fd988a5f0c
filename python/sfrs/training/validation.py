"""Recall of a network in training on the validation images."""

import torch

from sfrs.data.images import Progress
from sfrs.data.places import Places
from sfrs.features.source import TrunkSource
from sfrs.models.network import DescriptorNetwork
from sfrs.retrieval.evaluation import Scoring, score, search_depth
from sfrs.retrieval.recall import RECALL_AT
from sfrs.retrieval.search import search
from sfrs.runtime.distributed import Processes
from sfrs.training.config import TrainConfig
from sfrs.training.refresh import describe_in_shares


def validate(
    network: DescriptorNetwork,
    places: Places,
    trunk: TrunkSource,
    config: TrainConfig,
    *,
    processes: Processes,
    progress: Progress | None = None,
) -> dict[int, float] | None:
    """N -> recall@N in 0..1 of ``places``, in the main process; None in the others, which only describe.

    Args:
        trunk: trunk outputs of the images, queries first.
    """
    queries, database = len(places.queries), len(places.database)
    numbers = torch.arange(queries + database)
    described = describe_in_shares(network, trunk, numbers, config, processes=processes, progress=progress)
    if described is None:
        return None
    described = described.cpu().numpy()
    ns = sorted({*RECALL_AT, config.select_recall})
    _, predictions = search(described[queries:], described[:queries], search_depth(places, max(ns)))
    return score(places, predictions, Scoring(ns, config.negative_radius)).recalls
