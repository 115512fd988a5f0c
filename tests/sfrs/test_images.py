import struct

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image

from sfrs.data.images import (
    BadImageError,
    Photographs,
    batches,
    check_images,
    decode_reduced,
    image_tensor,
    load_image,
    upright,
)


def cut_off(path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_image_is_rgb_in_0_to_1(make_image):
    image = load_image(make_image("a.png", height=10, width=20))
    assert image.shape == (3, 10, 20) and image.dtype == torch.float32
    assert 0 <= image.min() and image.max() <= 1


@pytest.mark.parametrize(
    ("size", "expected"), [(None, (48, 64)), ((30, 20), (30, 20)), (24, (24, 32)), (96, (96, 128))]
)
def test_size_is_height_width_or_the_shorter_side_or_kept(make_image, size, expected):
    assert load_image(make_image("a.png"), size).shape[1:] == expected


def test_shorter_side_of_an_upright_image_is_its_width(make_image):
    assert load_image(make_image("a.png", height=64, width=48), 24).shape == (3, 32, 24)


def test_resizing_antialiases(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    assert (load_image(tmp_path / "stripes.png", (8, 8)) - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_colour_mode_becomes_rgb(tmp_path, make_image, mode):
    path = tmp_path / ("m.jpg" if mode == "CMYK" else "m.png")
    Image.open(make_image("a.png")).convert(mode).save(path)
    assert load_image(path).shape == (3, 48, 64)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert torch.allclose(load_image(tmp_path / "deep.png"), torch.tensor(128 / 255))


def test_exif_orientation_turns_the_image_upright(tmp_path, make_image):
    image = Image.open(make_image("a.png"))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").shape == (3, 64, 48)
    with Image.open(tmp_path / "turned.jpg") as turned:
        assert upright(turned).size == upright(upright(turned)).size == (48, 64)


def tiff(*entries: tuple[int, int, int, bytes], more: bytes = b"") -> bytes:
    """An EXIF block with (tag, type, count, four bytes of value or offset), and what the offsets point at."""
    rows = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4) + more


def test_exif_that_cannot_be_written_again_turns_the_image_all_the_same(tmp_path, make_image):
    orientation = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
    resolution = (0x011A, 10, 1, struct.pack("<I", 38))  # a signed rational, -1 / 0
    block = tiff(orientation, resolution, more=struct.pack("<ii", -1, 0))
    Image.open(make_image("a.png")).save(tmp_path / "turned.jpg", exif=block)
    assert load_image(tmp_path / "turned.jpg").shape == (3, 64, 48)
    Image.open(make_image("a.png")).save(tmp_path / "broken.jpg", exif=block[:-20])
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        assert load_image(tmp_path / "broken.jpg").shape == (3, 64, 48)


def test_an_image_that_resizing_would_blow_up_is_named(tmp_path):
    Image.new("L", (4000, 4)).save(tmp_path / "strip.png")
    with pytest.raises(
        BadImageError, match=r"strip.png: .*4x4000 pixels, too elongated to become 240x240000"
    ):
        load_image(tmp_path / "strip.png", 240)
    assert load_image(tmp_path / "strip.png").shape == (3, 4, 4000)


def test_a_panorama_of_182_megapixels_is_decoded_reduced(tmp_path):
    Image.new("L", (19_100, 9_550), 128).save(tmp_path / "panorama.jpg", quality=20)
    image = load_image(tmp_path / "panorama.jpg", (120, 240))
    assert image.shape == (3, 120, 240) and torch.allclose(image, torch.tensor(128 / 255), atol=0.01)


def test_bad_images_are_named(tmp_path, make_image):
    truncated = make_image("truncated.jpg")
    cut_off(truncated)
    (tmp_path / "text.jpg").write_text("this is no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("truncated.jpg", "text.jpg", "empty.png", "missing.jpg"):
        with pytest.raises(BadImageError, match=name):
            load_image(tmp_path / name)


def test_a_worker_hands_on_the_name_of_a_bad_image(tmp_path, make_image):
    files = [make_image("a.jpg"), tmp_path / "missing.jpg"]
    loader = torch.utils.data.DataLoader(Photographs(files), num_workers=1)
    with pytest.raises(BadImageError, match="missing.jpg"):
        list(loader)


def test_check_images_lists_the_bad_ones_in_order(tmp_path, make_image):
    files = [make_image(f"{i}.jpg", scene=i) for i in range(6)]
    cut_off(files[1])
    files[4].unlink()
    calls = []
    bad = check_images(files, progress=lambda done, total: calls.append((done, total)))
    assert [file.name for file, _ in bad] == ["1.jpg", "4.jpg"]
    assert "truncated" in bad[0][1] and "no such file" in bad[1][1]
    assert calls == [(i + 1, 6) for i in range(6)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_hold_images_of_one_size_in_order(make_image, workers):
    sizes = [(48, 64)] * 5 + [(32, 32)] + [(48, 64)] * 2
    files = [make_image(f"{i}.png", scene=i, height=h, width=w) for i, (h, w) in enumerate(sizes)]
    images = Photographs(files)
    found = list(batches(images, 2, workers=workers))
    assert [rows for rows, _ in found] == [[0, 1], [2, 3], [4], [5], [6, 7]]
    for rows, batch in found:
        assert torch.equal(batch, torch.stack([images[i] for i in rows]))


def test_batches_read_only_a_little_ahead(make_image):
    loaded = []

    class Counting(Photographs):
        def __getitem__(self, index):
            loaded.append(index)
            return super().__getitem__(index)

    images = Counting([make_image("a.png")] * 50)
    next(batches(images, 2, workers=2))
    assert len(loaded) <= 2 + 2 * 2 + 1


def photograph(path, factor, orientation=1):
    """Write a JPEG of the size 48x64 times ``factor``."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(0).resize((64 * factor, 48 * factor), Image.Resampling.BICUBIC)
    image.save(path, quality=95, exif=exif)
    return path


def whole(path, size):
    """Decode an image whole, then resize it."""
    with Image.open(path) as image:
        image.load()
        return image_tensor(image, size)


@pytest.mark.parametrize(("orientation", "size"), [(1, (48, 64)), (6, (64, 48)), (1, 48)])
def test_a_much_larger_jpeg_is_decoded_reduced_and_looks_the_same(tmp_path, orientation, size):
    file = photograph(tmp_path / "large.jpg", 16, orientation)
    with Image.open(file) as image:
        decode_reduced(image, size)
        assert image.size == (128, 96), "twice what is wanted"
    found = load_image(file, size)
    assert found.shape[1:] == ((48, 64) if orientation == 1 else (64, 48))
    assert (found - whole(file, size)).abs().mean() < 1.5 / 255


def test_jpegs_of_ordinary_sizes_are_decoded_as_they_are(tmp_path):
    file = photograph(tmp_path / "ordinary.jpg", 3)
    assert torch.equal(load_image(file, (48, 64)), whole(file, (48, 64)))
    assert load_image(file).shape == (3, 144, 192)
