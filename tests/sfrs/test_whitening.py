import numpy as np
import pytest
import torch

from sfrs.models.weights_file import WeightsError
from sfrs.models.whitening import Whitening


def correlated(n: int, d: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, d)) @ random.normal(size=(d, d)) + random.normal(size=d)).astype(
        np.float32
    )


def projected(whitening: Whitening, x: np.ndarray) -> np.ndarray:
    return (
        torch.nn.functional.linear(torch.from_numpy(x), whitening.projection, whitening.bias).double().numpy()
    )


@pytest.mark.parametrize(("n", "d", "dim"), [(40, 150, 20), (400, 30, 30), (400, 30, 10), (30, 3000, 29)])
def test_whitened_data_has_no_mean_and_unit_covariance(n, d, dim):
    x = correlated(n, d)
    y = projected(Whitening.fit(x, dim), x)
    assert y.shape == (n, dim)
    assert np.abs(y.mean(axis=0)).max() < 1e-4
    assert np.abs(np.cov(y.T) - np.eye(dim)).max() < 1e-3


@pytest.mark.parametrize(("n", "d"), [(25, 60), (60, 25), (25, 25)])
def test_directions_are_those_of_the_svd(n, d):
    x = correlated(n, d)
    whitening = Whitening.fit(x, 10)
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    expected = directions[:10] / (singular[:10, None] / np.sqrt(n - 1))
    signs = np.sign((whitening.projection.numpy() * expected).sum(axis=1, keepdims=True))
    assert np.allclose(whitening.projection.numpy() * signs, expected, rtol=1e-4, atol=1e-7)


def test_directions_without_variance_are_dropped():
    x = np.zeros((40, 12), np.float32)
    x[:, :3] = correlated(40, 3)
    assert Whitening.fit(x, 12).dim == 3
    assert Whitening.fit(correlated(5, 12), 12).dim == 4, "5 points span 4 directions"
    assert torch.isfinite(Whitening.fit(x, 12).projection).all()


def test_output_is_of_unit_length():
    x = correlated(40, 20)
    y = Whitening.fit(x, 8).apply(torch.from_numpy(x))
    assert torch.allclose(y.norm(dim=1), torch.ones(40))


def test_a_seeded_sample_of_the_images_is_used():
    x = correlated(300, 10)
    first, second = (Whitening.fit(x, 4, max_images=50, seed=1) for _ in range(2))
    assert torch.equal(first.projection, second.projection)
    assert not torch.equal(first.projection, Whitening.fit(x, 4, max_images=50, seed=2).projection)


def test_a_saved_whitening_is_read_back(tmp_path):
    whitening = Whitening.fit(correlated(40, 20), 8)
    whitening.save(tmp_path / "deep/pca.safetensors")
    back = Whitening.load(tmp_path / "deep/pca.safetensors")
    assert torch.equal(back.projection, whitening.projection) and torch.equal(back.bias, whitening.bias)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["pca.safetensors"]


def test_the_papers_pca_layer_is_read(tmp_path):
    weight, bias = torch.randn(8, 20, 1, 1), torch.randn(8)
    torch.save({"pca_layer.weight": weight, "pca_layer.bias": bias}, tmp_path / "paper.pth")
    whitening = Whitening.load(tmp_path / "paper.pth")
    x = torch.randn(3, 20)
    expected = torch.nn.functional.normalize(torch.conv2d(x[:, :, None, None], weight, bias).flatten(1))
    assert torch.allclose(whitening.apply(x), expected, atol=1e-6)


def test_wrong_input_is_explained(tmp_path):
    with pytest.raises(ValueError, match="expected n >= 2"):
        Whitening.fit(correlated(1, 4), 2)
    with pytest.raises(ValueError, match="dim in 1..4"):
        Whitening.fit(correlated(9, 4), 5)
    with pytest.raises(ValueError, match="all descriptors are equal"):
        Whitening.fit(np.ones((5, 8), np.float32), 2)
    with pytest.raises(WeightsError, match="fitted to descriptors of 4 numbers, but this network's have 5"):
        Whitening.fit(correlated(9, 4), 2).apply(torch.zeros(1, 5))
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="and no whitening.*it has other"):
        Whitening.load(tmp_path / "other.pth")
