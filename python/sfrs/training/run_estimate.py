"""How long a training run still takes, from how long its parts took so far."""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sfrs.training.config import TrainConfig

MINING, FIRST, STEPS, VALIDATION = "mining", "first steps", "steps", "validation"


@dataclass(frozen=True)
class Remaining:
    """Seconds left.

    Attributes:
        whole: every kind of work that is left has been seen; otherwise it takes at least so long.
    """

    seconds: float
    whole: bool


class RunEstimate:
    """Listens to what a `TrainingProgress` is told; the time between two reports is the work
    of the later one.

    Generation 1 has no teacher and mines less, so it is measured apart from the later generations. Mining
    (from the last step to the first step after it) and validation are measured apart from the steps: they
    come rarely, and a rate that holds them wrongly spread over the tuples would be off by as much.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, config: TrainConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.generation, self.epoch, self.done, self.of = 1, 1, 0, 0
        self._clock, self._last, self._before = clock, clock(), ""
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
            self._seconds[VALIDATION, False] += seconds if before in (STEPS, name) else 0.0
            self._count[VALIDATION, False] += done >= total

    def step(self, generation: int, epoch: int, done: int, of: int) -> None:
        """``done`` of the ``of`` tuples of an epoch are trained."""
        seconds, _ = self._elapse(STEPS)
        if (generation, epoch) != (self.generation, self.epoch):
            self.generation, self.epoch, self.done = generation, epoch, 0
        later = generation > 1
        if self._mined:
            self._seconds[MINING, later] += self._mined + seconds
            self._count[MINING, later] += 1
            self._count[FIRST, later] += done - self.done
            self._mined = 0.0
        else:
            self._seconds[STEPS, later] += seconds
            self._count[STEPS, later] += done - self.done
        self.done, self.of = done, of

    def validated(self) -> None:
        """The epoch is validated and saved."""
        seconds, _ = self._elapse(VALIDATION)
        self._seconds[VALIDATION, False] += seconds
        self.epoch, self.done = self.epoch + 1, 0
        if self.epoch > self.config.epochs_of(self.generation):
            self.generation, self.epoch = self.generation + 1, 1

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return sum(self.config.epochs_of(g) for g in range(1, self.config.generations + 1))

    @property
    def epoch_of_run(self) -> int:
        """The epoch that is trained, counted from 1 over all generations; behind the last one, the last."""
        if self.generation > self.config.generations:
            return self.epochs
        return sum(self.config.epochs_of(g) for g in range(1, self.generation)) + self.epoch

    def epoch_left(self) -> Remaining | None:
        """Until this epoch is trained and validated; None before its first steps."""
        return self._cost(self.generation, self.done, self._mined)

    def run_left(self) -> Remaining | None:
        """Until the last generation is trained and validated; None before the first steps."""
        if self.generation > self.config.generations:
            return Remaining(0.0, True)
        parts = [self.epoch_left()]
        for generation in range(self.generation, self.config.generations + 1):
            done = self.epoch if generation == self.generation else 0
            epochs = self.config.epochs_of(generation) - done
            whole = self._cost(generation)
            if whole is not None:
                parts.append(Remaining(epochs * whole.seconds, whole.whole or epochs == 0))
        if parts[0] is None:
            return None
        return Remaining(sum(part.seconds for part in parts), all(part.whole for part in parts))

    def _elapse(self, what: str) -> tuple[float, str]:
        """Seconds since the last report, and what that one was of."""
        now, before = self._clock(), self._before
        seconds, self._last, self._before = now - self._last, now, what
        return seconds, before

    def _cost(self, generation: int, done: int = 0, mined: float = 0.0) -> Remaining | None:
        """Of an epoch from tuple ``done`` on, ``mined`` seconds after the last step."""
        later, whole = generation > 1, True
        if not self._count[MINING, later] and not self._count[STEPS, later]:
            later, whole = not later, False  # the other kind's rates are the best there is
        if not self.of or (not self._count[MINING, later] and not self._count[STEPS, later]):
            return None
        every = self.config.refresh_every
        refreshes = math.ceil(self.of / every) - math.ceil(done / every)
        # A refresh was measured with the step behind it, whose tuples are not counted again.
        tuples = self.of - done - refreshes * self._count[FIRST, later] / max(self._count[MINING, later], 1)
        seconds = max(tuples, 0.0) * self._rate(STEPS, later) + self._rate(VALIDATION, False)
        seconds += max(refreshes * self._rate(MINING, later) - mined, 0.0)
        return Remaining(seconds, whole and bool(self._count[VALIDATION, False]))

    def _rate(self, part: str, later: bool) -> float:
        return self._seconds[part, later] / max(self._count[part, later], 1)
