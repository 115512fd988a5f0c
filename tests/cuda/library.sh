#!/usr/bin/env bash
# Compiles the GPU library for every architecture, or those in SFRS_CUDA_ARCHS, into build/cuda, where warnings
# are errors; holds its kernels to their budget of registers, to the instructions they are made of and to the
# clocks they take on sm_90; tests how kernels are launched and that the library loads beside this torch. Needs
# nvcc, but no GPU.
# --update rewrites the records (make cuda BUDGET=--update).
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$PWD/build/cuda
python=$(command -v python)
if ! PATH=$PATH:/usr/local/cuda/bin command -v "${CUDACXX:-nvcc}" > /dev/null; then
  echo "cuda: no nvcc here, kernels neither compiled nor held to their budget"
  exit
fi
# nvcc takes what follows `if constexpr (...) return` for unreachable (128), and a file of one arithmetic does not
# use all its functions (177).
SFRS_CUDA=ON SFRS_CUDA_ARCHS="${SFRS_CUDA_ARCHS:-all}" cmake -S . -B "$build" -G Ninja -DPYTHON="$python" -DOUTPUT_DIR="$build" \
  -DSFRS_CUDA_USAGE=ON -DSFRS_CXX_OPTIONS=-Werror -DSFRS_CUDA_OPTIONS="-lineinfo;-Werror=all-warnings;-diag-suppress=128,177" > /dev/null
cmake --build "$build" --target _C_cuda
"$python" tests/cuda/budget.py "$build" "$@"
"$python" tests/cuda/census.py "$build" "$@"
"$python" tests/cuda/clocks.py "$build" "$@"
SFRS_CUDA_LIBRARY=$build "$python" -m pytest tests/cuda/test_library.py tests/cuda/test_launch.py
# The peer of the benchmarks, compiled for sm_90 too.
if "$python" -c "import triton" 2> /dev/null; then
  "$python" -m benchmarks.gpu.triton_peer
else
  echo "cuda: no triton here (it comes with torch for CUDA), the peer in Triton is not compiled"
fi
