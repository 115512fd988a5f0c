"""How kernels are launched, with CUDA's own calls replaced by a record of them; needs nvcc, but no GPU."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="no nvcc here")]

WRAPPED = ("cudaFuncSetAttribute", "cudaLaunchKernel")
PROGRAM = """
#include <cstdio>
#include <thread>

#include "launch.h"

using namespace sfrs::cuda;

template <int n>
__global__ void kernel(int) {}
__global__ void small(int) {}

std::mutex mutex;
extern "C" cudaError_t __wrap_cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  std::lock_guard<std::mutex> lock(mutex);
  std::printf("set %d %d\\n", kernel == (void*)::kernel<1> ? 1 : 2, value);
  return cudaSuccess;
}
extern "C" cudaError_t __wrap_cudaLaunchKernel(const void*, dim3, dim3, void**, size_t shared, cudaStream_t) {
  std::lock_guard<std::mutex> lock(mutex);
  std::printf("launch %zu\\n", shared);
  return cudaSuccess;
}

int main() {
  Machine machine{132, 232448, nullptr, nullptr, nullptr, 0};
  auto work = [&](int64_t shared) {
    for (int i = 0; i < 100; ++i) {
      launch(machine, kernel<1>, dim3(1), 32, shared, 0);
      launch(machine, kernel<2>, dim3(1), 32, shared, 0);
      launch(machine, small, dim3(1), 32, 1024, 0);
    }
  };
  std::thread one(work, 60000), other(work, 200000);
  one.join(), other.join();
  machine.device = 1;
  launch(machine, kernel<1>, dim3(1), 32, 60000, 0);
}
"""


def test_a_kernel_may_have_all_shared_memory_once_and_for_every_thread(tmp_path):
    (tmp_path / "program.cu").write_text(PROGRAM)
    wraps = [option for name in WRAPPED for option in ("-Xlinker", f"--wrap={name}")]
    program = tmp_path / "program"
    command = [
        NVCC,
        "-std=c++17",
        f"-I{ROOT / 'csrc' / 'cuda'}",
        *wraps,
        "-o",
        program,
        tmp_path / "program.cu",
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    # Two kernels on one device, then the first on another; the small one asks for nothing.
    assert sorted(line for line in lines if line.startswith("set")) == [
        "set 1 232448",
        "set 1 232448",
        "set 2 232448",
    ]
    assert len([line for line in lines if line.startswith("launch")]) == 601
    assert lines[-2:] == ["set 1 232448", "launch 60000"]
