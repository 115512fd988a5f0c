"""Which files of a folder are photographs, and that nothing is left out in silence."""

import os
import warnings

import numpy as np
import pytest
from pictures import picture
from PIL import Image, features

from sfrs.data.images import BadImageError, load_image
from sfrs.data.photo_files import HEIF, LeftOutWarning, image_files, images_at
from sfrs.runtime.errors import UserError


def names(folder):
    return [str(file.relative_to(folder)) for file in image_files(folder)]


def write(file, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    picture(0).save(file, **options)
    return file


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    for i in range(5):
        write(tmp_path / f"elsewhere/{i}.jpg")
    root = tmp_path / "photos"
    write(root / "2019/a.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "2019/up").symlink_to(root)
    (root / "again").symlink_to(root / "2019")
    expected = ["2019/a.jpg", *(f"linked/{i}.jpg" for i in range(5))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(root) == expected, "each once, under its own name where it lies here"
        assert names(root / "linked") == [f"{i}.jpg" for i in range(5)]


def test_what_systems_put_beside_photographs_is_passed_over(tmp_path):
    for name in (
        "a.jpg",
        "._a.jpg",
        "@eaDir/a.jpg",
        ".thumbnails/a.jpg",
        "s/.x/a.jpg",
        "__MACOSX/a.jpg",
    ):
        write(tmp_path / name)
    assert names(tmp_path) == ["a.jpg"]
    assert image_files(tmp_path / ".thumbnails"), "unless one asks for it"


@pytest.mark.parametrize("suffix", [".JPG", ".jfif", ".png", ".webp", ".tif", ".TIFF", ".bmp", ".avif"])
def test_every_suffix_that_is_decoded_is_listed(tmp_path, suffix):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    file = write(tmp_path / f"a{suffix}", **({"format": "JPEG"} if suffix == ".jfif" else {}))
    assert images_at(tmp_path) == [file] and load_image(file).shape == (3, 48, 64)


def test_what_is_left_out_is_counted_by_kind(tmp_path, monkeypatch):
    write(tmp_path / "a.jpg")
    for name in ("b.nef", "c.mp4", "d.MOV", "notes.txt", "e.gif"):
        (tmp_path / name).touch()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "closed").mkdir()
    opened = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)  # tests may run as root, who can open everything
    with pytest.warns(LeftOutWarning) as caught:
        assert names(tmp_path) == ["a.jpg"]
    text = str(caught[0].message)
    for part in ("1 raw photo (b.nef)", "2 videos (as c.mp4)", "1 picture of another format (e.gif)"):
        assert part in text
    assert (
        "1 link that leads nowhere (gone.jpg)" in text and "1 folder that cannot be opened (closed)" in text
    )
    assert "notes" not in text


def test_a_folder_of_nothing_else_says_what_there_is(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match=r"no .jpg, .* in this folder. Left out: 1 video \(a.mp4\)"):
        images_at(tmp_path)


@pytest.mark.skipif(HEIF, reason="pillow-heif is installed")
def test_heic_is_named_with_what_would_read_it(tmp_path):
    write(tmp_path / "a.jpg")
    (tmp_path / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.warns(
        LeftOutWarning, match=r'1 HEIC photo \(b.HEIC; pip install "sfrs-ext\[heif\]" reads them\)'
    ):
        image_files(tmp_path)
    with pytest.raises(BadImageError, match=r"b.HEIC: .*sfrs-ext\[heif\]"):
        load_image(tmp_path / "b.HEIC")


@pytest.mark.skipif(not HEIF, reason="pillow-heif is not installed")
def test_heic_is_read(tmp_path):
    file = write(tmp_path / "a.heic")
    assert images_at(tmp_path) == [file] and load_image(file).shape == (3, 48, 64)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_16_bits_are_scaled_in_every_format(tmp_path, name):
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / name)
    assert load_image(tmp_path / name).mean().item() == pytest.approx(128 / 255, abs=1e-6)


@pytest.mark.parametrize(("mode", "colour"), [("CMYK", (0, 255, 255, 0)), ("P", 1), ("RGBA", (255, 0, 0, 0))])
def test_tiff_of_every_colour_mode_becomes_rgb(tmp_path, mode, colour):
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif")[:, 0, 0].tolist() == [1, 0, 0]


def test_numbers_without_a_scale_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(BadImageError, match="float.tif: .*mode F"):
        load_image(tmp_path / "float.tif")
