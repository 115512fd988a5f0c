"""Pictures of no place, to be refused: noise, gradients, textures, faces, walls cut out of photographs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

HEIGHT, WIDTH = 480, 640


def noise(rng: Generator) -> Image.Image:
    """Noise of single pixels or of blobs, grey or coloured."""
    grain = int(rng.choice([1, 1, 8, 32]))
    channels = int(rng.choice([1, 3]))
    pixels = rng.integers(0, 256, (HEIGHT // grain + 1, WIDTH // grain + 1, channels), np.uint8)
    small = Image.fromarray(np.repeat(pixels, 3 // channels, axis=2))
    return small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def gradient(rng: Generator) -> Image.Image:
    """Two colours that pass into each other."""
    one, other = rng.integers(0, 256, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    along = x * np.cos(angle) + y * np.sin(angle)
    along = (along - along.min()) / np.ptp(along)
    return Image.fromarray((one + (other - one) * along[..., None]).astype(np.uint8))


def texture(rng: Generator) -> Image.Image:
    """Bricks, stripes or plaster."""
    base = rng.integers(60, 200, 3)
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(base.tolist()))
    draw, joint = ImageDraw.Draw(image), tuple((base * 0.6).astype(int).tolist())
    height, width = int(rng.integers(8, 30)), int(rng.integers(20, 70))
    kind = rng.integers(3)
    for row, y in enumerate(range(0, HEIGHT if kind == 0 else 0, height)):
        draw.line((0, y, WIDTH, y), joint, 2)
        for x in range(-(row % 2) * width // 2, WIDTH, width):
            draw.line((x, y, x, y + height), joint, 2)
    for x in range(0, WIDTH if kind == 1 else 0, width):
        draw.line((x, 0, x, HEIGHT), joint, width // 3)
    return _grainy(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2))), rng, rng.uniform(3, 25))


def face(rng: Generator) -> Image.Image:
    """A drawn face in front of a gradient."""
    image = gradient(rng)
    draw, r = ImageDraw.Draw(image), HEIGHT * rng.uniform(0.25, 0.42)
    x, y = WIDTH * rng.uniform(0.35, 0.65), HEIGHT * rng.uniform(0.45, 0.6)
    skin = tuple((np.array([230, 190, 160]) * rng.uniform(0.4, 1)).astype(int).tolist())

    def ellipse(dx: float, dy: float, width: float, height: float, colour: tuple[int, ...]) -> None:
        box = (x + r * (dx - width), y + r * (dy - height), x + r * (dx + width), y + r * (dy + height))
        draw.ellipse(box, colour)

    draw.rectangle((x - 1.5 * r, y + r, x + 1.5 * r, HEIGHT), tuple(rng.integers(0, 255, 3).tolist()))
    ellipse(0, -0.35, 0.85, 0.95, tuple(rng.integers(10, 120, 3).tolist()))
    ellipse(0, 0, 0.75, 1.0, skin)
    for side in (-0.32, 0.32):
        ellipse(side, -0.2, 0.13, 0.08, (250, 250, 250))
        ellipse(side, -0.2, 0.06, 0.06, (40, 30, 20))
    ellipse(0, 0.1, 0.1, 0.16, tuple(int(0.85 * value) for value in skin))
    ellipse(0, 0.52, 0.3, 0.08, (170, 60, 60))
    return _grainy(image.filter(ImageFilter.GaussianBlur(2)), rng, 4)


def wall(rng: Generator, files: Sequence[Path]) -> Image.Image:
    """The plainest of twenty pieces of a photograph, enlarged."""
    photo = Image.open(files[rng.integers(len(files))]).convert("RGB")
    pieces = []
    for _ in range(20):
        width = int(photo.width * rng.uniform(0.12, 0.25))
        height = width * HEIGHT // WIDTH
        x, y = rng.integers(0, photo.width - width), rng.integers(0, photo.height - height)
        pieces.append(photo.crop((x, y, x + width, y + height)))
    plainest = min(pieces, key=lambda piece: np.asarray(piece).std(axis=(0, 1)).mean())
    return plainest.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def pictures(files: Sequence[Path], each: int, seed: int = 0) -> dict[str, list[Image.Image]]:
    """Return ``each`` pictures of every kind; walls are cut out of ``files``."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, Callable[[Generator], Image.Image]] = {
        "noise": noise,
        "gradients": gradient,
        "textures": texture,
        "faces": face,
    }
    made = {name: [draw(rng) for _ in range(each)] for name, draw in drawn.items()}
    return made | {"walls": [wall(rng, files) for _ in range(each)]}


def _grainy(image: Image.Image, rng: Generator, deviation: float) -> Image.Image:
    pixels = np.asarray(image) + rng.normal(0, deviation, (HEIGHT, WIDTH, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
