"""One epoch of training: tuples -> trunk outputs -> heads -> similarities -> losses -> step."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sfrs_ext
from sfrs.config import TrainConfig
from sfrs.descriptor import DescriptorNetwork
from sfrs.errors import UserError
from sfrs.losses import hard_loss, region_negatives, soft_loss
from sfrs.mining import Miner, Tuples
from sfrs.trunk_cache import TrunkSource, describe_trunk


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


@dataclass(frozen=True)
class StepReport:
    """Losses of one optimisation step (or their means over several), and how far the epoch is.

    Attributes:
        hard, soft, total: total = hard + soft_weight * soft.
        done, of: tuples of this epoch.
        tuples_per_second: since the epoch began, mining included.
    """

    step: int
    done: int
    of: int
    hard: float
    soft: float
    total: float
    learning_rate: float
    tuples_per_second: float


def train_epoch(
    generation: Generation,
    epoch: int,
    images: TrainingImages,
    config: TrainConfig,
    *,
    on_step: Callable[[StepReport], None] | None = None,
    on_mining: Callable[[int, int], None] | None = None,
) -> StepReport:
    """Train the student for one epoch.

    Args:
        epoch: counted from 1 within the generation; decides the learning rate only.
        on_step: called after every optimisation step.
        on_mining: called with (done, total) images while descriptors for mining are refreshed.

    Returns:
        The epoch's means.

    Raises:
        DivergedError: a loss is not finite. The step that gave it has not been taken.
    """
    queries = generation.miner.draw_queries(config.queries_per_epoch)
    chunks = queries.split(config.refresh_every)
    steps = sum(math.ceil(len(chunk) / config.tuples_per_step) for chunk in chunks)
    all_steps, step = steps * config.epochs_of(generation.number), steps * (epoch - 1)
    began, done, sums = time.perf_counter(), 0, torch.zeros(3, dtype=torch.float64)
    generation.student.train()
    for chunk in chunks:
        tuples = mine_tuples(generation, chunk, images, config, on_mining)
        for start in range(0, len(tuples), config.tuples_per_step):
            batch = tuples[slice(start, start + config.tuples_per_step)]
            rate = learning_rate(config, step, all_steps)
            losses = _step(generation, batch, images, config, rate)
            step, done = step + 1, done + len(batch)
            sums += len(batch) * torch.tensor(losses, dtype=torch.float64)
            if on_step is not None:
                on_step(
                    StepReport(step, done, len(queries), *losses, rate, done / (time.perf_counter() - began))
                )
    means = (sums / len(queries)).tolist()
    return StepReport(step, done, len(queries), *means, rate, done / (time.perf_counter() - began))


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Of optimisation step ``step`` (from 0) of the ``steps`` of a generation."""
    if config.lr_schedule == "linear":
        return config.learning_rate * (1 - step / steps)
    return config.learning_rate


def mine_tuples(
    generation: Generation,
    queries: Tensor,
    images: TrainingImages,
    config: TrainConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Tuples:
    """Refresh the descriptors with the student as it is, and mine tuples for ``queries``."""
    difficult = "none"
    if generation.soft and config.soft_weight > 0:
        difficult = "ranks" if config.soft_ranks else "promoted"
    # Only re-ranking reads the descriptors of other queries.
    asked = torch.arange(images.queries) if difficult == "promoted" else queries
    numbers = torch.cat((asked, torch.arange(images.queries, images.queries + images.database)))
    descriptors = describe_trunk(
        generation.student, images.mining, numbers, batch_size=config.batch_size, progress=progress
    )
    of_queries = descriptors[: len(asked)]
    if difficult != "promoted":
        of_queries = descriptors.new_zeros(images.queries, descriptors.shape[1])
        of_queries[asked] = descriptors[: len(asked)]
    return generation.miner.mine(queries, of_queries, descriptors[len(asked) :], difficult=difficult)


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


def _step(
    generation: Generation, tuples: Tuples, images: TrainingImages, config: TrainConfig, rate: float
) -> tuple[float, float, float]:
    """One step of SGD; the losses hard, soft and total before it."""
    hard, soft = tuple_losses(generation, tuples, images, config)
    total = hard + config.soft_weight * soft
    for group in generation.optimizer.param_groups:
        group["lr"] = rate
    generation.optimizer.zero_grad(set_to_none=True)
    total.backward()
    generation.optimizer.step()
    return hard.item(), soft.item(), total.item()


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
