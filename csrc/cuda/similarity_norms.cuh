// Norms of the nine regions of gallery images, for the similarities of all pairs. Idea: a block per image
// takes the squares of all clusters in one pass over its quarter VLADs, then inverts them in place.
// Floor: one read of the quarters, memory-bound; the arithmetic is that of similarity_dots.cuh without u.
// Predicted on an H200 for 2,048 images, K = 64, D = 512: bf16 155 us (floor 125), float 290 us (floor 250).
#pragma once

#include "similarity_dots.cuh"

namespace sfrs::cuda {

struct NormsParameters {
  const void* quarters;  // [N, 4, K, D]
  double* squares;       // [N, K, 9]: n_r[k]^2
  void* inverse;         // [N, K, 9]: 1 / max(n_r[k], eps), 0 where the quarters cancel
  void* inverse_total;   // [N, 9]: 1 / N_r
  int64_t clusters, dim;
  bool aligned;
  double cancelled_below;
};

// Two blocks of a multiprocessor keep more loads under way than one with more registers.
template <class S>
__global__ void __launch_bounds__(kRegionThreads, 2) similarity_norms(SFRS_CONSTANT NormsParameters p) {
  using T = Accumulated<S>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t image = blockIdx.x, size = p.clusters * p.dim;
  auto quarters = [&](int64_t k) { return (const S*)p.quarters + image * kQuarters * size + k * p.dim; };
  double* squares = p.squares + image * p.clusters * kRegions;
  bool lost = false;
  for (int64_t k = warp; k < p.clusters; k += kRegionThreads / 32) {
    int index;
    const double square =
        warp_dots<false>((const S*)nullptr, quarters(k), size, p.dim, p.aligned, lane, &index);
    if (index >= 0) squares[k * kRegions + index] = square;
    lost |= index >= kRegions - kQuarters && may_be_lost<S>(square);
  }
  __syncwarp();
  if (__any_sync(kAllLanes, lost))
    for (int64_t k = warp; k < p.clusters; k += kRegionThreads / 32)
      mend_dots<false>((const S*)nullptr, quarters(k), size, p.dim, squares + k * kRegions);
  __syncthreads();
  const int region = warp;
  double total = 0;
  for (int64_t k = lane; k < p.clusters; k += 32) {
    const double* of = squares + k * kRegions;
    const double inverse = region_inverse(region, of, p.cancelled_below);
    ((T*)p.inverse)[(image * p.clusters + k) * kRegions + region] = (T)inverse;
    total += of[region] * inverse * inverse;
  }
  total = warp_sum(total);
  if (lane == 0) ((T*)p.inverse_total)[image * kRegions + region] = (T)inverse_norm(total);
}

}  // namespace sfrs::cuda
