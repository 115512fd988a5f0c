// The CPU kernels as a table of functions, one table per instruction set.
#pragma once

#include "../aggregation.h"
#include "../convolution.h"
#include "../nearest.h"
#include "../region_similarity.h"

namespace sfrs::cpu {

struct Kernels {
  const char* name;
  void (*aggregate_forward)(const AggregationForward&, const Parallel&);
  void (*aggregate_backward)(const AggregationBackward&, const Parallel&);
  void (*similarity_forward)(const RegionSimilarityForward&, const Parallel&);
  void (*similarity_backward)(const RegionSimilarityBackward&, const Parallel&);
  void (*pack_convolution)(const ConvolutionWeight&, const Parallel&);
  void (*convolve)(const Convolution&, const Parallel&);
  void (*mask_gradient)(const ConvolutionRelu&, const Parallel&);
  void (*nearest)(const Nearest&, const Parallel&);
};

// The table for this processor, or the one that the environment variable SFRS_CPU names; throws if there is
// no such table here.
const Kernels& kernels();

// Every table that this build holds and this processor runs, best first; ends with a null.
const Kernels* const* available();

}  // namespace sfrs::cpu
