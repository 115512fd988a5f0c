"""Networks of other projects: files in their layouts, compared with a plain evaluation of their formulas."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import savemat
from torch import Tensor

from sfrs.models.foreign import WeightsError, vgg16_layers
from sfrs.models.network import load_network, save_network
from sfrs.models.whitening import Whitening
from sfrs.training.config import TrainConfig
from sfrs.training.preparation import build_network

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


@pytest.mark.parametrize(
    ("layout", "bias", "std", "cluster_minor"),
    [
        (of_the_paper, False, CAFFE, False),
        (of_patch_netvlad, False, IMAGENET, False),
        (of_patch_netvlad, True, IMAGENET, False),
        (of_the_benchmark, False, IMAGENET, False),
        (of_hloc, True, CAFFE, True),
    ],
)
@torch.no_grad()
def test_a_checkpoint_describes_as_its_project_does(
    tmp_path, tensors, image, features, layout: Callable, bias, std, cluster_minor
):
    torch.save(layout(tensors, bias), tmp_path / "model.pth.tar")
    network, whitening = load_network(tmp_path / "model.pth.tar"), Whitening.load(tmp_path / "model.pth.tar")
    vlad = residuals(features, tensors, bias)
    torch.testing.assert_close(network(image)[0], F.normalize(vlad.flatten(), dim=0), rtol=0, atol=1e-5)
    expected = whitened((vlad.T if cluster_minor else vlad).flatten(), tensors)
    torch.testing.assert_close(whitening.apply(network(image))[0], expected, rtol=0, atol=1e-5)
    assert network.backbone.std == std and network.meta["has_pca"] and not network.meta["untrained_vlad"]


@torch.no_grad()
def test_a_network_with_a_bias_is_saved_with_it(tmp_path, tensors, image):
    torch.save(of_patch_netvlad(tensors, bias=True), tmp_path / "model.pth")
    network = load_network(tmp_path / "model.pth")
    save_network(tmp_path / "ours.safetensors", network)
    assert torch.equal(load_network(tmp_path / "ours.safetensors")(image), network(image))


@pytest.mark.parametrize("bias", (False, True))
def test_another_number_of_clusters_keeps_whether_there_is_a_bias(tmp_path, tensors, bias):
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
@torch.no_grad()
def test_a_matconvnet_network_describes_as_in_matlab(tmp_path, tensors, image, features, bias):
    path = write_mat(tmp_path / "net.mat", layers_of_matconvnet(tensors, bias))
    network, whitening = load_network(path), Whitening.load(path)
    vlad = residuals(features, tensors, bias)
    torch.testing.assert_close(network(image)[0], F.normalize(vlad.flatten(), dim=0), rtol=0, atol=1e-5)
    column_by_column = torch.from_numpy(vlad.numpy()[None].flatten(order="F"))  # of [1, K, D]
    expected = whitened(column_by_column, tensors)
    torch.testing.assert_close(whitening.apply(network(image))[0], expected, rtol=0, atol=1e-5)
    assert network.backbone.std == CAFFE and network.meta["has_pca"]


def test_matconvnet_networks_that_compute_otherwise_are_refused(tmp_path, tensors):
    layers = layers_of_matconvnet(tensors, False)
    position = [layer["name"] for layer in layers].index("vlad:core")
    without_intra = layers[: position + 1] + layers[position + 2 :]
    for name, arguments, message in (
        ("object", (layers[:3] + [np.ones((2, 2))],), r"layer 4 is no struct .*cellfun\(@struct"),
        ("intra", (without_intra,), "normalize that intra-normalises beside vlad:core"),
        (
            "mean",
            (layers[:3], (104, 117, 124)),
            r"minus \[104.0, 117.0, 124.0\], .*\[123.68, 116.779, 103.939\]",
        ),
    ):
        path = write_mat(tmp_path / f"{name}.mat", *arguments)
        with pytest.raises(WeightsError, match=f"{name}.mat: .*{message}"):
            load_network(path)


def test_mat_files_without_a_network_are_named(tmp_path):
    savemat(tmp_path / "other.mat", {"x": np.ones(3)})
    (tmp_path / "text.mat").write_text("no MATLAB file" * 20)
    (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512))
    for name, message in (("other", "net.layers.* holds x"), ("text", "no MATLAB file"), ("new", "-v7.3")):
        with pytest.raises(WeightsError, match=f"{name}.mat: .*{message}"):
            load_network(tmp_path / f"{name}.mat")


@pytest.mark.parametrize("compressed", (False, True))
def test_damaged_mat_files_are_named(tmp_path, compressed):
    path = tmp_path / "damaged.mat"
    savemat(path, {"net": {"layers": cell(dict(type="conv", name="conv1_1"))}}, do_compression=compressed)
    content = path.read_bytes()
    for damaged in (content[:160], content[:-40], content[:140] + b"\xff" * 16 + content[156:]):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="damaged.mat: this is no MATLAB file"):
            load_network(path)


def test_a_mat_file_whose_layers_lack_their_weights_is_named(tmp_path):
    savemat(tmp_path / "net.mat", {"net": {"layers": cell(dict(type="conv", name="conv1_1"))}})
    with pytest.raises(WeightsError, match="net.mat: .*weights"):
        load_network(tmp_path / "net.mat")


def test_other_backbones_are_refused_by_the_shape_of_their_first_layer(tmp_path):
    torch.save({"backbone.0.weight": torch.ones(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=r"resnet.pth: .* \(conv1_1\) is \[64, 3, 7, 7\]; expected"):
        load_network(tmp_path / "resnet.pth")


def test_centroids_of_another_width_are_refused(tmp_path, tensors):
    state = of_the_paper(tensors, False) | {"net_vlad.centroids": torch.ones(K, 256)}
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(WeightsError, match=r"net_vlad.centroids .* is \[3, 256\]; expected \[K, 512\]"):
        load_network(tmp_path / "m.pth")


def test_a_whitening_alone_is_read(tmp_path, tensors):
    state = {key: value for key, value in of_the_paper(tensors, False).items() if key.startswith("pca")}
    torch.save(state, tmp_path / "pca.pth")
    assert torch.equal(Whitening.load(tmp_path / "pca.pth").projection, tensors["projection"])
