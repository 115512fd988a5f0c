"""Losses of tuples: tuples -> frozen features -> head -> similarities -> losses."""

from dataclasses import dataclass

import torch
from torch import Tensor

import sfrs_ext
from sfrs.features.source import FeatureSource
from sfrs.models.autocast import autocast
from sfrs.models.network import DescriptorNetwork
from sfrs.runtime.errors import UserError
from sfrs.training.config import TrainConfig
from sfrs.training.losses import SOFT_LOSSES, hard_loss, region_negatives
from sfrs.training.mining import Miner, Tuples


class DivergedError(UserError, RuntimeError):
    """A loss or a descriptor is not finite; the message names the tuple of a loss."""


@dataclass(frozen=True)
class TrainingImages:
    """Frozen features of the training images: first of the queries, then of the database."""

    queries: int  # number of images
    database: int
    steps: FeatureSource  # for training steps; jittered if the run asks for it
    mining: FeatureSource  # never jittered
    names: tuple[str, ...]  # of all images, for messages


@dataclass
class StudentTeacher:
    """The networks of one generation, the student's optimiser, and its miner."""

    generation: int  # counted from 1
    student: DescriptorNetwork
    teacher: DescriptorNetwork | None  # the previous generation's network, frozen; None in generation 1
    optimizer: torch.optim.Optimizer  # from `sgd`
    miner: Miner

    def has_soft_loss(self, config: TrainConfig) -> bool:
        return self.teacher is not None and config.soft_weight > 0


@dataclass(frozen=True)
class TupleLosses:
    """Losses of T tuples, each by itself, so that shares of one step can be put together."""

    hard_by_tuple: Tensor  # [T], with gradient
    soft_by_tuple: Tensor  # [T], with gradient; 0 for a tuple without difficult positives or a teacher
    labelled: Tensor  # bool [T] in the host's memory: the tuples over which the soft loss is a mean
    images: int  # distinct ones

    @property
    def hard(self) -> Tensor:
        """Mean hard loss."""
        return self.hard_by_tuple.mean()

    @property
    def soft(self) -> Tensor:
        """Mean soft loss; 0 if no tuple has one."""
        return self.soft_by_tuple.sum() / max(1, int(self.labelled.sum()))


def sgd(student: DescriptorNetwork, config: TrainConfig) -> torch.optim.SGD:
    """Make the optimiser of a student."""
    return torch.optim.SGD(
        student.trained_parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )


def tuple_losses(
    pair: StudentTeacher, tuples: Tuples, images: TrainingImages, config: TrainConfig, *, step: int = 0
) -> TupleLosses:
    """Compute hard and soft losses of a few tuples, which may be not finite; ``step`` decides the jitter.

    Every distinct image goes through the student's head once; the teacher shares the frozen features.
    """
    numbers, rows = _distinct_images(tuples, images)
    features = images.steps(numbers, step=step)
    region_hard = pair.teacher is not None and config.region_negatives
    region_soft = pair.has_soft_loss(config) and config.soft_level == "region"
    ours = similarities(pair.student, features, rows, config, regions=region_hard or region_soft)
    split = 1 + tuples.negatives.shape[1]
    negatives = ours[:, 1:split]
    hard = hard_loss(
        config.hard_loss,
        ours[:, 0, 0],
        region_negatives(negatives) if region_hard else negatives[:, :, 0],
        temperature=config.temperature,
        margin=config.margin,
        distance=config.triplet_distance,
    )
    with_labels = labelled(pair, tuples, config)
    if pair.teacher is None or not with_labels.any():
        return TupleLosses(hard, torch.zeros_like(hard), with_labels, len(numbers))
    with torch.no_grad():
        used, place = torch.cat((rows[:, :1], rows[:, 1 + split :]), dim=1).unique(return_inverse=True)
        shared = features.index_select(0, used.to(features.device, non_blocking=True))
        theirs = similarities(pair.teacher, shared, place, config, regions=region_soft)
    soft = SOFT_LOSSES[config.soft_loss](
        ours[:, split:, : theirs.shape[2]],
        theirs,
        config.teacher_temperature(pair.generation),
        config.temperature,
        valid=(tuples.difficult >= 0).to(theirs.device),
        negatives=negatives[:, :, : theirs.shape[2]] if config.soft_negatives else None,
    )
    return TupleLosses(hard, soft, with_labels, len(numbers))


def similarities(
    network: DescriptorNetwork, features: Tensor, rows: Tensor, config: TrainConfig, *, regions: bool
) -> Tensor:
    """Compute similarities of queries to the regions of their gallery images.

    Args:
        features: frozen features of distinct images ``[U, C, h, w]``, those of all queries first.
        rows: of ``features``: a query and its G gallery images, int64 ``[T, 1 + G]`` in the host's memory,
            where reading them waits for nothing.
        regions: compute all nine regions, else the whole image only.

    Returns:
        ``[T, G, 9]``, or ``[T, G, 1]`` without regions.
    """
    first = int(rows[:, 1:].min())  # rows before it are queries, from it on gallery
    rows = rows.to(features.device, non_blocking=True)
    queries, gallery = rows[:, 0], rows[:, 1:] - first
    with autocast(config.autocast, features.device):
        maps = network.features(features)
    maps = maps.to(features.dtype)
    query = network.vlad(maps[:first])  # [first, K * D]
    if not regions:
        pairs = query @ network.vlad(maps[first:]).T  # [first, U - first]
        return pairs[queries[:, None], gallery][:, :, None]
    quarters = network.vlad.quarters(maps[first:])  # [U - first, 4, K, D]
    lists = quarters.index_select(0, gallery.flatten()).unflatten(0, gallery.shape)
    return sfrs_ext.region_similarity(query.index_select(0, queries), lists)


def prefetch(tuples: Tuples, images: TrainingImages, step: int) -> None:
    """Begin to load the images of ``tuples`` for a later ``step``; ask for steps in their order."""
    images.steps.prefetch(_distinct_images(tuples, images)[0], step=step)


def labelled(pair: StudentTeacher, tuples: Tuples, config: TrainConfig) -> Tensor:
    """Mark the tuples that have a soft loss: bool ``[T]`` in the host's memory."""
    return (tuples.difficult >= 0).any(dim=1) & pair.has_soft_loss(config)


def _distinct_images(tuples: Tuples, images: TrainingImages) -> tuple[Tensor, Tensor]:
    """Return the images of tuples, ``[U]`` in ascending order, and their places in it, ``[T, 1 + G]``.

    Columns: query, easiest positive, negatives, difficult positives. A missing difficult positive is filled
    with the easiest one, which costs no extra image.
    """
    difficult = torch.where(tuples.difficult >= 0, tuples.difficult, tuples.positives[:, None])
    gallery = torch.cat((tuples.positives[:, None], tuples.negatives, difficult), dim=1) + images.queries
    return torch.cat((tuples.queries[:, None], gallery), dim=1).unique(return_inverse=True)
