"""The benchmark suite times what is right, counts what it says, and its pages show what was recorded."""

import dataclasses
import json
import sys

import pytest
import torch

import sfrs_ext
from benchmarks import goals, kernel_steps, operator_tables, plots, record, report, roof, run, scaling
from benchmarks.cases import CASES, OURS, TINY, Peer, registry
from benchmarks.goals import Goals
from benchmarks.measure import (
    FEWEST,
    ROUNDS,
    SLOW_ROUNDS,
    enough,
    measure_memory,
    measure_time,
    prepare,
    without_compiled,
)
from benchmarks.pages import with_text

pytestmark = pytest.mark.slow

SMALL = {name: without_compiled(case) for name, case in registry(TINY).items()}
ROOF = {
    "flops_per_second": {"1": {"best": 1e11, "median": 9e10}, "2": {"best": 2e11, "median": 1.9e11}},
    "bytes_per_second": {
        level: {by: {"best": rate, "median": rate} for by in "12"}
        for level, rate in (("L2", 2e11), ("L3", 6e10), ("memory", 1e10))
    },
}
MACHINE = dict.fromkeys(run.SAME, "x") | {"threads": 2, "roof": ROOF, "date": "", "command": "measure"}


def result_of(name: str, ours: float = 10.0, compiled: float = 25.0, eager: float = 40.0) -> dict:
    """A made-up record of a case; its times are milliseconds per call."""
    case = CASES[name]
    medians = {
        peer: ours if peer == OURS else compiled if how.compiled else eager
        for peer, how in case.peers.items()
    }
    times = {peer: {"median_ms": ms, "min_ms": 0.9 * ms, "error": 1e-7} for peer, ms in medians.items()}
    return {
        "case": name,
        "about": case.about,
        "shapes": case.shapes,
        "images": case.images,
        "flops": case.flops,
        "bytes": case.flops / 60,
        "threads": case.threads or 2,
        "times": {"default": times, "keeps the heap": dict(times)},
        "peak_bytes": {peer: 9e6 if peer == OURS else 81e6 for peer in case.peers},
    }


@pytest.fixture
def recorded() -> dict:
    return {"machine": MACHINE, "results": [result_of(name) for name in CASES]}


@pytest.mark.parametrize("name", SMALL)
def test_all_peers_of_a_case_compute_the_same(name):
    case = SMALL[name]
    assert next(iter(case.peers)) == OURS and len(case.peers) > 1
    contenders, errors, moved = prepare(case, torch.get_num_threads())
    assert contenders.keys() == case.peers.keys()
    assert all(error <= case.tolerance for error in errors.values())
    inputs = case.inputs(torch.Generator().manual_seed(0))
    assert moved > sum(t.nbytes for t in inputs.values())


def test_compiled_peers_are_the_eager_functions():
    for case in CASES.values():
        for name, peer in case.peers.items():
            assert peer.compiled == name.endswith(" torch.compile")
            if peer.compiled:
                assert peer.function is case.peers[name.removesuffix(" torch.compile")].function


def wrong(x, weight, centroids):
    return 1.001 * SMALL["netvlad-forward"].oracle(x, weight, centroids)


def nothing(x, weight, centroids):
    return torch.full_like(SMALL["netvlad-forward"].oracle(x, weight, centroids), float("nan"))


@pytest.mark.parametrize("function", (wrong, nothing))
def test_no_time_is_taken_of_what_computes_something_else(function, capsys):
    case = SMALL["netvlad-forward"]
    with_bad = dataclasses.replace(case, peers=case.peers | {"bad": Peer(function)})
    assert measure_time(with_bad, 1)["peers"].keys() == case.peers.keys()
    assert "REFUSED netvlad-forward: bad errs by" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="REFUSED netvlad-forward: sfrs_ext errs by"):
        prepare(dataclasses.replace(case, peers={OURS: Peer(function)}), 1)


