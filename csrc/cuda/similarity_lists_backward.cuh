// Query-to-region similarity over per-query lists, backward. Idea: the gradient of a pair is, per cluster,
// dV_i = w_i u + sum_{r with i} c_r V_r and du = sum_i w_i V_i. A first kernel makes the thirteen
// coefficients from the saved dots; the second reads the quarters once and writes both gradients. A warp
// owns 32 chunks of a (query, cluster) row and walks every eighth image of the list; the block's warps then
// add their parts of du in order.
//
// Floor: one read and one write of 4 K D elements per pair; memory-bound. A chunk of 8 bf16 dimensions costs
// a lane about 300 instructions for 128 bytes: 44 of 128 lanes of an H200 SM, which moves 18.6 bytes per
// clock. Predicted there, K = 64, D = 512, 1 query x 11 (21) images, both kernels: bf16 6 (7) us, float 7
// (10) us, of which 1.3 (2.6) and 2.7 (5.1) us are the floor. Long lists reach 80 % of the floor's bandwidth.
#pragma once

#include "similarity_dots.cuh"

namespace sfrs::cuda {

constexpr int kGradientThreads = 256, kGradientWarps = kGradientThreads / 32;
constexpr int kCoefficients = 16;  // w_0..w_3, c_0..c_8 in a unit, the unit, padded to whole chunks

struct CoefficientParameters {
  const void* grad;        // [T, G, 9]
  const void* similarity;  // [T, G, 9]
  const double* dots;      // [T, G, K, 13]
  void* coefficients;      // [T, G, K, 16]
  int64_t clusters;
  double cancelled_below;
};
constexpr int64_t kCoefficientShared = 2 * kRegions * 33 * sizeof(double);

// A block per pair and a warp per region; lanes over clusters.
template <class T>
SFRS_KERNEL(kRegionThreads)
similarity_coefficients(SFRS_CONSTANT CoefficientParameters p) {
  SFRS_SHARED_MEMORY(memory);
  double (*of_u)[33] = (double (*)[33])memory,
         (*of_v)[33] = of_u + kRegions;  // [9][32 clusters]: w's part, c
  const int lane = threadIdx.x % 32, region = threadIdx.x / 32;
  const int64_t pair = blockIdx.x;
  const double* dots = p.dots + pair * p.clusters * kDots;
  double squares = 0;
  for (int64_t k = lane; k < p.clusters; k += 32) {
    const double* of = dots + k * kDots + kQuarters;
    double inverse = region_inverse(region, of, p.cancelled_below);
    squares += of[region] * inverse * inverse;
  }
  const double inverse_total = inverse_norm(warp_sum(squares));
  const double scaled = (double)((const T*)p.grad)[pair * kRegions + region] * inverse_total;
  // Where n_r < eps only N_r depends on V_r.
  const double along = norm_counts(inverse_total)
                           ? (double)((const T*)p.similarity)[pair * kRegions + region] * inverse_total
                           : 0;
  const double clamped = -scaled * along / (kEps * kEps);

  T* out = (T*)p.coefficients + pair * p.clusters * kCoefficients;
  for (int64_t first = 0; first < p.clusters; first += 32) {
    const int64_t k = first + lane;
    if (k < p.clusters) {
      const double* of = dots + k * kDots;
      double inverse = region_inverse(region, of + kQuarters, p.cancelled_below), part = scaled * inverse;
      of_u[region][lane] = part;
      of_v[region][lane] =
          norm_counts(inverse) ? -part * region_sum(region, of) * inverse * inverse : clamped;
    }
    __syncthreads();
    const int quarter = region;
    if (k < p.clusters) {
      const double unit = coefficient_unit<T>(&of_v[0][lane], 33);
      out[k * kCoefficients + kQuarters + region] = (T)(of_v[region][lane] / unit);
      if (region == 0) out[k * kCoefficients + kDots] = (T)unit;
    }
    if (quarter < kQuarters && k < p.clusters) {
      double w = 0;
      SFRS_EACH (r, kRegions)
        if (holds(r, quarter)) w += of_u[r][lane];
      out[k * kCoefficients + quarter] = (T)w;
    }
    __syncthreads();
  }
}

struct ListsBackwardParameters {
  const void* query;
  const void* quarters;
  const void* coefficients;
  void* dquery;                            // null if not wanted
  void* dquarters;                         // null if not wanted
  int64_t rows;                            // T K
  int64_t gallery, clusters, dim, slices;  // a slice is 32 chunks of a row
  int ways;                                // warps that share a slice and part the gallery: 1, 2, 4 or 8
  bool aligned;
};

// The coefficients of a pair and cluster; dv_i += unit sum_{r with i} c_r v_r for one dimension.
template <class T>
struct Coefficients {
  T w[kQuarters], c[kRegions], unit;

