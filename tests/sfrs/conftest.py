"""Small generated data sets and networks shared by the tests of ``sfrs``."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from browser import chromium
from pictures import picture
from tiny_training import tiny_places

from sfrs.cli import app
from sfrs.models.backbones import REGISTRY, build_backbone
from sfrs.models.network import DescriptorNetwork
from sfrs.runtime import array_files

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _tiny_backbone_is_registered(monkeypatch):
    monkeypatch.setitem(REGISTRY, "tiny", "tiny_backbone:TinyBackbone")


@pytest.fixture(autouse=True)
def _arrays_are_read_here(monkeypatch):
    """Read MATLAB's and HDF5 files in this process: a child takes half a second to start."""

    def convert(*arguments: str) -> str:
        try:
            array_files.convert(*arguments)
        except SystemExit as error:
            return str(error.code)
        return ""

    monkeypatch.setattr(array_files, "run_child", convert)


@pytest.fixture(scope="session")
def seen_by(tmp_path_factory) -> Callable[[str], dict]:
    """Run a script of this folder in a process of its own, since it forks, which threads forbid; returns the
    JSON that it prints."""

    def run(script: str) -> dict:
        folder = tmp_path_factory.mktemp(Path(script).stem)
        command = [sys.executable, Path(__file__).with_name(script), folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def shared_places() -> Path:
    """The folder of real photographs; skips the test where it is absent."""
    for folder in (ROOT / "shared/places", ROOT.parent / "shared/places"):
        if folder.is_dir():
            return folder
    pytest.skip(f"no real photographs: neither {ROOT} nor the folder above it has shared/places")


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run ``sfrs`` with arguments; returns (exit code, standard output, standard error)."""

    def call(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            app([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return leaving.value.code or 0, captured.out, " ".join(captured.err.split())

    return call


@pytest.fixture(scope="module")
def places(request, tmp_path_factory):
    """Tiny places to train on and to validate on; a module's ``SPOTS`` says how many of each."""
    train, val = getattr(request.module, "SPOTS", (10, 6))
    folder = tmp_path_factory.mktemp("places")
    return tiny_places(folder, "train", spots=train, seed=0), tiny_places(folder, "val", spots=val, seed=1)


@pytest.fixture(scope="module")
def files(places):
    """The images that are trained on, queries first."""
    return places[0].queries.files + places[0].database.files


@pytest.fixture
def make_image(tmp_path) -> Callable[..., Path]:
    """Write ``picture(scene, ...)`` under ``tmp_path / name``."""

    def write(name: str, scene: int = 0, **options) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(scene, **options).save(path, quality=95)
        return path

    return write


@pytest.fixture
def place_folder(tmp_path) -> Path:
    """12 places 100 m apart, one database image and one noisy query each, split "test"."""
    for scene in range(12):
        for role, east, noise in (("database", 0.0, 0.0), ("queries", 5.0, 0.1)):
            folder = tmp_path / "town/images/test" / role
            folder.mkdir(parents=True, exist_ok=True)
            name = f"@{500000 + 100 * scene + east:.2f}@{4000000:.2f}@{scene:02d}@.jpg"
            picture(scene, noise=noise).save(folder / name, quality=95)
    return tmp_path / "town"


@pytest.fixture
def tiny_network(_tiny_backbone_is_registered) -> DescriptorNetwork:
    """6 channels, 4 clusters, seeded random weights."""
    torch.manual_seed(0)
    return DescriptorNetwork(build_backbone("tiny"), 4).eval()


@pytest.fixture(scope="module")
def open_page() -> Iterator[Callable]:
    """Open a page in headless Chromium, see `browser.chromium`; skips the test where there is none."""
    with chromium() as opened:
        yield opened
