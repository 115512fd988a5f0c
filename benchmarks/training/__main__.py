"""``python -m benchmarks.training [--part step|refresh|mining|epoch ...] [--device cpu|cuda]``.

Training against the reference procedure (`benchmarks.training.reference`), on the same device and network:
the step of a tuple, the refresh of descriptors, mining, and an epoch of Pittsburgh's size counted from these.
Nothing is timed whose gradients, descriptors or tuples are not the reference's; the command then fails.
Writes benchmarks/results/PROCESSOR/training-cpu.json or training-GPU.json; `python -m benchmarks.report` puts
them into docs/training.md.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.record import RESULTS, file_of, machine, write_json
from sfrs.runtime.threads import single_threads
from sfrs.training.config import TrainConfig

from . import counting, mining, refresh, steps
from .job import Job, build_job
from .table import table

PARTS = ("step", "refresh", "mining", "epoch")
DIMS = (64, 4096)
"""Numbers of a descriptor in the mining part: few, where the procedure itself counts, and whitened."""
DEFAULT_SIZE = {"cpu": "240x320", "cuda": "480x640"}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="only these; epoch needs all the others"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", help="height x width of images; 240x320 on a CPU, 480x640 on a GPU")
    parser.add_argument("--backbone", default="vgg16")
    parser.add_argument("--clusters", type=int, default=64)
    parser.add_argument("--tuples", type=int, default=4, help="of the largest step")
    parser.add_argument("--images", type=int, default=24, help="that the reference procedure describes")
    parser.add_argument(
        "--gallery", default="1000x10000", help="queries x database images of the mining part"
    )
    parser.add_argument("--dim", type=int, action="append", help=f"of descriptors in it; {DIMS} if not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60, help="after which no further round begins")
    parser.add_argument(
        "--autocast", action="append", choices=("bfloat16", "float16"), help="measure these formats, too"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    options.size = pair(parser, "--size", options.size or DEFAULT_SIZE[options.device])
    options.gallery = pair(parser, "--gallery", options.gallery)
    options.part = options.part or list(PARTS)
    if "epoch" in options.part:
        options.part = list(PARTS)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no GPU")
    if options.autocast is None:
        options.autocast = ["bfloat16"] if options.device == "cuda" else []
    return options


def pair(parser: argparse.ArgumentParser, name: str, text: str) -> tuple[int, int]:
    numbers = text.split("x")
    if len(numbers) != 2 or not all(number.isdigit() and int(number) > 0 for number in numbers):
        parser.error(f"{name} is {text!r}, expected two positive numbers such as 240x320")
    return int(numbers[0]), int(numbers[1])


def configuration(options: argparse.Namespace) -> TrainConfig:
    height, width = options.size
    return TrainConfig(
        backbone=options.backbone,
        clusters=options.clusters,
        height=height,
        width=width,
        trunk_cache="gpu,jitter=1" if options.device == "cuda" else "ram,jitter=1",
        device=options.device,
        workers=options.threads,
        seed=options.seed,
    )


def measured(options: argparse.Namespace) -> dict:
    """The results of every part."""
    results: dict = {}
    device, often = torch.device(options.device), {"rounds": options.rounds, "most": options.seconds}
    with tempfile.TemporaryDirectory() as folder, single_threads(max(1, options.threads)) as pool:
        if {"step", "refresh"} & set(options.part):
            job: Job = build_job(Path(folder), configuration(options), options.tuples)
        if "step" in options.part:
            results["step"] = steps.measure(job, pool, autocast=tuple(options.autocast), **often)
        if "refresh" in options.part:
            results["refresh"] = refresh.measure(job, pool, images=options.images, **often)
    if "mining" in options.part:
        results["mining"] = [
            mining.measure(*options.gallery, dim, device, seed=options.seed, **often)
            for dim in options.dim or DIMS
        ]
    if "epoch" in options.part:
        rates = [rate(counting.PITTSBURGH.dim, device) for rate in (mining.product_rate, mining.search_rate)]
        results["epoch"] = counting.count(results["step"], results["refresh"], results["mining"][0], *rates)
    return results


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    about = machine(options.threads) | {"command": " ".join(["python -m benchmarks.training", *sys.argv[1:]])}
    name = torch.cuda.get_device_name() if options.device == "cuda" else about["cpu"]
    about["load_before"] = os.getloadavg()[0]
    results = measured(options)
    about["load_after"] = os.getloadavg()[0]
    recorded = {"machine": about, "device": name, "size": list(options.size), "seed": options.seed}
    network = {"network": f"{options.backbone} with random weights, K = {options.clusters}"}
    recorded |= network | results
    print(table(recorded))
    gpu = RESULTS / f"training-{name.lower().replace(' ', '-')}.json"
    if set(options.part) != set(PARTS) and options.out is None:
        print("\nnot recorded: only some parts were measured", file=sys.stderr)
        return
    out = options.out or (file_of("training-cpu", about) if options.device == "cpu" else gpu)
    write_json(out, json.loads(json.dumps(recorded)))


if __name__ == "__main__":
    main()
