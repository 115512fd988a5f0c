"""Published networks by name: downloaded once, verified, read like any file; here from ``file://``."""

import hashlib
import io
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from sfrs.models import published
from sfrs.models.backbones import VGG16_INPUTS, build_backbone, vgg16_layers
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork
from sfrs.models.published import PUBLISHED, DownloadError, PublishedNetwork
from sfrs.models.weights_file import WeightsError

NAME = "town/tiny"


@pytest.fixture
def weights(tmp_path, tiny_network) -> Path:
    """A file on another machine, which the test's table publishes as NAME."""
    file = tmp_path / "elsewhere/tiny.safetensors"
    file.parent.mkdir()
    Model(tiny_network, size=(32, 48)).save(file)
    return file


@pytest.fixture
def publish(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))

    def add(sha256: str = hashlib.sha256(weights.read_bytes()).hexdigest(), url: str = weights.as_uri()):
        monkeypatch.setitem(PUBLISHED, NAME, PublishedNetwork(url, "MIT", "a test", sha256))

    add()
    return add


@pytest.fixture
def cached(tmp_path) -> Path:
    return tmp_path / "cache/hub/checkpoints/tiny.safetensors"


def test_a_network_is_downloaded_once(publish, weights, cached, capsys):
    expected = Model.load(weights).fingerprint()
    assert Model.load(NAME).fingerprint() == expected and cached.read_bytes() == weights.read_bytes()
    assert f"Downloading {weights.as_uri()} (MIT) to {cached}" in capsys.readouterr().err
    weights.unlink()
    assert Model.load(NAME).fingerprint() == expected and "Downloading" not in capsys.readouterr().err


def test_commands_take_names(publish, run, make_image, tmp_path, weights):
    photo = make_image("photo.jpg")
    for source, out in ((NAME, "by_name.npy"), (weights, "by_file.npy")):
        code, _, error = run("describe", photo, "--weights", source, "--out", tmp_path / out)
        assert code == 0, error
    assert (tmp_path / "by_name.npy").read_bytes() == (tmp_path / "by_file.npy").read_bytes()
    code, _, error = run("export", NAME, "--out", tmp_path / "exported.safetensors", "--size", "32x48")
    assert code == 0, error


def test_a_file_of_that_name_comes_first(publish, weights, cached, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(NAME).parent.mkdir()
    Path(NAME).write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="town/tiny: this is no weights file"):
        Model.load(NAME)
    assert not cached.exists()


@pytest.mark.parametrize("damage", ["truncated", "other"])
def test_another_file_than_the_published_one_is_not_kept(publish, weights, cached, damage):
    content = weights.read_bytes()
    weights.write_bytes(content[:-100] if damage == "truncated" else content[::-1])
    with pytest.raises(
        DownloadError, match=r"cannot be downloaded \(invalid hash value .*put it at .*tiny.saf"
    ):
        Model.load(NAME)
    assert list(cached.parent.iterdir()) == []


def test_a_damaged_copy_in_the_cache_is_noticed(publish, cached):
    Model.load(NAME)
    cached.write_bytes(cached.read_bytes()[:-1])
    with pytest.raises(DownloadError, match="SHA-256 begins with .* Delete it to download it again"):
        Model.load(NAME)


def test_a_truncated_file_without_a_published_digest_is_refused(publish, weights):
    publish(sha256="")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="tiny.safetensors: this is no safetensors file, or a damaged one"):
        Model.load(NAME)


@pytest.mark.parametrize("error", [ConnectionResetError("reset by peer"), KeyboardInterrupt()])
def test_an_interrupted_download_leaves_nothing(publish, cached, monkeypatch, error):
    class Breaking(io.BytesIO):
        def info(self):
            return self

        def get_all(self, name):
            return ["1000"]

        def read(self, size=-1):
            if self.tell():
                raise error
            return super().read(10)

    monkeypatch.setattr(torch.hub, "urlopen", lambda request: Breaking(b"x" * 1000))
    with pytest.raises(DownloadError if isinstance(error, OSError) else KeyboardInterrupt):
        Model.load(NAME)
    assert list(cached.parent.iterdir()) == []


def test_offline_the_message_says_what_to_download_and_where_to_put_it(publish, cached, monkeypatch):
    url = "https://example.org/networks/tiny.safetensors"
    publish(url=url)

    def offline(request):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(DownloadError) as raised:
        Model.load(NAME)
    assert str(raised.value) == (
        f"{url} cannot be downloaded (Name or service not known). Download it elsewhere and put it at "
        f"{cached}."
    )


def test_a_name_that_is_not_published_lists_those_that_are():
    with pytest.raises(
        WeightsError, match="sfrs/paris: there is no such weights file. Published .* sfrs/pitts30k"
    ):
        Model.load("sfrs/paris")


def test_the_page_lists_what_is_published():
    page = (Path(__file__).resolve().parents[2] / "docs/drop-in.md").read_text("utf-8")
    for name, network in PUBLISHED.items():
        digest = f"`{network.sha256}`" if network.sha256 else "none"
        file = network.url.rpartition("/")[2]
        assert (
            f"| `{name}` | {network.what} | [{file}]({network.url}) | {digest} | {network.licence} |" in page
        )


@pytest.mark.slow
def test_the_normalisation_is_the_published_one(tmp_path, monkeypatch):
    torch.manual_seed(0)
    own = DescriptorNetwork(build_backbone("vgg16")).backbone.state_dict()
    state = {
        f"features.{index}.{kind}": own[f"{name}.{kind}"]
        for name, index in vgg16_layers().items()
        for kind in ("weight", "bias")
    }
    state |= {"classifier.0.weight": torch.full((8, 8), torch.nan)}  # as the published file has it
    network = PUBLISHED["torchvision/vgg16-caffe"]
    file = tmp_path / "hub/checkpoints" / network.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(published, "_sha256", lambda file: network.sha256)
    assert Model.load("torchvision/vgg16-caffe").network.backbone.std == VGG16_INPUTS["caffe"][1]
