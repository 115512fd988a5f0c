"""Losses of a few tuples: trunk outputs -> heads -> similarities -> hard and soft loss (SFRS, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

import sfrs_ext
from sfrs.features.source import LoadsAhead, TrunkSource
from sfrs.models.autocast import autocast
from sfrs.models.network import DescriptorNetwork
from sfrs.runtime.errors import UserError
from sfrs.training.config import TrainConfig
from sfrs.training.losses import hard_loss, region_negatives, soft_loss
from sfrs.training.mining import Miner, Tuples


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
    """Losses of T tuples, each by itself, so that shares of one step can be put together.

    Attributes:
        hard_by_tuple: ``[T]``, with gradient.
        soft_by_tuple: ``[T]``, with gradient; 0 for a tuple that has no difficult positive, and without a
            teacher.
        labelled: bool ``[T]`` in the host's memory: the tuples over which the soft loss is a mean.
        images: number of distinct images.
    """

    hard_by_tuple: Tensor
    soft_by_tuple: Tensor
    labelled: Tensor
    images: int

    @property
    def hard(self) -> Tensor:
        """Mean hard loss."""
        return self.hard_by_tuple.mean()

    @property
    def soft(self) -> Tensor:
        """Mean soft loss; 0 if no tuple has one."""
        return self.soft_by_tuple.sum() / max(1, int(self.labelled.sum()))


@dataclass
class Generation:
    """What one generation trains: the student, and what it needs for it.

    Attributes:
        number: counted from 1.
        teacher: the previous generation's best network, frozen; None in generation 1.
        optimizer: of the student, from `sfrs.training.epoch.sgd`.
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
    network: DescriptorNetwork,
    trunk: Tensor,
    queries: Tensor,
    gallery: Tensor,
    *,
    regions: bool,
    autocast_to: str = "off",
) -> Tensor:
    """Similarities of queries to their gallery images.

    Args:
        trunk: trunk outputs of distinct images ``[U, C, h, w]``; those of queries come first.
        queries: rows of ``trunk``, int64 ``[T]``, in the host's memory, where reading them waits for nothing.
        gallery: rows of ``trunk``, int64 ``[T, G]``, likewise; all greater than those of any query.
        regions: compute all nine regions, else the whole image only.
        autocast_to: type of the head's convolutions, see `sfrs.models.autocast`; all behind them is float32.

    Returns:
        ``[T, G, 9]``, or ``[T, G, 1]`` without regions.
    """
    first = int(gallery.min())  # rows before it are queries, from it on gallery
    queries = queries.to(trunk.device, non_blocking=True)
    gallery = (gallery - first).to(trunk.device, non_blocking=True)
    with autocast(autocast_to, trunk.device):
        features = network.features(trunk)
    features = features.to(trunk.dtype)
    query = network.vlad(features[:first])  # [first, K * D]
    if not regions:
        pairs = query @ network.vlad(features[first:]).T  # [first, U - first]
        return pairs[queries[:, None], gallery][:, :, None]
    quarters = network.vlad.quarters(features[first:])  # [U - first, 4, K, D]
    lists = quarters.index_select(0, gallery.flatten()).unflatten(0, gallery.shape)
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
    output. Nothing here waits for the device; losses may be not finite.

    Args:
        step: decides the jitter, see `sfrs.features.source.step_number`.
    """
    valid = tuples.difficult >= 0
    numbers, rows = _distinct_images(tuples, images)
    trunk = images.steps(numbers, step=step)
    soft = generation.soft and config.soft_weight > 0
    region_hard = generation.soft and config.region_negatives
    region_soft = soft and config.soft_level == "region"
    ours = similarities(
        generation.student,
        trunk,
        rows[:, 0],
        rows[:, 1:],
        regions=region_hard or region_soft,
        autocast_to=config.autocast,
    )  # [T, G, 9 or 1]
    split = 1 + tuples.negatives.shape[1]
    negatives = ours[:, 1:split]
    hard = hard_loss(
        config.hard_loss,
        ours[:, 0, 0],
        region_negatives(negatives) if region_hard else negatives[:, :, 0],
        temperature=config.temperature,
        margin=config.margin,
        reduce=False,
    )
    labelled = soft_labelled(generation, tuples, config)
    if not labelled.any():
        return TupleLosses(hard, torch.zeros_like(hard), labelled, len(numbers))
    with torch.no_grad():
        used, place = torch.cat((rows[:, :1], rows[:, 1 + split :]), dim=1).unique(return_inverse=True)
        theirs = similarities(
            generation.teacher,
            trunk.index_select(0, used.to(trunk.device, non_blocking=True)),
            place[:, 0],
            place[:, 1:],
            regions=region_soft,
            autocast_to=config.autocast,
        )
    labels = soft_loss(
        ours[:, split:, : theirs.shape[2]],
        theirs,
        config.teacher_temperature(generation.number),
        config.temperature,
        valid=valid.to(theirs.device),
        negatives=negatives[:, :, : theirs.shape[2]] if config.soft_negatives else None,
        reduce=False,
    )
    return TupleLosses(hard, labels, labelled, len(numbers))


def soft_labelled(generation: Generation, tuples: Tuples, config: TrainConfig) -> Tensor:
    """bool ``[T]``, in the host's memory: which tuples have a soft loss."""
    return (tuples.difficult >= 0).any(dim=1) & (generation.soft and config.soft_weight > 0)


def _distinct_images(tuples: Tuples, images: TrainingImages) -> tuple[Tensor, Tensor]:
    """The images of tuples, ``[U]`` in ascending order, and their places in it, ``[T, 1 + G]``.

    Columns: query, easiest positive, negatives, difficult positives. A missing difficult positive is filled
    with the easiest one, which costs no extra image.
    """
    difficult = torch.where(tuples.difficult >= 0, tuples.difficult, tuples.positives[:, None])
    gallery = torch.cat((tuples.positives[:, None], tuples.negatives, difficult), dim=1) + images.queries
    return torch.cat((tuples.queries[:, None], gallery), dim=1).unique(return_inverse=True)


def diverged(tuples: Tuples, number: int, images: TrainingImages, what: str) -> DivergedError:
    """The error of something that is not finite, for example ``the hard loss``, of the tuple ``number``."""
    query = int(tuples.queries[number])
    positive = images.names[images.queries + int(tuples.positives[number])]
    return DivergedError(
        f"training diverged: {what} of the tuple of query {query} ({images.names[query]}, easiest positive "
        f"{positive}) is not finite. The step was not taken. A smaller --learning-rate may help."
    )
