// Contract of the similarities between queries and the nine regions of gallery images.
//
// u[k] are the query's descriptor blocks, V_i[k] the gallery image's quarter VLADs, i = 0..3. With
// d_i[k] = <u[k], V_i[k]> and, for region r, V_r = sum_{i in r} V_i and n_r[k] = |V_r[k]|:
//
//   S_r = 1 / N_r  sum_k (sum_{i in r} d_i[k]) / max(n_r[k], eps)
//   N_r = max(|(n_r[k] / max(n_r[k], eps))_k|, eps)
//
// which is the dot product of u with the intra-normalised, L2-normalised VLAD of the region.
//
// Where the quarters of a region cancel there is no direction to normalise, and what rounding leaves of the
// d_i must not be divided by eps. The cluster is zero in that region, 1 / max(n_r[k], eps) is taken as 0, if
//
//   n_r[k]^2 < (2 epsilon)^2 sum_{i in r} |V_i[k]|^2          epsilon: of the quarters' type, 2^-23 for f32
//
// It then adds nothing to S_r, N_r and the gradients. The factor is 2 for any D: a quarter is known to
// epsilon / 2 of its size, adding up errs by as much again, and the sizes of four quarters add up to at most
// twice the root of their squares.
#pragma once

#include "tensors.h"

namespace sfrs {

constexpr int kRegions = 9;
constexpr int kQuarters = 4;
// Per pair and cluster: d_0..d_3, then n_r^2 for the nine regions. The squares are taken of the sums, not
// put together from <V_i, V_j>: where quarters cancel, half of the digits would go.
constexpr int kDots = kQuarters + kRegions;

// The quarters of each region: whole, top, bottom, left, right, the four quarters.
constexpr unsigned kRegionQuarters[kRegions] = {0b1111, 0b0011, 0b1100, 0b0101, 0b1010,
                                                0b0001, 0b0010, 0b0100, 0b1000};

// (2 epsilon)^2 of a storage type.
constexpr double cancelled_below(DType dtype) {
  return dtype == DType::f64   ? 0x1p-102
         : dtype == DType::f32 ? 0x1p-44
         : dtype == DType::f16 ? 0x1p-18
                               : 0x1p-12;
}

// Lists: query [T, K, D], quarters [T, G, 4, K, D], similarity [T, G, 9].
// All pairs: query [T, K, D], quarters [G, 4, K, D], similarity [T, G, 9].
struct RegionSimilarity {
  DType dtype;  // of query, quarters and their gradients; the rest is in the accumulation type
  int64_t queries, gallery, clusters, dim;
  bool all_pairs;
  const void* query;
  const void* quarters;
  bool tf32;  // f32 products may be rounded to TF32 where there are tensor cores
};

struct RegionSimilarityForward : RegionSimilarity {
  void* similarity;
  void* saved_dots;  // lists only: [T, G, K, 13] in double, null if there will be no backward
};

struct RegionSimilarityBackward : RegionSimilarity {
  const void* grad;        // of similarity
  const void* similarity;  // the forward's result
  const void* saved_dots;  // lists only
  void* dquery;            // null if not wanted
  void* dquarters;         // null if not wanted
};

}  // namespace sfrs
