"""Event files hold what metrics.jsonl holds, once."""

import json
import sys

import pytest
from tiny_training import network_of_seed, tiny_config

from sfrs.runtime.errors import UserError
from sfrs.training.progress import Several, TrainingProgress
from sfrs.training.run_folder import RunDirectory
from sfrs.training.trainer import train

SPOTS = (8, 6)


class Stop(Exception):
    pass


class StopIn(TrainingProgress):
    """Stops in the second step of an epoch."""

    def __init__(self, generation, epoch):
        self.at, self.steps = (generation, epoch), 0

    def step(self, generation, epoch, report):
        self.steps += (generation, epoch) == self.at
        if self.steps == 2:
            raise Stop


def watched_train(places, run, **options):
    from sfrs.training.tensorboard import TensorBoard

    watchers = options.pop("watchers", ())
    config = tiny_config(**options.pop("changes", {"tuples_per_step": 2}))
    with TensorBoard(RunDirectory(run)) as board:
        return train(places, config, run, progress=Several(board, *watchers), **options)


def scalars(run):
    """Name -> [(step, value)] of all event files of a run, read with TensorBoard's own reader."""
    pytest.importorskip("tensorboard", reason="TensorBoard's reader is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def logged(run, kind):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_scalars_are_those_of_the_metrics_over_all_steps(places, tmp_path):
    pytest.importorskip("tensorboard", reason="the event writer is not installed")
    watched_train(places, tmp_path, network=network_of_seed())
    found = scalars(tmp_path)
    steps, epochs = logged(tmp_path, "step"), logged(tmp_path, "epoch")
    assert [step for step, _ in found["loss/total"]] == list(range(1, len(steps) + 1))
    assert [value for _, value in found["loss/total"]] == pytest.approx([line["total"] for line in steps])
    # Generation 1 has no soft loss; it is not a loss of zero.
    assert len(found["loss/soft"]) == len(steps) / 2
    per_epoch = len(steps) / len(epochs)
    initial = logged(tmp_path, "initial")[0]["recalls"]["5"]
    assert found["validation/recall at 5"] == [
        (per_epoch * number, pytest.approx(recall))
        for number, recall in enumerate([initial, *(line["recalls"]["5"] for line in epochs)])
    ]


def test_a_resumed_run_has_every_point_once(places, tmp_path):
    pytest.importorskip("tensorboard", reason="the event writer is not installed")
    watched_train(places, tmp_path / "whole", network=network_of_seed())
    for number, at in enumerate([(1, 2), (2, 2)]):
        options = {"network": network_of_seed()} if number == 0 else {"resume": True}
        with pytest.raises(Stop):
            watched_train(places, tmp_path / "pieces", watchers=[StopIn(*at)], **options)
    watched_train(places, tmp_path / "pieces", resume=True)
    whole, pieces = scalars(tmp_path / "whole"), scalars(tmp_path / "pieces")
    for name in whole:
        if name.startswith(("loss", "validation", "optimiser")):
            assert pieces[name] == whole[name]


def test_a_finished_run_gets_its_event_files_when_it_is_resumed(places, tmp_path):
    pytest.importorskip("tensorboard", reason="the event writer is not installed")
    train(places, tiny_config(epochs=(1,)), tmp_path, network=network_of_seed())
    assert not (tmp_path / "tensorboard").exists()
    watched_train(places, tmp_path, resume=True, changes={"epochs": (1,)})
    assert len(scalars(tmp_path)["loss/total"]) == len(logged(tmp_path, "step")) > 0


def test_without_tensorboard_the_message_says_what_to_install(monkeypatch, tmp_path, run):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    from sfrs.training.tensorboard import TensorBoard

    with pytest.raises(UserError, match="pip install tensorboard"):
        TensorBoard(RunDirectory(tmp_path))
    arguments = ("--data", tmp_path, "--out", tmp_path / "run", "--random-weights", "--tensorboard")
    code, _, err = run("train", *arguments)
    assert code == 2
    assert "--tensorboard needs the package tensorboard, which is not installed" in err
    assert not (tmp_path / "run").exists()
