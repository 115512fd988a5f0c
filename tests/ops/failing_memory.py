"""Let the n-th allocation of every operator fail, for every n until a call passes, each in its own process.

Prints what is wrong; test_out_of_memory.py runs it. A child is forked from a process that has started no
thread and whose kernels own no memory yet, so every n meets the same allocations.
"""

import ctypes
import io
import os
import signal
import sys
from collections.abc import Callable

import torch

import sfrs_ext
from sfrs_ext import _C

PATIENCE = 60  # seconds for one child
PASSED, FAILED, WRONG = 0, 1, 2  # exit codes

torch.set_num_threads(1)
torch.manual_seed(0)
fail_allocation = ctypes.CDLL(_C.__file__).sfrs_fail_allocation
fail_allocation.argtypes = [ctypes.c_int64]


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(shape).requires_grad_()


MAP, LIST = leaf(3, 40, 9, 8), leaf(4, 5, 4, 3, 20)
WEIGHT, CENTROIDS, BIAS, MASK = leaf(9, 40), leaf(7, 40), leaf(9), torch.rand(3, 9, 8).requires_grad_()
QUERY, IMAGE, FILTERS = leaf(4, 3, 20), leaf(2, 5, 9, 9), leaf(70, 5, 3, 3)
AGGREGATION = dict(centroids=CENTROIDS, bias=BIAS, ghost_clusters=2, mask=MASK)

CALLS: dict[str, Callable[[], torch.Tensor]] = {
    "netvlad": lambda: sfrs_ext.netvlad(MAP, WEIGHT, **AGGREGATION),
    "netvlad of tokens": lambda: sfrs_ext.netvlad(MAP.flatten(2).mT, WEIGHT, **AGGREGATION | {"mask": None}),
    "netvlad of logits": lambda: sfrs_ext.netvlad(MAP, logits=MAP[:, :9].contiguous(), **AGGREGATION),
    "region_vlad": lambda: sfrs_ext.region_vlad(MAP, WEIGHT, **AGGREGATION),
    "region_similarity of lists": lambda: sfrs_ext.region_similarity(QUERY, LIST),
    "region_similarity of all pairs": lambda: sfrs_ext.region_similarity(QUERY, LIST.flatten(0, 1)),
    "conv3x3": lambda: sfrs_ext.conv3x3(IMAGE, FILTERS, relu=True),
    "conv3x3_weight": lambda: sfrs_ext.conv3x3_weight(FILTERS),
}
LEAVES = (MAP, WEIGHT, CENTROIDS, BIAS, MASK, QUERY, LIST, IMAGE, FILTERS)


def results(call: Callable[[], torch.Tensor], before: int = -1, before_backward: int = -1):
    """The result and all gradients; after so many allocations of the forward or the backward one fails."""
    for tensor in LEAVES:
        tensor.grad = None
    try:
        fail_allocation(before)
        out = call()
        fail_allocation(before_backward)
        if out.requires_grad:
            out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
    finally:
        fail_allocation(-1)
    return [out.detach(), *(tensor.grad for tensor in LEAVES if tensor.grad is not None)]


def child(call: Callable[[], torch.Tensor], threads: int, expected: list[torch.Tensor], **when: int) -> int:
    signal.alarm(PATIENCE)
    torch.set_num_threads(threads)
    try:
        results(call, **when)
        code = PASSED
    except (MemoryError, RuntimeError) as error:
        named = "memory" in str(error) or "bad_alloc" in str(error) or "API call failed" in str(error)
        code = FAILED if named else WRONG
    # Twice, so that memory that was given back by mistake is used by another.
    for _ in range(2):
        for found, wanted in zip(results(call), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    return code


def run(call: Callable[[], torch.Tensor], threads: int, expected: list[torch.Tensor], **when: int) -> int:
    """The child's exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 99
    try:
        code = child(call, threads, expected, **when)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(code)


def import_what_torch_puts_off() -> None:
    """So that no child has to; without a kernel."""
    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))
    on_meta = [tensor.detach().to("meta").requires_grad_() for tensor in (MAP, WEIGHT)]
    sfrs_ext.netvlad(*on_meta, ghost_clusters=2).sum().backward()


def expected_results() -> dict[str, list[torch.Tensor]]:
    """Of all calls, by a child: the kernels of this process must own nothing."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        with os.fdopen(writer, "wb") as file:
            torch.save({name: results(call) for name, call in CALLS.items()}, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        return torch.load(io.BytesIO(file.read()))


def main() -> int:
    import_what_torch_puts_off()
    expected = expected_results()
    wrong = 0
    for name, call in CALLS.items():
        for when in ("before", "before_backward"):
            if when == "before_backward" and len(expected[name]) == 1:
                continue
            for threads in (1, 3) if name == "netvlad" else (3,):
                count = 0
                while (code := run(call, threads, expected[name], **{when: count})) == FAILED:
                    count += 1
                title = f"{name}, {'forward' if when == 'before' else 'backward'}, {threads} threads"
                print(f"{title}: {count} allocations", flush=True)
                if code != PASSED or count == 0:
                    print(f"FAULT {title}: exit code {code} after allocation {count} failed", flush=True)
                    wrong += 1
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
