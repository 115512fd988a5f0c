"""``python tests/cuda/calls.py [--device cpu] [--large]``: every operator, forward and backward, a few times.

What compute-sanitizer and the profiler watch. Small problems, awkward for the kernels, in every type and
layout; ``--large`` runs the shapes of the paper instead, in the types of training. Inputs come from the CPU,
so that few kernels are of torch.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import sfrs_ext

# B, D, H, W, K, G, gallery
SMALL = ((2, 72, 9, 5, 7, 1, 3), (1, 512, 7, 13, 64, 0, 2), (2, 33, 6, 8, 100, 3, 5))
LARGE = ((64, 512, 30, 40, 64, 0, 11),)
TYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "tf32": torch.float32,
    "f64": torch.float64,
}


@contextmanager
def products_in(name: str) -> Iterator[None]:
    """float32 products as the name of the type says."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, name == "tf32"
    yield
    matmul.allow_tf32 = before


def tensor(device: str, dtype: torch.dtype, *sizes: int) -> Tensor:
    return torch.randn(sizes).to(dtype).to(device).requires_grad_()


def backward(out: Tensor) -> None:
    out.backward(torch.ones(out.shape, dtype=out.dtype).to(out.device))


def aggregations(size: tuple[int, ...], device: str, dtype: torch.dtype, layouts: tuple[str, ...]) -> None:
    batch, dim, height, width, clusters, ghosts, _ = size
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = tensor(device, acc, clusters + ghosts, dim), tensor(device, acc, clusters + ghosts)
    centroids = tensor(device, acc, clusters, dim)
    for layout, operator in itertools.product(layouts, (sfrs_ext.netvlad, sfrs_ext.region_vlad)):
        x = torch.randn(batch, dim, height, width).to(dtype)
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        x = x.to(device)
        if layout == "crop":
            x = x[:, :, 1:, 2:-1]
        mask = tensor(device, acc, batch, *x.shape[2:])
        backward(operator(x.requires_grad_(), weight, centroids, bias, ghost_clusters=ghosts, mask=mask))


def similarities(size: tuple[int, ...], device: str, dtype: torch.dtype) -> None:
    batch, dim, _, _, clusters, _, gallery = size
    query = tensor(device, dtype, batch, clusters, dim)
    backward(sfrs_ext.region_similarity(query, tensor(device, dtype, batch, gallery, 4, clusters, dim)))
    backward(sfrs_ext.region_similarity(query, tensor(device, dtype, batch * gallery, 4, clusters, dim)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--large", action="store_true", help="the shapes of the paper, for the profiler")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    synchronize: Callable[[], None] = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    layouts = ("planes", "channels_last") if arguments.large else ("planes", "channels_last", "crop")
    types = ("bf16", "tf32", "f32") if arguments.large else TYPES
    for name, size in itertools.product(types, LARGE if arguments.large else SMALL):
        with products_in(name):
            aggregations(size, arguments.device, TYPES[name], layouts)
            similarities(size, arguments.device, TYPES[name])
        synchronize()
        print(name, *size, flush=True)


if __name__ == "__main__":
    main()
