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
from sfrs.models.network import DescriptorNetwork
from sfrs.runtime.distributed import Processes
from sfrs.runtime.progress import Progress, silent
from sfrs.training.config import TrainConfig
from sfrs.training.mining import Tuples
from sfrs.training.progress import StepReport
from sfrs.training.step import DivergedError, StudentTeacher, TrainingImages, prefetch, take_step


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
        hard, soft, described = take_step(
            self.pair,
            tuples,
            self.images,
            config,
            number=self.first_step + number,
            rate=self._rate(number),
            processes=self.processes,
        )
        state.done += len(tuples)
        state.sums += len(tuples) * torch.tensor([hard, soft], dtype=torch.float64)
        self.trained += len(tuples)
        self.described += described
        if following >= len(state.mined):
            state.mined = None
        return self._report(number, hard, soft)

    def _mine(self, queries: Tensor, progress: Progress) -> Tuples:
        def counted(done: int, total: int) -> None:
            if done == total:
                self.described += total
            progress(done, total)

        return mine_tuples(self.pair, queries, self.images, self.config, counted, self.processes)

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


def mine_tuples(
    pair: StudentTeacher,
    queries: Tensor,
    images: TrainingImages,
    config: TrainConfig,
    progress: Progress,
    processes: Processes,
) -> Tuples:
    """Refresh the descriptors with the student as it is, and mine tuples for ``queries``.

    Processes share the refresh; the main one mines.
    """
    difficult = "none"
    if pair.has_soft_loss(config):
        difficult = "ranks" if config.soft_ranks else "promoted"
    # Only re-ranking reads the descriptors of other queries.
    asked = torch.arange(images.queries) if difficult == "promoted" else queries
    numbers = torch.cat((asked, torch.arange(images.queries, images.queries + images.database)))
    descriptors = describe_in_shares(pair.student, images.mining, numbers, config, processes, progress)
    mined = None
    if descriptors is not None:
        of_queries, of_database = descriptors.split([len(asked), images.database])
        if difficult != "promoted":
            of_queries = descriptors.new_zeros(images.queries, descriptors.shape[1])
            of_queries[asked] = descriptors[: len(asked)]
        mined = vars(pair.miner.mine(queries, of_queries, of_database, difficult=difficult))
    return Tuples(**processes.broadcast(mined))


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
