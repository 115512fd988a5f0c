"""One epoch of training: tuples -> trunk outputs -> heads -> similarities -> losses -> step."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfrs.config import TrainConfig
from sfrs.mining import Tuples
from sfrs.trunk_cache import describe_trunk, step_number
from sfrs.tuple_losses import Generation, TrainingImages, tuple_losses


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
            losses = _step(generation, batch, images, config, rate, step_number(generation.number, step + 1))
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


def _step(
    generation: Generation,
    tuples: Tuples,
    images: TrainingImages,
    config: TrainConfig,
    rate: float,
    step: int,
) -> tuple[float, float, float]:
    """One step of SGD; the losses hard, soft and total before it."""
    losses = tuple_losses(generation, tuples, images, config, step=step)
    hard, soft = losses.hard, losses.soft
    total = hard + config.soft_weight * soft
    for group in generation.optimizer.param_groups:
        group["lr"] = rate
    generation.optimizer.zero_grad(set_to_none=True)
    total.backward()
    generation.optimizer.step()
    return hard.item(), soft.item(), total.item()
