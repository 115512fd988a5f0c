"""Studies that are recorded."""

import json

import numpy as np
import pytest

from benchmarks.studies import ADDING, OF_CHOICE, adding, arguments
from sfrs.commands.study import own_variant
from sfrs.synthetic.study import VARIANTS


def test_variants_of_the_choice_differ_in_the_soft_loss_only():
    image_labels = next(variant for variant in VARIANTS if variant.name == "negatives").changes
    may_differ = {"soft_level", "soft_loss", "teacher_temperatures"}
    for label, changes in OF_CHOICE.items():
        own = own_variant(f"{label}: {changes}").changes
        kept = {name: value for name, value in image_labels.items() if name not in may_differ}
        assert {name: value for name, value in own.items() if name not in may_differ} == kept
        assert f"{label}: {changes}" in arguments("choice")


def test_what_regions_add_is_counted_in_the_last_generation(tmp_path):
    hits = {"levels": ["0000", "1110"], "negatives": ["1111", "0101"]}
    for seed in (0, 1):
        (tmp_path / f"seed_{seed}").mkdir()
        for name in ADDING:
            scores = [{"hits": {"1": bits}} for bits in hits[name]]
            (tmp_path / f"seed_{seed}" / f"{name}_3.scores.json").write_text(json.dumps({"scores": scores}))
    found = adding(tmp_path, [0, 1])
    assert (found["gained"], found["lost"]) == (4, 2)
    assert found["difference"] == pytest.approx(2 / 8) and np.allclose(found["by_seed"], [0.25, 0.25])
