"""A run that is interrupted and resumed ends with the bits of one that is not."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import network_of_seed, tiny_config, tiny_places

from sfrs.runtime.errors import UserError
from sfrs.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_momentum,
    momentum_state,
    save_checkpoint,
)
from sfrs.training.progress import TrainingProgress
from sfrs.training.run_folder import RunDirectory
from sfrs.training.trainer import train

pytestmark = pytest.mark.slow

SPOTS = (12, 8)

TIMES = ("time", "tuples_per_second", "images_per_second", "peak_bytes")


class Interrupted(Exception):
    pass


class StopAt(TrainingProgress):
    """Raises at a given epoch: when it is saved, or in the middle of it."""

    def __init__(self, generation, epoch, *, step=None):
        self.at, self.step_at, self.steps = (generation, epoch), step, 0

    def step(self, generation, epoch, report):
        if (generation, epoch) == self.at:
            self.steps += 1
            if self.steps == self.step_at:
                raise Interrupted

    def epoch(self, generation, epoch, *rest):
        if (generation, epoch) == self.at and self.step_at is None:
            raise Interrupted


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines if line["kind"] != "start"]


def assert_same_run(run, other):
    names = sorted(file.relative_to(other) for file in other.rglob("*.safetensors"))
    assert names == sorted(file.relative_to(run) for file in run.rglob("*.safetensors"))
    assert len(names) >= 4
    for name in names:
        ours, theirs = (load_file(folder / name) for folder in (run, other))
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), (name, key)
    assert metrics(run) == metrics(other)


@pytest.mark.parametrize(("jitter", "teacher"), [((), "best"), ((0.4, 0.4, 0.4, 0.1), "last")])
def test_a_run_interrupted_after_and_within_every_epoch_ends_with_the_same_bits(
    places, tmp_path, jitter, teacher
):
    # A pool smaller than the database, so that random draws and previous negatives matter.
    config = tiny_config(jitter=jitter, negative_pool=8, lr_schedule="linear", teacher=teacher)
    whole = train(places, config, tmp_path / "whole", network=network_of_seed())
    pieces = tmp_path / "pieces"
    stops = [StopAt(1, 1, step=2)] if not jitter else []
    for generation in (1, 2):
        for epoch in (1, 2):
            stops += [StopAt(generation, epoch)]
            if (generation, epoch) != (2, 2):
                following = (generation, 2) if epoch == 1 else (generation + 1, 1)
                stops += [StopAt(*following, step=2)]
    for number, stop in enumerate(stops):
        with pytest.raises(Interrupted):
            network = network_of_seed() if number == 0 else None
            train(places, config, pieces, network=network, resume=number > 0, progress=stop)
    resumed = train(places, config, pieces, resume=True)
    assert_same_run(pieces, tmp_path / "whole")
    assert [g.recalls for g in resumed.generations] == [g.recalls for g in whole.generations]
    assert [g.epoch for g in resumed.generations] == [g.epoch for g in whole.generations]


def test_a_run_that_ends_between_its_teacher_and_the_checkpoint_ends_with_the_same_bits(
    places, tmp_path, monkeypatch
):
    config = tiny_config(epochs=(1,), teacher="last")
    train(places, config, tmp_path / "whole", network=network_of_seed())
    log = RunDirectory.log

    def interrupted(self, kind, **line):
        if kind == "epoch":
            raise Interrupted
        log(self, kind, **line)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(RunDirectory, "log", interrupted)
        train(places, config, tmp_path / "pieces", network=network_of_seed())
    assert (tmp_path / "pieces/generation_1/last.safetensors").exists()
    train(places, config, tmp_path / "pieces", resume=True)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_resuming_a_finished_run_returns_its_result_without_work(places, tmp_path, monkeypatch):
    config = tiny_config(generations=1, epochs=(1,))
    finished = train(places, config, tmp_path / "run", network=network_of_seed())
    metrics = (tmp_path / "run/metrics.jsonl").read_text()
    monkeypatch.setattr("sfrs.training.preparation.build_features", None)
    assert train(places, config, tmp_path / "run", resume=True) == finished
    assert (tmp_path / "run/metrics.jsonl").read_text() == metrics


def test_a_run_that_took_over_generation_one_can_be_resumed(places, tmp_path):
    config = tiny_config()
    train(places, config, tmp_path / "whole", network=network_of_seed())
    with pytest.raises(Interrupted):
        train(
            places,
            config,
            tmp_path / "shared",
            first_generation=tmp_path / "whole",
            progress=StopAt(2, 1, step=2),
        )
    resumed = train(places, config, tmp_path / "shared", resume=True)
    theirs = load_file(tmp_path / "whole/generation_2/best.safetensors")
    assert all(torch.equal(v, theirs[k]) for k, v in load_file(resumed.final.weights).items())


def test_a_changed_configuration_is_refused_with_the_differences(places, tmp_path):
    config = tiny_config(generations=1, epochs=(1,))
    train(places, config, tmp_path / "run", network=network_of_seed())
    changed = config.changed(learning_rate=0.5, epochs=(3,))
    with pytest.raises(UserError, match=r"epochs: \(1,\) -> \(3,\)\n  learning_rate: 0.01 -> 0.5"):
        train(places, changed, tmp_path / "run", resume=True)
    train(places, config.changed(workers=7, data="moved", log_every=9), tmp_path / "run", resume=True)


def test_other_images_are_refused(places, tmp_path):
    config = tiny_config(generations=1, epochs=(1,))
    train(places, config, tmp_path / "run", network=network_of_seed())
    others = tiny_places(tmp_path / "others", "train", spots=12, seed=9)
    with pytest.raises(UserError, match="cannot resume.*\n  train images"):
        train((others, places[1]), config, tmp_path / "run", resume=True)


def test_resuming_where_there_is_no_run_says_so(places, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: there is no run here \(no config.json\)"):
        train(places, tiny_config(), tmp_path / "nowhere", resume=True)


def test_a_configuration_the_data_refuse_leaves_no_run_behind(places, tmp_path):
    with pytest.raises(UserError, match="tuple_negatives is 1000, but query 0 has only"):
        train(places, tiny_config(tuple_negatives=1000, negative_pool=1000), tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()


def test_a_run_that_stopped_before_its_first_checkpoint_can_be_started_again(places, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    (tmp_path / "run/metrics.jsonl").write_text("leftover\n")
    train(places, tiny_config(generations=1, epochs=(1,)), tmp_path / "run", network=network_of_seed())
    assert metrics(tmp_path / "run")[0]["kind"] == "initial"


def test_the_previous_checkpoint_survives_a_failure_while_writing(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    facts = {"generation": 1, "epoch": 1, "best": None, "metrics_size": 0}
    save_checkpoint(path, {"x": torch.ones(2)}, facts)

    def torn(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("sfrs.runtime.tensor_files.save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"x": torch.zeros(2)}, facts | {"epoch": 2})
    tensors, facts = load_checkpoint(path)
    assert facts["epoch"] == 1
    assert tensors["x"].tolist() == [1, 1]


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(CheckpointError, match="c.safetensors: there is no checkpoint"):
        load_checkpoint(path)
    save_checkpoint(path, {"x": torch.ones(2)}, {})
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="c.safetensors: this is not a checkpoint or it is damaged"):
        load_checkpoint(path)


def test_momentum_survives_the_round_trip():
    layers = [torch.nn.Linear(3, 2) for _ in range(2)]
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9) for layer in layers]
    layers[1].load_state_dict(layers[0].state_dict())
    layers[0](torch.ones(1, 3)).sum().backward()
    optimizers[0].step()
    layers[1].load_state_dict(layers[0].state_dict())
    load_momentum(optimizers[1], momentum_state(optimizers[0]))
    for layer, optimizer in zip(layers, optimizers, strict=True):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert torch.equal(layers[0].weight, layers[1].weight)
