"""The end-to-end benchmark compares equal descriptors and shows every stage."""

import json

import numpy as np
import pytest
import torch

from benchmarks import describing
from sfrs.models.backbones import build_backbone
from sfrs.models.convolution import Convolution3x3
from sfrs.models.network import DescriptorNetwork

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch):
    for name, value in dict(SIZE=(64, 80), PHOTO=(128, 160), BATCH=2, GALLERY=30, ROUNDS=1).items():
        monkeypatch.setattr(describing, name, value)


def test_every_stage_of_every_backbone_is_shown(small, tmp_path):
    out = tmp_path / "describing.json"
    describing.main(["--threads", "1", "--images", "3", "--backbone", "gradient", "--out", str(out)])
    (result,) = json.loads(out.read_text())["results"]
    assert result["difference"] <= describing.TOLERANCE
    assert result["stages"]["sfrs"].keys() == {"decode", "trunk", "head", "aggregation", "search"}
    assert "| gradient | **" in describing.table(json.loads(out.read_text()))


def test_plain_torch_has_the_weights_and_no_operator_of_ours():
    torch.manual_seed(0)
    network = DescriptorNetwork(build_backbone("vgg16"), 8).eval()
    plain = describing.plain(network)
    assert not any(isinstance(module, Convolution3x3) for module in plain.modules())
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), network(images), rtol=1e-4, atol=1e-6)


def test_other_descriptors_are_refused(small, tmp_path, monkeypatch):
    files = describing.write_photographs(tmp_path, 2)
    right = describing.Model.encode

    def wrong(model, files, **options):
        found = right(model, files, **options)
        return found if isinstance(model.network.vlad, describing.PlainNetVLAD) else np.roll(found, 1)

    monkeypatch.setattr(describing.Model, "encode", wrong)
    with pytest.raises(SystemExit, match="REFUSED gradient: descriptors differ"):
        describing.measure("gradient", files, 1)
