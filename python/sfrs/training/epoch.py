"""One epoch of training: in turn, descriptors are refreshed, tuples mined from them, and steps taken."""

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfrs.features.source import FeatureSource, describe_features, step_number
from sfrs.models.autocast import loss_scale
from sfrs.models.network import DescriptorNetwork
from sfrs.runtime.distributed import Processes
from sfrs.runtime.progress import Progress, silent
from sfrs.training.config import TrainConfig
from sfrs.training.mining import Tuples
from sfrs.training.progress import StepReport
from sfrs.training.step import DivergedError, StudentTeacher, TrainingImages, labelled, prefetch, tuple_losses


@dataclass
class EpochState:
    """The progress of an epoch after a step; with the networks and the miner, all that is needed to go on."""

    queries: Tensor  # of the epoch in the order they are trained in, int64 [T]
    done: int  # queries that have been trained
    mined: Tuples | None  # of the last refresh, if not all of them are done
    sums: Tensor  # hard and soft loss times tuples, summed over the steps; float64 [2]


class Epoch:
    """One epoch of a student.

    Args:
        number: counted from 1 within the generation; decides the learning rate and the jitter only.
        processes: that share the work; the result does not depend on how many, up to rounding.
        state: go on from here instead of beginning.
    """

    def __init__(
        self,
        pair: StudentTeacher,
        number: int,
        images: TrainingImages,
        config: TrainConfig,
        processes: Processes | None = None,
        state: EpochState | None = None,
    ) -> None:
        self.pair, self.number, self.images, self.config = pair, number, images, config
        self.processes = processes or Processes()
        if state is None:
            queries = self.processes.broadcast(pair.miner.draw_queries(config.queries_per_epoch))
            state = EpochState(queries, 0, None, torch.zeros(2, dtype=torch.float64))
        self.state = state
        self.of = len(self.state.queries)
        self.steps = self._steps_until(self.of)
        self.first_step, self.all_steps = (
            self.steps * count for count in (number - 1, config.epochs_of(pair.generation))
        )
        self.began = time.perf_counter()
        self.trained = self.described = 0  # tuples and images since then

    def train(
        self,
        on_step: Callable[[StepReport], None] | None = None,
        on_mining: Progress = silent,
        save: Callable[[EpochState], None] | None = None,
    ) -> StepReport:
        """Train the student and return the epoch's means.

        Args:
            on_step: called after every optimisation step.
            on_mining: called with (done, total) images while descriptors for mining are refreshed.
            save: called every ``config.checkpoint_minutes``, after a step.

        Raises `DivergedError` if a loss or gradient is not finite. The step that gave it has not been taken.
        """
        saved = time.perf_counter()
        self.pair.student.train()
        while self.state.done < self.of:
            report = self._step(on_mining)
            if on_step is not None:
                on_step(report)
            if save is not None and time.perf_counter() - saved >= 60 * self.config.checkpoint_minutes:
                save(self.state)
                saved = time.perf_counter()
        return self._report(self.steps, *(self.state.sums / self.of).tolist())

    def _step(self, on_mining: Progress) -> StepReport:
        state, config = self.state, self.config
        start = state.done % config.refresh_every
        following = start + config.tuples_per_step
        if state.mined is None:
            state.mined = self._mine(state.queries[state.done :][: config.refresh_every], on_mining)
        if start == 0 or self.trained == 0:
            self._prefetch(state.mined, start)
        self._prefetch(state.mined, following)
        tuples, number = state.mined[start:following], self._steps_until(state.done) + 1
        hard, soft, described = self._take_step(tuples, number)
        state.done += len(tuples)
        state.sums += len(tuples) * torch.tensor([hard, soft], dtype=torch.float64)
        self.trained += len(tuples)
        self.described += described
        if following >= len(state.mined):
            state.mined = None
        return self._report(number, hard, soft)

    def _mine(self, queries: Tensor, progress: Progress) -> Tuples:
        """Refresh the descriptors with the student as it is, and mine tuples for ``queries``.

        Processes share the refresh; the main one mines.
        """
        pair, images, config = self.pair, self.images, self.config
        difficult = "none"
        if pair.has_soft_loss(config):
            difficult = "ranks" if config.soft_ranks else "promoted"
        # Only re-ranking reads the descriptors of other queries.
        asked = torch.arange(images.queries) if difficult == "promoted" else queries
        numbers = torch.cat((asked, torch.arange(images.queries, images.queries + images.database)))
        descriptors = describe_in_shares(
            pair.student, images.mining, numbers, config, self.processes, progress
        )
        self.described += len(numbers)
        mined = None
        if descriptors is not None:
            of_queries, of_database = descriptors.split([len(asked), images.database])
            if difficult != "promoted":
                of_queries = descriptors.new_zeros(images.queries, descriptors.shape[1])
                of_queries[asked] = descriptors[: len(asked)]
            mined = vars(pair.miner.mine(queries, of_queries, of_database, difficult=difficult))
        return Tuples(**self.processes.broadcast(mined))

    def _take_step(self, tuples: Tuples, number: int) -> tuple[float, float, int]:
        """Train the student on ``tuples``, of which every process takes its share, as step ``number``.

        Returns mean hard loss, mean soft loss, and how many distinct images the shares had, in all processes.
        Raises `DivergedError` if a loss or gradient is not finite; the step is not taken.
        """
        pair, config = self.pair, self.config
        part = self.processes.share(len(tuples))
        count = max(1, int(labelled(pair, tuples, config).sum()))  # of tuples that have a soft loss
        parameters = list(pair.student.trained_parameters())
        losses, images = (torch.zeros(shape, device=parameters[0].device) for shape in ((2, len(tuples)), 1))
        pair.optimizer.zero_grad(set_to_none=True)
        if len(tuples[part]):
            step = step_number(pair.generation, self.first_step + number)
            found = tuple_losses(pair, tuples[part], self.images, config, step=step)
            hard, soft = found.hard_by_tuple, found.soft_by_tuple
            total = hard.sum() / len(tuples) + config.soft_weight * soft.sum() / count
            (loss_scale(config.autocast) * total).backward()
            losses[:, part] = torch.stack((hard, soft)).detach()
            images += found.images
        for parameter in parameters:
            if parameter.grad is None and self.processes.count > 1:  # this process had no tuple
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if loss_scale(config.autocast) != 1:
            torch._foreach_div_(gradients, loss_scale(config.autocast))
        self.processes.sum_([*gradients, losses, images])
        losses = losses.cpu()
        _refuse_divergence(losses, gradients, tuples, self.images)
        for group in pair.optimizer.param_groups:
            group["lr"] = self._rate(number)
        pair.optimizer.step()
        return losses[0].mean().item(), (losses[1].sum() / count).item(), int(images)

    def _prefetch(self, mined: Tuples, start: int) -> None:
        """Begin to load the step of the ``mined`` tuples from ``start`` on."""
        state, config = self.state, self.config
        tuples = mined[start : start + config.tuples_per_step]
        share = tuples[self.processes.share(len(tuples))]
        if len(share):
            done = state.done - state.done % config.refresh_every + start
            number = self.first_step + self._steps_until(done) + 1
            prefetch(share, self.images, step_number(self.pair.generation, number))

    def _steps_until(self, done: int) -> int:
        """Count the steps in the first ``done`` tuples; steps end where descriptors are refreshed."""
        refreshes, rest = divmod(done, self.config.refresh_every)
        steps_of_refresh = math.ceil(self.config.refresh_every / self.config.tuples_per_step)
        return refreshes * steps_of_refresh + math.ceil(rest / self.config.tuples_per_step)

    def _rate(self, step: int) -> float:
        return learning_rate(self.config, self.first_step + step - 1, self.all_steps, self.number)

    def _report(self, step: int, hard: float, soft: float) -> StepReport:
        seconds = max(time.perf_counter() - self.began, 1e-9)
        return StepReport(
            step=self.first_step + step,
            done=self.state.done,
            of=self.of,
            hard=hard,
            soft=soft,
            total=hard + self.config.soft_weight * soft,
            learning_rate=self._rate(step),
            tuples_per_second=self.trained / seconds,
            images_per_second=self.described / seconds,
            peak_bytes=_peak_bytes(next(self.pair.student.trained_parameters()).device),
        )


