"""``sfrs runs`` on runs that are finished, going on, interrupted or damaged."""

import json

import pytest
from tiny_training import network_of_seed, tiny_config, tiny_places

from sfrs.runtime.errors import UserError
from sfrs.training.run_folder import RunDirectory
from sfrs.training.runs import FINISHED, INTERRUPTED, RUNNING, Run, differences, find_runs, labels
from sfrs.training.trainer import train

RECALLS = {"1": 0.5, "5": 0.75, "10": 0.875, "20": 1.0}


def step(generation, epoch, done, of=20, **values):
    facts = {"step": done // 4, "done": done, "of": of, "learning_rate": 0.01, "tuples_per_second": 8.0}
    losses = {"hard": 0.5, "soft": 0.25 * (generation > 1), "total": 0.5 + 0.125 * (generation > 1)}
    return {"kind": "step", "generation": generation, "epoch": epoch, **facts, **losses, **values}


def epoch(generation, number, *, best, recall5, **values):
    recalls = {**RECALLS, "5": recall5}
    line = step(generation, number, 20, **values)
    return {**line, "kind": "epoch", "recalls": recalls, "best": best}


def whole_run():
    """Two generations of two epochs, one line a second, stopped once for an hour."""
    lines = [{"kind": "start", "processes": 1, "host": "here", "versions": {"torch": "2"}}]
    lines += [{"kind": "initial", "recalls": {**RECALLS, "5": 0.5}}]
    lines += [step(1, 1, 8, total=0.9), epoch(1, 1, best=True, recall5=0.6, total=0.8)]
    lines += [epoch(1, 2, best=False, recall5=0.55, total=0.7)]
    for number, line in enumerate(lines):
        line["time"] = 1000.0 + number
    more = [{"kind": "start", "resumed": True}]
    more += [epoch(2, 1, best=True, recall5=0.7), epoch(2, 2, best=True, recall5=0.75)]
    for number, line in enumerate(more):
        line["time"] = 5000.0 + number
    more[0]["began"] = 4990.0  # trunk outputs were built before the line was written
    return lines + more


def write_run(path, lines, tail="", **changes):
    path.mkdir(parents=True)
    config = tiny_config(generations=2, epochs=(2,), **changes).to_dict()
    (path / "config.json").write_text(json.dumps({"config": config, "data": {}}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


@pytest.fixture
def finished(tmp_path):
    return Run.read(write_run(tmp_path / "finished", whole_run()))


def test_a_finished_run_tells_its_bests_and_how_long_it_took_without_pauses(finished):
    assert finished.state == FINISHED
    assert finished.position == (2, 2)
    found = [(best.number, best.epoch, best.recalls[5]) for best in finished.best]
    assert found == [(0, 0, 0.5), (1, 1, 0.6), (2, 2, 0.75)]
    assert finished.seconds == pytest.approx(4 + 12)


@pytest.mark.parametrize("tail", ['{"kind": "step", "gener', "\x00\x00\x00", "[1, 2]\n", '{"kind"\n'])
def test_lines_cut_by_a_crash_are_left_out(tmp_path, tail):
    run = Run.read(write_run(tmp_path / "cut", whole_run()[:4], tail))
    assert run.state == INTERRUPTED
    assert run.position == (1, 1)
    assert len(run.lines) == 4


def test_a_run_is_running_while_a_process_holds_it(tmp_path):
    path = write_run(tmp_path / "run", whole_run()[:3])
    assert Run.read(path).state == INTERRUPTED
    with RunDirectory(path).locked():
        assert Run.read(path).state == RUNNING
    assert Run.read(path).state == INTERRUPTED


def test_a_run_before_its_first_line_has_no_figures(tmp_path, run):
    path = write_run(tmp_path / "new", [])
    assert Run.read(path).position == (0, 0)
    assert Run.read(path).best == []
    code, out, _ = run("runs", path)
    assert code == 0
    assert "interrupted" in out


def test_runs_of_older_versions_without_times_are_shown(tmp_path, run):
    lines = [
        {k: v for k, v in line.items() if k != "time"} for line in whole_run() if line["kind"] != "start"
    ]
    path = write_run(tmp_path / "old", lines)
    assert Run.read(path).seconds is None
    assert run("runs", path)[0] == 0


def test_folders_of_runs_are_expanded_in_natural_order(tmp_path):
    for name in ("seed_10/a", "seed_2/b", "seed_2/a"):
        write_run(tmp_path / name, [])
    (tmp_path / "seed_2/city/images/test").mkdir(parents=True)
    found = find_runs([tmp_path, tmp_path / "seed_2/a"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["seed_2/a", "seed_2/b", "seed_10/a"]
    assert labels([Run.read(path) for path in found]) == ["seed_2/a", "seed_2/b", "seed_10/a"]
    assert labels([Run.read(found[0])]) == ["a"]


def test_differences_are_those_that_decide_results(tmp_path):
    runs = [
        Run.read(write_run(tmp_path / "a", [], learning_rate=0.01, workers=2)),
        Run.read(write_run(tmp_path / "b", [], learning_rate=0.02, workers=3, jitter=(0.1, 0.1, 0.1, 0.1))),
    ]
    assert differences(runs) == {"jitter": [[], [0.1] * 4], "learning_rate": [0.01, 0.02]}


def test_tables_show_runs_side_by_side(tmp_path, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    write_run(tmp_path / "runs/a", whole_run())
    write_run(tmp_path / "runs/b", whole_run()[:4], learning_rate=0.5)
    code, out, _ = run("runs", tmp_path / "runs")
    assert code == 0
    words = [line.split() for line in out.splitlines()]
    assert ["a", "finished", "2", "of", "2", "2", "of", "2", "0.6250", "8.0", "0:16"] in words
    assert ["b", "interrupted", "1", "of", "2", "1", "of", "2", "0.8000", "8.0", "0:03"] in words
    assert ["a", "50.0/50.0/87.5", "50.0/60.0/87.5", "(1)", "50.0/75.0/87.5", "(2)"] in words
    assert ["most", "runs", "learning_rate", "0.01"] in words
    assert ["b", "learning_rate", "0.5"] in words
    assert max(map(len, out.splitlines())) <= 80


def test_many_runs_are_compared_with_what_most_have(tmp_path, run):
    for i in range(6):
        write_run(tmp_path / f"runs/{i}", whole_run(), margin=0.2 if i == 3 else 0.1)
    words = [line.split() for line in run("runs", tmp_path / "runs")[1].splitlines()]
    assert ["most", "runs", "margin", "0.1"] in words
    assert ["3", "margin", "0.2"] in words


def test_json_holds_what_the_tables_show(tmp_path, run):
    write_run(tmp_path / "a", whole_run())
    code, out, _ = run("runs", tmp_path / "a", "--json")
    assert code == 0
    (facts,) = json.loads(out)
    assert (facts["state"], facts["generation"], facts["epoch"], facts["seconds"]) == ("finished", 2, 2, 16)
    assert facts["best"][2] == {"generation": 2, "epoch": 2, "recalls": {**RECALLS, "5": 0.75}}
    assert facts["config"]["learning_rate"] == 0.01


def test_names_of_runs_are_shown_as_they_are(tmp_path, run):
    write_run(tmp_path / "a [red] :smile:", whole_run())
    code, out, _ = run("runs", tmp_path)
    assert code == 0 and "a [red] :smile:" in out


def test_a_real_run_is_finished(tmp_path, run):
    places = tiny_places(tmp_path, "train", spots=8, seed=0), tiny_places(tmp_path, "val", spots=6, seed=1)
    config = tiny_config(epochs=(1, 1))
    result = train(places, config, tmp_path / "run", network=network_of_seed())
    read = Run.read(tmp_path / "run")
    assert read.state == FINISHED
    assert [best.recalls for best in read.best] == [
        kept.recalls for kept in (result.initial, *result.generations)
    ]
    assert read.seconds > 0
    assert read.of_kind("start")[0]["versions"]["torch"]
    assert run("runs", tmp_path / "run")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such directory"),
        (["."], "there is no run here or up to 3 folders below"),
        (["damaged"], "damaged/config.json: this is not JSON"),
    ],
)
def test_mistakes_are_told_in_words(tmp_path, run, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    if arguments != ["."]:
        write_run(tmp_path / "new", [])
        (tmp_path / "damaged").mkdir()
        (tmp_path / "damaged/config.json").write_text('{"config": ')
    code, _, err = run("runs", *arguments)
    assert code == 2
    assert message in err


def test_a_path_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no run here"):
        Run.read(tmp_path)
