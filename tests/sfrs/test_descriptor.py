import numpy as np
import pytest
import torch

from sfrs.data.images import BadImageError, load_image
from sfrs.models.backbones import build_backbone
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork, load_network, save_network
from sfrs.models.whitening import Whitening


def test_descriptors_are_unit_vectors_of_k_times_d(tiny_network):
    descriptors = tiny_network(torch.randn(3, 3, 48, 64))
    assert descriptors.shape == (3, 4 * 6) and tiny_network.dim == 24
    assert torch.allclose(descriptors.norm(dim=1), torch.ones(3))


def test_quarters_add_up_to_the_descriptor(tiny_network):
    trunk = tiny_network.trunk(torch.randn(2, 3, 40, 72))  # an odd map, 5 x 9
    whole = tiny_network.quarters(trunk).sum(1)  # [B, K, D]
    whole = torch.nn.functional.normalize(whole, dim=2).flatten(1)
    whole = torch.nn.functional.normalize(whole, dim=1)
    assert torch.allclose(whole, tiny_network.descriptor(trunk), atol=1e-6)


def test_gradients_reach_head_and_vlad_only():
    network = DescriptorNetwork(build_backbone("vgg16"), 2)
    network(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is None for p in network.backbone.trunk.parameters())
    assert all(p.grad is not None for p in network.trained_parameters())
    trained = {id(p) for p in network.trained_parameters()}
    assert trained == {id(p) for p in network.parameters() if p.requires_grad}


def test_a_saved_network_is_rebuilt_with_its_options_and_meta(tmp_path, tiny_network):
    save_network(tmp_path / "deep/net.safetensors", tiny_network, {"image_size": [48, 64]})
    back = load_network(tmp_path / "deep/net.safetensors")
    images = torch.randn(2, 3, 48, 64)
    assert torch.equal(back(images), tiny_network(images))
    assert back.meta == {"image_size": [48, 64]} and not back.training
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["net.safetensors"]


def test_saving_over_a_network_replaces_it_and_keeps_its_meta(tmp_path, tiny_network):
    path = tmp_path / "net.safetensors"
    save_network(path, tiny_network, {"generation": 1})
    network = load_network(path)
    torch.nn.init.zeros_(network.vlad.centroids)
    save_network(path, network)
    back = load_network(path)
    assert back.meta == {"generation": 1} and back.vlad.centroids.abs().sum() == 0


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_describe_keeps_the_order_and_does_not_depend_on_batches(tiny_network, make_image, batch_size):
    sizes = [(48, 64)] * 4 + [(64, 48)] + [(48, 64)] * 3
    files = [make_image(f"{i}.png", scene=i, height=h, width=w) for i, (h, w) in enumerate(sizes)]
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (tiny_network.backbone.mean, tiny_network.backbone.std)
    )
    with torch.no_grad():
        expected = torch.cat([tiny_network((load_image(file) - mean)[None] / std) for file in files]).numpy()
    calls = []
    found = Model(tiny_network, size=None).encode(
        files, batch_size=batch_size, progress=lambda *call: calls.append(call)
    )
    assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-6)
    assert calls[-1] == (8, 8)


def test_describe_resizes_to_the_given_size(tiny_network, make_image):
    files = [make_image("a.png", height=48, width=64), make_image("b.png", height=96, width=128)]
    first, second = Model(tiny_network, size=(40, 40)).encode(files)
    assert np.allclose(first, second, atol=0.05) and not np.allclose(
        first, Model(tiny_network, size=None).encode(files)[0]
    )


def test_describe_whitens_batch_by_batch(tiny_network, make_image):
    files = [make_image(f"{i}.png", scene=i) for i in range(7)]
    descriptors = Model(tiny_network, size=None).encode(files)
    whitening = Whitening.fit(descriptors, 3)
    found = Model(tiny_network, whitening, size=None).encode(files, batch_size=2)
    assert found.shape == (7, 3)
    assert np.allclose(found, whitening.apply(torch.from_numpy(descriptors)).numpy(), atol=1e-4)


def test_describe_writes_where_it_is_told(tiny_network, make_image, tmp_path):
    files = [make_image(f"{i}.png", scene=i) for i in range(3)]
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(3, 24))
    assert Model(tiny_network, size=None).encode(files, out=rows) is rows
    assert np.allclose(np.load(tmp_path / "x.npy"), Model(tiny_network, size=None).encode(files))
    with pytest.raises(ValueError, match=r"out is \(2, 24\)"):
        Model(tiny_network, size=None).encode(files, out=np.empty((2, 24), np.float32))


def test_describe_names_a_bad_image(tiny_network, make_image, tmp_path):
    (tmp_path / "broken.jpg").write_text("no picture")
    with pytest.raises(BadImageError, match="broken.jpg"):
        Model(tiny_network, size=None).encode([make_image("a.png"), tmp_path / "broken.jpg"])


def test_describing_nothing_gives_no_rows(tiny_network):
    assert Model(tiny_network, size=None).encode([]).shape == (0, 24)


def test_a_network_can_be_trained_after_describing(tiny_network, make_image):
    Model(tiny_network, size=None).encode([make_image("a.png")])
    tiny_network(torch.randn(1, 3, 48, 64)).sum().backward()
    assert all(p.grad is not None for p in tiny_network.trained_parameters())
