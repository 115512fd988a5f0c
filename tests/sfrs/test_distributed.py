"""Several processes train as one does, and none waits for one that has failed."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_town import OPTIONS, write_town
from typer.testing import CliRunner

from sfrs.cli import app
from sfrs.models.backbones import REGISTRY
from sfrs.runtime.distributed import Processes, processes, running_together
from sfrs.runtime.errors import UserError

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
RUNS = {
    "plain": ["--jitter", ",", "--tuples-per-step", "4"],
    # The last step of a refresh has one tuple, of which one process gets none.
    "jittered": ["--jitter", "0.4,0.4,0.4,0.1", "--tuples-per-step", "3"],
}
LOSSES = ("hard", "soft", "total")
SECONDS = 240
"""Much longer than anything here takes; a process that waits for ever fails the test."""


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def train_alone(*arguments) -> None:
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_town(tmp_path_factory.mktemp("town"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Folder of runs by one process and, in ``two/``, of the same by two; and what torchrun printed."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "two").mkdir()
    commands = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, "tiny", "tiny_backbone:TinyBackbone")
        for name, options in RUNS.items():
            command = ["--data", data, *OPTIONS, *options, "--out"]
            train_alone(*command, folder / name)
            commands.append(["train", *map(str, (*command, folder / "two" / name))])
        stopped = folder / "two/resumed"
        with patch.context() as stopping:
            stop_in_last_epoch(stopping)
            command = ["--data", data, *OPTIONS, *RUNS["plain"], "--checkpoint-minutes", 0, "--out", stopped]
            result = CliRunner().invoke(app, ["train", *map(str, command)])
            assert result.exit_code == 130, result.output
        commands.append(["train", "--resume", str(stopped)])
    (folder / "commands.json").write_text(json.dumps(commands))
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        HERE / "tiny_commands.py",
    ]
    done = subprocess.run(
        [sys.executable, *launch, folder / "commands.json"], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout, done.stderr


def stop_in_last_epoch(patch) -> None:
    """As Ctrl-C does, after the second step."""
    from sfrs.training.display import TrainingDisplay

    original = TrainingDisplay.step

    def step(self, generation, epoch, report):
        original(self, generation, epoch, report)
        if (generation, epoch) == (2, 2) and report.done >= 7:
            raise KeyboardInterrupt

    patch.setattr(TrainingDisplay, "step", step)


@pytest.mark.parametrize("name", [*RUNS, "resumed"])
def test_two_processes_have_the_loss_curve_of_one(runs, name):
    folder = runs[0]
    ours = metrics(folder / "two" / name)
    theirs = metrics(folder / ("plain" if name == "resumed" else name))
    starts = [line["processes"] for line in ours if line["kind"] == "start"]
    assert starts == ([1, 2] if name == "resumed" else [2])
    ours, theirs = ([line for line in lines if line["kind"] != "start"] for lines in (ours, theirs))
    assert len(ours) == len(theirs) > 10
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("kind", "generation", "epoch", "step", "done", "recalls", "learning_rate"):
            assert mine.get(key) == other.get(key)
        for key in LOSSES:
            assert mine.get(key, 0) == pytest.approx(other.get(key, 0), rel=1e-5, abs=1e-7), other
        if mine["kind"] == "step" and name != "resumed":  # images that both processes need count twice
            per_tuple = [line["images_per_second"] / line["tuples_per_second"] for line in (mine, other)]
            assert per_tuple[0] >= 0.999 * per_tuple[1]
    assert max(line.get("soft", 0) for line in ours) > 0.1


@pytest.mark.parametrize("name", [*RUNS, "resumed"])
def test_two_processes_end_with_the_weights_of_one(runs, name):
    folder = runs[0]
    for file in ("initial", "generation_2/best", "checkpoints/latest"):
        ours = load_file(folder / "two" / name / f"{file}.safetensors")
        theirs = load_file(folder / ("plain" if name == "resumed" else name) / f"{file}.safetensors")
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if key.startswith("random."):
                continue
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5)


def test_only_one_process_shows_and_writes(runs):
    _, output, shown = runs
    assert output.count("Validation recall, %") == 3
    assert shown.count("generation 1, epoch 1: loss") == 2  # the third run was resumed behind it


@pytest.fixture(scope="module")
def outcome(data, tmp_path_factory):
    """What ``forked_processes.py`` saw."""
    folder = tmp_path_factory.mktemp("forked")
    options = ["train", "--data", str(data), *OPTIONS, *RUNS["plain"]]
    (folder / "options.json").write_text(json.dumps(options))
    done = subprocess.run(
        [sys.executable, HERE / "forked_processes.py", folder],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


def failures_told(seen) -> int:
    """How often the command said why it failed.

    The C++ of torch.distributed may log a trace besides, with "c10::Error::Error(" in it: here process 0
    keeps the store, elsewhere torchrun, and whoever asks it after process 0 has left finds it gone.
    """
    return len(re.findall(r"^Error: ", "\n".join(seen["printed"]), re.MULTILINE))


def test_results_are_put_together_in_order(outcome):
    seen = outcome[0]["collect"]
    assert seen["codes"] == [0, 0, 0], seen["printed"]
    found = [json.loads(printed) for printed in seen["printed"]]
    assert [each["share"] for each in found] == [1, 2, 2]
    assert [each["main"] for each in found] == [True, False, False]
    assert [each["dealt"] for each in found] == [["a"], ["b", "c"], ["d", "e"]]
    assert [each["gathered"] for each in found] == [[0, 1, 2], None, None]
    for each in found:
        assert each["filled"] == [[0, 1]]
        assert each["right"]
        assert each["sums"] == [[[3.0] * 3] * 2, 3.0]
        assert each["object"] == {"x": [1.5, "ü"]}
        assert each["tensors"] == {
            "a": [[3], "torch.int64", [0, 1, 2]],
            "b": [[0, 2], "torch.float32", []],
            "c": [[2, 2], "torch.float32", [[1, 0], [0, 1]]],
        }


def test_processes_that_were_started_otherwise_are_refused_once(outcome):
    seen = outcome[0]["disagree"]
    printed = " ".join("".join(seen["printed"]).split())
    assert failures_told(seen) == 1 and "Traceback" not in printed
    assert "process 1 has other configuration than process 0" in printed
    assert sorted(seen["codes"]) == [1, 2]
    assert not (outcome[1] / "disagree").exists()


def test_the_others_end_when_a_process_is_killed(outcome):
    seen = outcome[0]["die_in_training"]
    printed = " ".join(seen["printed"][0].split())
    assert seen["codes"] == [2, -9]
    assert failures_told(seen) == 1 and "Traceback" not in printed
    assert "process 0 of 2 waits in vain for another process of the run, which has been killed" in printed


def test_a_loss_that_is_not_finite_in_one_process_stops_all_and_is_told_once(outcome):
    seen, folder = outcome[0]["diverge"], outcome[1]
    printed = " ".join("".join(seen["printed"]).split())
    assert sorted(seen["codes"]) == [1, 2], printed
    assert failures_told(seen) == 1 and "Traceback" not in printed
    assert "training diverged: the hard loss of the tuple of query" in printed
    last = metrics(folder / "diverge")[-1]
    assert (last["kind"], last["done"]) == ("step", 7)
    assert math.isfinite(last["total"])


def test_one_process_needs_no_launcher():
    joined = processes()
    assert (joined.rank, joined.count, joined.is_main) == (0, 1, True)
    assert not torch.distributed.is_initialized()
    with running_together() as again:
        assert again.share(7) == slice(0, 7)
        rows = torch.ones(3, 2)
        assert again.gather_rows(rows, 3) is rows
        assert again.broadcast("x") == "x"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is None, expected a number.*with torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "cannot join the other 1: .*MASTER_ADDR"),
    ],
)
def test_an_environment_that_torchrun_did_not_set_is_told(monkeypatch, values, told):
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sfrs.runtime.distributed._joined", None)
    with pytest.raises(UserError, match=told):
        processes()


def test_each_of_several_processes_has_a_gpu_of_its_own(monkeypatch):
    def usable(name):
        return "cuda" if name == "auto" else name

    monkeypatch.setattr("sfrs.runtime.distributed.usable_device", usable)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    second = Processes(rank=3, count=4, local_rank=1)
    assert second.device("auto") == second.device("cuda") == torch.device("cuda", 1)
    assert second.device("cpu") == torch.device("cpu")
    assert Processes().device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="--device is cuda:1; expected cuda or auto"):
        second.device("cuda:1")
    with pytest.raises(UserError, match=r"has 2 GPU\(s\), expected --nproc-per-node to be at most that"):
        Processes(rank=2, count=4, local_rank=2).device("auto")


def test_shares_are_contiguous_and_cover_everything():
    for count in (1, 2, 3, 8):
        for total in (0, 1, 5, 8, 17):
            shares = [Processes(rank, count).share(total) for rank in range(count)]
            assert [i for share in shares for i in range(total)[share]] == list(range(total))
            sizes = [share.stop - share.start for share in shares]
            assert max(sizes) - min(sizes) <= 1
