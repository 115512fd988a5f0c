"""Networks of timm and torchvision as backbones, with random weights; where both import."""

import copy

import pytest
import torch
from torch import Tensor, nn

timm = pytest.importorskip(
    "timm", reason="timm is not installed, or not beside this torch", exc_type=ImportError
)
models = pytest.importorskip(
    "torchvision", reason="torchvision is not installed", exc_type=ImportError
).models

from sfrs.models.backbones import Backbone, BackboneError, PretrainedWeightsError, build_backbone  # noqa: E402
from sfrs.models.export import ImageShape, export  # noqa: E402
from sfrs.models.libraries import Timm, Torchvision  # noqa: E402
from sfrs.models.model import Model  # noqa: E402
from sfrs.models.network import DescriptorNetwork  # noqa: E402
from sfrs.runtime.errors import UserError  # noqa: E402

ODD = (75, 101)


def build_both(monkeypatch, kind: type, name: str) -> tuple[nn.Module, Backbone]:
    """Build the library's network as it is, and the backbone with the same weights."""
    torch.manual_seed(0)
    library = name.partition(",")[0].partition(":")[2]
    original = kind(library).build().eval()
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d):  # other than the identity
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    for parameter in original.parameters():
        if not parameter.any():  # class tokens, registers and positions often start at zero
            nn.init.normal_(parameter, std=0.02)
    monkeypatch.setattr(kind, "build", lambda self, pretrained=False: copy.deepcopy(original))
    return original, build_backbone(name)


def output_of(network: nn.Module, module: str, images: Tensor) -> Tensor:
    found = []
    hook = network.get_submodule(module).register_forward_hook(
        lambda _, given, output: found.append(output.clone())
    )
    network(images)
    hook.remove()
    return found[0]


