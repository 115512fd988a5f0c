"""``sfrs export`` as a user runs it."""

import pytest
import torch

import sfrs
from sfrs.data.images import load_image
from sfrs.models.backbones import build_backbone
from sfrs.models.export import FORMATS
from sfrs.models.network import DescriptorNetwork, save_network
from sfrs.models.whitening import Whitening


@pytest.fixture
def weights(tmp_path, tiny_network):
    save_network(tmp_path / "tiny.safetensors", tiny_network, {"image_size": [48, 64]})
    return tmp_path / "tiny.safetensors"


def test_network_and_whitening_become_one_file(run, weights, tmp_path):
    Whitening(torch.randn(3, 24), torch.randn(3)).save(tmp_path / "pca.safetensors")
    out = tmp_path / "deep/one.safetensors"
    code, shown, _ = run("export", weights, "--whitening", tmp_path / "pca.safetensors", "--out", out)
    assert code == 0 and "whitened, images 48x64, 3 numbers" in shown
    assert "compared: 4 images, largest difference 0.0e+00" in shown
    code, shown, _ = run("export", out, "--out", tmp_path / "one.pt2", "--size", "dynamic")
    assert code == 0 and "torch.export program" in shown and "whitened, images any size, 3 numbers" in shown
    code, shown, _ = run("export", out, "--out", tmp_path / "raw.pt2", "--no-whitening", "--size", "16x33")
    assert code == 0 and "no whitening, images 16x33, 24 numbers" in shown


def test_files_are_compared_on_real_photographs(run, weights, tmp_path, shared_places):
    photos = shared_places / "lund"
    one = next(photos.rglob("*.jpg"))
    out = tmp_path / "net.pt2"
    code, shown, _ = run("export", weights, "--out", out, "--check", photos, "--check", one)
    # 29 photographs are more than 16: every second one, the one given and four made-up ones.
    assert code == 0 and "compared: 20 images" in shown
    image = load_image(one, (48, 64))[None]
    torch.testing.assert_close(FORMATS["torch"].open(out)(image), sfrs.load(weights)(image).detach())


def test_of_a_run_the_last_generation_is_taken(run, tmp_path):
    for generation in (2, 10, 9):
        torch.manual_seed(generation)
        network = DescriptorNetwork(build_backbone("tiny"), generation)
        save_network(tmp_path / f"run/generation_{generation}/best.safetensors", network)
    code, shown, err = run("export", tmp_path / "run", "--out", tmp_path / "net.safetensors")
    assert code == 0 and "K = 10" in shown and "generation_10" in err
    assert sfrs.load(tmp_path / "run").quarters_shape == (4, 10, 6)
    (tmp_path / "empty").mkdir()
    code, _, err = run("export", tmp_path / "empty", "--out", tmp_path / "net.safetensors")
    assert code == 2 and "no network in this folder; expected generation_N/best.safetensors" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "x.bin"), "expected a name that ends in .onnx, .pt2, .safetensors"),
        (("--out", "../folder.onnx"), "folder.onnx: this is a folder; expected the name of a file"),
        (("--out", "../tiny.safetensors/x.pt2"), "cannot be written, a file stands where a folder is needed"),
        (("--out", "x.pt2", "--size", "48"), "--size is '48'; expected dynamic, or HEIGHTxWIDTH"),
        (("--out", "x.pt2", "--size", "8x64"), "of at least 16x16"),
        (("--out", "x.pt2", "--check", "absent.jpg"), "absent.jpg: there is no such image file"),
        (("--out", "x.pt2", "--check", "."), "no .jpg, .jpeg"),
        (("--out", "x.pt2", "--whitening", "w", "--no-whitening"), "exclude each other"),
        (("--out", "x.pt2", "--device", "nonsense"), "which torch cannot use"),
    ],
)
def test_mistakes_are_explained_and_nothing_is_written(
    run, weights, arguments, message, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "folder.onnx").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, _, err = run("export", weights, *arguments)
    assert code == 2 and message in err
    assert list((tmp_path / "here").iterdir()) == []


def test_a_bare_backbone_is_not_exported(run, tmp_path):
    torch.manual_seed(0)
    network = DescriptorNetwork(build_backbone("tiny"), 2)
    save_network(tmp_path / "bare.safetensors", network, {"untrained_vlad": True})
    code, _, err = run("export", tmp_path / "bare.safetensors", "--out", tmp_path / "x.pt2")
    assert code == 2 and "there is no NetVLAD in it" in err


def test_without_a_compiler_aoti_says_so(run, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, _, err = run("export", weights, "--format", "aoti", "--out", tmp_path / "x.pt2")
    assert code == 2 and "there is no C++ compiler 'no-such-compiler'" in err and "--format torch" in err