def test_slow_peers_have_fewer_turns():
    assert [enough([6000.0] * n) for n in (SLOW_ROUNDS - 1, SLOW_ROUNDS)] == [False, True]
    assert [enough([2000.0] * n) for n in (FEWEST - 1, FEWEST)] == [False, True]
    assert [enough([1.0] * n) for n in (ROUNDS - 1, ROUNDS)] == [False, True]


def test_memory_counts_what_a_peer_keeps():
    case = SMALL["all-pairs"]
    kept = prepare(case, 1)[0]["GEMM over kept descriptors"].kept
    assert kept == 4 * TINY.images * 9 * TINY.clusters * TINY.dim
    measured = measure_memory(case, 1)["GEMM over kept descriptors"]
    assert measured is None or measured >= kept


def test_a_vanishing_gradient_passes_the_gate_and_a_wrong_one_does_not():
    case = scaling.case_of({"P": 1, "D": 16, "K": 4, "B": 2}, backward=True)
    assert prepare(case, 1)[1][OURS] <= case.tolerance

    def spoiled(x, weight, centroids):  # the same result, another gradient of the weight
        return sfrs_ext.netvlad(x, weight, centroids) + 1e-3 * (weight - weight.detach()).sum()

    with pytest.raises(SystemExit, match="REFUSED"):
        prepare(dataclasses.replace(case, peers={OURS: Peer(spoiled)}), 1)


def test_every_case_stands_in_every_table(recorded):
    short = operator_tables.summary(recorded)
    assert all(f"| {CASES[case].about} |" in short for case in operator_tables.SUMMARISED)
    for table in (operator_tables.peers, operator_tables.goals_table):
        text = table(recorded)
        for case in CASES.values():
            assert f"| {case.about} |" in text
    all_peers = operator_tables.peers(recorded)
    assert all_peers.count("\n| ") - 1 == sum(len(case.peers) for case in CASES.values())
    assert "4.0x / 4.0x" in all_peers and "81 MB" in all_peers
    recorded["results"].pop(0)
    assert f"| {CASES['netvlad-forward'].about} | | not recorded yet |" in operator_tables.goals_table(
        recorded
    )


def test_goals_count_the_fastest_peer_and_the_kinder_malloc():
    result = result_of("netvlad-forward")  # compiled 2.5x, eager 4x
    kinder = {name: dict(of_peer) for name, of_peer in result["times"]["default"].items()}
    kinder["two-GEMM"]["median_ms"] = 31.0
    result["times"]["keeps the heap"] = kinder
    wanted = Goals(compiled=2.6, eager=3.0, peak_share=0.5, peak_bytes=9e6, memory=9.0)
    rows = list(goals.rows(wanted, result, OURS, ROOF))
    assert [(row.measured, row.met) for row in rows] == [
        ("2.50x (two-GEMM torch.compile)", False),
        ("3.10x (two-GEMM)", True),
        ("70 %", True),  # 1258 MFLOP in 9 ms of 200 GFLOP/s
        ("9 MB", True),
        ("9 of 81 MB (two-GEMM)", True),
    ]
    assert [row.limit for row in rows[:3]] == ["3.6x", "5.7x", ""]  # of calls of 22.5 and 36 ms beside 6.3 ms


def test_a_goal_beyond_the_peak_is_marked_as_such_and_bfloat16_has_another_peak(recorded):
    rows = list(goals.rows(Goals(compiled=3.5, eager=5.8), result_of("netvlad-forward"), OURS, ROOF))
    assert [(row.met, row.beyond) for row in rows] == [(False, ""), (False, "the peak")]
    assert "| **no**, beyond the peak |" in operator_tables.goals_table(recorded)
    (row,) = goals.rows(Goals(compiled=9.0), result_of("netvlad-forward-bfloat16"), OURS, ROOF)
    assert (row.met, row.limit, row.beyond) == (False, "", "")