@torch.no_grad()
@pytest.mark.parametrize(
    "kind, name, module, stride",
    [
        (Timm, "timm:resnet18", "layer3", 16),
        (Timm, "timm:resnet18,stride=32", "layer4", 32),
        (Timm, "timm:convnext_atto", "stages.2", 16),
        (Torchvision, "torchvision:resnet18,trained=1", "layer3", 16),
        (Torchvision, "torchvision:vgg11", "features.18", 16),
        (Torchvision, "torchvision:swin_t", "features.5", 16),
    ],
)
def test_local_features_are_the_map_of_the_library(monkeypatch, kind, name, module, stride):
    original, backbone = build_both(monkeypatch, kind, name)
    images = torch.rand(2, 3, *ODD)
    expected = output_of(original, module, images)
    if module == "features.5":
        expected = expected.permute(0, 3, 1, 2)
    found = backbone.head(backbone.trunk(images))
    assert (backbone.stride, backbone.channels) == (stride, expected.shape[1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["vit_small_patch14_reg4_dinov2,trained=2", "vit_tiny_patch16_224", "vit_small_patch16_dinov3"]
)
def test_local_features_are_the_normalised_patch_tokens(monkeypatch, name):
    original, backbone = build_both(monkeypatch, Timm, f"timm:{name}")
    images = torch.rand(2, 3, *ODD)
    height, width = (side // backbone.stride for side in ODD)
    whole = images[:, :, : height * backbone.stride, : width * backbone.stride]
    expected = original.forward_intermediates(whole, indices=1, norm=True, intermediates_only=True)[0]
    trunk = backbone.trunk(images)
    assert trunk.dim() == 4 and trunk.shape[2] == height + 1  # a row of class token and registers
    torch.testing.assert_close(backbone.head(trunk), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_positions_of_torchvision_transformers_are_interpolated(monkeypatch):
    original, backbone = build_both(monkeypatch, Torchvision, "torchvision:vit_b_32")
    images = torch.rand(1, 3, 224, 224)
    expected = output_of(original, "encoder.ln", images)[:, 1:].transpose(1, 2).unflatten(2, (7, 7))
    torch.testing.assert_close(backbone.head(backbone.trunk(images)), expected, rtol=1e-4, atol=1e-5)
    assert backbone.head(backbone.trunk(torch.rand(1, 3, 100, 70))).shape == (1, 768, 3, 2)


@pytest.mark.parametrize(
    "name, frozen, trained",
    [
        ("timm:resnet18", "layer2_1", ("layer3_0", "layer3_1")),
        ("timm:resnet18,trained=1", "layer3_0", ("layer3_1",)),
        ("torchvision:resnet18,stride=32,trained=3", "layer3_0", ("layer3_1", "layer4_0", "layer4_1")),
        ("torchvision:vgg11", "features_15", ("features_16", "features_17", "features_18")),
    ],
)
def test_the_last_modules_are_trained(name, frozen, trained):
    backbone = build_backbone(name)
    assert backbone.frozen_stages[-1] == frozen and backbone.trained_stages == trained


def test_the_last_blocks_of_a_transformer_are_trained():
    backbone = build_backbone("timm:vit_tiny_patch16_224,trained=3")
    assert len(backbone.head.blocks) == 3 and len(backbone.trunk.blocks) == 9
    assert len(build_backbone("timm:vit_tiny_patch16_224").head.blocks) == 4


def test_batch_norm_keeps_its_statistics_in_training():
    backbone = build_backbone("timm:resnet18").train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone.head(backbone.trunk(torch.rand(2, 3, 64, 64))).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    assert not backbone.head.training


def test_published_weights_are_those_that_the_library_loads(monkeypatch):
    backbone = build_backbone("timm:resnet18")
    build = Timm.build

    def pretrained(self, pretrained=False):
        assert pretrained
        network = build(self)
        for parameter in network.parameters():
            nn.init.constant_(parameter, 0.5)
        return network

    monkeypatch.setattr(Timm, "build", pretrained)
    backbone.load_pretrained()
    assert all((parameter == 0.5).all() for parameter in backbone.parameters())
    assert backbone.published.licence == "apache-2.0" and "resnet18" in backbone.published.source


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch):
    backbone = build_backbone("torchvision:resnet18")

    def offline(self, pretrained=False):
        raise OSError("Temporary failure in name resolution")

    monkeypatch.setattr(Torchvision, "build", offline)
    message = r"torchvision:resnet18: its weights could not be read from .*resnet18-.*\(Temporary failure"
    with pytest.raises(PretrainedWeightsError, match=message):
        backbone.load_pretrained()


@pytest.mark.parametrize(
    "name, message",
    [
        ("timm:resnet", "timm .* has no network 'resnet'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no classification network 'fasterrcnn"),
        ("timm:resnet18,blocks=2", "'timm:resnet18,blocks=2' cannot be read; expected timm:NAME"),
        ("timm:resnet18,stride=8", "has stride 8; expected 14, 16 or 32"),
        ("timm:resnet18,stride=14", "has no map of stride 14 .* it has 2, 4, 8, 16, 32"),
        ("timm:resnet18,trained=99", "would train 99 of the 8 modules"),
        ("timm:vit_tiny_patch16_224,stride=14", "has patches of 16 pixels; expected 14"),
        ("torchvision:maxvit_t", "torchvision:maxvit_t does not take images of any size"),
    ],
)
def test_what_is_no_backbone_is_refused(name, message):
    with pytest.raises(BackboneError, match=message):
        build_backbone(name)


def test_transformers_are_exported_at_one_size(tmp_path):
    model = Model(DescriptorNetwork(build_backbone("timm:vit_tiny_patch16_224"), 4))
    with pytest.raises(UserError, match="--size is dynamic, but timm:vit_tiny_patch16_224 is written as"):
        export(model, tmp_path / "model.pt2", "torch", ImageShape(64, 64, 16, dynamic=True))
    export(model, tmp_path / "model.pt2", "torch", ImageShape(48, 64, 16))
    assert (tmp_path / "model.pt2").is_file()
