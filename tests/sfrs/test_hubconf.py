"""``torch.hub.load`` of this folder, as another program calls it: in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfrs.models.backbones import build_backbone
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork, save_network
from sfrs.models.whitening import Whitening

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def load(arguments: str, folder: Path) -> subprocess.CompletedProcess:
    """Describe images.pt, where there is one, with the hub's model, into out.pt."""
    program = (
        "import sys, torch; sys.modules['torchvision'] = None\n"
        f"model = torch.hub.load({str(ROOT)!r}, 'vgg16_netvlad', source='local', {arguments})\n"
        "torch.save(model(torch.load('images.pt')).detach(), 'out.pt')\n"
    )
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def images(tmp_path) -> torch.Tensor:
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    torch.save(images, tmp_path / "images.pt")
    return images


def test_the_hub_loads_weights_and_whitening_from_a_file(tmp_path, images):
    torch.manual_seed(0)
    network = DescriptorNetwork(build_backbone("vgg16"), 2)
    whitening = Whitening(torch.randn(5, network.dim), torch.randn(5))
    save_network(tmp_path / "net.safetensors", network, whitening=whitening)
    done = load("weights='net.safetensors'", tmp_path)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = Model(network, whitening)(images)
    assert torch.equal(torch.load(tmp_path / "out.pt"), expected) and expected.shape == (2, 5)


def test_without_weights_the_hub_says_that_they_are_random(tmp_path, images):
    done = load("clusters=3", tmp_path)
    assert done.returncode == 0 and "random weights, to try the path" in done.stderr
    assert torch.load(tmp_path / "out.pt").shape == (2, 3 * 512)


def test_the_hub_does_not_pretend_to_have_weights(tmp_path):
    done = load("pretrained=True", tmp_path)
    assert done.returncode and "no weights are published under this project's name" in done.stderr


def test_another_backbone_is_not_taken_for_vgg16(tmp_path):
    save_network(tmp_path / "net.safetensors", DescriptorNetwork(build_backbone("gradient"), 2))
    done = load("weights='net.safetensors'", tmp_path)
    assert done.returncode and "'gradient'; load it with sfrs.load" in done.stderr
