"""Estimate how long a training run still takes, from how long its parts took so far."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

from sfrs.training.config import TrainConfig


class Remaining(NamedTuple):
    """Seconds left; at least so many, if it is not ``whole``: work of a kind not seen yet is left."""

    seconds: float
    whole: bool


class RunEstimate:
    """Measures refreshes of the mining descriptors, steps and validations, each by itself, by a monotonic
    clock.

    Generation 1 has no teacher and mines less, so it is measured apart from the later generations.
    """

    def __init__(self, config: TrainConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config, self._clock, self._last = config, clock, clock()
        self.generation, self.epoch, self.done, self.of = 1, 1, 0, 0
        self.epochs = sum(map(config.epochs_of, range(1, config.generations + 1)))  # of the whole run
        self._mined = 0.0  # seconds of a refresh that no step has followed yet
        self._seconds: defaultdict[tuple[str, bool], float] = defaultdict(float)
        self._counts: Counter[tuple[str, bool]] = Counter()

    def begin(self) -> None:
        """Begin a longer piece of work, after one that is not measured."""
        self._last = self._clock()

    def task(self, name: str, done: int, total: int) -> None:
        """Note that a longer piece of work stands at ``done`` of ``total``."""
        seconds = self._elapsed()
        if name.startswith("mining"):
            self._mined += seconds
        elif name == "validation":
            self._add("validation", seconds, done >= total)

    def step(self, generation: int, epoch: int, done: int, of: int) -> None:
        """Note that ``done`` of the ``of`` tuples of an epoch are trained."""
        if (generation, epoch) != (self.generation, self.epoch):
            self.generation, self.epoch, self.done = generation, epoch, 0
        if self._mined:
            self._add("mining", self._mined, 1)
            self._mined = 0.0
        self._add("steps", self._elapsed(), done - self.done)
        self.done, self.of = done, of

    def validated(self) -> None:
        """Note that the epoch is validated and saved."""
        self._add("validation", self._elapsed(), 0)
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
            assert each is not None  # there are steps to measure by, or there would be nothing left above
            seconds, whole = seconds + epochs * each.seconds, whole and (each.whole or epochs == 0)
        return Remaining(seconds, whole)

    def _elapsed(self) -> float:
        seconds = self._clock() - self._last
        self._last += seconds
        return seconds

    def _add(self, part: str, seconds: float, count: int) -> None:
        key = part, self.generation > 1 and part != "validation"
        self._seconds[key] += seconds
        self._counts[key] += count

    def _cost(self, generation: int, done: int = 0, mined: float = 0.0) -> Remaining | None:
        """Estimate an epoch from tuple ``done`` on, ``mined`` seconds after the last step."""
        later = generation > 1
        whole = self._counts["steps", later] > 0 and self._counts["validation", False] > 0
        if not self._counts["steps", later]:
            later = not later  # the other kind's rates are the best there is
        if not self._counts["steps", later]:
            return None
        steps, mining, validation = (
            self._seconds[key] / max(self._counts[key], 1)
            for key in (("steps", later), ("mining", later), ("validation", False))
        )
        every = self.config.refresh_every
        refreshes = math.ceil(self.of / every) - math.ceil(done / every)
        seconds = (self.of - done) * steps + max(refreshes * mining - mined, 0.0) + validation
        return Remaining(seconds, whole)
