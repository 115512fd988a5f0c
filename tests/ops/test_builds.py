"""Every set of kernels in this build passes the same tests, and the build says what it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sfrs_ext
from sfrs_ext import _operators

pytestmark = pytest.mark.slow


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )


def test_the_environment_and_a_call_choose_the_kernels():
    code = "import sfrs_ext as s; print(s.kernels()); s.use_kernels('portable'); print(s.kernels())"
    last = next(name for name in reversed(sfrs_ext.available_kernels()) if name != "portable")
    assert python("-c", code, SFRS_CPU=last).stdout.split() == [last, "portable"]


def test_unknown_kernels_are_not_silently_replaced():
    with pytest.raises(ValueError, match="use_kernels: name is avx1024, but .* have.* portable"):
        sfrs_ext.use_kernels("avx1024")
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
