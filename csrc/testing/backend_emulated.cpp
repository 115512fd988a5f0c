// The CUDA kernels, under the emulator.
#include "../cuda/kernels.h"
#include "../cuda/launch.h"
#include "array.h"
#include "backend.h"

#ifdef SFRS_MATMUL  // the kernels were compiled for one arithmetic
#include "../cuda/matrix.cuh"
#include "../cuda/similarity.h"

namespace sfrs::cuda {
template <class M>
void aggregate_forward_with(const AggregationForward&, const Machine&);
template <class M>
void aggregate_backward_with(const AggregationBackward&, const Machine&);
template <class M>
void similarity_all_pairs_forward_with(const RegionSimilarityForward&, const Machine&);
template <class M>
void similarity_all_pairs_backward_with(const RegionSimilarityBackward&, const Machine&);

void aggregate_forward(const AggregationForward& f, const Machine& machine) {
  aggregate_forward_with<SFRS_MATMUL>(f, machine);
}
void aggregate_backward(const AggregationBackward& f, const Machine& machine) {
  aggregate_backward_with<SFRS_MATMUL>(f, machine);
}
void similarity_all_pairs_forward(const RegionSimilarityForward& f, const Machine& machine) {
  similarity_all_pairs_forward_with<SFRS_MATMUL>(f, machine);
}
void similarity_all_pairs_backward(const RegionSimilarityBackward& f, const Machine& machine) {
  similarity_all_pairs_backward_with<SFRS_MATMUL>(f, machine);
}
}  // namespace sfrs::cuda
#endif

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
