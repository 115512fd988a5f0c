"""Weights of other origin. The key names are those of torchvision's and the paper's files."""

import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from sfrs.models.foreign import WeightsError, read_state
from sfrs.models.network import load_network, save_network

# torchvision's vgg16().features: the indices of its convolutions and their widths.
CONVOLUTIONS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip
POOLS = (4, 9, 16, 23)


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    """VGG16 as torchvision lays it out, without the last ReLU and pool."""
    torch.manual_seed(1)
    layers = []
    for index in range(29):
        if index in CONVOLUTIONS:
            layers.append(nn.Conv2d(*CONVOLUTIONS[index], kernel_size=3, padding=1))
        else:
            layers.append(nn.MaxPool2d(2) if index in POOLS else nn.ReLU())
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(2))


def renamed(features: nn.Sequential, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in features.state_dict().items()}


@pytest.mark.parametrize("prefix", ["features.", "base_model.base.", "base.", ""])
def test_vgg16_of_other_origin_computes_the_same_features(tmp_path, features, image, prefix):
    state = renamed(features, prefix) | {"classifier.0.weight": torch.zeros(3)}
    torch.save(state, tmp_path / "vgg.pth")
    network = load_network(tmp_path / "vgg.pth")
    with torch.no_grad():
        assert torch.allclose(network.features(network.trunk(image)), features(image), atol=1e-5)
    assert network.meta["untrained_vlad"]


@pytest.mark.parametrize(
    ("prefix", "std"), [("features.", (0.229, 0.224, 0.225)), ("base_model.base.", (1 / 255,) * 3)]
)
def test_images_are_normalised_as_the_weights_were_trained(tmp_path, features, prefix, std):
    torch.save(renamed(features, prefix), tmp_path / "vgg.pth")
    network = load_network(tmp_path / "vgg.pth")
    save_network(tmp_path / "ours.safetensors", network)
    assert network.backbone.std == load_network(tmp_path / "ours.safetensors").backbone.std == std


def test_a_checkpoint_of_the_paper_loads_with_its_netvlad(tmp_path, features, image):
    vlad = {"conv.weight": torch.randn(16, 512, 1, 1), "centroids": torch.randn(16, 512)}
    state = renamed(features, "module.base_model.base.")
    state |= {f"module.net_vlad.{name}": value for name, value in vlad.items()}
    checkpoint = {"state_dict": state, "epoch": 3, "generation": 2, "best_recall5": np.float64(0.9)}
    torch.save(checkpoint, tmp_path / "model_best.pth.tar")
    network = load_network(tmp_path / "model_best.pth.tar")
    assert network.dim == 16 * 512 and not network.meta["untrained_vlad"]
    assert torch.equal(network.vlad.conv.weight, vlad["conv.weight"])
    assert torch.equal(network.vlad.centroids, vlad["centroids"])


def test_numpy_scalars_of_old_numpy_are_read(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "best": np.float64(0.5)}, tmp_path / "new.pth")
    # numpy < 2 called the module numpy.core; protocol 2 names it in plain text.
    with (
        zipfile.ZipFile(tmp_path / "new.pth") as source,
        zipfile.ZipFile(tmp_path / "old.pth", "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(name, content)
    assert read_state(tmp_path / "old.pth")["a"].item() == 1


@pytest.mark.parametrize(
    "value",
    [np.int64(3), np.float32(0.5), np.float16(0.5), np.bool_(True), np.arange(3), np.ones(2, np.uint8)],
)
def test_numpy_values_of_any_number_type_may_stand_beside_the_weights(tmp_path, value):
    torch.save({"state_dict": {"a": torch.ones(1)}, "value": value}, tmp_path / "model.pth")
    assert read_state(tmp_path / "model.pth")["a"].item() == 1


def test_weights_are_read_with_a_numpy_that_has_no_module_core(tmp_path, monkeypatch):
    torch.save({"state_dict": {"a": torch.ones(1)}, "best": np.float64(0.5)}, tmp_path / "model.pth")
    monkeypatch.delattr(np, "_core")  # as in numpy 1.26
    assert read_state(tmp_path / "model.pth")["a"].item() == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("module.a.weight", "a.weight"),
        ("module.module.a.weight", "a.weight"),
        ("encoder.module.module.0.weight", "encoder.0.weight"),
        ("submodule.a.module", "submodule.a.module"),
    ],
)
def test_what_data_parallel_adds_to_names_is_taken_off(tmp_path, name, expected):
    torch.save({name: torch.ones(1)}, tmp_path / "model.pth")
    assert list(read_state(tmp_path / "model.pth")) == [expected]


class Malicious:
    def __reduce__(self):
        return print, ("code from a weights file ran",)


def test_code_in_a_weights_file_does_not_run(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="bad.pth: .*objects other than tensors"):
        read_state(tmp_path / "bad.pth")
    assert "ran" not in capsys.readouterr().out


def test_a_missing_layer_is_named(tmp_path, features):
    state = renamed(features, "features.")
    del state["features.21.bias"]
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(WeightsError, match=r"features.21.bias \(conv4_3\) is missing"):
        load_network(tmp_path / "vgg.pth")


def test_files_that_are_no_weights_are_named(tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")  # what a failed download leaves
    (tmp_path / "key.pth").write_text("hW")  # opcodes of pickle, without what they refer to
    (tmp_path / "index.pth").write_text("2323")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    texts = ("text.pth", "text.safetensors", "page.pth", "key.pth", "index.pth", "empty.pth")
    for name in (*texts, "list.pth", "other.pth", "missing.pth"):
        with pytest.raises(WeightsError, match=name):
            load_network(tmp_path / name)
