"""The training benchmark measures what is equal to the reference procedure, and says so in its tables."""

import json

import numpy as np
import pytest
import torch

from benchmarks import jitter
from benchmarks.training import __main__ as benchmark
from benchmarks.training import counting, mining, refresh, steps, table
from benchmarks.training.mining_problem import MiningProblem
from sfrs.features.cache import CachePlan, FeatureCache
from sfrs.training.config import TrainConfig
from sfrs.training.mining import Miner

pytestmark = pytest.mark.slow

SMALL = [
    *"--backbone gradient --clusters 4 --size 64x80 --tuples 2 --images 4 --gallery 24x480".split(),
    *"--dim 16 --rounds 1 --threads 1".split(),
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    file = tmp_path_factory.mktemp("training") / "out.json"
    benchmark.main([*SMALL, "--out", str(file)])
    return json.loads(file.read_text())


def test_every_part_is_measured_behind_its_gate(recorded):
    for number, result in enumerate(recorded["step"], start=1):
        assert result["generation"] == number
        errors = result["errors"]
        assert 0 < errors[steps.REFERENCE] < 1e-4  # float32 beside float64
        assert all(errors[name] <= steps.limit(name, errors[steps.REFERENCE]) for name in errors)
        assert {steps.REFERENCE, steps.FRESH, steps.CACHED} < result["seconds_per_tuple"].keys()
        assert min(result["seconds_per_tuple"].values()) > 0
    errors = recorded["refresh"]["errors"]
    assert all(errors[name] <= limit for name, limit in refresh.TOLERANCE.items())
    assert recorded["mining"][0]["agree"]["with re-ranking"] == {"positive": 1.0, "difficult": 1.0}


def test_an_epoch_is_the_sum_of_its_parts_counted_from_the_rates(recorded):
    ways, size = recorded["epoch"], counting.PITTSBURGH
    assert size.refreshes == 8
    for way, counted in ways.items():
        step = recorded["step"][1]["seconds_per_tuple"][way]
        assert counted["epoch"]["steps"] == pytest.approx(7_320 * step)
        assert counted["epoch_seconds"] == pytest.approx(sum(counted["epoch"].values()))
    per_image = recorded["refresh"]["seconds_per_image"]["float16"]
    assert ways[steps.FRESH]["epoch"]["refresh"] == pytest.approx(8 * 17_320 * per_image)
    assert ways[steps.REFERENCE]["epoch"]["cache"] == 0
    assert ways[steps.CACHED]["epoch"]["cache"] > 2 * ways[steps.FRESH]["epoch"]["cache"]


def test_the_tables_show_all_that_was_measured(recorded):
    text = table.table(recorded)
    for name in recorded["step"][1]["seconds_per_tuple"]:
        assert f"| {name} | 2 |" in text
    assert "| cache, bfloat16 |" in text
    seconds = recorded["mining"][0]["seconds"]["with re-ranking"]
    row = next(line for line in text.splitlines() if line.startswith("| 24 x 480 | 16 | with re-ranking |"))
    assert row.endswith(f"**{seconds['lists'] / seconds['sfrs']:.0f}x** | {seconds['product']:.3f} s |")
    assert text.count("**An epoch of Pitts30k") == 1
    own = max(result["errors"][steps.REFERENCE] for result in recorded["step"])
    assert f"in float64, by {own:.0e} (reference), " in text


def test_gradients_that_are_not_the_references_are_not_timed(tmp_path, monkeypatch):
    wrong = benchmark.steps.reference.soft_loss
    monkeypatch.setattr(benchmark.steps.reference, "soft_loss", lambda *a: 1.1 * wrong(*a))
    with pytest.raises(SystemExit, match="REFUSED step, generation 2: fresh jitter errs by"):
        benchmark.main([*SMALL, "--part", "step", "--out", str(tmp_path / "out.json")])


def test_tuples_that_are_not_the_references_are_not_timed():
    problem = MiningProblem.draw(24, 480, 16)
    miner = Miner(problem.neighbourhood, TrainConfig())
    lists = mining.by_lists(problem, miner, mining.random_pools(problem, miner, 0), rerank=True)
    tuples = miner.mine(miner.queries, problem.queries, problem.database, difficult="promoted")
    assert mining.gate(tuples, lists, rerank=True) == {"positive": 1.0, "difficult": 1.0}
    tuples.difficult[:5] = tuples.difficult[:5].flip(1)
    with pytest.raises(SystemExit, match="REFUSED mining"):
        mining.gate(tuples, lists, rerank=True)


@pytest.mark.parametrize("arguments", [["--size", "240"], ["--gallery", "0x10"]])
def test_a_size_that_is_none_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        benchmark.arguments(arguments)
    assert "expected two positive numbers such as 240x320" in capsys.readouterr().err


def test_fewer_variants_are_the_first_of_more():
    images, variants = 3, 8
    features = torch.arange(images * (1 + variants)).float().view(-1, 1, 1, 1)
    cache = FeatureCache(features, plan=CachePlan(images, variants, images, images))
    few = jitter.of_variants(cache, 2)
    for image in range(images):
        for draw, same in zip(few.plan.draws([image]), cache.plan.draws([image]), strict=False):
            assert draw == same
            assert few.read([draw]).item() == cache.read([same]).item()
    assert len(jitter.of_variants(cache, 0).features) == images


def test_the_jitter_study_compares_the_same_queries_and_pools_the_seeds():
    def result(seed, recall):
        drawn = np.random.default_rng(seed).random(200) < recall
        bits = "".join("01"[int(hit)] for hit in drawn)
        return {"epoch": 2, "validation": {"1": recall}, "hits": dict.fromkeys("1 5 10".split(), bits)}

    results = {way: [result(seed, 0.5) for seed in (0, 1)] for way in jitter.WAYS}
    results["jitter=1"] = [result(seed, 0.4) for seed in (0, 1)]
    facts = {
        "seeds": [0, 1], "epochs": 4, "jitter": [0.7], "results": results,
        "machine": {"commit": "c", "date": "d", "command": "python -m benchmarks.jitter"},
    }  # fmt: skip
    lines = {line.split(" | ")[0]: line for line in jitter.table(facts | {"recorded": True}).splitlines()}
    assert lines["| jitter=8"].endswith("| +0.0 | +0.0, +0.0 | 1 |")
    assert float(lines["| jitter=1"].split("|")[4]) < -5
    assert lines["| fresh jitter"].endswith("| | | |")
