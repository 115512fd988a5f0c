"""A run's metrics as TensorBoard event files, where TensorBoard is installed.

``metrics.jsonl`` is the record; the event files are made from its lines as they come. A run that goes on
after a stop has its event files made anew, so that no point is there twice.
"""

import json
from typing import TYPE_CHECKING, Any

from sfrs.data.images import Progress
from sfrs.runtime.errors import UserError
from sfrs.training.epoch_state import StepReport
from sfrs.training.progress import TrainingProgress
from sfrs.training.run_folder import RunDirectory

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FIGURES = {
    "hard": "loss/hard",
    "soft": "loss/soft",
    "total": "loss/total",
    "learning_rate": "optimiser/learning rate",
    "tuples_per_second": "speed/tuples per second",
    "images_per_second": "speed/images per second",
    "peak_bytes": "memory/peak, bytes",
}
"""Key of a line of the metrics -> name of the scalar."""


class TensorBoard(TrainingProgress):
    """Follows the metrics of a run and writes ``RUN/tensorboard``.

    The axis counts optimisation steps over all generations. Scalars of an epoch (its mean losses, its
    validation recalls) stand at its last step.

    Raises:
        UserError: the package tensorboard is not installed.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory, self.folder = directory, directory.path / "tensorboard"
        self._open_writer = event_writer()
        self._writer: SummaryWriter | None = None
        self._read = 0  # bytes of the metrics that are written
        self._generation, self._before, self._step = 1, 0, 0

    def task(self, name: str) -> Progress:
        return lambda done, total: None

    def message(self, text: str) -> None:
        pass

    def step(self, generation: int, epoch: int, report: StepReport) -> None:
        self._follow()

    def epoch(
        self, generation: int, epoch: int, report: StepReport, recalls: dict[int, float], best: bool
    ) -> None:
        self._follow()
        self._writer.flush()

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, kind: type | None, *error: Any) -> None:
        if kind is None:
            self._follow()  # also of a run that was finished already and had nothing to tell
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _follow(self) -> None:
        # Not before training has begun: a resumed run cuts its metrics first.
        if self._writer is None:
            self._begin()
        with self.directory.metrics.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole + newline)
        for line in whole.splitlines():
            self._write(json.loads(line))

    def _begin(self) -> None:
        if self.folder.is_dir():
            for old in self.folder.glob("events.out.tfevents.*"):
                old.unlink()
        # purge_step also makes a TensorBoard that shows the run now forget what it has read.
        self._writer = self._open_writer(str(self.folder), purge_step=0)
        values = json.loads(self.directory.config.read_text("utf-8"))["config"]
        rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
        self._writer.add_text("configuration", f"| field | value |\n|---|---|\n{rows}", 0)

    def _write(self, line: dict[str, Any]) -> None:
        kind, time = line["kind"], line.get("time")
        if kind == "initial":
            self._recalls(line["recalls"], 0, time)
        if kind not in ("step", "epoch"):
            return
        if line["generation"] != self._generation:
            self._generation, self._before = line["generation"], self._before + self._step
        self._step = line["step"]
        at = self._before + self._step
        for key, name in FIGURES.items():
            if key in line and not (key == "soft" and line["generation"] == 1):
                suffix = ", epoch" if kind == "epoch" else ""
                self._writer.add_scalar(name + suffix, line[key], at, walltime=time)
        if kind == "epoch":
            self._recalls(line["recalls"], at, time)

    def _recalls(self, recalls: dict[str, float], at: int, time: float | None) -> None:
        for n, recall in recalls.items():
            self._writer.add_scalar(f"validation/recall at {n}", recall, at, walltime=time)


def event_writer() -> "type[SummaryWriter]":
    """The writer of event files. Raises `UserError` if the package tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard needs the package tensorboard, which is not installed: pip install tensorboard"
        ) from error
    return SummaryWriter
