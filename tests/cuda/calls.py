"""``python tests/cuda/calls.py [--device cpu] [--large] [--few] [--check] [--type T] [--only OPERATOR]``.

Every operator, forward and backward, a few times: what compute-sanitizer and the profiler watch. Small
problems, awkward for the kernels, in every type and layout; ``--few``: one of them in two types; ``--large``
runs the shapes of the paper instead, in the types of training. Inputs come from the CPU, so that few kernels
are of torch. ``--check`` holds results and gradients against float64.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

import sfrs_ext
import sfrs_ext.reference

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


# Largest error that --check allows, in parts of the largest value. Weights and logits are large here, and
# products in bfloat16 round both: under autocast plain torch errs by up to 9e-2 in the same calls.
ALLOWED = {"bf16": 1.5e-1, "f16": 1e-2, "f32": 1e-4, "tf32": 2e-2, "f64": 1e-10}


def tensor(device: str, dtype: torch.dtype, *sizes: int) -> Tensor:
    return torch.randn(sizes).to(dtype).to(device).requires_grad_()


def backward(out: Tensor) -> None:
    out.backward(torch.ones(out.shape, dtype=out.dtype).to(out.device))


@dataclass(frozen=True)
class Call:
    """One operator on its tensors; ``run`` computes the result and fills the gradients."""

    operator: str
    tensors: tuple[Tensor, ...]
    options: dict

    def run(self, module, tensors: tuple[Tensor, ...], **options) -> list[Tensor]:
        out = getattr(module, self.operator)(*tensors, **self.options, **options)
        backward(out)
        return [out.detach(), *(t.grad for t in (*tensors, *options.values()) if t.requires_grad)]


def aggregations(
    size: tuple[int, ...], device: str, dtype: torch.dtype, layouts: tuple[str, ...]
) -> Iterator[tuple[Call, Tensor]]:
    batch, dim, height, width, clusters, ghosts, _ = size
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    for layout, operator in itertools.product(layouts, ("netvlad", "region_vlad")):
        weight, bias = tensor(device, acc, clusters + ghosts, dim), tensor(device, acc, clusters + ghosts)
        centroids = tensor(device, acc, clusters, dim)
        x = torch.randn(batch, dim, height, width).to(dtype)
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        x = x.to(device)
        if layout == "crop":
            x = x[:, :, 1:, 2:-1]
        mask = tensor(device, acc, batch, *x.shape[2:])
        yield Call(operator, (x.requires_grad_(), weight, centroids, bias), {"ghost_clusters": ghosts}), mask


def similarities(size: tuple[int, ...], device: str, dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    batch, dim, _, _, clusters, _, gallery = size
    for name, images in (("lists", (batch, gallery)), ("all-pairs", (batch * gallery,))):
        query = tensor(device, dtype, batch, clusters, dim)
        yield name, Call("region_similarity", (query, tensor(device, dtype, *images, 4, clusters, dim)), {})


def check(name: str, call: Call, found: list[Tensor], **options: Tensor) -> None:
    """Compare with float64 on the CPU."""
    exactly = [t.detach().double().cpu().requires_grad_() for t in (*call.tensors, *options.values())]
    count = len(call.tensors)
    double = dict(zip(options, exactly[count:], strict=True))
    exact = call.run(sfrs_ext.reference, tuple(exactly[:count]), **double)
    for number, (ours, right) in enumerate(zip(found, exact, strict=True)):
        # Gradients may cancel: what is left is held against all of them together.
        scale = max(right.abs().max().item(), 1e-3 * max(e.abs().max().item() for e in exact))
        error = (ours.double().cpu() - right).abs().max().item() / scale
        if not error <= ALLOWED[name]:
            raise SystemExit(
                f"{call.operator} in {name}, result {number}: error {error:.1e}, of {ALLOWED[name]:.0e}"
            )


def calls_of(arguments: argparse.Namespace, name: str, size: tuple[int, ...]) -> Iterator[tuple[Call, dict]]:
    layouts = ("planes", "channels_last") if arguments.large else ("planes", "channels_last", "crop")
    for call, mask in aggregations(size, arguments.device, TYPES[name], layouts):
        if arguments.only in (None, call.operator):
            yield call, {"mask": mask}
    for kind, call in similarities(size, arguments.device, TYPES[name]):
        if arguments.only in (None, kind):
            yield call, {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--large", action="store_true", help="the shapes of the paper, for the profiler")
    parser.add_argument("--few", action="store_true", help="one shape, bf16 and f32, for slow tools")
    parser.add_argument("--check", action="store_true", help="against float64")
    parser.add_argument("--type", choices=TYPES, help="only this")
    parser.add_argument("--only", choices=("netvlad", "region_vlad", "lists", "all-pairs"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    synchronize: Callable[[], None] = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    types = ("bf16", "f32") if arguments.few else ("bf16", "tf32", "f32") if arguments.large else TYPES
    sizes = LARGE if arguments.large else SMALL[:1] if arguments.few else SMALL
    for name, size in itertools.product((arguments.type,) if arguments.type else types, sizes):
        with products_in(name):
            for call, options in calls_of(arguments, name, size):
                found = call.run(sfrs_ext, call.tensors, **options)
                if arguments.check:
                    check(name, call, found, **options)
        synchronize()
        print(name, *size, flush=True)


if __name__ == "__main__":
    main()
