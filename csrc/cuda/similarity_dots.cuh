// Query-to-region similarity over per-query lists, forward. Idea: four dot products and nine squares per
// pair and cluster hold everything the nine regions need. A warp takes one pair and cluster and reads its
// four rows of the quarter VLADs once, ten chunks of 16 bytes under way per lane; a second kernel combines
// the clusters of a pair in order.
//
// Floor: one read of the quarters, 4 K D elements per pair; memory-bound. With D = 512 in bf16 a warp issues
// about 900 instructions for its 4 KB, 225 clocks of an SM that is fed 18.6 bytes per clock on an H200 and so
// waits 220 for them; for float 1,000 instructions stand against 440 clocks.
// Predicted there, K = 64, D = 512, 1 query x 11 (21) images, both kernels: bf16 4.5 (5) us, float 5 (6) us,
// of which 0.7 (1.3) and 1.3 (2.6) us are the floor and the rest is two launches and their latency. Long
// lists in bf16 reach 75 % of the floor's bandwidth, in float 85 %.
//
// Sums have the digits of double: the gradient takes u's part along V_r away, and what is left of it would
// add up over positions. At most 16 products are added up in float, the rest with the rounding error
// carried along: seven float operations, where adding in double would cost a conversion and an addition
// that consumer GPUs run at a 64th of the rate.
#pragma once

#include "similarity_regions.cuh"

