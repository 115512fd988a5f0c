"""One epoch of training: tuples -> trunk outputs -> heads -> similarities -> losses -> step."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfrs.data.images import Progress
from sfrs.features.source import step_number
from sfrs.models.autocast import loss_scale
from sfrs.models.network import DescriptorNetwork
from sfrs.runtime.distributed import Processes
from sfrs.training.config import TrainConfig
from sfrs.training.epoch_state import EpochState, StepReport, peak_bytes
from sfrs.training.mining import Tuples
from sfrs.training.refresh import mine_tuples
from sfrs.training.tuple_losses import (
    Generation,
    TrainingImages,
    diverged,
    load_ahead,
    soft_labelled,
    tuple_losses,
)

LOOK_SECONDS = 0.5
"""How often the losses of steps on a GPU are looked at, which waits for it."""


@dataclass(frozen=True)
class _Step:
    """A step that was taken, its losses still on the device."""

    number: int
    tuples: Tuples
    labelled: int
    learning_rate: float
    losses: Tensor  # [2, tuples], hard and soft
    images: Tensor  # [1], distinct images of every process's share, in all
    failed: Tensor  # bool, whether this step or one before was not finite
    done: int


def train_epoch(
    generation: Generation,
    epoch: int,
    images: TrainingImages,
    config: TrainConfig,
    *,
    processes: Processes | None = None,
    state: EpochState | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    on_mining: Progress | None = None,
    save: Callable[[EpochState], None] | None = None,
) -> StepReport:
    """Train the student for one epoch.

    Args:
        epoch: counted from 1 within the generation; decides the learning rate and the jitter only.
        processes: that share the work; the result does not depend on how many, up to rounding.
        state: go on from here instead of beginning.
        on_step: called for every optimisation step, in order; on a GPU some steps later.
        on_mining: called with (done, total) images while descriptors for mining are refreshed.
        save: called every ``config.checkpoint_minutes``, after a step.

    Returns:
        The epoch's means.

    Raises:
        DivergedError: a loss or gradient is not finite. The step that gave it has not been taken, and none
            after it.
    """
    training = _Epoch(generation, epoch, images, config, processes or Processes(), state)
    return training.run(on_step, on_mining, save)


class _Epoch:
    def __init__(
        self,
        generation: Generation,
        epoch: int,
        images: TrainingImages,
        config: TrainConfig,
        processes: Processes,
        state: EpochState | None,
    ) -> None:
        self.generation, self.images, self.config, self.processes = generation, images, config, processes
        self.state = self._begun() if state is None else state
        self.of = len(self.state.queries)
        self.steps_of_chunk = math.ceil(config.refresh_every / config.tuples_per_step)
        steps = self._steps_until(self.of)
        self.first_step, self.all_steps = steps * (epoch - 1), steps * config.epochs_of(generation.number)
        self.parameters = list(generation.student.trained_parameters())
        self.device = self.parameters[0].device
        self.failed = torch.zeros((), dtype=torch.bool, device=self.device)
        self.taken: list[_Step] = []  # since losses were last looked at
        self.began = self.looked = self.saved = time.perf_counter()
        self.tuples = self.described = 0  # since then

    def run(
        self,
        on_step: Callable[[StepReport], None] | None,
        on_mining: Progress | None,
        save: Callable[[EpochState], None] | None,
    ) -> StepReport:
        state, config = self.state, self.config
        self.generation.student.train()
        while state.done < self.of:
            self._take_step(on_mining)
            now = time.perf_counter()
            due = save is not None and now - self.saved >= 60 * config.checkpoint_minutes
            if due or self._should_look(now):
                self._look(on_step)
            if due:
                save(state)
                self.saved = time.perf_counter()
        self._look(on_step)
        self.looked = time.perf_counter()
        return self._report(self._steps_until(self.of), self.of, *(state.sums / self.of).tolist())

    def _take_step(self, on_mining: Progress | None) -> None:
        state, config = self.state, self.config
        start = state.done % config.refresh_every
        following = start + config.tuples_per_step
        if state.tuples is None:
            chunk = state.queries[state.done : state.done + config.refresh_every]
            state.tuples = self._mine(chunk, on_mining)
        if start == 0 or self.tuples == 0:
            self._load_ahead(start)
        self._load_ahead(following)
        self._step(state.tuples[start:following])
        if following >= len(state.tuples):
            state.tuples = None

    def _begun(self) -> EpochState:
        drawn = {"queries": self.generation.miner.draw_queries(self.config.queries_per_epoch)}
        queries = self.processes.broadcast_tensors(drawn)["queries"]
        return EpochState(queries, 0, None, torch.zeros(2, dtype=torch.float64))

    def _steps_until(self, done: int) -> int:
        """Steps of the epoch in its first ``done`` tuples; steps end where descriptors are refreshed."""
        chunks, rest = divmod(done, self.config.refresh_every)
        return chunks * self.steps_of_chunk + math.ceil(rest / self.config.tuples_per_step)

    def _share(self, tuples: Tuples) -> Tuples:
        return tuples[self.processes.share(len(tuples))]

    def _number(self, done: int) -> int:
        """Of the step after ``done`` tuples, within the generation, from 1."""
        return self.first_step + self._steps_until(done) + 1

    def _load_ahead(self, start: int) -> None:
        tuples = self.state.tuples[start : start + self.config.tuples_per_step]
        share = self._share(tuples)
        if len(share):
            done = self.state.done - self.state.done % self.config.refresh_every + start
            load_ahead(share, self.images, step_number(self.generation.number, self._number(done)))

    def _mine(self, queries: Tensor, progress: Progress | None) -> Tuples:
        def counted(done: int, total: int) -> None:
            if done == total:
                self.described += total
            if progress is not None:
                progress(done, total)

        return mine_tuples(
            self.generation, queries, self.images, self.config, counted, processes=self.processes
        )

    def _step(self, tuples: Tuples) -> None:
        """One step of SGD, if all is finite; nothing here waits for the device."""
        generation, config = self.generation, self.config
        number = self._number(self.state.done)
        rate = learning_rate(config, number - 1, self.all_steps)
        share, part = self._share(tuples), self.processes.share(len(tuples))
        labelled = max(1, int(soft_labelled(generation, tuples, config).sum()))
        losses, images = (torch.zeros(shape, device=self.device) for shape in ((2, len(tuples)), 1))
        generation.optimizer.zero_grad(set_to_none=True)
        if len(share):
            found = tuple_losses(
                generation, share, self.images, config, step=step_number(generation.number, number)
            )
            images += found.images
            hard, soft = found.hard_by_tuple, found.soft_by_tuple
            total = hard.sum() / len(tuples) + config.soft_weight * soft.sum() / labelled
            (loss_scale(config.autocast) * total).backward()
            losses[:, part] = torch.stack((hard, soft)).detach()
        gradients = self._gradients()
        if loss_scale(config.autocast) != 1:
            torch._foreach_div_(gradients, loss_scale(config.autocast))
        self.processes.sum_([*gradients, losses, images])
        finite = torch.nn.utils.get_total_norm(gradients).isfinite() & losses.isfinite().all()
        self.failed = self.failed | ~finite
        # From the first step that is not finite on, the optimiser leaves all as it is, as with a GradScaler.
        generation.optimizer.found_inf = self.failed.float()
        for group in generation.optimizer.param_groups:
            group["lr"] = rate
        generation.optimizer.step()
        self.state.done += len(tuples)
        self.tuples += len(tuples)
        self.taken.append(_Step(number, tuples, labelled, rate, losses, images, self.failed, self.state.done))

    def _gradients(self) -> list[Tensor]:
        for parameter in self.parameters:
            if parameter.grad is None and self.processes.count > 1:  # this process had no tuple
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def _should_look(self, now: float) -> bool:
        waits = self.device.type != "cpu"
        return not waits or len(self.taken) >= self.config.log_every or now - self.looked >= LOOK_SECONDS

    def _look(self, on_step: Callable[[StepReport], None] | None) -> None:
        """Read the losses of the steps taken since the last time, which waits for the device."""
        if not self.taken:
            return
        failed = torch.stack([step.failed for step in self.taken]).tolist()
        images = torch.cat([step.images for step in self.taken]).tolist()
        losses = torch.cat([step.losses for step in self.taken], dim=1).cpu()
        self.looked = time.perf_counter()
        for step, bad, count in zip(self.taken, failed, images, strict=True):
            own, losses = losses.split([len(step.tuples), losses.shape[1] - len(step.tuples)], dim=1)
            if bad:
                self._refuse(step, own)
            self.described += int(count)
            hard, soft = own[0].mean().item(), (own[1].sum() / step.labelled).item()
            self.state.sums += len(step.tuples) * torch.tensor([hard, soft], dtype=torch.float64)
            if on_step is not None:
                on_step(self._report(step.number - self.first_step, step.done, hard, soft))
        self.taken.clear()

    def _refuse(self, step: _Step, losses: Tensor) -> None:
        for row, name in enumerate(("hard", "soft")):
            bad = (~losses[row].isfinite()).nonzero().flatten().tolist()
            if bad:
                raise diverged(step.tuples, bad[0], self.images, f"the {name} loss")
        raise diverged(step.tuples, 0, self.images, "the gradient of the step that begins with that")

    def _report(self, step: int, done: int, hard: float, soft: float) -> StepReport:
        """Of the ``step``-th step of the epoch."""
        number = self.first_step + step
        seconds = max(self.looked - self.began, 1e-9)
        return StepReport(
            step=number,
            done=done,
            of=self.of,
            hard=hard,
            soft=soft,
            total=hard + self.config.soft_weight * soft,
            learning_rate=learning_rate(self.config, number - 1, self.all_steps),
            tuples_per_second=self.tuples / seconds,
            images_per_second=self.described / seconds,
            peak_bytes=peak_bytes(self.device),
        )


def sgd(student: DescriptorNetwork, config: TrainConfig) -> torch.optim.SGD:
    """The optimiser of a student; a fused one, since that can be told on the device not to step."""
    return torch.optim.SGD(
        student.trained_parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Of optimisation step ``step`` (from 0) of the ``steps`` of a generation."""
    if config.lr_schedule == "linear":
        return config.learning_rate * (1 - step / steps)
    return config.learning_rate
