// How a launcher launches. Host side, no torch header.
#pragma once

#include <stdexcept>
#include <string>

#include "device.cuh"
#include "machine.h"

namespace sfrs::cuda {

#ifdef SFRS_EMULATE
template <class Parameters>
void launch(const Machine&, void (*kernel)(Parameters), dim3 grid, int threads, int64_t shared,
            const Parameters& parameters) {
  emulator::run(grid, threads, shared, [&] { kernel(parameters); });
}
#else
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the error is reported here and nowhere else
  throw std::runtime_error(std::string("sfrs_ext: CUDA could not ") + what + ": " +
                           cudaGetErrorString(error));
}

// Runs `kernel(parameters)` on the machine's stream; waits for nothing.
template <class Parameters>
void launch(const Machine& machine, void (*kernel)(Parameters), dim3 grid, int threads, int64_t shared,
            const Parameters& parameters) {
  if (shared > 48 * 1024)
    check(cudaFuncSetAttribute((const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
          "give a block its shared memory");
  void* arguments[] = {const_cast<Parameters*>(&parameters)};
  check(cudaLaunchKernel((const void*)kernel, grid, dim3(threads), arguments, (size_t)shared,
                         (cudaStream_t)machine.stream),
        "launch a kernel");
}
#endif

}  // namespace sfrs::cuda
