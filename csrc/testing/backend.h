// The kernels under test.
#pragma once

#include <string>
#include <vector>

#include "../aggregation.h"
#include "../region_similarity.h"

namespace sfrs::testing {

// The device that a launch is for: how work is cut depends on it.
struct Device {
  int multiprocessors = 132;
  int64_t shared_memory = 232448;
};

class Scratch;

struct Backend {
  bool saves_logits;
  std::vector<std::string> orders;  // of threads, in which everything is to be run
  void (*set_order)(const std::string&);
  // What is wrong with how the last launches used the device, or nothing.
  std::string (*misuse)(const Device&);
  void (*aggregate_forward)(const AggregationForward&, const Device&, Scratch&);
  void (*aggregate_backward)(const AggregationBackward&, const Device&, Scratch&);
  void (*similarity_forward)(const RegionSimilarityForward&, const Device&, Scratch&);
  void (*similarity_backward)(const RegionSimilarityBackward&, const Device&, Scratch&);
};

Backend backend();  // of the file linked in: backend_emulated.cpp or backend_cpu.cpp

}  // namespace sfrs::testing
