// Norms of the nine regions of gallery images, for the similarities of all pairs. Idea: a block per image
// takes the squares of all clusters in one pass over its quarter VLADs, then inverts them in place.
// Floor: one read of the quarters, memory-bound; the arithmetic is that of similarity_dots.cuh without u.
// Predicted on an H200 for 2,048 images, K = 64, D = 512: bf16 155 us (floor 125), float 290 us (floor 250).
#pragma once

#include "similarity_dots.cuh"

namespace sfrs::cuda {

struct NormsParameters {
  const void* quarters;  // [N, 4, K, D]
  void* inverse;         // [N, K, 9]: 1 / max(n_r[k], eps)
  void* inverse_total;   // [N, 9]: 1 / N_r
  int64_t clusters, dim;
  bool aligned;
};

template <class S>
SFRS_KERNEL(kRegionThreads)
similarity_norms(SFRS_CONSTANT NormsParameters p) {
  using T = Accumulated<S>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t image = blockIdx.x, size = p.clusters * p.dim;
  T* inverse = (T*)p.inverse + image * p.clusters * kRegions;
  for (int64_t k = warp; k < p.clusters; k += kRegionThreads / 32) {
    const S* v = (const S*)p.quarters + image * kQuarters * size + k * p.dim;
    double squares[kRegions];
    if (p.aligned)
      lane_dots<true, false>((const S*)nullptr, v, size, p.dim, lane, squares);
    else
      lane_dots<false, false>((const S*)nullptr, v, size, p.dim, lane, squares);
    int index;
    double square = scatter_sum(squares, lane, kRegions, 0, &index);
    if (index >= 0) inverse[k * kRegions + index] = (T)square;
  }
  __syncthreads();
  const int region = warp;
  double total = 0;
  for (int64_t k = lane; k < p.clusters; k += 32) {
    T square = inverse[k * kRegions + region], inverted = inverse_norm(square);
    inverse[k * kRegions + region] = inverted;
    total += (double)square * inverted * inverted;
  }
  total = warp_sum(total);
  if (lane == 0) ((T*)p.inverse_total)[image * kRegions + region] = (T)inverse_norm(total);
}

}  // namespace sfrs::cuda
