"""Every set of kernels in this build passes the same tests, and the build says what it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfrs_ext import _C, _operators

OTHERS = [name for name in _C.cpu_available() if name not in (_C.cpu_kernels(), "emulated")]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )


def pass_the_operator_tests(kernels: str, selection: str, **environment: str) -> None:
    check = f"from sfrs_ext import _C; assert _C.cpu_kernels() == {kernels!r}"
    assert python("-c", check, SFRS_CPU=kernels).returncode == 0
    tests = [
        f"tests/ops/test_{name}.py"
        for name in ("aggregation", "given_logits", "region_similarity", "conv3x3")
    ]
    options = ("-k", selection, "-p", "no:cacheprovider")
    done = python("-m", "pytest", *tests, *options, SFRS_CPU=kernels, **environment)
    assert done.returncode == 0, done.stdout[-3000:]


PAIRED = ("avx512bf16", "amx", "wide_bf16", "wide_amx")
"""Sets with kernels of their own for the aggregation of bfloat16 maps, which leave the rest to others."""


@pytest.mark.skipif("SFRS_CPU" in os.environ, reason="already running with chosen kernels")
@pytest.mark.parametrize("kernels", OTHERS)
def test_other_kernels_pass_the_operator_tests(kernels):
    # The 16-bit types of the others share all but their loads with float32.
    selection = "bfloat16 or 16_bit" if kernels in PAIRED else "not float64 and not float16"
    pass_the_operator_tests(kernels, selection)


# The CUDA kernels at the speed of an emulator: what takes minutes is left out.
QUICK = "not paper and not 512 and not finite_differences"


@pytest.mark.skipif("SFRS_CPU" in os.environ, reason="already running with chosen kernels")
@pytest.mark.skipif("emulated" not in _C.cpu_available(), reason="built without -DSFRS_EMULATED_KERNELS=ON")
@pytest.mark.parametrize(
    ("order", "selection"), [("forward", QUICK), ("reversed", f"odd and not layout and {QUICK}")]
)
def test_emulated_cuda_kernels_pass_the_operator_tests(order, selection):
    pass_the_operator_tests("emulated", selection, SFRS_EMULATOR_ORDER=order)


def test_unknown_kernels_are_not_silently_replaced():
    done = python("-m", "sfrs_ext", SFRS_CPU="avx1024")
    assert done.returncode != 0
    assert "SFRS_CPU=avx1024" in done.stderr and "portable" in done.stderr


def test_the_build_tells_what_it_is():
    done = python("-m", "sfrs_ext")
    assert done.returncode == 0, done.stderr
    for fact in ("torch", "CPU kernels", "portable", "CUDA"):
        assert fact in done.stdout


def test_operators_need_only_torch_and_numpy():
    code = "import sys, sfrs_ext; assert not {'sfrs', 'faiss', 'scipy', 'PIL', 'typer'} & set(sys.modules)"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_importing_does_not_load_the_compiler():
    done = python("-c", "import sys, sfrs_ext; assert 'torch._dynamo' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_the_tf32_switch_is_marked_as_torch_marks_constants():
    marked = torch.compiler.assume_constant_result(lambda: None)
    assert vars(marked).items() <= vars(_operators._matmul_may_round_to_tf32).items()
    assert vars(marked)


WITHOUT_CUDA = """
import sys
sys.modules["sfrs_ext._C_cuda"] = None
import torch, sfrs_ext
from sfrs_ext import _cuda
cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
query, quarters = torch.randn(2, 3, 8), torch.randn(5, 4, 3, 8)
try:
    torch.ops.sfrs_ext.region_similarity.default.redispatch(cuda, query, quarters, False, False, False)
except NotImplementedError as error:
    print(error)
print(_cuda.facts())
print(sfrs_ext.region_similarity(query, quarters).shape)
"""


def test_a_cuda_tensor_without_cuda_kernels_hears_how_to_build_them():
    done = python("-c", WITHOUT_CUDA)
    assert done.returncode == 0, done.stderr
    refused, facts, works = done.stdout.splitlines()
    assert "no CUDA kernels" in refused and "nvcc" in refused and "pip install" in refused
    assert "no kernels" in facts and works == "torch.Size([2, 5, 9])"
