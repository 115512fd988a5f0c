"""Recall of a network in training on the validation images."""

import torch

from sfrs.config import TrainConfig
from sfrs.descriptor import DescriptorNetwork
from sfrs.distributed import Processes
from sfrs.evaluation import score, search_depth
from sfrs.images import Progress
from sfrs.places import Places
from sfrs.recall import RECALL_AT
from sfrs.refresh import describe_in_shares
from sfrs.search import search
from sfrs.trunk_source import TrunkSource


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
    return score(places, predictions, recalls=ns, radius=config.negative_radius).recalls
