"""Made-up photographs."""

import numpy as np
from PIL import ExifTags, Image


def picture(scene: int, height: int = 48, width: int = 64, noise: float = 0.0) -> Image.Image:
    """Blocks of random colours drawn from ``scene``: the same scene looks alike, others do not."""
    blocks = np.random.default_rng(scene).random((6, 8, 3))
    pixels = np.kron(blocks, np.ones((8, 8, 1)))
    pixels += noise * np.random.default_rng(scene + 1000).normal(size=pixels.shape)
    image = Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8))
    return image.resize((width, height))


def write_photo(file, degrees=None, time="", offset="", scene=0):
    """Write a photograph with GPS and the time of its camera's clock in EXIF."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "maker"
    if degrees:
        (latitude, longitude), gps = degrees, exif.get_ifd(ExifTags.IFD.GPSInfo)
        gps.update({1: "NS"[latitude < 0], 2: (abs(latitude), 0, 0), 3: "EW"[longitude < 0]})
        gps[4] = (abs(longitude), 0, 0)
    block = exif.get_ifd(ExifTags.IFD.Exif)
    block.update({0x9003: time} if time else {})
    block.update({0x9011: offset} if offset else {})
    file.parent.mkdir(parents=True, exist_ok=True)
    picture(scene).save(file, quality=95, exif=exif)
    return file