def test_a_goal_beyond_the_steps_is_marked_as_such(tmp_path, monkeypatch):
    case, result = CASES["netvlad-forward-backward"], result_of("netvlad-forward-backward")
    step = {"step": "forward: product", "seconds": 5e-4, "flops": 2e6}
    steps = [step, step | {"step": "forward: all"}]
    back = [{"step": f"backward: {part}", "seconds": 1.5e-3, "flops": 1e6} for part in ("dV", "dx", "all")]
    back[-1]["flops"] = 2e6
    monkeypatch.setattr(kernel_steps, "RESULTS", tmp_path)
    file = tmp_path / "some/kernel-steps.json"
    assert kernel_steps.milliseconds(case, 2, "some") is None
    record.write_json(file, {"steps": {"planes": steps + back}})
    alone = kernel_steps.milliseconds(case, 2, "some")
    assert alone == pytest.approx(1.75)  # half of one and two steps
    best = goals.best_milliseconds(result, "two-GEMM torch.compile") / result["images"]
    (row,) = goals.rows(Goals(compiled=1 + best / alone), result, OURS, None, alone)
    assert (row.met, row.pace, row.beyond) == (False, f"{best / alone:.1f}x", "its steps")
    record.write_json(file, {"steps": {"planes": steps + back[1:]}})  # a step is missing
    assert kernel_steps.milliseconds(case, 2, "some") is None


@pytest.mark.parametrize(
    ("cpu", "kernels", "folder"),
    (
        ("Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", "amx", "intel-xeon-platinum-8488c-amx"),
        ("Intel(R) Xeon(R) Processor", "avx512", "intel-xeon-avx512"),
        ("AMD EPYC 9R14", "avx512bf16", "amd-epyc-9r14-avx512bf16"),
    ),
)
def test_results_are_kept_by_processor(cpu, kernels, folder):
    assert record.processor({"cpu": cpu, "kernels": kernels}) == folder


def test_of_several_processors_the_newest_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    for folder, date in (("a", "2026-01-02"), ("b", "2026-03-01"), ("c", "2025-12-31")):
        about = {"cpu": folder, "kernels": "avx2", "date": date}
        record.write_json(record.file_of("cpu", about), {"machine": about})
    assert [file.parent.name for file in record.files_of("cpu")] == ["b-avx2", "a-avx2", "c-avx2"]


def test_a_goal_without_a_measurement_is_neither_met_nor_missed():
    result = result_of("netvlad-forward")
    for times in result["times"].values():
        del times["two-GEMM torch.compile"]
    wanted = Goals(compiled=2.6, peak_share=0.5, time_of=("region-step", 1.1))
    assert [row.met for row in goals.rows(wanted, result, OURS, {"missing": "no compiler"})] == [None] * 3


def test_one_image_is_measured_in_turns_with_the_batch_it_is_compared_with():
    case = SMALL["netvlad-forward-one-image"]
    found = measure_time(case, 1)
    assert found["beside"]["case"] == "netvlad-forward" and found["beside"]["median_ms_per_image"] > 0
    assert found["peers"].keys() == case.peers.keys()
    result = result_of(case.name, ours=1.2)
    result["beside"] = {malloc: {"median_ms_per_image": 1.0} for malloc in result["times"]}
    (row,) = goals.rows(case.goals, result, OURS, None)
    assert (row.measured, row.met) == ("1.20x", False)


