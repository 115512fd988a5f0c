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
from sfrs.trunk_cache import LoadsAhead, TrunkSource


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


@dataclass(frozen=True)
class TupleLosses:
    """Losses of some tuples as sums and counts, so that shares of one step can be put together.

    Attributes:
        hard_sum, soft_sum: scalars with gradients; the mean of several shares is the sum of their sums over
            the sum of their counts.
        hard_count: tuples.
        soft_count: tuples that have a difficult positive; 0 without a teacher.
    """

    hard_sum: Tensor
    hard_count: int
    soft_sum: Tensor
    soft_count: int

    @property
    def hard(self) -> Tensor:
        """Mean hard loss."""
        return self.hard_sum / self.hard_count

    @property
    def soft(self) -> Tensor:
        """Mean soft loss; 0 if no tuple has one."""
        return self.soft_sum / max(1, self.soft_count)


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


def load_ahead(tuples: Tuples, images: TrainingImages, step: int) -> None:
    """Begin to load the images of ``tuples``, which `tuple_losses` will be given with this ``step``.

    Loading is first come, first served: ask for a step before the ones after it. Does nothing where images
    need no loading.
    """
    if isinstance(images.steps, LoadsAhead):
        images.steps.load_ahead(_distinct_images(tuples, images)[0], step=step)


def tuple_losses(
    generation: Generation, tuples: Tuples, images: TrainingImages, config: TrainConfig, *, step: int = 0
) -> TupleLosses:
    """Hard and soft losses of a few tuples; there is no soft loss without a teacher.

    Every distinct image goes through the trunk and the student's head once; the teacher shares the trunk's
    output.

    Args:
        step: decides the jitter, see `sfrs.trunk_cache.step_number`.

    Raises:
        DivergedError: a similarity is not finite.
    """
    valid = tuples.difficult >= 0
    numbers, rows = _distinct_images(tuples, images)
    trunk = images.steps(numbers, step=step)
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
    labelled = int(valid.any(dim=1).sum()) if soft else 0
    if not labelled:
        return TupleLosses(hard * len(tuples), len(tuples), hard.new_zeros(()), 0)
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
    return TupleLosses(hard * len(tuples), len(tuples), labels * labelled, labelled)


def _distinct_images(tuples: Tuples, images: TrainingImages) -> tuple[Tensor, Tensor]:
    """The images of tuples, ``[U]`` in ascending order, and their places in it, ``[T, 1 + G]``.

    Columns: query, easiest positive, negatives, difficult positives. A missing difficult positive is filled
    with the easiest one, which costs no extra image.
    """
    difficult = torch.where(tuples.difficult >= 0, tuples.difficult, tuples.positives[:, None])
    gallery = torch.cat((tuples.positives[:, None], tuples.negatives, difficult), dim=1) + images.queries
    return torch.cat((tuples.queries[:, None], gallery), dim=1).unique(return_inverse=True)


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
