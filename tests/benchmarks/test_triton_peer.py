"""The peer in Triton computes NetVLAD and its gradients, in Triton's interpreter: no GPU is needed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="no triton here (it comes with torch for CUDA)"
)

# The interpreter has no products of bfloat16; float16 takes the same way through the kernels.
PROGRAM = """
import torch
from benchmarks.gpu import triton_peer
from sfrs_ext import reference

generator = torch.Generator().manual_seed(0)
randn = lambda *size: torch.randn(size, generator=generator)
for batch, dim, height, width, clusters in ((2, 16, 4, 5, 4), (1, 24, 5, 7, 7), (3, 33, 6, 6, 20)):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-2)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = randn(batch, dim, height, width).to(dtype).contiguous(memory_format=layout)
            parameters = [(s * randn(clusters, dim)).to(dtype) for s in (0.3, 0.05)]
            tensors = [t.clone().requires_grad_() for t in (x, *parameters)]
            double = [t.double().requires_grad_() for t in (x, *parameters)]
            grad = randn(batch, clusters * dim).to(dtype)
            out, exact = triton_peer.netvlad(*tensors), reference.netvlad(*double)
            found = (out, *torch.autograd.grad(out, tensors, grad))
            for ours, right in zip(found, (exact, *torch.autograd.grad(exact, double, grad.double()))):
                error = ((ours.double() - right).abs().max() / right.abs().max()).item()
                assert error < tolerance, (dtype, layout, dim, error)
print("agrees")
"""


def test_agrees_with_the_reference_in_both_directions():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=os.environ
        | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout == "agrees\n", done.stderr[-3000:]


def test_compiles_for_hopper():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.triton_peer"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 4 and "wgmma" in done.stdout
