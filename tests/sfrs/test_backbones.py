import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import SIZE, tiny_config, tiny_places
from torch import nn

import sfrs_ext
from sfrs.models.backbones import REGISTRY, VGG16, BackboneError, build_backbone
from sfrs.models.export import ImageShape, export
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork, load_network, save_network
from sfrs.models.whitening import Whitening
from sfrs.training.preparation import build_features
from sfrs.training.trainer import train

pytestmark = pytest.mark.slow

try:
    import timm  # noqa: F401 - also fails where torchvision belongs to another torch

    LIBRARY_NETWORKS = [
        "timm:resnet18",
        "timm:vit_tiny_patch16_224,trained=1",
        "torchvision:mobilenet_v3_small",
    ]
except Exception:
    LIBRARY_NETWORKS = []

PAGE = Path(__file__).resolve().parents[2] / "docs/backbones.md"


@pytest.fixture(scope="module")
def vgg16() -> VGG16:
    torch.manual_seed(0)
    return build_backbone("vgg16")


def test_vgg16_has_512_channels_at_stride_16(vgg16):
    trunk = vgg16.trunk(torch.zeros(1, 3, 64, 96))
    features = vgg16.head(trunk)
    assert trunk.shape == (1, 512, 4, 6) and features.shape == (1, 512, 4, 6)
    assert (vgg16.channels, vgg16.stride) == (512, 16)


def test_vgg16_ends_linearly(vgg16):
    features = vgg16.head(vgg16.trunk(torch.randn(1, 3, 64, 64)))
    assert (features < 0).any() and (vgg16.trunk(torch.randn(1, 3, 64, 64)) >= 0).all()


def test_vgg16_has_the_weights_of_configuration_d_up_to_conv5_3(vgg16):
    assert sum(p.numel() for p in vgg16.parameters()) == 14_714_688
    assert sum(p.numel() for p in vgg16.head.parameters()) == 3 * (512 * 512 * 9 + 512)


def test_vgg16_normalisation_is_0_to_255_minus_the_vgg_mean(vgg16):
    assert [255 * m for m in vgg16.mean] == pytest.approx([123.68, 116.779, 103.939], abs=1e-3)
    assert vgg16.std == (1 / 255,) * 3


def test_the_trunk_is_frozen_and_stays_in_evaluation_mode():
    backbone = build_backbone("tiny")
    backbone.train()
    assert backbone.head.training and not backbone.trunk.training
    inside = nn.ModuleList([build_backbone("tiny")]).train()[0]
    assert not inside.trunk.training


def test_only_the_head_of_vgg16_asks_for_gradients(vgg16):
    assert not any(p.requires_grad for p in vgg16.trunk.parameters())
    assert all(p.requires_grad for p in vgg16.head.parameters())


@pytest.mark.parametrize("name", [*REGISTRY, *LIBRARY_NETWORKS])
def test_every_backbone_is_trained_described_with_and_saved(name, tmp_path):
    torch.manual_seed(0)
    network = DescriptorNetwork(build_backbone(name), 4)
    backbone = network.backbone
    assert backbone.name == name and len(backbone.mean) == len(backbone.std) == 3
    images = torch.rand(2, 3, 6 * backbone.stride, 5 * backbone.stride + 1)
    features = network.features(network.trunk(images))
    assert features.shape[:2] == (2, backbone.channels) and features.shape[2] == 6
    network.train()
    query, quarters = network.descriptor(network.trunk(images)), network.quarters(network.trunk(images))
    sfrs_ext.region_similarity(query, quarters).sum().backward()
    assert all(p.grad is not None for p in network.trained_parameters())
    assert not any(p.requires_grad for p in backbone.trunk.parameters())
    save_network(tmp_path / "network.safetensors", network)
    again = load_network(tmp_path / "network.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again(images), network.eval()(images), rtol=0, atol=0)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    return tuple(tiny_places(folder, split, spots=3, seed=i) for i, split in enumerate(("train", "val")))


@pytest.mark.parametrize("name", [*REGISTRY, *LIBRARY_NETWORKS])
def test_generations_whitening_regions_and_export_work_with_every_backbone(name, places, tmp_path):
    """Two generations from frozen features on the disk, which are used again."""
    torch.manual_seed(0)
    config = tiny_config(
        backbone=name,
        clusters=2,
        epochs=(1, 1),
        trunk_cache="disk",
        cache_dir=str(tmp_path / "cache"),
        init_images=6,
        init_features=40,
        learning_rate=1e-4,
    )
    network = DescriptorNetwork(build_backbone(name), 2)
    result = train(places, config, tmp_path / "run", network=network)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    build_features(config, network, places)
    assert kept and kept == {file: file.stat().st_mtime_ns for file in kept}

    trained = result.network(1).state_dict()
    moved = {key for key, value in result.network(0).state_dict().items() if not value.equal(trained[key])}
    assert moved and not any(key.startswith("backbone.trunk.") for key in moved)
    assert any(key.startswith("backbone.head.") for key in moved)

    files = places[0].queries.files + places[0].database.files
    model = Model(result.network(2))
    descriptors = model.encode(files)
    whitened = Model(model.network, Whitening.fit(descriptors, 3), size=model.size)
    assert whitened.encode(files[:2]).shape == (2, 3)
    quarters = model.quarters(files[:2])
    assert quarters.shape == (2, *model.quarters_shape) and quarters.isfinite().all()
    assert not sfrs_ext.accelerate(model).replaced
    assert np.array_equal(model.encode(files), descriptors)
    shape = ImageShape(*SIZE, model.network.backbone.stride)
    assert export(model, tmp_path / "model.pt2", "torch", shape).cosine > 0.9999


@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "tiny"])
def test_the_page_says_what_a_backbone_is(name):
    backbone = build_backbone(name)
    stages = [
        f"{part[0]} … {part[-1]}" if len(part) > 1 else part[0]
        for part in (backbone.frozen_stages, backbone.trained_stages)
    ]
    normalisation = [
        ", ".join(f"{255 * value:.4g}" for value in dict.fromkeys(values))
        for values in (backbone.mean, backbone.std)
    ]
    published = backbone.published
    source = [published.source, published.licence] if published else ["none", ""]
    facts = [f"`{name}`", *stages, str(backbone.channels), str(backbone.stride), *normalisation, *source]
    assert f"| {' | '.join(facts)} |".replace("|  |", "| |") in PAGE.read_text("utf-8")


def test_options_are_remembered():
    backbone = build_backbone("tiny", channels=5)
    assert backbone.channels == 5 and backbone.options == {"channels": 5}


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_does_not_import_is_named(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        BackboneError, match=f"{library} does not import beside torch .*; a pair that does is"
    ):
        build_backbone(f"{library}:resnet18")


def test_an_unknown_backbone_lists_the_known():
    with pytest.raises(BackboneError, match="'resnet' is not known; expected one of vgg16"):
        build_backbone("resnet")
