// The CUDA kernels, under the emulator.
#include "../cuda/kernels.h"
#include "../cuda/launch.h"
#include "array.h"
#include "backend.h"

namespace sfrs::testing {
namespace {

cuda::Machine machine(const Device& device, Scratch& scratch) {
  return {device.multiprocessors, device.shared_memory, nullptr, &Scratch::allocate, &scratch};
}

std::string misuse(const Device& device) {
  const int64_t used = cuda::emulator::statistics.most_shared_memory;
  cuda::emulator::statistics = {};
  if (used <= device.shared_memory) return "";
  return "a block was given " + std::to_string(used) + " bytes of shared memory, the device has " +
         std::to_string(device.shared_memory);
}

}  // namespace

Backend backend() {
  return {false,
          {"forward", "reversed", "shuffled"},
          [](const std::string& name) { cuda::emulator::order = cuda::emulator::order_named(name); },
          misuse,
          [](const AggregationForward& f, const Device& d, Scratch& s) {
            cuda::aggregate_forward(f, machine(d, s));
          },
          [](const AggregationBackward& f, const Device& d, Scratch& s) {
            cuda::aggregate_backward(f, machine(d, s));
          },
          [](const RegionSimilarityForward& f, const Device& d, Scratch& s) {
            cuda::similarity_forward(f, machine(d, s));
          },
          [](const RegionSimilarityBackward& f, const Device& d, Scratch& s) {
            cuda::similarity_backward(f, machine(d, s));
          }};
}

}  // namespace sfrs::testing
