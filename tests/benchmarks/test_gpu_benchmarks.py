"""The measurements for GPUs refuse what is wrong, survive what breaks, and count what they say they count."""

import contextlib
import dataclasses
import json
import sys

import pytest
import torch

from benchmarks import predict
from benchmarks.cases import OURS
from benchmarks.gpu import __main__ as driver
from benchmarks.gpu.cases import AUTOTUNE, EAGER, TINY, Contender, Sizes, registry
from benchmarks.gpu.device import DEVICES, Host, repetitions, spread
from benchmarks.gpu.worker import Bench, compute, errors

pytestmark = pytest.mark.slow

CASES = registry(TINY)
SMALL = "netvlad-forward-backward-B1-fp32"
EAGERLY = ["--contender", OURS, "--contender", EAGER]  # compilers take longer than these tests may


@pytest.mark.parametrize("name", CASES)
def test_all_contenders_of_a_case_compute_the_same(name):
    case = CASES[name]
    assert list(case.contenders)[0] == OURS and EAGER in case.contenders
    bench = Bench(case, Host(), 0.0)
    for contender, how in case.contenders.items():
        if how.mode is None:
            results = bench.in_our_order(contender, compute(case, how.function, bench.inputs))
            found = errors(results, bench.exact)
            assert all(e <= allowed for e, allowed in zip(found, bench.allowed, strict=True)), found


@pytest.mark.parametrize("wrong", (lambda out: out * 1.01, lambda out: out * float("nan")))
def test_no_time_is_taken_of_what_computes_something_else(wrong):
    case = CASES[SMALL]
    bad = Contender(lambda *inputs: wrong(case.oracle(*inputs)))
    case = dataclasses.replace(case, contenders=case.contenders | {"bad": bad})
    bench = Bench(case, Host(), 0.0)
    assert bench.measure("bad")["status"] == "refused" and "device" not in bench.measure("bad")
    assert bench.measure(EAGER)["status"] == "measured"


def test_bytes_and_operations_of_the_papers_size():
    case = registry(Sizes())["netvlad-forward-B64-bf16"]
    assert case.bytes == 2 * (64 * 512 * 1200 + 64 * 64 * 512 + 2 * 64 * 512)
    assert case.flops == 64 * 2 * (2 * 64 * 512 * 1200)
    both = registry(Sizes())["netvlad-forward-backward-B64-bf16"]
    assert both.flops == 3 * case.flops and 2.9 * case.bytes < both.bytes < 3.1 * case.bytes


def test_a_rehearsal_leaves_both_files(tmp_path, capsys):
    cases = ["--case", SMALL, "--case", "kernelbench-47-f*-fp32", *EAGERLY]
    driver.main(["--device", "cpu", *cases, "--out", f"{tmp_path}/r"])
    recorded = json.loads((tmp_path / "r.json").read_text())
    assert recorded["ceilings"] and len(recorded["results"]) == 3
    for result in recorded["results"].values():
        assert all(r["status"] == "measured" for n, r in result.items() if n != "case")
    page = (tmp_path / "r.md").read_text()
    assert "figures say nothing about a GPU" in page and page.count("| sfrs_ext |") == 3
    assert sorted(f.name for f in tmp_path.iterdir()) == ["r.json", "r.md"]


WORKER = """
import json, os, sys
request = json.loads(sys.stdin.readline())
say = lambda message: os.write(request["pipe"], (json.dumps(message) + "\\n").encode())
if request["ceilings"]:
    names = "copy_bytes_per_second smallest_graph_microseconds".split()
    names += [f"{p}_flops_per_second" for p in ("bf16", "fp32", "tf32")]
    say({"begin": ["ceilings", ""]})
    say({"ceilings": dict.fromkeys(names, 1.0), "facts": {}})
for item in request["items"]:
    say({"begin": item})
    if item[1] == "residual":
        sys.exit("CUDA error: an illegal memory access was encountered")
    say({"done": item, "record": {"status": "out of memory"}})
"""


