"""``python -m benchmarks.decoding [--photos FOLDER]``: large JPEGs decoded whole and reduced.

Photographs, by default the first eight of lund, are enlarged to 12 megapixels with noise of a sensor and
written as JPEG files. Each is decoded whole and reduced (`sfrs.data.images.decode_reduced`), resized, and
described by the default network. Prints milliseconds of one core per photograph, and the cosine between the
two descriptors beside that of the most similar other photograph.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sfrs.data.images import image_tensor, load_image
from sfrs.data.photo_files import images_at
from sfrs.models.model import Model

LARGE, NOISE, QUALITY, PHOTOS = (4000, 3000), 6.0, 92, 8
SIZES, ROUNDS = (240, 480), 3


def enlarge(source: Path, target: Path, rng: np.random.Generator) -> Path:
    """Write a photograph of 12 megapixels."""
    with Image.open(source) as image:
        pixels = np.asarray(image.convert("RGB").resize(LARGE, Image.Resampling.LANCZOS), np.float32)
    noisy = (pixels + rng.normal(0, NOISE, pixels.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(target, quality=QUALITY)
    return target


def whole(file: Path, size: int) -> torch.Tensor:
    """Decode a file whole, then resize it."""
    with Image.open(file) as image:
        image.load()
        return image_tensor(image, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    places = Path(__file__).resolve().parents[2] / "shared/places"
    parser.add_argument("--photos", type=Path, default=places / "lund/images/test/database")
    sources = images_at(parser.parse_args().photos)[:PHOTOS]
    model, rng = Model.load(), np.random.default_rng(0)
    model.fit_clusters(sources)
    with tempfile.TemporaryDirectory() as folder:
        files = [enlarge(file, Path(folder) / f"{i}.jpg", rng) for i, file in enumerate(sources)]
        print("size    whole   reduced   cosine: least   mean   other photograph")
        for size in SIZES:
            seconds, images = {}, {}
            for way in (whole, load_image):
                times = []
                for _ in range(ROUNDS):
                    started = time.process_time()
                    images[way] = [way(file, size) for file in files]
                    times.append(time.process_time() - started)
                seconds[way] = min(times) / len(files)
            one, two = (np.asarray(model.at(size).encode(images[way])) for way in (whole, load_image))
            same, others = (one * two).sum(axis=1), one @ one.T - 2 * np.eye(len(one))
            print(
                f"{size:>4} {1000 * seconds[whole]:>5.0f} ms {1000 * seconds[load_image]:>6.0f} ms "
                f"{same.min():>15.4f} {same.mean():>6.4f} {others.max(axis=1).mean():>18.3f}"
            )


if __name__ == "__main__":
    main()
