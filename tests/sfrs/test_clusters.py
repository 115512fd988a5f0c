import pytest
import torch
import torch.nn.functional as F

from sfrs.models.fitting import TooFewFeaturesError, init_vlad_from_images, kmeans, sample_features
from sfrs.models.model import Model


def test_kmeans_finds_separate_groups():
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(5, 8, generator=generator)
    points = (centres[:, None] + 0.1 * torch.randn(5, 40, 8, generator=generator)).flatten(0, 1)
    found = kmeans(points, 5)
    assert torch.cdist(centres, found).min(dim=1).values.max() < 0.2


def test_kmeans_repeats_with_its_seed():
    points = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kmeans(points, 6, seed=3), kmeans(points, 6, seed=3))
    assert not torch.equal(kmeans(points, 6, seed=3), kmeans(points, 6, seed=4))


def test_an_iteration_of_kmeans_moves_each_centre_to_the_mean_of_its_points():
    points = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    for iterations in (1, 2):
        nearest = torch.cdist(points, kmeans(points, 6, iterations=iterations)).argmin(dim=1)
        means = torch.stack([points[nearest == cluster].mean(dim=0) for cluster in range(6)])
        torch.testing.assert_close(kmeans(points, 6, iterations=iterations + 1), means)


def test_kmeans_needs_a_feature_per_cluster():
    with pytest.raises(TooFewFeaturesError, match="3 local features for 4 clusters"):
        kmeans(torch.randn(3, 8), 4)


def test_sampled_features_are_normalised_positions_of_every_image(tiny_network):
    trunks = [tiny_network.trunk(torch.randn(2, 3, 48, 64)), tiny_network.trunk(torch.randn(1, 3, 24, 16))]
    samples = sample_features(tiny_network, trunks, 10, torch.Generator().manual_seed(0))
    assert samples.shape == (10 + 10 + 6, 6)
    assert torch.allclose(samples.norm(dim=1), torch.ones(26))
    positions = F.normalize(tiny_network.features(trunks[0]).flatten(2), dim=1)[0].T
    assert (torch.cdist(samples[:10], positions).min(dim=1).values < 1e-3).all()


def test_vlad_starts_from_cluster_centres_of_the_images(tiny_network, make_image):
    files = [make_image(f"{i}.png", scene=i) for i in range(12)]
    alpha = init_vlad_from_images(Model(tiny_network, size=None), files, images=10, per_image=20, seed=1)
    vlad = tiny_network.vlad
    unit = F.normalize(vlad.centroids, dim=1)
    assert torch.allclose(vlad.weight, alpha * unit, rtol=1e-4)
    assert (vlad.centroids.norm(dim=1) <= 1 + 1e-5).all(), "means of unit vectors"
    before = vlad.centroids.detach().clone()
    init_vlad_from_images(Model(tiny_network, size=None), files, images=10, per_image=20, seed=1)
    assert torch.equal(before, vlad.centroids)
