// What a launcher knows about the machine it launches on, and how it launches. Host side, no torch header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "device.cuh"

namespace sfrs::cuda {

struct Machine {
  int multiprocessors;
  int64_t shared_memory;  // the most a block may have, in bytes
  void* stream;           // cudaStream_t
  // Scratch in device memory, 256-byte aligned, alive until everything launched so far on the stream has run.
  void* (*allocate)(void* context, int64_t bytes);
  void* context;

  template <class T>
  T* scratch(int64_t count) const {
    return static_cast<T*>(allocate(context, count * (int64_t)sizeof(T)));
  }
};

#ifdef SFRS_EMULATE
template <class Parameters>
void launch(const Machine&, void (*kernel)(Parameters), dim3 grid, int threads, int64_t shared,
            const Parameters& parameters) {
  emulator::run(grid, threads, shared, [&] { kernel(parameters); });
}
#else
inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
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
  kernel<<<grid, threads, (size_t)shared, (cudaStream_t)machine.stream> > >(parameters);
  check(cudaGetLastError(), "launch a kernel");
}
#endif

}  // namespace sfrs::cuda
