"""``python -m benchmarks.describing [--threads N]``: from JPEG files to descriptors, as people wait for it.

Made-up photographs are written as JPEG files, described with every backbone, and searched among made-up
descriptors. Plain torch does the same with its own convolutions and the two-GEMM form of NetVLAD, with the
same weights, decoding threads and channels_last maps; its descriptors are compared with ours before a
time is taken. Both take turns. Every stage is also timed alone: their sum, decoding shared by the threads,
beside what the whole takes says how busy the cores were. Writes benchmarks/results/PROCESSOR/describing.json;
`python -m benchmarks.report` puts it into docs/performance.md.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sfrs.data.images import Photographs
from sfrs.models.backbones import REGISTRY, build_backbone
from sfrs.models.convolution import Convolution3x3
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork
from sfrs.retrieval.search import search
from sfrs_ext import reference

from .record import file_of, machine, write_json

SIZE, PHOTO = (480, 640), (1200, 1600)
IMAGES, BATCH, GALLERY, ROUNDS = 16, 8, 10_000, 3
TOLERANCE = 1e-4
PLAIN = "plain torch"


class PlainNetVLAD(nn.Module):
    """The two-GEMM form of a layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.num_clusters, self.dim = layer, layer.num_clusters, layer.dim

    def forward(self, x: Tensor) -> Tensor:
        return reference.netvlad(x, self.layer.weight, self.layer.centroids)


def plain(network: DescriptorNetwork) -> DescriptorNetwork:
    """The same network without a line of `sfrs_ext`."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, Convolution3x3):
                convolution = nn.Conv2d(child.in_channels, child.out_channels, 3, padding=1)
                convolution.load_state_dict(child.state_dict())
                setattr(module, name, convolution)
    network.vlad = PlainNetVLAD(network.vlad)
    return network.to(memory_format=torch.channels_last).eval()


def write_photographs(folder: Path, count: int) -> list[Path]:
    """JPEG files with the detail of photographs: noise in octaves, as large as a telephone's preview."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        layers = [
            np.asarray(
                Image.fromarray(
                    rng.integers(0, 256, (PHOTO[0] >> s, PHOTO[1] >> s, 3), dtype=np.uint8)
                ).resize(PHOTO[::-1], Image.Resampling.BICUBIC),
                dtype=np.float32,
            )
            for s in range(2, 8)
        ]
        file = folder / f"{number:03}.jpg"
        Image.fromarray(np.mean(layers, 0).astype(np.uint8)).save(file, quality=90)
        files.append(file)
    return files


def seconds(function: Callable) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


@torch.no_grad()
def stages(network: DescriptorNetwork, images: Photographs) -> dict[str, float]:
    """Seconds per image of each stage alone, the least of some; decoding is of one thread."""
    least: dict[str, float] = {}

    def take(name: str, function: Callable, count: int):
        result = function()
        least[name] = min(seconds(function) for _ in range(ROUNDS)) / count
        return result

    batch = torch.stack(take("decode", lambda: [images[i] for i in range(BATCH)], BATCH))
    trunk = take("trunk", lambda: network.trunk(batch), BATCH)
    maps = take("head", lambda: network.features(trunk), BATCH)
    descriptors = take("aggregation", lambda: network.vlad(maps), BATCH)
    gallery = np.random.default_rng(0).standard_normal((GALLERY, descriptors.shape[1]), dtype=np.float32)
    take("search", lambda: search(descriptors.numpy(), gallery, 10), BATCH)
    return least


def measure(backbone: str, files: list[Path], threads: int) -> dict:
    torch.manual_seed(0)
    ours = DescriptorNetwork(build_backbone(backbone), 64).eval()
    networks = {"sfrs": ours, PLAIN: plain(ours)}
    models = {name: Model(network, size=SIZE) for name, network in networks.items()}
    options = dict(batch_size=BATCH, workers=threads)
    found = {name: model.encode(files[:BATCH], **options) for name, model in models.items()}
    error = float(np.abs(found["sfrs"] - found[PLAIN]).max() / np.abs(found[PLAIN]).max())
    if not error <= TOLERANCE:
        raise SystemExit(f"REFUSED {backbone}: descriptors differ by {error:.1e} of the largest value")
    taken: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(ROUNDS):
        for name, model in models.items():
            taken[name].append(seconds(lambda model=model: model.encode(files, **options)))
    images = Photographs(files, SIZE)
    return {
        "backbone": backbone,
        "difference": error,
        "seconds": {name: statistics.median(times) / len(files) for name, times in taken.items()},
        "stages": {name: stages(network, images) for name, network in networks.items()},
    }


def table(recorded: dict) -> str:
    """One row per backbone: rates, and where the time of an image goes."""
    about = recorded["machine"]
    lines = [
        f"{about['cpu']}, {about['threads']} threads, {about['kernels']} kernels, torch {about['torch']}, "
        f"commit {about['commit']}, {about['date']}: `{about['command']}`. {recorded['images']} JPEG files "
        f"of {PHOTO[1]}x{PHOTO[0]}, described at {SIZE[1]}x{SIZE[0]} in batches of {BATCH}, K = 64, float32, "
        "random weights; milliseconds per image. Stages alone, ours / plain torch; decoding of one thread, "
        f"search among {GALLERY:,} images. *Busy*: the stages' sum, decoding shared by the threads, beside "
        "what the whole takes.",
        "",
        "| backbone | images/s | plain torch | | decode | trunk | head | aggregation | search | busy |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in recorded["results"]:
        ours, theirs = (result["seconds"][name] for name in ("sfrs", PLAIN))
        alone = result["stages"]
        cells = [
            f"{1e3 * alone['sfrs'][name]:.1f} / {1e3 * alone[PLAIN][name]:.1f}"
            if name in ("trunk", "head", "aggregation")
            else f"{1e3 * alone['sfrs'][name]:.1f}"
            for name in ("decode", "trunk", "head", "aggregation", "search")
        ]
        network = sum(alone["sfrs"][name] for name in ("trunk", "head", "aggregation"))
        shared = alone["sfrs"]["decode"] / about["threads"]
        cells.append(f"{100 * (network + shared) / ours:.0f} %")
        lines.append(
            f"| {result['backbone']} | **{1 / ours:.1f}** | {1 / theirs:.1f} | **{theirs / ours:.2f}x** | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.describing", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--backbone", action="append", choices=sorted(REGISTRY), help="only these")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/PROCESSOR/describing.json")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    about = machine(options.threads)
    about["command"] = f"python -m benchmarks.describing --threads {options.threads}"
    with tempfile.TemporaryDirectory() as folder:
        files = write_photographs(Path(folder), options.images)
        results = [measure(name, files, options.threads) for name in options.backbone or REGISTRY]
    recorded = {"machine": about, "images": options.images, "results": results}
    print(table(recorded))
    write_json(options.out or file_of("describing", about), json.loads(json.dumps(recorded)))


if __name__ == "__main__":
    main()
