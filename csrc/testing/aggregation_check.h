// Problems of the aggregation: their inputs, what float64 makes of them, and what kernels make of them.
#pragma once

#include <string>
#include <vector>

#include "../aggregation.h"
#include "backend.h"
#include "report.h"

namespace sfrs::testing {

enum class Layout { planes, channels_last, crop, channels_last_crop, batch_slice, tokens };
constexpr Layout kLayouts[] = {Layout::planes,      Layout::channels_last,
                               Layout::crop,        Layout::channels_last_crop,
                               Layout::batch_slice, Layout::tokens};

enum Wanted {
  kDx = 1,
  kDweight = 2,
  kDlogits = 4,
  kDcentroids = 8,
  kDbias = 16,
  kDmask = 32,
  kEverything = 63
};

struct AggregationProblem {
  const char* name;
  int64_t batch, dim, height, width, clusters, ghosts;

  DType dtype = DType::f32;
  bool tf32 = false;
  Layout layout = Layout::planes;
  int64_t parts = 1;
  bool normalize = true, intra = true, l2 = true;
  bool centroids = true, bias = true, mask = true;
  bool given = false;          // logits instead of a weight
  bool odd = false;            // arrays begin at no multiple of 16 bytes
  bool small_vectors = false;  // one feature vector is zero, one of norm 1e-6
  bool huge_logits = false;
  bool save = true;  // without: no backward
  unsigned wanted = kEverything;
  Device device = {};

  int64_t positions() const { return height * width; }
  int64_t logits() const { return clusters + ghosts; }
  std::string title() const;
};

// Runs forward and backward in every order; the first order's results are held against float64, those of the
// others against the first's, bit by bit.
std::string check(const AggregationProblem&, const Backend&);

}  // namespace sfrs::testing
