"""What the demonstration promises, on a city of a few hundred images."""

import json

import pytest
from PIL import Image

from sfrs.models.network import load_network
from sfrs.runtime.errors import UserError
from sfrs.synthetic.demo import BASELINE, BEFORE, run_demo

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
