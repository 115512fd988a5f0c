"""Networks of other projects: files in their layouts, compared with a plain evaluation of their formulas."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import savemat
from torch import Tensor

from sfrs.models.backbones import vgg16_layers
from sfrs.models.foreign import Weights, read_weights
from sfrs.models.network import load_network, save_network
from sfrs.models.weights_file import WeightsError
from sfrs.models.whitening import Whitening
from sfrs.runtime import array_files
from sfrs.runtime.array_files import run_child
from sfrs.training.config import TrainConfig
from sfrs.training.preparation import build_network

pytestmark = pytest.mark.slow

K, D, DIM = 3, 512, 5
CAFFE, IMAGENET = (1 / 255,) * 3, (0.229, 0.224, 0.225)
MEAN = (123.68, 116.779, 103.939)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """VGG16's convolutions by index, and NetVLAD and whitening in the form of their formulas."""
    generator = torch.Generator().manual_seed(5)
    found, channels = {}, 3
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    for index, width in zip(vgg16_layers().values(), widths, strict=True):
        scale = (2 / (9 * channels)) ** 0.5
        found[f"{index}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * scale
        found[f"{index}.bias"] = torch.randn(width, generator=generator) * 0.1
        channels = width
    found["assignment"] = 20 * torch.randn(K, D, generator=generator)
    found["bias"] = torch.randn(K, generator=generator)
    found["centroids"] = torch.randn(K, D, generator=generator) * 0.1
    found["projection"] = torch.randn(DIM, K * D, generator=generator)
    found["offset"] = torch.randn(DIM, generator=generator)
    return found


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(6))


@pytest.fixture(scope="module")
def features(tensors, image) -> Tensor:
    """What conv5_3 gives, ``[1, D, P]``, normalised."""
    x, pools = image, (2, 4, 7, 10)
    for number, index in enumerate(vgg16_layers().values()):
        x = F.max_pool2d(F.relu(x), 2) if number in pools else F.relu(x) if number else x
        x = F.conv2d(x, tensors[f"{index}.weight"], tensors[f"{index}.bias"], padding=1)
    return F.normalize(x, dim=1).flatten(2)


def residuals(features: Tensor, tensors: dict[str, Tensor], bias: bool) -> Tensor:
    """Intra-normalised VLAD ``[K, D]`` of the image."""
    logits = tensors["assignment"] @ features[0]
    assignment = (logits + tensors["bias"][:, None] if bias else logits).softmax(0)
    vlad = (assignment.unsqueeze(1) * (features - tensors["centroids"].unsqueeze(2))).sum(2)
    return F.normalize(vlad, dim=1)


