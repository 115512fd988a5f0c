"""Refreshing the descriptors that training tuples are mined from, in every process its share."""

from dataclasses import fields

import torch
from torch import Tensor

from sfrs.data.images import Progress
from sfrs.features.source import TrunkSource, describe_trunk
from sfrs.models.network import DescriptorNetwork
from sfrs.runtime.distributed import Processes
from sfrs.training.config import TrainConfig
from sfrs.training.mining import Tuples
from sfrs.training.tuple_losses import Generation, TrainingImages


def mine_tuples(
    generation: Generation,
    queries: Tensor,
    images: TrainingImages,
    config: TrainConfig,
    progress: Progress | None = None,
    *,
    processes: Processes | None = None,
) -> Tuples:
    """Refresh the descriptors with the student as it is, and mine tuples for ``queries``.

    Processes share the refresh; the main one mines.
    """
    processes = processes or Processes()
    difficult = "none"
    if generation.soft and config.soft_weight > 0:
        difficult = "ranks" if config.soft_ranks else "promoted"
    # Only re-ranking reads the descriptors of other queries.
    asked = torch.arange(images.queries) if difficult == "promoted" else queries
    numbers = torch.cat((asked, torch.arange(images.queries, images.queries + images.database)))
    descriptors = describe_in_shares(
        generation.student, images.mining, numbers, config, processes=processes, progress=progress
    )
    mined = None
    if descriptors is not None:
        of_queries = descriptors[: len(asked)]
        if difficult != "promoted":
            of_queries = descriptors.new_zeros(images.queries, descriptors.shape[1])
            of_queries[asked] = descriptors[: len(asked)]
        mined = generation.miner.mine(queries, of_queries, descriptors[len(asked) :], difficult=difficult)
        if processes.count == 1:
            return mined
        mined = {field.name: getattr(mined, field.name) for field in fields(mined)}
    return Tuples(**processes.broadcast_tensors(mined))


def describe_in_shares(
    network: DescriptorNetwork,
    source: TrunkSource,
    images: Tensor,
    config: TrainConfig,
    *,
    processes: Processes,
    progress: Progress | None = None,
) -> Tensor | None:
    """Descriptors of ``images`` (int64 ``[b]``), of which every process computes a share.

    Returns:
        float32 ``[b, K * D]`` in the main process, None in the others.
    """
    total, count = len(images), processes.count

    def shown(done: int, share: int) -> None:
        progress(total if done == share else done * count, total)  # the others are about as far

    described = describe_trunk(
        network,
        source,
        images[processes.share(total)],
        batch_size=config.batch_size,
        progress=shown if progress is not None else None,
    )
    return processes.gather_rows(described, total, everywhere=False)
