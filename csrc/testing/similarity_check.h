// Problems of region similarity: their inputs, what float64 makes of them, and what kernels make of them.
#pragma once

#include <string>

#include "../region_similarity.h"
#include "backend.h"
#include "report.h"

namespace sfrs::testing {

enum class Special {
  none,
  empty_clusters,  // some clusters are zero in all quarters, some in two
  cancelling,      // quarters that nearly cancel in a half
  cancelled,       // quarters that cancel but for rounding, in a half or in the whole image
  large,
  small,  // quarters whose squares leave the range of float
};

struct SimilarityProblem {
  const char* name;
  int64_t queries, gallery, clusters, dim;
  bool all_pairs;

  DType dtype = DType::f32;
  bool tf32 = false;
  bool odd = false;  // arrays begin at no multiple of 16 bytes
  Special special = Special::none;
  bool save = true;  // without: no backward
  bool want_query = true, want_quarters = true;
  Device device = {};

  std::string title() const;
};

// As check() of aggregation_check.h.
std::string check(const SimilarityProblem&, const Backend&);

}  // namespace sfrs::testing
