"""Exported files describe images as the network they came from, in programs that know nothing of it."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import sfrs
import sfrs_ext
from sfrs.data.images import load_image
from sfrs.models.backbones import REGISTRY, build_backbone
from sfrs.models.export import FORMATS, ExportError, ImageShape, choose_format, compare, export
from sfrs.models.export.shapes import made_up_images
from sfrs.models.model import Model
from sfrs.models.network import METADATA_KEY, DescriptorNetwork, load_network, save_network
from sfrs.models.whitening import Whitening
from sfrs.runtime.errors import UserError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FIXED, DYNAMIC = ImageShape(48, 64, 8), ImageShape(48, 64, 8, dynamic=True)
ONNX = ("onnx", "onnxscript", "onnxruntime")
NAMES = {"safetensors": "net.safetensors", "torch": "net.pt2", "onnx": "net.onnx"}


def make_describer() -> Model:
    """6 channels, 4 clusters, whitened to 5 numbers."""
    torch.manual_seed(0)
    network = DescriptorNetwork(build_backbone("tiny"), 4)
    network.meta = {"image_size": [48, 64], "generation": 4}
    return Model(network, Whitening(torch.randn(5, 24), torch.randn(5)))


@pytest.fixture
def describer(_tiny_backbone_is_registered) -> Model:
    return make_describer()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A folder with the describer in every format, for images of one size; ONNX where it is installed."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, "tiny", "tiny_backbone:TinyBackbone")
        for format, name in NAMES.items():
            if format != "onnx" or all(map(find_spec, ONNX)):
                export(make_describer(), folder / name, format, FIXED, source="best.safetensors")
    return folder


def require_onnx() -> None:
    for package in ONNX:
        pytest.importorskip(package, reason=f"{package} is of the extra [export]")


def assert_same(describer: Model, opened, sizes, batches, tolerance: float) -> None:
    for size in sizes:
        for count in batches:
            agreement = compare(describer, opened, [made_up_images(count, *size, seed=count)])
            assert agreement.relative_error <= tolerance, (size, count, agreement)


@pytest.mark.parametrize("format", NAMES)
def test_a_file_of_one_size_describes_every_batch_as_the_network_does(format, exported, describer):
    if format == "onnx":
        require_onnx()
    opened = FORMATS[format].open(exported / NAMES[format])
    assert_same(describer, opened, [(48, 64)], range(1, 9), 1e-6)


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_a_file_of_any_size_describes_every_batch_as_the_network_does(format, describer, tmp_path):
    if format == "onnx":
        require_onnx()
    path = tmp_path / NAMES[format]
    assert export(describer, path, format, DYNAMIC).relative_error <= 1e-6
    assert [file.name for file in tmp_path.iterdir()] == [NAMES[format]]
    opened = FORMATS[format].open(path)
    assert_same(describer, opened, [(48, 64), (17, 16), (49, 83)], range(1, 9), 1e-6)


def test_vgg16_becomes_a_program_for_any_size(tmp_path):
    torch.manual_seed(0)
    describer = Model(DescriptorNetwork(build_backbone("vgg16"), 3))
    export(describer, path := tmp_path / "net.pt2", "torch", ImageShape(32, 48, 16, dynamic=True))
    assert_same(describer, FORMATS["torch"].open(path), [(32, 32), (49, 79)], (1, 2, 5), 1e-6)


def test_oriented_gradients_run_in_onnx(tmp_path):
    require_onnx()
    torch.manual_seed(0)
    describer = Model(DescriptorNetwork(build_backbone("gradient"), 3, bias=True))
    export(describer, path := tmp_path / "net.onnx", "onnx", ImageShape(48, 64, 8, dynamic=True))
    assert_same(describer, FORMATS["onnx"].open(path), [(40, 49)], (1, 6), 1e-5)


def test_a_program_needs_torch_and_the_operators_only(exported, describer, tmp_path):
    images = made_up_images(3, 48, 64)
    torch.save(images, tmp_path / "images.pt")
    program = (
        "import sys, torch, sfrs_ext; sys.modules['sfrs'] = None\n"
        f"program = torch.export.load({str(exported / 'net.pt2')!r})\n"
        "print(*{str(node.target) for node in program.graph.nodes})\n"
        "torch.save(program.module()(torch.load('images.pt')), 'out.pt')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sfrs_ext.aggregate.default" in done.stdout
    found = torch.load(tmp_path / "out.pt")
    assert not found.requires_grad
    torch.testing.assert_close(found, describer(images).detach(), rtol=1e-5, atol=1e-6)


def test_onnx_runs_without_torch(exported, describer, tmp_path):
    require_onnx()
    images = made_up_images(3, 48, 64)
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, numpy as np, onnxruntime; sys.modules['torch'] = None\n"
        f"session = onnxruntime.InferenceSession({str(exported / 'net.onnx')!r})\n"
        "np.save('out.npy', session.run(None, {'images': np.load('images.npy')})[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.allclose(np.load(tmp_path / "out.npy"), describer(images).detach(), atol=1e-6)


def test_every_file_says_what_it_is_and_nothing_about_this_machine(exported):
    require_onnx()
    import onnx

    files = {METADATA_KEY + ".json": ""}
    torch.export.load(exported / "net.pt2", extra_files=files)
    (in_onnx,) = onnx.load(exported / "net.onnx").metadata_props
    assert in_onnx.key == METADATA_KEY
    descriptions = [json.loads(text) for text in (*files.values(), in_onnx.value)]
    meta = load_network(exported / "net.safetensors").meta
    assert meta.pop("has_pca") and meta["generation"] == 4 and meta["image_size"] == [48, 64]
    assert meta["exported"]["dim"] == 5 and meta["exported"]["source"] == "best.safetensors"
    assert meta["exported"]["versions"]["torch"] == torch.__version__
    for description in descriptions:
        assert description["meta"] == meta and description["whitening"] == 5
        assert description["backbone"] == "tiny" and description["num_clusters"] == 4
    contents = [(exported / "net.onnx").read_bytes()]
    with zipfile.ZipFile(exported / "net.pt2") as archive:
        contents += [archive.read(name) for name in archive.namelist()]
    assert not any(str(ROOT).encode() in content for content in contents)


def test_weights_and_whitening_load_in_one_line(exported, describer, make_image):
    path = exported / "net.safetensors"
    loaded = sfrs.load(path)
    for name, tensor in describer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.dim == 5 and loaded.size == (48, 64) and not loaded.training
    assert sfrs.load(path, whiten=False).dim == 24
    assert torch.equal(Whitening.load(path).projection, describer.projection)
    layer = sfrs_ext.nn.NetVLAD.load(path)
    features = torch.randn(2, 6, 5, 7)
    assert torch.equal(layer(features), describer.network.vlad(features))
    # The same as `sfrs describe`, from the same file.
    file = make_image("a.png")
    found = Model(load_network(path), Whitening.load(path), size=(48, 64)).encode([file])
    image = load_image(file, (48, 64))
    assert np.allclose(found, loaded(image[None]).detach(), atol=1e-6)


def test_saving_a_loaded_network_alone_forgets_the_whitening(exported, tmp_path):
    save_network(tmp_path / "alone.safetensors", load_network(exported / "net.safetensors"))
    assert sfrs.load(tmp_path / "alone.safetensors").whitening is None


def test_the_layer_of_a_file_keeps_bias_and_ghosts(tmp_path):
    from safetensors.torch import save_file

    layer = sfrs_ext.nn.NetVLAD(3, 8, bias=True, ghost_clusters=2)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    back, features = sfrs_ext.nn.NetVLAD.load(tmp_path / "layer.safetensors"), torch.randn(1, 8, 4, 4)
    assert torch.equal(back(features), layer(features)) and back.ghost_clusters == 2
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="has 0 tensors named centroids"):
        sfrs_ext.nn.NetVLAD.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("wrong", ["noise", "nan", "shape"])
def test_a_file_that_describes_otherwise_is_not_put_in_place(wrong, describer, tmp_path, monkeypatch):
    broken = {
        "noise": lambda d: d + 1e-4 * torch.randn_like(d),
        "nan": lambda d: torch.full_like(d, float("nan")),
        "shape": lambda d: d[:, 1:],
    }[wrong]
    kind = replace(FORMATS["torch"], open=lambda path: lambda images: broken(describer(images)))
    monkeypatch.setitem(FORMATS, "torch", kind)
    (tmp_path / "net.pt2").write_text("the previous file")
    with pytest.raises(ExportError, match="not written, its descriptors are not the network's"):
        export(describer, tmp_path / "net.pt2", "torch", FIXED)
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]
    assert (tmp_path / "net.pt2").read_text() == "the previous file"


def test_describers_refuse_what_they_would_misread(describer, tiny_network):
    for images in (
        torch.zeros(1, 3, 48, 64, dtype=torch.uint8),
        torch.zeros(3, 48, 64),
        torch.zeros(1, 1, 9, 9),
    ):
        with pytest.raises(UserError, match=r"expected RGB \[B, 3, H, W\] in 0..1, floating"):
            describer(images)
    with pytest.raises(UserError, match="fitted to descriptors of 7 numbers, but this network's have 24"):
        Model(tiny_network, Whitening(torch.zeros(2, 7), torch.zeros(2)))


def test_a_describer_is_where_its_network_is(tiny_network):
    describer = Model(tiny_network.to("meta"), Whitening(torch.zeros(2, 24), torch.zeros(2)))
    assert describer(torch.zeros(1, 3, 48, 64, device="meta")).shape == (1, 2)


def test_weights_too_large_for_onnx_are_refused_before_the_work(describer, tmp_path, monkeypatch):
    require_onnx()
    monkeypatch.setattr("sfrs.models.export.onnx_graph.LARGEST_FILE", 100)
    with pytest.raises(UserError, match="an ONNX file holds 2 GiB at most"):
        export(describer, tmp_path / "net.onnx", "onnx", FIXED)


def test_packages_that_are_not_installed_are_named(describer, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sfrs.models.export.onnx_graph.find_spec", lambda name: None if "script" in name else name
    )
    with pytest.raises(UserError, match=r"needs onnxscript, not installed here: pip install onnxscript"):
        export(describer, tmp_path / "net.onnx", "onnx", FIXED)


def test_formats_follow_the_suffix():
    chosen = [choose_format(None, Path(name)) for name in ("x.safetensors", "x.pt2", "x.onnx")]
    assert chosen == ["safetensors", "torch", "onnx"] and choose_format("aoti", Path("x.pt2")) == "aoti"
    for name, out, message in (
        (None, "x.bin", "expected a name that ends in .onnx, .pt2, .safetensors"),
        ("aoti", "x.onnx", "expected a name that ends in .pt2 for --format aoti"),
        ("tf", "x.tf", "expected one of safetensors, torch, aoti, onnx"),
    ):
        with pytest.raises(UserError, match=message):
            choose_format(name, Path(out))