def whitened(descriptor: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    return F.normalize(tensors["projection"] @ F.normalize(descriptor, dim=0) + tensors["offset"], dim=0)


def numbered(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in tensors.items() if key[0].isdigit()}


def of_the_paper(tensors, bias):
    return numbered(tensors, "base_model.base.") | {
        "net_vlad.conv.weight": tensors["assignment"][:, :, None, None],
        "net_vlad.centroids": tensors["centroids"],
        "pca_layer.weight": tensors["projection"][:, :, None, None],
        "pca_layer.bias": tensors["offset"],
    }


def of_patch_netvlad(tensors, bias):
    state = numbered(tensors, "encoder.module.") | {
        "pool.module.conv.weight": tensors["assignment"][:, :, None, None],
        "pool.module.centroids": tensors["centroids"],
        "WPCA.0.weight": tensors["projection"].double()[:, :, None, None],
        "WPCA.0.bias": tensors["offset"].double(),
    }
    state |= {"pool.module.conv.bias": tensors["bias"]} if bias else {}
    recalls = {1: np.float64(0.5), 5: np.float64(0.7)}
    return {"state_dict": state, "epoch": 3, "recalls": recalls, "best_score": np.float64(0.7)}


def of_the_benchmark(tensors, bias):
    state = numbered(tensors, "module.backbone.") | {
        "module.aggregation.0.conv.weight": tensors["assignment"][:, :, None, None],
        "module.aggregation.0.centroids": tensors["centroids"],
        "module.aggregation.1.weight": tensors["projection"],
        "module.aggregation.1.bias": tensors["offset"],
    }
    return {"model_state_dict": state, "recalls": np.array([0.5, 0.7]), "best_r5": 0.7}


def of_hloc(tensors, bias):
    state = numbered(tensors, "backbone.") | {
        "netvlad.score_proj.weight": tensors["assignment"][:, :, None],
        "netvlad.centers": tensors["centroids"].T.contiguous(),
        "whiten.weight": tensors["projection"],
        "whiten.bias": tensors["offset"],
    }
    return state | ({"netvlad.score_proj.bias": tensors["bias"]} if bias else {})


@torch.no_grad()
def test_a_checkpoint_describes_as_its_project_does(tmp_path, tensors, image, features):
    torch.save(of_patch_netvlad(tensors, bias=True), tmp_path / "model.pth.tar")
    network = load_network(tmp_path / "model.pth.tar")
    vlad = residuals(features, tensors, bias=True)
    torch.testing.assert_close(network(image)[0], F.normalize(vlad.flatten(), dim=0), rtol=0, atol=1e-5)
    assert network.backbone.std == (0.229, 0.224, 0.225) and network.meta["has_pca"]
    assert not network.meta["untrained_vlad"]
    save_network(tmp_path / "ours.safetensors", network)
    assert torch.equal(load_network(tmp_path / "ours.safetensors")(image), network(image))


@pytest.mark.parametrize(
    ("layout", "bias", "inputs", "cluster_minor"),
    [
        (of_the_paper, False, "caffe", False),
        (of_patch_netvlad, False, "imagenet", False),
        (of_the_benchmark, False, "imagenet", False),
        (of_hloc, True, "caffe", True),
    ],
)
def test_a_checkpoint_is_read_in_our_names(tmp_path, tensors, layout: Callable, bias, inputs, cluster_minor):
    torch.save(layout(tensors, bias), tmp_path / "model.pth.tar")
    weights = read_weights(tmp_path / "model.pth.tar")
    assert weights.description["options"] == {"inputs": inputs} and weights.description["bias"] == bias
    for name, index in vgg16_layers().items():
        assert torch.equal(weights.tensors[f"backbone.{name}.weight"], tensors[f"{index}.weight"])
        assert torch.equal(weights.tensors[f"backbone.{name}.bias"], tensors[f"{index}.bias"])
    check_vlad(weights, tensors, bias, cluster_minor)


def check_vlad(weights: Weights, tensors: dict[str, Tensor], bias: bool, cluster_minor: bool) -> None:
    """Check NetVLAD's tensors, and what the whitening makes of a descriptor."""
    assert torch.equal(weights.tensors["vlad.conv.weight"].flatten(1), tensors["assignment"])
    assert torch.equal(weights.tensors["vlad.centroids"], tensors["centroids"])
    assert not bias or torch.equal(weights.tensors["vlad.conv.bias"], tensors["bias"])
    vlad = F.normalize(torch.randn(K, D, generator=torch.Generator().manual_seed(7)), dim=1) / K**0.5
    found = Whitening.of(weights).apply(vlad.flatten()[None])[0]
    expected = whitened((vlad.T if cluster_minor else vlad).flatten(), tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_whitening_alone_is_read_with_or_without_a_bias(tmp_path, tensors):
    state = of_hloc(tensors, False)
    torch.save({"model": {"whiten.weight": state["whiten.weight"]}}, tmp_path / "pca.pth")
    whitening = Whitening.load(tmp_path / "pca.pth")
    assert torch.equal(whitening.bias, torch.zeros(DIM))
    rows = tensors["projection"].unflatten(1, (D, K)).transpose(1, 2).flatten(1)
    assert torch.equal(whitening.projection, rows)


def test_another_number_of_clusters_keeps_whether_there_is_a_bias(tmp_path, tensors, bias=True):
    torch.save(of_patch_netvlad(tensors, bias), tmp_path / "model.pth")
    config = TrainConfig(weights=str(tmp_path / "model.pth"), clusters=K + 1)
    network = build_network(config)
    assert network.vlad.num_clusters == K + 1 and (network.vlad.conv.bias is not None) == bias


def cell(*items) -> np.ndarray:
    array = np.empty((1, len(items)), dtype=object)
    array[0, :] = items
    return array


def layers_of_matconvnet(tensors: dict[str, Tensor], bias: bool) -> list[dict]:
    """The layers of the release; its arrays are HWIO, and what NetVLAD adds is minus the centroids."""
    found = []
    for name, index in vgg16_layers().items():
        weight = tensors[f"{index}.weight"].permute(2, 3, 1, 0).numpy()
        weights = cell(weight, tensors[f"{index}.bias"].numpy()[None])
        found.append(dict(type="conv", name=name.split(".")[1], weights=weights, stride=1, pad=1))
        found.append(dict(type="relu", name=f"relu of {name}", weights=np.empty((1, 0), dtype=object)))
        if index in (2, 7, 14, 21):
            found.append(dict(type="pool", name=f"pool behind {name}", pool=np.array([[2, 2]]), stride=2))
    found.pop()
    normalize = dict(type="normalize", param=np.array([[2 * D, 1e-12, 1, 0.5]]))
    assignment = tensors["assignment"].T.numpy()[None, None]  # [1, 1, D, K]
    offset = -tensors["centroids"].T.numpy()[None, None]
    arrays = (assignment, tensors["bias"].numpy()[None], offset) if bias else (assignment, offset)
    found.append(normalize | dict(name="preL2"))
    found.append(dict(type="custom", name="vlad:core", K=K, D=D, weights=cell(*arrays)))
    found.append(normalize | dict(name="vlad:intranorm"))
    found.append(dict(type="custom", name="postL2"))
    projection = tensors["projection"].T.numpy()[None, None]  # [1, 1, K * D, DIM]
    found.append(dict(type="conv", name="WPCA", weights=cell(projection, tensors["offset"].numpy()[:, None])))
    found.append(dict(type="custom", name="finalL2"))
    return found


def write_mat(path: Path, layers: list, mean=MEAN) -> Path:
    average = np.broadcast_to(np.float32(mean), (4, 4, 3))
    savemat(path, {"net": {"layers": cell(*layers), "meta": {"normalization": {"averageImage": average}}}})
    return path


@pytest.mark.parametrize("bias", (False, True), ids=("vlad", "vladv2"))
def test_a_matconvnet_network_is_read_in_our_names(tmp_path, tensors, bias):
    weights = read_weights(write_mat(tmp_path / "net.mat", layers_of_matconvnet(tensors, bias)))
    assert weights.description["options"] == {"inputs": "caffe"}
    for name, index in vgg16_layers().items():
        assert torch.equal(weights.tensors[f"backbone.{name}.weight"], tensors[f"{index}.weight"])
        assert torch.equal(weights.tensors[f"backbone.{name}.bias"], tensors[f"{index}.bias"])
    check_vlad(weights, tensors, bias, cluster_minor=True)  # MATLAB's arrays lie column by column


def test_matconvnet_networks_that_compute_otherwise_are_refused(tmp_path, tensors):
    layers = layers_of_matconvnet(tensors, False)
    position = [layer["name"] for layer in layers].index("vlad:core")
    without_intra = layers[position - 1 : position + 1] + layers[position + 2 :]
    another = dict(type="conv", name="reduce", weights=layers[0]["weights"])
    for name, arguments, message in (
        ("object", (layers[:3] + [np.ones((2, 2))],), r"layer 4 is no struct .*cellfun\(@struct"),
        ("intra", (without_intra,), "normalize that intra-normalises beside vlad:core"),
        ("two", (layers[position - 1 :] + [another],), "one convolution that whitens .*, not WPCA, reduce"),
        (
            "mean",
            (layers[:3], (104, 117, 124)),
            r"minus \[104.0, 117.0, 124.0\], .*\[123.68, 116.779, 103.939\]",
        ),
    ):
        path = write_mat(tmp_path / f"{name}.mat", *arguments)
        with pytest.raises(WeightsError, match=f"{name}.mat: .*{message}"):
            load_network(path)


def test_a_mat_file_without_a_network_is_named(tmp_path):
    savemat(tmp_path / "other.mat", {"x": np.ones(3)})
    with pytest.raises(WeightsError, match="other.mat: .*net.layers.* holds x"):
        load_network(tmp_path / "other.mat")


def test_damaged_mat_files_are_named_also_where_they_kill_their_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "run_child", run_child)
    path = tmp_path / "damaged.mat"
    savemat(path, {"net": {"layers": cell(dict(type="conv", name="conv1_1"))}})
    whole = path.read_bytes()
    with pytest.raises(WeightsError, match="damaged.mat: weights of the layer conv1_1 are not 2 arrays"):
        load_network(path)
    flipped = bytearray(whole)
    flipped[216] ^= 4  # SciPy 1.17 ends with a segmentation fault
    for damaged in (whole[:-40], flipped):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="damaged.mat: this MATLAB file cannot be read"):
            load_network(path)
    monkeypatch.setattr(array_files, "CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(WeightsError, match="damaged.mat: .*damaged, it kills its reader with signal 11"):
        load_network(path)
