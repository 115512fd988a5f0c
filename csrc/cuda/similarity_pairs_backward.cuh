// Query-to-region similarity of all pairs, backward. Per cluster, with w_i[q, n] = sum_{r with i} scaled_r[q,
// n] / n_r and scaled_r = grad_r / N_r:
//
//   dU[q]   = sum_{n, i} w_i[q, n] V_{n, i}
//   dV_{n,i} = sum_q w_i[q, n] U[q] + sum_{r with i} c_r[n] V_{n, r}
//   c_r[n]  = -1 / n_r^3 sum_q scaled_r sum_{j in r} d_j[q, n]
//
// Idea: three products. The first is that of the forward, reduced over the queries behind it; the other
// two are weights times rows: weights are made in shared memory from scaled and 1 / n_r, chunk by chunk, and
// multiply rows of V or U as they lie.
//
// Floor: 24 T N K D flops; quarters read four times (once for the norms) and written once.
// Predicted on an H200 for 256 x 2,048, K = 64, D = 512: bf16 0.43 + 0.6 + 0.75 ms, exact float
// 1.5 + 1.6 + 1.7 ms for the three, besides 0.2 (0.35) ms for norms, scaling and coefficients.
#pragma once

#include "similarity_lists_backward.cuh"
#include "similarity_pairs.cuh"
#include "similarity_weights.cuh"

namespace sfrs::cuda {

struct ScaleParameters {
  const void* grad;           // [T, N, 9]
  const void* similarity;     // [T, N, 9]
  const void* inverse_total;  // [N, 9]
  void* scaled;               // grad_r / N_r as scaled_offset lays it out
  void* clamped;              // [N, 9]: eps^2 c_r of clusters with n_r < eps, where only N_r depends on V_r
  int64_t queries, gallery;
};

template <class T>
SFRS_KERNEL(kPairThreads)
similarity_scale(SFRS_CONSTANT ScaleParameters p) {
  SFRS_SHARED_MEMORY(memory);
  constexpr int kWarps = kPairThreads / 32;
  T* shared = (T*)memory;  // [warp][lane]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t count = p.gallery * kRegions, item = (int64_t)blockIdx.x * 32 + lane, image = item / kRegions;
  const int region = (int)(item - image * kRegions);
  const T inverse = item < count ? ((const T*)p.inverse_total)[item] : 0;
  T along = 0;
  if (item < count)
    for (int64_t q = warp; q < p.queries; q += kWarps) {
      const T scaled = ((const T*)p.grad)[q * count + item] * inverse;
      along += scaled * ((const T*)p.similarity)[q * count + item];
      ((T*)p.scaled)[scaled_offset(q, image, region, p.queries)] = scaled;
    }
  shared[warp * 32 + lane] = along;
  __syncthreads();
  if (warp != 0 || item >= count) return;
  T sum = 0;
  SFRS_EACH (w, kWarps) sum += shared[w * 32 + lane];
  ((T*)p.clamped)[item] = norm_counts(inverse) ? -sum * inverse : 0;
}

struct RegionCoefficientParameters {
  const void* along;               // [parts, N, K, 9]: sum_q scaled_r sum_{i in r} d_i
  const void* inverse;             // [N, K, 9]
  const void* clamped;             // [N, 9]
  void* coefficients;              // [N, K, 10]: c_r in a unit, the unit
  int64_t count, clusters, parts;  // N K
};
template <class T>
SFRS_KERNEL(kPairThreads)
similarity_region_coefficients(SFRS_CONSTANT RegionCoefficientParameters p) {
  const int64_t i = (int64_t)blockIdx.x * kPairThreads + threadIdx.x, first = i * kRegions;
  if (i >= p.count) return;
  double c[kRegions];
  SFRS_EACH (r, kRegions) {
    T along = 0;
    for (int64_t part = 0; part < p.parts; ++part)
      along += ((const T*)p.along)[part * p.count * kRegions + first + r];
    const T inverse = ((const T*)p.inverse)[first + r];
    const double clamped = ((const T*)p.clamped)[i / p.clusters * kRegions + r] / (kEps * kEps);
    c[r] = norm_counts(inverse) ? -(double)along * inverse * inverse * inverse : clamped;
  }
  const double unit = coefficient_unit<T>(c, 1);
  T* out = (T*)p.coefficients + i * kRegionCoefficients;
  SFRS_EACH (r, kRegions) out[r] = (T)(c[r] / unit);
  out[kRegions] = (T)unit;
}

template <class S, bool kTf32>
SFRS_KERNEL(kPairThreads)
similarity_pairs_dquery(SFRS_CONSTANT WeightParameters p) {
  SFRS_SHARED_MEMORY(memory);
  WeightedRows<S, kTf32, true>(p, memory).run();
}
template <class S, bool kTf32>
SFRS_KERNEL(kPairThreads)
similarity_pairs_dquarters(SFRS_CONSTANT WeightParameters p) {
  SFRS_SHARED_MEMORY(memory);
  WeightedRows<S, kTf32, false>(p, memory).run();
}

}  // namespace sfrs::cuda