def test_a_crash_costs_one_contender(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(driver, "WORKER", [sys.executable, "-c", WORKER])
    driver.main(["--device", "cpu", "--case", SMALL, "--out", f"{tmp_path}/r"])
    result = json.loads((tmp_path / "r.json").read_text())["results"][SMALL]
    statuses = {name: record["status"] for name, record in result.items() if name != "case"}
    assert statuses.pop("residual") == "crashed or hung" and "illegal memory" in result["residual"]["error"]
    assert set(statuses.values()) == {"out of memory"} and OURS in statuses and "per-cluster loop" in statuses


def test_a_fault_of_ours_fails_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(driver, "WORKER", [sys.executable, "-c", WORKER.replace("residual", OURS)])
    with pytest.raises(SystemExit, match="not every figure of ours"):
        driver.main(["--device", "cpu", "--case", SMALL, "--out", f"{tmp_path}/r"])


def test_when_time_is_over_the_rest_is_named_as_not_measured(tmp_path, capsys):
    with pytest.raises(SystemExit):
        driver.main(["--device", "cpu", "--case", SMALL, "--seconds", "0", "--out", f"{tmp_path}/r"])
    result = json.loads((tmp_path / "r.json").read_text())["results"][SMALL]
    assert all(r["status"].startswith("not measured") for n, r in result.items() if n != "case")


def test_a_worker_that_hangs_is_ended_and_what_it_was_at_is_named(tmp_path, monkeypatch, capsys):
    hangs = WORKER.replace('sys.exit("CUDA', 'import time; time.sleep(120); print("')
    monkeypatch.setattr(driver, "WORKER", [sys.executable, "-c", hangs])
    monkeypatch.setattr(driver, "LONGEST", 15.0)  # a slow start is no hang
    monkeypatch.setattr(driver, "PATIENCE", 0.1)
    driver.main(["--device", "cpu", "--case", SMALL, "--out", f"{tmp_path}/r"])
    result = json.loads((tmp_path / "r.json").read_text())["results"][SMALL]
    assert result["residual"]["status"] == "crashed or hung"
    assert result["per-cluster loop"]["status"] == result[OURS]["status"] == "out of memory"


def test_every_case_has_compiled_peers_and_tuned_ones():
    for case in CASES.values():
        modes = {contender.mode for contender in case.contenders.values()}
        assert modes == {None, "default", AUTOTUNE}, case.name


def test_work_goes_by_turns_so_that_compilers_come_last():
    turns = [CASES[case].contenders[name].turn for case, name in driver.order(CASES, quick=False)]
    assert turns == sorted(turns) and turns[-1] > 0
    assert len(driver.order(CASES, quick=True)) < len(turns) / 4


def test_spread_and_repetitions():
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "low": 2.0, "high": 5.0, "count": 5}
    assert repetitions(100.0, 0.01, 5, 1000) == 100
    assert repetitions(1e7, 0.01, 5, 1000) == 5 and repetitions(0.0, 0.01, 5, 50) == 50


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_command_says_how_to_rehearse():
    with pytest.raises(SystemExit, match="torch sees no CUDA device; --device cpu rehearses"):
        DEVICES["cuda"]()


class Event:
    """A CUDA event whose time is the number of events before it."""

    count = 0

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self):
        self.time, Event.count = Event.count, Event.count + 1

    def elapsed_time(self, end: "Event") -> float:
        return end.time - self.time


def test_cuda_times_between_events_after_overwriting_l2(monkeypatch):
    class Flush:
        def zero_(self):
            log.append("flush")

    log = []
    device = object.__new__(DEVICES["cuda"])
    device._flush = Flush()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    found = device.times(lambda: log.append("call"), seconds=0.003)
    assert found == {"median": 1e3, "low": 1e3, "high": 1e3, "count": 5}
    assert log == ["flush", "call", "wait", *["flush", "call"] * 5, "wait"]


@pytest.mark.parametrize("case", registry(Sizes()).values(), ids=lambda case: case.name)
def test_no_prediction_beats_the_floor(case):
    seconds = sum(kernel.seconds for kernel in predict.predicted(case))
    assert case.bytes / predict.COPY < seconds < 1.0


def test_the_recorded_prediction_is_the_models():
    assert (predict.RESULTS / "h200-predicted.md").read_text() == predict.page()


def test_cuda_captures_after_warming_up_on_a_stream_of_its_own(monkeypatch):
    class Stream:
        def __init__(self, name="side"):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self):
            log.append("replay")

    @contextlib.contextmanager
    def during(what):
        log.append("capture" if isinstance(what, Graph) else what.name)
        yield
        log.append("end")

    log = []
    replacements = {"Stream": Stream, "stream": during, "graph": during, "CUDAGraph": Graph}
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    replay = object.__new__(DEVICES["cuda"]).captured(lambda: log.append("call"))
    replay()
    warm_up = ["side waits for main", "side", "call", "call", "end", "main waits for side"]
    assert log == [*warm_up, "capture", "call", "end", "replay"]
