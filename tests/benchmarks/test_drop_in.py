"""The drop-in benchmark measures layers that are replaced and right; the guide shows what was recorded."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import sfrs_ext
from benchmarks import drop_in
from benchmarks.foreign_layers import CASES, Case, LoopNetVLAD
from benchmarks.pages import with_text
from benchmarks.record import files_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_layer_is_replaced_and_passes_the_gate(case):
    small = dataclasses.replace(case, shape=(2, 12, 4, 5)[: len(case.shape)], clusters=3)
    before, x = small.build()
    after = copy.deepcopy(before)
    assert len(sfrs_ext.accelerate(after).replaced) == 1
    assert drop_in.gate(small, before, after, x) < drop_in.TOLERANCE


class Wrong(LoopNetVLAD):
    def forward(self, x):
        return super().forward(x) * 1.001


def test_a_wrong_layer_is_refused():
    case = Case("layer", LoopNetVLAD, "", 3, (2, 12, 4, 5))
    layer, x = case.build()
    wrong: nn.Module = Wrong(3, 12)
    wrong.load_state_dict(layer.state_dict())
    with pytest.raises(SystemExit, match="REFUSED layer: forward after errs by 1.0e-03"):
        drop_in.gate(case, layer, wrong, x)


def test_a_layer_that_is_not_replaced_is_not_timed():
    with pytest.raises(SystemExit, match="(?s)REFUSED layer: .*not NetVLAD"):
        drop_in.measure(Case("layer", Wrong, "", 3, (2, 12, 4, 5)))


def test_the_guide_shows_the_recorded_figures():
    page = (ROOT / "docs/drop-in.md").read_text()
    tables = [drop_in.table(json.loads(file.read_text())) for file in files_of("drop-in")]
    assert with_text(page, "drop-in", "\n\n".join(tables)) == page


def test_the_seed_of_inputs_is_fixed():
    assert all(torch.equal(a, b) for a, b in zip(*(CASES[3].build()[1:] for _ in range(2)), strict=True))
