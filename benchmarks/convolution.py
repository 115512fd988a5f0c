"""``python -m benchmarks.convolution [--threads N]``: `sfrs_ext.conv3x3` and torch's convolution in VGG16.

Images of 240x320 in batches of 2, channels_last, bias and ReLU included; weights transformed beforehand, as a
frozen trunk has them. Both are compared with the convolution in float64 first. Writes
benchmarks/results/PROCESSOR/convolution.json; `python -m benchmarks.report` puts it into docs/operators.md.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import sfrs_ext

from .record import file_of, machine, write_json

IMAGE, BATCH, ROUNDS, TOLERANCE = (240, 320), 2, 15, 3e-6
LAYERS = {
    "conv1_2": (64, 64, 1),
    "conv2_1": (64, 128, 2),
    "conv2_2": (128, 128, 2),
    "conv3_1": (128, 256, 4),
    "conv3_2, conv3_3": (256, 256, 4),
    "conv4_1": (256, 512, 8),
    "conv4_2, conv4_3": (512, 512, 8),
    "conv5_1 to conv5_3": (512, 512, 16),
}
"""Input channels, output channels, stride of the layer's map."""


def medians(functions: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Milliseconds per image of each, which take turns; after one call to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(ROUNDS + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if round_:
                taken[name].append(1000 * (time.perf_counter() - began) / BATCH)
    return {name: statistics.median(times) for name, times in taken.items()}


@torch.no_grad()
def measure(channels: int, outputs: int, stride: int) -> dict:
    """Errors relative to the largest output, and milliseconds per image."""
    torch.manual_seed(0)
    height, width = (length // stride for length in IMAGE)
    x = torch.randn(BATCH, channels, height, width).to(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, 3, 3).mul_((2 / (9 * channels)) ** 0.5)
    weight, bias = weight.to(memory_format=torch.channels_last), torch.randn(outputs)
    packed = sfrs_ext.conv3x3_weight(weight)
    functions = {
        "sfrs_ext": lambda: sfrs_ext.conv3x3(x, weight, bias, relu=True, packed=packed),
        "torch": lambda: F.conv2d(x, weight, bias, padding=1).relu_(),
    }
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu_()
    errors = {
        name: ((function() - exact).abs().max() / exact.max()).item() for name, function in functions.items()
    }
    if not max(errors.values()) <= TOLERANCE:
        raise SystemExit(f"REFUSED {channels} to {outputs} channels: errors {errors}")
    flops = 2 * 9 * channels * outputs * height * width
    return {"map": [height, width], "flops": flops, "errors": errors, "milliseconds": medians(functions)}


def table(recorded: dict) -> str:
    """One row per kind of layer."""
    about = recorded["machine"]
    lines = [
        f"{about['cpu']}, {about['threads']} threads, {about['kernels']} kernels, torch {about['torch']}, "
        f"commit {about['commit']}, {about['date']}: `{about['command']}`. Milliseconds per 240x320 image; "
        "errors against float64, relative to the largest output.",
        "",
        "| layers of VGG16 | channels | map | `conv3x3` | `torch` | | error | torch's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (channels, outputs, _) in LAYERS.items():
        found = recorded["results"][name]
        ours, theirs = (found["milliseconds"][key] for key in ("sfrs_ext", "torch"))
        errors = " | ".join(f"{found['errors'][key]:.0e}" for key in ("sfrs_ext", "torch"))
        height, width = found["map"]
        lines.append(
            f"| {name} | {channels} -> {outputs} | {height}x{width} | **{ours:.1f}** | {theirs:.1f} | "
            f"{theirs / ours:.2f}x | {errors} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convolution", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    results = {name: measure(*layer) for name, layer in LAYERS.items()}
    about = machine(threads) | {"command": f"python -m benchmarks.convolution --threads {threads}"}
    recorded = {"machine": about, "results": results}
    write_json(file_of("convolution", about), recorded)
    print(table(json.loads(json.dumps(recorded))))


if __name__ == "__main__":
    main()
