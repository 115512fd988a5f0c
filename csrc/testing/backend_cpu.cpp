// The CPU kernels, which have the same contract: a check of the checks.
#include "../cpu/kernels.h"
#include "array.h"
#include "backend.h"

namespace sfrs::testing {
namespace {

const Parallel kOneThread{1, [](int64_t tasks, void (*task)(void*, int64_t), void* context) {
                            for (int64_t i = 0; i < tasks; ++i) task(context, i);
                          }};

}  // namespace

Backend backend() {
  return {true,
          {"forward"},
          [](const std::string&) {},
          [](const Device&) { return std::string(); },
          [](const AggregationForward& f, const Device&, Scratch&) {
            cpu::kernels().aggregate_forward(f, kOneThread);
          },
          [](const AggregationBackward& f, const Device&, Scratch&) {
            cpu::kernels().aggregate_backward(f, kOneThread);
          },
          [](const RegionSimilarityForward& f, const Device&, Scratch&) {
            cpu::kernels().similarity_forward(f, kOneThread);
          },
          [](const RegionSimilarityBackward& f, const Device&, Scratch&) {
            cpu::kernels().similarity_backward(f, kOneThread);
          }};
}

}  // namespace sfrs::testing
