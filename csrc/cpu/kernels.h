// The CPU kernels as a table of functions, one table per instruction set.
#pragma once

#include <string>
#include <vector>

#include "../aggregation.h"
#include "../convolution.h"
#include "../region_similarity.h"

namespace sfrs::cpu {

struct Kernels {
  const char* name;
  int64_t panel;  // columns that lie side by side in what pack_convolution makes
  void (*aggregate_forward)(const AggregationForward&, const Parallel&);
  void (*aggregate_backward)(const AggregationBackward&, const Parallel&);
  void (*similarity_forward)(const RegionSimilarityForward&, const Parallel&);
  void (*similarity_backward)(const RegionSimilarityBackward&, const Parallel&);
  void (*pack_convolution)(const ConvolutionWeight&, const Parallel&);
  void (*convolve)(const Convolution&, const Parallel&);
  void (*mask_gradient)(const ConvolutionRelu&, const Parallel&);
};

// The table of the last use_kernels; before that the one that the environment variable SFRS_CPU names, or the
// best. Both throw std::invalid_argument if there is no table of that name.
const Kernels& kernels();
void use_kernels(const std::string& name);

// Every table that this build holds and this processor runs, best first.
const std::vector<const Kernels*>& available();

#ifdef SFRS_EMULATED_KERNELS
namespace emulated {
// The order in which threads of the emulated CUDA kernels run: forward, reversed or shuffled.
void use_order(const std::string& name);
}  // namespace emulated
#endif

}  // namespace sfrs::cpu
