// How a launcher launches. Host side, no torch header.
#pragma once

#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "device.cuh"
#include "machine.h"

namespace sfrs::cuda {

// A grid of so many blocks in a row.
inline dim3 grid_of(int64_t blocks) {
  constexpr int64_t most = 0x7fffffff;
  if (blocks > most)
    throw std::runtime_error("sfrs_ext: so many queries and images need " + std::to_string(blocks) +
                             " blocks of a kernel, but CUDA launches at most " + std::to_string(most) +
                             "; pass them in parts");
  return dim3((unsigned)blocks);
}

#ifdef SFRS_EMULATE
template <class Parameters>
void launch(const Machine&, void (*kernel)(Parameters), dim3 grid, int threads, int64_t shared,
            const Parameters& parameters) {
  if (emulator::watch)
    return emulator::watch({(const void*)kernel, grid, threads, shared, &parameters, sizeof parameters});
  emulator::run(grid, threads, shared, [&] { kernel(parameters); });
}
#else
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the error is reported here and nowhere else
  throw std::runtime_error(std::string("sfrs_ext: CUDA could not ") + what + ": " +
                           cudaGetErrorString(error));
}

// Lets the blocks of a kernel have all shared memory of the device. Said once: were it what one launch needs,
// it would change between another thread's word and its launch, and under a captured graph.
inline void give_shared_memory(const Machine& machine, const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> given;
  std::lock_guard<std::mutex> lock(mutex);
  if (given.count({kernel, machine.device})) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)machine.shared_memory),
        "give a block its shared memory");
  given.insert({kernel, machine.device});
}

// Runs `kernel(parameters)` on the machine's stream; waits for nothing.
template <class Parameters>
void launch(const Machine& machine, void (*kernel)(Parameters), dim3 grid, int threads, int64_t shared,
            const Parameters& parameters) {
  if (shared > 48 * 1024) give_shared_memory(machine, (const void*)kernel);
  void* arguments[] = {const_cast<Parameters*>(&parameters)};
  check(cudaLaunchKernel((const void*)kernel, grid, dim3(threads), arguments, (size_t)shared,
                         (cudaStream_t)machine.stream),
        "launch a kernel");
}
#endif

}  // namespace sfrs::cuda
