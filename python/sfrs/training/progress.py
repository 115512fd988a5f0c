"""Watching a training run."""

from dataclasses import dataclass

from sfrs.runtime.progress import Progress


@dataclass(frozen=True)
class StepReport:
    """Losses of one optimisation step (or their means over several), and how far the epoch is.

    Steps count from 1 within the generation; ``done`` and ``of`` are tuples of this epoch. Rates are since
    the epoch began or was resumed, mining included; images are distinct ones that the student was given, in
    all processes. ``peak_bytes`` is the most memory so far, of the GPU if there is one, else of the process.
    """

    step: int
    done: int
    of: int
    hard: float
    soft: float
    total: float
    learning_rate: float
    tuples_per_second: float
    images_per_second: float
    peak_bytes: int


class TrainingProgress:
    """Watches a run; this one shows nothing."""

    def task(self, name: str) -> Progress:
        """Show a longer piece of work, of which the result is then called with (done, total)."""
        return lambda done, total: None

    def message(self, text: str) -> None:
        """Show something the user should know."""

    def step(self, generation: int, epoch: int, report: StepReport) -> None:
        """Show an optimisation step that was taken."""

    def epoch(
        self, generation: int, epoch: int, report: StepReport, recalls: dict[int, float], best: bool
    ) -> None:
        """Show an epoch that has been trained, validated and saved."""


class Several(TrainingProgress):
    """Passes everything on to several watchers."""

    def __init__(self, *watchers: TrainingProgress) -> None:
        self.watchers = watchers

    def task(self, name: str) -> Progress:
        tasks = [watcher.task(name) for watcher in self.watchers]

        def show(done: int, total: int) -> None:
            for task in tasks:
                task(done, total)

        return show

    def message(self, text: str) -> None:
        for watcher in self.watchers:
            watcher.message(text)

    def step(self, *step) -> None:
        for watcher in self.watchers:
            watcher.step(*step)

    def epoch(self, *epoch) -> None:
        for watcher in self.watchers:
            watcher.epoch(*epoch)