def describe_in_shares(
    network: DescriptorNetwork,
    source: FeatureSource,
    images: Tensor,
    config: TrainConfig,
    processes: Processes,
    progress: Progress,
) -> Tensor | None:
    """Describe ``images`` (int64 ``[b]``), of which every process computes a share: float32 ``[b, K * D]`` in
    the main process, None in the others. Raises `DivergedError` if a value is not finite.
    """
    total, count = len(images), processes.count

    def shown(done: int, share: int) -> None:
        progress(total if done == share else done * count, total)  # the others are about as far

    share = images[processes.share(total)]
    described = describe_features(network, source, share, batch_size=config.batch_size, progress=shown)
    rows = processes.gather_rows(described, total)
    if rows is not None and not rows.isfinite().all():
        raise DivergedError("training: a descriptor is not finite; the network or its trunk cache is damaged")
    return rows


def learning_rate(config: TrainConfig, step: int, steps: int, epoch: int = 1) -> float:
    """Return the rate of optimisation step ``step`` (from 0) of the ``steps`` of a generation.

    ``epoch`` counts from 1 within the generation.
    """
    if config.lr_schedule == "halving":
        return config.learning_rate * 0.5 ** (epoch // 5)
    if config.lr_schedule == "linear":
        return config.learning_rate * (1 - step / steps)
    return config.learning_rate


def _peak_bytes(device: torch.device) -> int:
    """Return the most memory ever allocated on a CUDA ``device``; else the most this process ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _refuse_divergence(
    losses: Tensor, gradients: list[Tensor], tuples: Tuples, images: TrainingImages
) -> None:
    bad, what = (~losses.isfinite()).nonzero(), "the gradient of the step that begins with that"
    if len(bad) == 0 and torch.nn.utils.get_total_norm(gradients).isfinite():
        return
    kind, number = bad[0].tolist() if len(bad) else (None, 0)
    if kind is not None:
        what = f"the {('hard', 'soft')[kind]} loss"
    query = int(tuples.queries[number])
    positive = images.names[images.queries + int(tuples.positives[number])]
    raise DivergedError(
        f"training diverged: {what} of the tuple of query {query} ({images.names[query]}, easiest positive "
        f"{positive}) is not finite. The step was not taken. A smaller --learning-rate may help."
    )
