"""Losses of a few tuples: trunk outputs -> heads -> similarities -> hard and soft loss (SFRS, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

import sfrs_ext
from sfrs.config import TrainConfig
from sfrs.descriptor import DescriptorNetwork
from sfrs.errors import UserError
from sfrs.losses import hard_loss, region_negatives, soft_loss
from sfrs.mining import Miner, Tuples
from sfrs.trunk_cache import TrunkSource


class DivergedError(UserError, RuntimeError):
    """A loss is not finite; the message names the tuple."""


@dataclass(frozen=True)
class TrainingImages:
    """Trunk outputs of the training images; queries have the numbers 0 to ``queries - 1``, the database
    follows.

    Attributes:
        queries, database: numbers of images.
        steps: for training steps; jittered if the run asks for it.
        mining: for mining, never jittered.
        names: of all images, for messages.
    """

    queries: int
    database: int
    steps: TrunkSource
    mining: TrunkSource
    names: tuple[str, ...]


@dataclass
class Generation:
    """What one generation trains: the student, and what it needs for it.

    Attributes:
        number: counted from 1.
        teacher: the previous generation's best network, frozen; None in generation 1.
    """

    number: int
    student: DescriptorNetwork
    teacher: DescriptorNetwork | None
    optimizer: torch.optim.Optimizer
    miner: Miner

    @property
    def soft(self) -> bool:
        return self.teacher is not None


def similarities(
    network: DescriptorNetwork, trunk: Tensor, queries: Tensor, gallery: Tensor, *, regions: bool
) -> Tensor:
    """Similarities of queries to their gallery images.

    Args:
        trunk: trunk outputs of distinct images ``[U, C, h, w]``; those of queries come first.
        queries: rows of ``trunk``, int64 ``[T]``.
        gallery: rows of ``trunk``, int64 ``[T, G]``; all greater than those of any query.
        regions: compute all nine regions, else the whole image only.

    Returns:
        ``[T, G, 9]``, or ``[T, G, 1]`` without regions.
    """
    first = int(gallery.min())  # rows before it are queries, from it on gallery
    features = network.features(trunk)
    query = network.vlad(features[:first])  # [first, K * D]
    if not regions:
        pairs = query @ network.vlad(features[first:]).T  # [first, U - first]
        return pairs[queries[:, None], gallery - first][:, :, None]
    quarters = network.vlad.quarters(features[first:])  # [U - first, 4, K, D]
    lists = quarters.index_select(0, (gallery - first).flatten()).unflatten(0, gallery.shape)
    return sfrs_ext.region_similarity(query.index_select(0, queries), lists)


def tuple_losses(
    generation: Generation, tuples: Tuples, images: TrainingImages, config: TrainConfig
) -> tuple[Tensor, Tensor]:
    """Hard and soft loss (scalars) of a few tuples; the soft loss is 0 without a teacher.

    Every distinct image goes through the trunk and the student's head once; the teacher shares the trunk's
    output.
    """
    valid = tuples.difficult >= 0
    # A missing difficult positive is filled with the easiest one, which costs no extra image, and masked.
    difficult = torch.where(valid, tuples.difficult, tuples.positives[:, None])
    gallery = (
        torch.cat((tuples.positives[:, None], tuples.negatives, difficult), dim=1) + images.queries
    )  # [T, G]
    numbers, rows = torch.cat((tuples.queries[:, None], gallery), dim=1).unique(return_inverse=True)
    trunk = images.steps(numbers)
    rows = rows.to(trunk.device)
    soft = generation.soft and config.soft_weight > 0
    region_hard = generation.soft and config.region_negatives
    region_soft = soft and config.soft_level == "region"
    ours = similarities(
        generation.student, trunk, rows[:, 0], rows[:, 1:], regions=region_hard or region_soft
    )  # [T, G, 9 or 1]
    _refuse_not_finite(ours, tuples, images)
    split = 1 + tuples.negatives.shape[1]
    negatives = ours[:, 1:split]
    hard = hard_loss(
        config.hard_loss,
        ours[:, 0, 0],
        region_negatives(negatives) if region_hard else negatives[:, :, 0],
        temperature=config.temperature,
        margin=config.margin,
    )
    if not soft or not valid.any():
        return hard, hard.new_zeros(())
    with torch.no_grad():
        used, place = torch.cat((rows[:, :1], rows[:, 1 + split :]), dim=1).unique(return_inverse=True)
        theirs = similarities(
            generation.teacher, trunk.index_select(0, used), place[:, 0], place[:, 1:], regions=region_soft
        )
    labels = soft_loss(
        ours[:, split:, : theirs.shape[2]],
        theirs,
        config.teacher_temperature(generation.number),
        config.temperature,
        valid=valid.to(theirs.device),
        negatives=negatives[:, :, : theirs.shape[2]] if config.soft_negatives else None,
    )
    return hard, labels


def _refuse_not_finite(similarity: Tensor, tuples: Tuples, images: TrainingImages) -> None:
    bad = ~similarity.detach().isfinite().flatten(1).all(dim=1)
    if bad.any():
        first = int(bad.nonzero()[0])
        query = int(tuples.queries[first])
        positive = images.names[images.queries + int(tuples.positives[first])]
        raise DivergedError(
            f"training diverged: similarities of the tuple of query {query} ({images.names[query]}, easiest "
            f"positive {positive}) are not finite. A smaller --learning-rate may help."
        )
