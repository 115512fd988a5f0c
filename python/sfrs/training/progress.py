"""What a caller can watch of a training run."""

from typing import Protocol

from sfrs.data.images import Progress
from sfrs.training.epoch_state import StepReport


class TrainingProgress(Protocol):
    """What a caller can watch."""

    def task(self, name: str) -> Progress:
        """A longer piece of work begins; the result is called with (done, total)."""

    def message(self, text: str) -> None:
        """Something the user should know."""

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

    def message(self, text: str) -> None:
        pass

    def step(self, generation: int, epoch: int, report: StepReport) -> None:
        pass

    def epoch(
        self, generation: int, epoch: int, report: StepReport, recalls: dict[int, float], best: bool
    ) -> None:
        pass


class Several:
    """Tells several watchers."""

    def __init__(self, *watchers: TrainingProgress) -> None:
        self.watchers = watchers

    def task(self, name: str) -> Progress:
        tasks = [watcher.task(name) for watcher in self.watchers]

        def tell(done: int, total: int) -> None:
            for task in tasks:
                task(done, total)

        return tell

    def message(self, text: str) -> None:
        for watcher in self.watchers:
            watcher.message(text)

    def step(self, generation: int, epoch: int, report: StepReport) -> None:
        for watcher in self.watchers:
            watcher.step(generation, epoch, report)

    def epoch(
        self, generation: int, epoch: int, report: StepReport, recalls: dict[int, float], best: bool
    ) -> None:
        for watcher in self.watchers:
            watcher.epoch(generation, epoch, report, recalls, best)
