"""Half precision and a compiled trunk: as good as float32, and never where it matters."""

import pytest
import torch
from tiny_training import SIZE, network_of_seed, tiny_config

from sfrs.data.neighbourhood import Neighbourhood
from sfrs.features.on_the_fly import FrozenTrunk
from sfrs.features.source import describe_features
from sfrs.models.autocast import autocast, loss_scale
from sfrs.models.backbones import build_backbone
from sfrs.models.network import DescriptorNetwork
from sfrs.training.epoch import Epoch
from sfrs.training.mining import Miner, Tuples
from sfrs.training.preparation import build_features, training_images
from sfrs.training.step import StudentTeacher, sgd, tuple_losses
from sfrs.training.trainer import train

pytestmark = pytest.mark.slow

SPOTS = (8, 6)

HALF = ("bfloat16", "float16")
TUPLES = Tuples(
    torch.tensor([4, 0]),
    torch.tensor([12, 1]),
    torch.tensor([[1, 7, 20], [12, 23, 7]]),
    torch.tensor([[13, 12], [2, -1]]),
)


@pytest.fixture
def photos():
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def prepared(places, config):
    network = network_of_seed()
    images = training_images(config, network, places[0], build_features(config, network, places).train)
    teacher = network_of_seed(1).eval().requires_grad_(False)
    miner = Miner(Neighbourhood.of_places(places[0], config.positive_radius, config.negative_radius), config)
    return StudentTeacher(2, network, teacher, sgd(network, config), miner), images


@pytest.mark.parametrize("name", HALF)
def test_losses_and_gradients_under_autocast_are_close_to_those_in_float32(places, name):
    results = []
    for kind in ("off", name):
        config = tiny_config(autocast=kind)
        generation, images = prepared(places, config)
        losses = tuple_losses(generation, TUPLES, images, config)
        assert losses.hard_by_tuple.dtype == losses.soft_by_tuple.dtype == torch.float32
        scale = loss_scale(kind)
        parameters = list(generation.student.trained_parameters())
        gradients = torch.autograd.grad(scale * (losses.hard + 0.5 * losses.soft), parameters)
        results.append((losses, [gradient / scale for gradient in gradients]))
    (exact, gradients), (losses, rounded) = results
    torch.testing.assert_close(losses.hard_by_tuple, exact.hard_by_tuple, rtol=0.02, atol=0.01)
    torch.testing.assert_close(losses.soft_by_tuple, exact.soft_by_tuple, rtol=0.02, atol=0.01)
    assert not torch.equal(losses.hard_by_tuple, exact.hard_by_tuple)
    for ours, right in zip(rounded, gradients, strict=True):
        assert (ours - right).norm() <= 0.05 * right.norm()


@pytest.mark.parametrize("name", HALF)
def test_an_epoch_under_autocast_moves_the_weights_as_one_in_float32(places, name):
    """A gradient that vanished, or was left scaled, would show."""
    moved = []
    for kind in ("off", name):
        config = tiny_config(autocast=kind, learning_rate=0.001, cache_dtype="float32")
        generation, images = prepared(places, config)
        before = torch.cat([p.detach().flatten().clone() for p in generation.student.trained_parameters()])
        Epoch(generation, 1, images, config).train()
        after = torch.cat([p.detach().flatten() for p in generation.student.trained_parameters()])
        moved.append(after - before)
    assert (moved[1] - moved[0]).norm() < 0.05 * moved[0].norm()


def test_tiny_gradients_survive_float16(places):
    config = tiny_config(autocast="float16")
    generation, images = prepared(places, config)
    losses = tuple_losses(generation, TUPLES, images, config)
    weight = generation.student.backbone.head.weight
    total = 1e-4 * losses.hard
    vanished = torch.autograd.grad(total, weight, retain_graph=True)[0]
    scale = loss_scale("float16")
    kept = torch.autograd.grad(scale * total, weight)[0] / scale
    config = config.changed(autocast="off")
    right = torch.autograd.grad(1e-4 * tuple_losses(generation, TUPLES, images, config).hard, weight)[0]
    assert (kept - right).norm() < 0.05 * right.norm() < (vanished - right).norm()


@pytest.mark.parametrize("name", HALF)
def test_trunk_outputs_under_autocast_are_float32_and_close(photos, name):
    network = network_of_seed()
    plain, rounded = (FrozenTrunk(network, autocast=kind)(photos) for kind in ("off", name))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, plain, rtol=0.02, atol=0.02)


def test_mining_descriptors_are_float32_whatever_the_autocast(places):
    described = []
    for kind in ("off", "bfloat16"):
        config = tiny_config(autocast=kind, cache_dtype="float32")
        generation, images = prepared(places, config)
        described.append(describe_features(generation.student, images.mining, torch.arange(10)))
    assert described[0].dtype == torch.float32
    torch.testing.assert_close(*described, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("name", HALF)
def test_a_whole_run_under_autocast(places, tmp_path, name):
    config = tiny_config(autocast=name, epochs=(1,), jitter=(0.4, 0.4, 0.4, 0.1))
    result = train(places, config, tmp_path / "run", network=network_of_seed())
    assert all(parameter.dtype == torch.float32 for parameter in result.network().parameters())
    assert len(result.generations) == 2


def test_off_means_off():
    with autocast("off", "cpu"):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
    assert loss_scale("off") == loss_scale("bfloat16") == 1


def test_a_compiled_trunk_gives_the_same_outputs(photos):
    network = network_of_seed()
    plain = FrozenTrunk(network)(photos)
    compiled = FrozenTrunk(network, compiled=True)
    torch.testing.assert_close(compiled(photos), plain)
    assert compiled.run is not network.backbone.trunk
    torch.testing.assert_close(compiled(photos[:2]), plain[:2])


def test_without_a_compiler_the_trunk_runs_and_says_so(photos, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("\nno working C++ compiler was found")

    monkeypatch.setattr("torch.compile", lambda module: broken)
    network = network_of_seed()
    trunk = FrozenTrunk(network, compiled=True)
    with pytest.warns(UserWarning, match=r"--compile-trunk: the trunk runs uncompiled \(no working C\+\+"):
        outputs = trunk(photos)
    assert torch.equal(outputs, FrozenTrunk(network)(photos))
    assert torch.equal(trunk(photos), outputs)  # without another warning, which would be an error


def test_an_error_of_the_trunk_itself_is_not_taken_for_one_of_the_compiler(monkeypatch):
    with pytest.raises(RuntimeError, match="size"):
        FrozenTrunk(network_of_seed())(torch.zeros(2, 3, 4, 4))


def test_the_fingerprint_tells_trunks_apart():
    torch.manual_seed(0)
    networks = [DescriptorNetwork(build_backbone("gradient"), 4) for _ in range(2)]
    trunks = [FrozenTrunk(network) for network in (*networks, network_of_seed())]
    ours, same, other = (trunk.fingerprint() for trunk in trunks)
    assert ours == same != other  # heads and NetVLAD do not count
    networks[1].backbone.mean = (0.5, 0.5, 0.4)
    assert trunks[1].fingerprint() != ours
    next(value for value in networks[0].backbone.trunk.buffers() if value.is_floating_point()).add_(1)
    assert trunks[0].fingerprint() != ours
