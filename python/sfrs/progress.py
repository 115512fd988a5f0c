"""What a caller can watch of a training run."""

from typing import Protocol

from sfrs.images import Progress
from sfrs.training import StepReport


class TrainingProgress(Protocol):
    """What a caller can watch."""

    def task(self, name: str) -> Progress:
        """A longer piece of work begins; the result is called with (done, total)."""

    def step(self, generation: int, epoch: int, report: StepReport) -> None:
        """An optimisation step was taken."""

    def epoch(
        self, generation: int, epoch: int, report: StepReport, recalls: dict[int, float], best: bool
    ) -> None:
        """An epoch has been trained, validated and saved."""


class Silent:
    """Shows nothing."""

    def task(self, name: str) -> Progress:
        return lambda done, total: None

    def step(self, generation: int, epoch: int, report: StepReport) -> None:
        pass

    def epoch(
        self, generation: int, epoch: int, report: StepReport, recalls: dict[int, float], best: bool
    ) -> None:
        pass