def test_a_plot_of_other_results_fails_the_check(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FOLDER", tmp_path / "plots")
    file = tmp_path / "some-processor/cpu.json"
    file.parent.mkdir()
    for plot in (plot for plot in plots.PLOTS if plot.results == "cpu"):
        file.write_text(json.dumps(recorded))
        other = f"{plot.name}.png was not drawn from some-processor/cpu.json"
        with pytest.raises(SystemExit, match=other):
            plots.show(plot, file, check=True)
        plots.show(plot, file)
        plots.show(plot, file, check=True)
        picture = tmp_path / f"plots/some-processor/{plot.name}.png"
        assert plot.path(file) == picture and picture.stat().st_size < 80_000
        file.write_text(json.dumps(recorded | {"other": 1}))
        with pytest.raises(SystemExit, match=other):
            plots.show(plot, file, check=True)


def test_curves_are_drawn_and_shown(recorded):
    points = [
        {"axis": axis, "value": value, "direction": direction, "flops": 1e9, "images": 8}
        | {"peers": {OURS: {"median_ms": 8.0}, scaling.EAGER: {"median_ms": 16.0 + value}}}
        for axis, values in scaling.AXES.items()
        for direction in scaling.DIRECTIONS
        for value in values
    ]
    curves = {"machine": MACHINE, "base": scaling.BASE, "points": points}
    panels = plots.scaling(curves).axes
    assert [len(axes.lines[0].get_xdata()) for axes in panels] == 2 * [len(v) for v in scaling.AXES.values()]
    text = scaling.table(curves)
    assert "| P = 1 to 4,096, forward | 17 | 1.000 to 1.000 | 2.1x at P = 1 |" in text


def test_pages_show_the_recorded_results(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report", "--check"])
    report.main()
    page = (report.ROOT / "docs/performance.md").read_text("utf-8")
    assert with_text(page, "goals", "other") != page


def run_with(monkeypatch, recorded: dict, *arguments: str) -> None:
    """``benchmarks.run`` with made-up measurements."""
    monkeypatch.setattr(run, "measure", lambda name, threads: result_of(name))
    monkeypatch.setattr(run, "machine", lambda threads: dict(recorded["machine"]) | {"threads": threads})
    monkeypatch.setattr(run.roof, "measure", lambda threads: ROOF)
    monkeypatch.setattr(sys, "argv", ["run", "--threads", "2", *arguments])
    run.main()


def test_a_file_grows_by_cases_and_says_how_it_was_made(recorded, tmp_path, monkeypatch):
    out = tmp_path / "cpu.json"
    one, other = "region-step", "netvlad-forward"
    run_with(monkeypatch, recorded, "--out", str(out), "--case", one)
    run_with(monkeypatch, recorded, "--out", str(out), "--case", other)
    made = json.loads(out.read_text())
    assert [result["case"] for result in made["results"]] == [other, one]
    assert made["machine"]["command"] == f"python -m benchmarks.run --case {other} --case {one} --threads 2"
    run_with(monkeypatch, recorded, "--out", str(out), "--resume")
    made = json.loads(out.read_text())
    assert [result["case"] for result in made["results"]] == list(CASES)
    assert made["machine"]["command"] == "python -m benchmarks.run --threads 2"


def test_results_of_another_commit_are_not_mixed(recorded, tmp_path, monkeypatch):
    out = tmp_path / "cpu.json"
    run_with(monkeypatch, recorded, "--out", str(out), "--case", "region-step")
    before = out.read_text()
    recorded["machine"] = recorded["machine"] | {"commit": "other"}
    with pytest.raises(SystemExit, match="was recorded with commit x, not other; give --out"):
        run_with(monkeypatch, recorded, "--out", str(out), "--case", "netvlad-forward")
    assert out.read_text() == before


def test_commands_show_no_path_above_the_repository(tmp_path):
    shown = run.command("benchmarks.exported", ["../shared/places/lund", "--n", "3", "a/b", str(tmp_path)])
    assert shown == f"python -m benchmarks.exported lund --n 3 a/b {tmp_path.name}"


def test_a_machine_without_a_compiler_has_no_roof(monkeypatch):
    monkeypatch.setenv("PATH", "")
    missing = roof.measure(2)
    assert missing == {"missing": "no C++ compiler here to measure it with"}
    assert roof.sentence(missing, 2).endswith("no C++ compiler here to measure it with.")
    assert roof.sentence(ROOF, 2).startswith(
        "Measured roofs, float32: 100 GFLOP/s with 1 thread, 200 GFLOP/s"
    )


@pytest.mark.skipif(roof.shutil.which(roof.COMMAND[0]) is None, reason="no C++ compiler here")
def test_every_roof_is_measured():
    found = roof.measure(2, repetitions=2)
    rates = [found["flops_per_second"], *found["bytes_per_second"].values()]
    assert len(rates) == 4
    for by_threads in rates:
        assert by_threads.keys() == {"1", "2"}
        assert all(0 < rate["median"] <= rate["best"] for rate in by_threads.values())
