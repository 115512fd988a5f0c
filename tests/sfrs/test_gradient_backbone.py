"""What the gradient backbone and its pretext promise."""

from dataclasses import replace

import pytest
import torch

from sfrs.data.places import load_places
from sfrs.models.backbones import build_backbone
from sfrs.models.gradient import BINS, CELL, TRUNK_CHANNELS
from sfrs.models.network import DescriptorNetwork, load_network, save_network
from sfrs.synthetic.city.write import pretext_config, write_city
from sfrs.synthetic.pretext import pretrain, view_pairs

ORIENTATIONS = 2 * BINS


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return build_backbone("gradient")


def _step_edge(angle: int) -> torch.Tensor:
    """An edge, dark to bright along +x, turned by a multiple of 90 degrees; [1, 3, 48, 48]."""
    image = torch.full((1, 3, 48, 48), 0.2)
    image[..., 20:] = 0.8
    return torch.rot90(image, angle, dims=(2, 3))


def test_trunk_gives_one_position_per_cell(backbone):
    assert backbone.trunk(torch.rand(3, 3, 128, 160)).shape == (3, TRUNK_CHANNELS, 128 // CELL, 160 // CELL)
    assert backbone.trunk(torch.rand(1, 3, 100, 75)).shape == (1, TRUNK_CHANNELS, 100 // CELL, 75 // CELL)
    assert backbone.stride == CELL


def test_trunk_of_an_image_does_not_depend_on_its_batch(backbone):
    images = torch.rand(7, 3, 64, 64)
    together = backbone.trunk(images)
    assert torch.equal(together[5:6], backbone.trunk(images[5:6]))


def test_orientation_is_signed_and_turns_with_the_image(backbone):
    strongest = [backbone.trunk(_step_edge(k))[0, :BINS].sum((1, 2)).argmax().item() for k in range(4)]
    # rot90 turns anticlockwise, bins run clockwise on the screen (rows grow downwards).
    assert strongest == [0, BINS * 3 // 4, BINS // 2, BINS // 4]


def test_orientations_hardly_change_with_the_strength_of_the_light(backbone):
    image = torch.rand(2, 3, 64, 64) * 0.5 + 0.3
    bright, dim = (backbone.trunk(image * gain)[:, :ORIENTATIONS] for gain in (1.0, 0.6))
    other = backbone.trunk(torch.rand(2, 3, 64, 64) * 0.5 + 0.3)[:, :ORIENTATIONS]
    assert (bright - dim).abs().mean() < 0.1 * (bright - other).abs().mean()


def test_colour_channels_tell_red_from_blue(backbone):
    red, blue = torch.zeros(2, 1, 3, 16, 16)
    red[:, 0], blue[:, 2] = 0.6, 0.6
    first, second = (backbone.trunk(image)[0, ORIENTATIONS : ORIENTATIONS + 2, 0, 0] for image in (red, blue))
    assert first[0] > 0.5 and second[1] < -0.5


def test_only_the_head_gets_gradients(backbone):
    features = backbone.head(backbone.trunk(torch.rand(2, 3, 64, 64)))
    features.square().sum().backward()
    assert not list(backbone.trunk.parameters())
    assert all(p.grad is not None for p in backbone.head.parameters())


def test_the_head_starts_as_a_pca(backbone):
    trunk = backbone.trunk(torch.rand(20, 3, 64, 64))
    backbone.init_pca(trunk, power=0.5)
    features = backbone.head(trunk)[:, :, 1:-1, 1:-1]  # the border sees padding
    flat = features.permute(0, 2, 3, 1).reshape(-1, backbone.channels).double()
    assert flat.mean(0).abs().max() < 1e-3
    patches = torch.cov(flat.T)
    assert torch.allclose(patches.diagonal(), torch.ones(64).double(), atol=0.05)
    assert (patches - torch.diag(patches.diagonal())).abs().max() < 0.05


def test_pca_of_too_few_patches_is_refused(backbone):
    with pytest.raises(ValueError, match="4 patches for 64 components"):
        backbone.init_pca(torch.rand(1, TRUNK_CHANNELS, 4, 4)[:, :, :4, :4])


def test_a_saved_network_gives_the_same_descriptors(backbone, tmp_path):
    network = DescriptorNetwork(backbone, 4).eval()
    save_network(tmp_path / "n.safetensors", network, {})
    image = torch.rand(1, 3, 64, 80)
    assert torch.equal(load_network(tmp_path / "n.safetensors")(image), network(image))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pretext")
    config = pretext_config("small")
    quarter = config.quarters["pretext"]
    few = replace(
        quarter, database=replace(quarter.database, spacing=30.0), queries=replace(quarter.queries, count=30)
    )
    write_city(root, replace(config, quarters={"pretext": few}))
    return view_pairs(load_places(root, "pretext"))


def test_pairs_show_one_view(pairs):
    assert len(pairs) == 30
    for query, view in pairs:
        a, b = query.name.split("@"), view.name.split("@")
        assert abs(float(a[1]) - float(b[1])) < 1.01 and abs(float(a[2]) - float(b[2])) < 1.01
        assert abs((float(a[9]) - float(b[9]) + 180) % 360 - 180) < 6.2
        assert a[13][:4] != b[13][:4]  # another year


def test_the_pretext_is_reproducible_and_brings_pairs_together(pairs):
    options = dict(size=(64, 80), clusters=4, batch=16)
    start, once, again = (pretrain(pairs, steps=steps, **options) for steps in (1, 15, 15))
    weight = "backbone.head.projection.weight"
    assert torch.equal(once.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(once.state_dict()[weight], start.state_dict()[weight])


def test_a_pair_without_a_view_is_named(pairs, tmp_path):
    for role, file in (("queries", pairs[0][0]), ("database", pairs[1][1])):
        folder = tmp_path / "images/pretext" / role
        folder.mkdir(parents=True)
        (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="shows no view of the database"):
        view_pairs(load_places(tmp_path, "pretext"))
