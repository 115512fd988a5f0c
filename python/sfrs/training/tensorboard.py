"""A run's metrics as TensorBoard event files, where TensorBoard is installed.

``metrics.jsonl`` is the record; the event files are made from its lines as they come. A run that goes on
after a stop has its event files written again, so that no point is there twice.
"""

from typing import Any

from sfrs.runtime.errors import UserError
from sfrs.training.progress import TrainingProgress
from sfrs.training.run_folder import RunDirectory
from sfrs.training.runs import read_lines

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
    validation recalls) stand at its last step. Raises `UserError` if the package tensorboard is not
    installed.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory, self.folder = directory, directory.path / "tensorboard"
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "--tensorboard needs the package tensorboard, which is not installed: pip install tensorboard"
            ) from error
        self._open_writer = SummaryWriter
        self._writer: Any = None
        self._read = 0  # bytes of the metrics that are written
        self._generation, self._before, self._step = 1, 0, 0

    def step(self, *step) -> None:
        self._follow()

    def epoch(self, *epoch) -> None:
        self._follow()
        self._writer.flush()

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, kind: type | None, *error: Any) -> None:
        if kind is None:
            self._follow()  # also a run that was finished already and had nothing to show
        if self._writer is not None:
            self._writer.close()

    def _follow(self) -> None:
        # Not before training has begun: a resumed run cuts its metrics first.
        if self._writer is None:
            self._begin()
        with self.directory.metrics.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole + newline)
        for line in read_lines(whole + newline, self.directory.metrics):
            self._write(line)

    def _begin(self) -> None:
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        # purge_step also makes a TensorBoard that shows the run now forget what it has read.
        self._writer = self._open_writer(str(self.folder), purge_step=0)
        values = self.directory.read_config()["config"]
        rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
        self._writer.add_text("configuration", f"| field | value |\n|---|---|\n{rows}", 0)

    def _write(self, line: dict[str, Any]) -> None:
        recalls = line["recalls"] if line["kind"] in ("initial", "epoch") else {}
        scalars = {f"validation/recall at {n}": recall for n, recall in recalls.items()}
        if line["kind"] in ("step", "epoch"):
            if line["generation"] != self._generation:
                self._generation, self._before = line["generation"], self._before + self._step
            self._step = line["step"]
            suffix = ", epoch" if line["kind"] == "epoch" else ""
            # Generation 1 has no soft loss, which is not a loss of zero.
            keys = FIGURES.keys() - ({"soft"} if line["generation"] == 1 else set())
            scalars |= {FIGURES[key] + suffix: line[key] for key in keys if key in line}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, self._before + self._step, walltime=line.get("time"))
