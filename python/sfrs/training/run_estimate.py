"""How long a training run still takes, from how long its parts took so far."""

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from sfrs.training.config import TrainConfig

MINING, FIRST, STEPS, VALIDATION = "mining", "first steps", "steps", "validation"


class Remaining(NamedTuple):
    """Seconds left; at least so many, if it is not ``whole``: work of a kind not seen yet is left."""

    seconds: float
    whole: bool


class RunEstimate:
    """Follows what a `TrainingProgress` is given; the time between two reports is the work of the later one.

    Generation 1 has no teacher and mines less, so it is measured apart from the later generations. Mining
    (from the last step to the first step after it) and validation are measured apart from the steps: they
    come rarely, and a rate that holds them wrongly spread over the tuples would be off by as much.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, config: TrainConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config, self._clock = config, clock
        self.generation, self.epoch, self.done, self.of = 1, 1, 0, 0
        self.epochs = sum(map(config.epochs_of, range(1, config.generations + 1)))  # of the whole run
        self._last, self._before = clock(), ""
        self._mined = 0.0  # seconds of a refresh that no step has followed yet
        self._seconds: Counter[tuple[str, bool]] = Counter()
        self._count: Counter[tuple[str, bool]] = Counter()

    def task(self, name: str, done: int, total: int) -> None:
        """A longer piece of work stands at ``done`` of ``total``."""
        seconds, before = self._elapse(name)
        if name.startswith(MINING):
            self._mined += seconds
        elif name.startswith(VALIDATION):
            # Before the first validation of a run come the clusters, which are not computed again.
            self._add(VALIDATION, False, seconds if before in (STEPS, name) else 0.0, done >= total)

    def step(self, generation: int, epoch: int, done: int, of: int) -> None:
        """``done`` of the ``of`` tuples of an epoch are trained."""
        seconds, _ = self._elapse(STEPS)
        if (generation, epoch) != (self.generation, self.epoch):
            self.generation, self.epoch, self.done = generation, epoch, 0
        if self._mined:
            self._add(MINING, generation > 1, self._mined + seconds, 1)
            self._add(FIRST, generation > 1, 0.0, done - self.done)
            self._mined = 0.0
        else:
            self._add(STEPS, generation > 1, seconds, done - self.done)
        self.done, self.of = done, of

    def validated(self) -> None:
        """The epoch is validated and saved."""
        self._add(VALIDATION, False, self._elapse(VALIDATION)[0], 0)
        self.epoch, self.done = self.epoch + 1, 0
        if self.epoch > self.config.epochs_of(self.generation):
            self.generation, self.epoch = self.generation + 1, 1

    @property
    def epoch_of_run(self) -> int:
        """The epoch that is trained, counted from 1 over all generations; after the last one, the last."""
        before = sum(map(self.config.epochs_of, range(1, self.generation)))
        return min(before + self.epoch, self.epochs)

    def epoch_left(self) -> Remaining | None:
        """Estimate until this epoch is trained and validated; None before its first steps."""
        return self._cost(self.generation, self.done, self._mined)

    def run_left(self) -> Remaining | None:
        """Estimate until the last generation is trained and validated; None before the first steps."""
        if self.generation > self.config.generations:
            return Remaining(0.0, True)
        left = self.epoch_left()
        if left is None:
            return None
        seconds, whole = left
        for generation in range(self.generation, self.config.generations + 1):
            epochs = self.config.epochs_of(generation) - self.epoch * (generation == self.generation)
            each = self._cost(generation)
            seconds, whole = seconds + epochs * each.seconds, whole and (each.whole or epochs == 0)
        return Remaining(seconds, whole)

    def _elapse(self, what: str) -> tuple[float, str]:
        """Return the seconds since the last report, and what that one was of."""
        seconds, before = self._clock() - self._last, self._before
        self._last, self._before = self._last + seconds, what
        return seconds, before

    def _add(self, part: str, later: bool, seconds: float, count: int) -> None:
        self._seconds[part, later] += seconds
        self._count[part, later] += count

    def _cost(self, generation: int, done: int = 0, mined: float = 0.0) -> Remaining | None:
        """Estimate an epoch from tuple ``done`` on, ``mined`` seconds after the last step."""
        seen = {later: self._count[MINING, later] + self._count[STEPS, later] for later in (False, True)}
        later = generation > 1
        whole = seen[later] > 0 and self._count[VALIDATION, False] > 0
        if not seen[later]:
            later = not later  # the other kind's rates are the best there is
        if not self.of or not seen[later]:
            return None
        every = self.config.refresh_every
        refreshes = math.ceil(self.of / every) - math.ceil(done / every)
        # A refresh was measured with the step after it, whose tuples are not counted again.
        tuples = self.of - done - refreshes * self._count[FIRST, later] / max(self._count[MINING, later], 1)
        seconds = max(tuples, 0.0) * self._rate(STEPS, later) + self._rate(VALIDATION, False)
        seconds += max(refreshes * self._rate(MINING, later) - mined, 0.0)
        return Remaining(seconds, whole)

    def _rate(self, part: str, later: bool) -> float:
        return self._seconds[part, later] / max(self._count[part, later], 1)