  SFRS_DEVICE explicit Coefficients(const T* from) {
    Chunk<T> chunks[kCoefficients / Chunk<T>::kSize];
    SFRS_EACH (i, kCoefficients / Chunk<T>::kSize)
      chunks[i] = load_chunk<true>(from + i * Chunk<T>::kSize, 1);
    SFRS_EACH (i, kDots)
      (i < kQuarters ? w[i % kQuarters] : c[(i + kRegions - kQuarters) % kRegions]) =
          chunks[i / Chunk<T>::kSize].elements[i % Chunk<T>::kSize];
    unit = chunks[kDots / Chunk<T>::kSize].elements[kDots % Chunk<T>::kSize];
  }
};
template <class T>
SFRS_DEVICE void add_along_regions(const T (&v)[kQuarters], const T (&c)[kRegions], T unit,
                                   T (&dv)[kQuarters]) {
  T region[kRegions], sum[kQuarters];
  region_sums(v, region);
  SFRS_EACH (r, kRegions) region[r] *= c[r];
  quarter_sums(region, sum);
  SFRS_EACH (i, kQuarters) dv[i] += unit * sum[i];
}

template <class S, bool kAligned>
SFRS_DEVICE void lists_backward(const ListsBackwardParameters& p, Accumulated<S>* shared) {
  using T = Accumulated<S>;
  constexpr int kSize = Chunk<S>::kSize;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, way = warp % p.ways;
  const int64_t slice = (int64_t)blockIdx.x * (kGradientWarps / p.ways) + warp / p.ways;
  const int64_t row = slice / p.slices, t = row / p.clusters, k = row - t * p.clusters;
  const int64_t at = (slice - row * p.slices) * 32 * kSize + lane * kSize, size = p.clusters * p.dim;
  const int64_t left = row < p.rows ? p.dim - at : 0;

  T du[kSize] = {};
  if (row < p.rows) {
    Chunk<S> u = load_chunk<kAligned>((const S*)p.query + row * p.dim + at, left);
    for (int64_t g = way; g < p.gallery; g += p.ways) {
      const int64_t pair = t * p.gallery + g, offset = (pair * kQuarters * p.clusters + k) * p.dim + at;
      Chunk<S> quarters[kQuarters], results[kQuarters];
      SFRS_EACH (i, kQuarters)
        quarters[i] = load_chunk<kAligned>((const S*)p.quarters + offset + i * size, left);
      Coefficients<T> c((const T*)p.coefficients + (pair * p.clusters + k) * kCoefficients);
      SFRS_EACH (e, kSize) {
        T v[kQuarters], dv[kQuarters], factor = to_float(u.elements[e]);
        SFRS_EACH (i, kQuarters) {
          v[i] = to_float(quarters[i].elements[e]);
          du[e] += c.w[i] * v[i];
          dv[i] = c.w[i] * factor;
        }
        add_along_regions(v, c.c, c.unit, dv);
        SFRS_EACH (i, kQuarters) store_as(&results[i].elements[e], dv[i]);
      }
      if (p.dquarters) {
        SFRS_EACH (i, kQuarters) store_chunk<kAligned>((S*)p.dquarters + offset + i * size, results[i], left);
      }
    }
  }
  if (!p.dquery) return;  // the whole grid
  // [warp][element][lane]
  SFRS_EACH (e, kSize) shared[(warp * kSize + e) * 32 + lane] = du[e];
  __syncthreads();
  if (way != 0 || row >= p.rows) return;
  Chunk<S> sum;
  SFRS_EACH (e, kSize) {
    T total = 0;
    for (int j = 0; j < p.ways; ++j) total += shared[((warp + j) * kSize + e) * 32 + lane];
    store_as(&sum.elements[e], total);
  }
  store_chunk<kAligned>((S*)p.dquery + row * p.dim + at, sum, left);
}

template <class S>
constexpr int64_t kListsBackwardShared = kGradientThreads * Chunk<S>::kSize * (int64_t)sizeof(Accumulated<S>);

template <class S>
SFRS_KERNEL(kGradientThreads)
similarity_gradients(SFRS_CONSTANT ListsBackwardParameters p) {
  SFRS_SHARED_MEMORY(memory);
  auto* shared = (Accumulated<S>*)memory;
  if (p.aligned)
    lists_backward<S, true>(p, shared);
  else
    lists_backward<S, false>(p, shared);
}

}  // namespace sfrs::cuda