namespace sfrs::cuda {

template <class T>
struct RunningSum;
template <>
struct RunningSum<float> {
  float sum = 0, error = 0;
  SFRS_DEVICE void add(float v) {  // Knuth's two-sum
    float next = sum + v, taken = next - sum;
    error += (sum - (next - taken)) + (v - taken);
    sum = next;
  }
  // An infinite sum has no error that means anything.
  SFRS_DEVICE double total() const { return error == error ? (double)sum + (double)error : (double)sum; }
};
template <>
struct RunningSum<double> {
  double sum = 0;
  SFRS_DEVICE void add(double v) { sum += v; }
  SFRS_DEVICE double total() const { return sum; }
};

// The lane's part of <u, V_i>, i = 0..3 (only if kQuery), then of |V_r|^2, r = 0..8. stride parts the
// quarters.
template <bool kAligned, bool kQuery, class S, int kCount>
SFRS_DEVICE void lane_dots(const S* u, const S* v, int64_t stride, int64_t dim, int lane,
                           double (&dots)[kCount]) {
  using T = Accumulated<S>;
  constexpr int kSize = Chunk<S>::kSize, kStride = 32 * kSize, kFirst = kQuery ? kQuarters : 0;
  static_assert(kCount == kFirst + kRegions);
  RunningSum<T> sums[kCount];
  T part[kCount] = {};
  int64_t d = lane * kSize;
  for (; d < dim; d += 2 * kStride) {
    Chunk<S> query[2], quarters[2][kQuarters];
    SFRS_EACH (c, 2) {
      int64_t at = d + c * kStride, left = dim - at;
      if constexpr (kQuery) query[c] = load_chunk<kAligned>(u + at, left);
      SFRS_EACH (i, kQuarters) quarters[c][i] = load_chunk<kAligned>(v + i * stride + at, left);
    }
    if (d >= 2 * kStride)
      SFRS_EACH (i, kCount) {
        sums[i].add(part[i]);
        part[i] = 0;
      }
    SFRS_EACH (c, 2) {
      SFRS_EACH (e, kSize) {
        T quarter[kQuarters], region[kRegions];
        SFRS_EACH (i, kQuarters) quarter[i] = to_float(quarters[c][i].elements[e]);
        region_sums(quarter, region);
        if constexpr (kQuery) {
          T factor = to_float(query[c].elements[e]);
          SFRS_EACH (i, kQuarters) part[i] += factor * quarter[i];
        }
        SFRS_EACH (r, kRegions) part[kFirst + r] += region[r] * region[r];
      }
    }
  }
  SFRS_EACH (i, kCount) dots[i] = part[i];
  if (d >= 4 * kStride)
    SFRS_EACH (i, kCount) dots[i] += sums[i].total();
}

// Sums kCount values over the lanes of a warp and leaves each sum in one place: half of the values change
// lanes in each step, 15 shuffles for 13 values and not 65. Returns the sum with number `index`, or nothing
// of use where index < 0.
template <int kBit = 16, int kCount>
SFRS_DEVICE double scatter_sum(const double (&v)[kCount], int lane, int count, int first, int* index) {
  if constexpr (kBit == 0) {
    *index = count > 0 ? first : -1;
    return v[0];
  } else if constexpr (kCount == 1) {
    double sum[1] = {v[0] + __shfl_xor_sync(kAllLanes, v[0], kBit)};
    return scatter_sum<kBit / 2>(sum, lane, lane & kBit ? 0 : count, first, index);
  } else {
    constexpr int kHalf = (kCount + 1) / 2;
    bool upper = lane & kBit;
    double kept[kHalf];
    SFRS_EACH (i, kHalf) {
      double low = v[i], high = i + kHalf < kCount ? v[i + kHalf] : 0;
      kept[i] = (upper ? high : low) + __shfl_xor_sync(kAllLanes, upper ? low : high, kBit);
    }
    int kept_count = upper ? count - kHalf : count < kHalf ? count : kHalf;
    return scatter_sum<kBit / 2>(kept, lane, kept_count, upper ? first + kHalf : first, index);
  }
}

// Sums of a warp as scatter_sum leaves them: <u, V_i> (only if kQuery), then |V_r|^2.
template <bool kQuery, class S>
SFRS_DEVICE double warp_dots(const S* u, const S* v, int64_t stride, int64_t dim, bool aligned, int lane,
                             int* index) {
  constexpr int kCount = kQuery ? kDots : kRegions;
  double dots[kCount];
  if (aligned)
    lane_dots<true, kQuery>(u, v, stride, dim, lane, dots);
  else
    lane_dots<false, kQuery>(u, v, stride, dim, lane, dots);
  return scatter_sum(dots, lane, kCount, 0, index);
}

// Whether the square of a quarter may have left the range in which float has all its digits; double has no
// wider type to go to, and no f16 has such a square.
template <class S>
SFRS_DEVICE bool may_be_lost(double square) {
  if constexpr (__is_same(S, double) || __is_same(S, f16)) return false;
  return !(square > 0x1p-80 && square < 0x1p100);
}
// The sums of one cluster once more, in double, if one of them is lost. By a whole warp, after all of them
// were written: inside the loop that makes them this would cost it registers.
template <bool kQuery, class S>
SFRS_DEVICE void mend_dots(const S* u, const S* v, int64_t stride, int64_t dim, double* sums) {
  constexpr int kCount = kQuery ? kDots : kRegions;
  const int lane = lane_of_thread();
  bool lost = false;
  SFRS_ROLLED
  for (int i = 0; i < kQuarters; ++i) {
    const double square = sums[kCount - kQuarters + i];
    if (!may_be_lost<S>(square)) continue;
    lost |= square != 0;
    SFRS_ROLLED  // a quarter of zeros has lost nothing
        for (int64_t d = lane; d < dim; d += 32) lost |= to_float(v[i * stride + d]) != 0;
  }
  if (!__any_sync(kAllLanes, lost)) return;
  double dots[kCount] = {};
  SFRS_ROLLED
  for (int64_t d = lane; d < dim; d += 32) {
    double quarter[kQuarters], region[kRegions];
    SFRS_EACH (i, kQuarters) quarter[i] = to_float(v[i * stride + d]);
    region_sums(quarter, region);
    if constexpr (kQuery) {
      const double factor = to_float(u[d]);
      SFRS_EACH (i, kQuarters) dots[i] += factor * quarter[i];
    }
    SFRS_EACH (r, kRegions) dots[kCount - kRegions + r] += region[r] * region[r];
  }
  int index;
  const double sum = scatter_sum(dots, lane, kCount, 0, &index);
  if (index >= 0) sums[index] = sum;
}

struct DotsParameters {
  const void* query;
  const void* quarters;
  double* dots;  // [T, G, K, 13]
  int64_t gallery, clusters, dim;
  bool aligned;
};
constexpr int kDotsThreads = 128;

// Blocks (pair, clusters): a warp per cluster.
template <class S>
SFRS_KERNEL(kDotsThreads)
similarity_dots(SFRS_CONSTANT DotsParameters p) {
  constexpr int kWarps = kDotsThreads / 32;
  const int lane = threadIdx.x % 32;
  const int64_t pair = blockIdx.x, size = p.clusters * p.dim;
  const S *query = (const S*)p.query + pair / p.gallery * size,
          *quarters = (const S*)p.quarters + pair * kQuarters * size;
  double* dots = p.dots + pair * p.clusters * kDots;
  const int64_t first = blockIdx.y * kWarps + threadIdx.x / 32, step = gridDim.y * kWarps;
  bool lost = false;
  for (int64_t k = first; k < p.clusters; k += step) {
    int index;
    const double sum =
        warp_dots<true>(query + k * p.dim, quarters + k * p.dim, size, p.dim, p.aligned, lane, &index);
    if (index >= 0) dots[k * kDots + index] = sum;
    lost |= index >= kDots - kQuarters && may_be_lost<S>(sum);
  }
  __syncwarp();
  if (!__any_sync(kAllLanes, lost)) return;
  for (int64_t k = first; k < p.clusters; k += step)
    mend_dots<true>(query + k * p.dim, quarters + k * p.dim, size, p.dim, dots + k * kDots);
}

struct CombineParameters {
  const double* dots;
  void* similarity;  // [T, G, 9]
  int64_t clusters;
  double cancelled_below;
};
// A warp per region, lanes over clusters.
constexpr int kRegionThreads = 32 * kRegions;

template <class T>
SFRS_KERNEL(kRegionThreads)
similarity_combine(SFRS_CONSTANT CombineParameters p) {
  const int lane = threadIdx.x % 32, region = threadIdx.x / 32;
  const int64_t pair = blockIdx.x;
  double sum = 0, squares = 0;
  for (int64_t k = lane; k < p.clusters; k += 32) {
    const double* dots = p.dots + (pair * p.clusters + k) * kDots;
    double square = dots[kQuarters + region];
    double inverse = region_inverse(region, dots + kQuarters, p.cancelled_below);
    sum += region_sum(region, dots) * inverse;
    squares += square * inverse * inverse;
  }
  sum = warp_sum(sum);
  squares = warp_sum(squares);
  if (lane == 0) ((T*)p.similarity)[pair * kRegions + region] = (T)(sum * inverse_norm(squares));
}

}  // namespace sfrs::cuda
