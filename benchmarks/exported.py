"""``python -m benchmarks.exported [PHOTOS]``: how near exported files are to the network, and how fast.

VGG16 with 64 clusters and a whitening to 512 numbers, random weights, images of 240x320. Differences are
those that ``sfrs export`` finds on made-up images and on the photographs of a folder; a format that fails
there has no time. Times are CPU milliseconds of one thread per image, the formats taking turns.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sfrs.data.photo_files import image_files
from sfrs.models.backbones import build_backbone
from sfrs.models.export import FORMATS, ImageShape, export
from sfrs.models.export.shapes import made_up_images
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork
from sfrs.models.whitening import Whitening

from .pages import show
from .record import RESULTS, command, machine, write_json

ROOT = Path(__file__).resolve().parents[1]
RECORDED = RESULTS / "exported.json"
SHAPE, CLUSTERS, NUMBERS, BATCHES, ROUNDS = ImageShape(240, 320, 16), 64, 512, (1, 8), 5


@torch.no_grad()
def make_describer() -> Model:
    """Random weights, assignments as sharp as k-means makes them."""
    torch.manual_seed(0)
    network = DescriptorNetwork(build_backbone("vgg16"), CLUSTERS).eval()
    features = network.features(network.trunk(made_up_images(4, SHAPE.height, SHAPE.width) - 0.45))
    features = F.normalize(features.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
    network.vlad.init_from_clusters(features[torch.randperm(len(features))[:CLUSTERS]], features)
    return Model(network, Whitening(torch.randn(NUMBERS, network.dim), torch.randn(NUMBERS)))


def milliseconds(functions: dict[str, Callable[[Tensor], Tensor]], images: Tensor) -> dict[str, float]:
    """Median CPU time per image of each function, after one call to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for round in range(ROUNDS + 1):
        for name, function in functions.items():
            begin = time.process_time()
            function(images)
            if round:
                taken[name].append(1000 * (time.process_time() - begin) / len(images))
    return {name: statistics.median(times) for name, times in taken.items()}


def onnx_of_one_thread(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def record(photos: list[Path], given: str) -> dict:
    """Differences and times of every format; ``given`` is the command, to be recorded."""
    torch.set_num_threads(1)
    describer = make_describer()
    functions: dict[str, Callable] = {"the network itself": describer}
    results = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, kind in FORMATS.items():
            path = Path(folder) / f"{name}{kind.suffix}"
            agreement = export(describer, path, name, SHAPE, photos=photos)
            functions[name] = onnx_of_one_thread(path) if name == "onnx" else kind.open(path)
            results.append(
                {"format": name, "title": kind.title, "bytes": path.stat().st_size, **vars(agreement)}
            )
        times = {batch: milliseconds(functions, made_up_images(batch, 240, 320)) for batch in BATCHES}
    about = machine(1) | {"command": given, "photographs": len(photos)}
    return {"machine": about, "results": results, "milliseconds": times}


def table(recorded: dict) -> str:
    """One row per format, the original first."""
    about = recorded["machine"]
    times = {batch: recorded["milliseconds"][batch] for batch in recorded["milliseconds"]}
    lines = [
        f"{about['cpu']}, {about['kernels']} kernels, torch {about['torch']}, commit {about['commit']}, "
        f"{about['date']}: `{about['command']}`. VGG16 with {CLUSTERS} clusters, whitened to {NUMBERS} "
        f"numbers, random weights, images of {SHAPE}; {about['photographs']} photographs and 4 made-up ones. "
        "CPU milliseconds of one thread per image.",
        "",
        "| | largest difference | relative error | "
        + " | ".join(f"batch of {b}" for b in times)
        + " | file |",
        "|---|---|---|" + "---|" * (len(times) + 1),
    ]
    rows = [("the network itself", "the network itself", "", "", "")]
    rows += [
        (
            result["format"],
            f"`{result['format']}`",
            f"{result['largest_difference']:.0e}",
            f"{result['relative_error']:.0e}",
            f"{result['bytes'] / 1e6:.0f} MB",
        )
        for result in recorded["results"]
    ]
    for key, title, difference, error, size in rows:
        cells = " | ".join(f"{by_name[key]:.0f} ms" for by_name in times.values())
        lines.append(f"| {title} | {difference} | {error} | {cells} | {size} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exported", description=__doc__)
    parser.add_argument("photos", type=Path, nargs="?", help="folder, of which 16 photographs are taken")
    folder = parser.parse_args().photos
    photos = image_files(folder) if folder else []
    given = command("benchmarks.exported", sys.argv[1:])
    write_json(RECORDED, record(photos[:: max(1, -(-len(photos) // 16))], given))
    text = table(json.loads(RECORDED.read_text("utf-8")))
    show(ROOT / "docs/export.md", "exported", text)
    print(text)


if __name__ == "__main__":
    main()
