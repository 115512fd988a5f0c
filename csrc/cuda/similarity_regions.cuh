// What the kernels of region similarity share: the nine regions as sums of quarters, clamped norms, and
// reading rows of D elements in chunks of 16 bytes.
#pragma once

#include "../region_similarity.h"
#include "matrix.cuh"
#include "norms.cuh"

namespace sfrs::cuda {

template <class S>
using Accumulated = decltype(to_float(S{}));

// kRegionQuarters as one number: arrays of constants are not to be had in device code.
constexpr uint64_t all_region_quarters() {
  uint64_t bits = 0;
  for (int r = 0; r < kRegions; ++r) bits |= (uint64_t)kRegionQuarters[r] << (kQuarters * r);
  return bits;
}
constexpr uint64_t kAllRegionQuarters = all_region_quarters();
SFRS_DEVICE bool holds(int region, int quarter) {
  return kAllRegionQuarters >> (kQuarters * region + quarter) & 1;
}

// The sums of quarters that the nine regions are, with five additions.
template <class T>
SFRS_DEVICE void region_sums(const T (&quarter)[kQuarters], T (&region)[kRegions]) {
  region[1] = quarter[0] + quarter[1];
  region[2] = quarter[2] + quarter[3];
  region[3] = quarter[0] + quarter[2];
  region[4] = quarter[1] + quarter[3];
  region[0] = region[1] + region[2];
  SFRS_EACH (i, kQuarters) region[5 + i] = quarter[i];
}
// The transpose: each quarter's sum over the regions that hold it.
template <class T>
SFRS_DEVICE void quarter_sums(const T (&region)[kRegions], T (&quarter)[kQuarters]) {
  T top = region[0] + region[1], bottom = region[0] + region[2];
  quarter[0] = top + region[3] + region[5];
  quarter[1] = top + region[4] + region[6];
  quarter[2] = bottom + region[3] + region[7];
  quarter[3] = bottom + region[4] + region[8];
}
// The same sum for a region that only a variable names.
template <class T>
SFRS_DEVICE T region_sum(int region, const T* quarter) {
  T sum = 0;
  SFRS_EACH (i, kQuarters)
    if (holds(region, i)) sum += quarter[i];
  return sum;
}

// 1 / max(n_r, eps) of one cluster from n_r^2 of all regions; zero where the quarters of the region cancel.
SFRS_DEVICE double region_inverse(int region, const double* squares, double cancelled_below) {
  const double terms = region_sum(region, squares + kRegions - kQuarters);
  return squares[region] < cancelled_below * terms ? 0 : inverse_norm(squares[region]);
}

// Coefficients c_r of V_r are about 1 / n_r^2. Where T does not hold them they are kept in this unit, a power
// of two about 1 / n_r, otherwise in 1.
template <class T>
SFRS_DEVICE double coefficient_unit(const double* c, int stride) {
  if constexpr (sizeof(T) == 8) return 1;
  double largest = 0, least = 1;
  SFRS_EACH (r, kRegions) {
    const double size = fabs(c[r * stride]);
    if (size > largest) largest = size;
    if (size < least && size != 0) least = size;
  }
  if (least > 0x1p-100 && largest < 0x1p100) return 1;
  return largest < 0x1p1000 ? ldexp(1.0, ilogb(largest) / 2) : 1;
}

// What one lane reads of a row at a time.
template <class S>
union Chunk {
  static constexpr int kSize = 16 / (int)sizeof(S);
  uint4 whole;
  S elements[kSize];
};
// Elements p[0..left), as far as a chunk goes, then zeros. Aligned rows begin and end between chunks.
template <bool kAligned, class S>
SFRS_DEVICE Chunk<S> load_chunk(const S* p, int64_t left) {
  Chunk<S> chunk;
  chunk.whole = make_uint4(0, 0, 0, 0);
  if constexpr (kAligned) {
    if (left > 0) chunk.whole = *(const uint4*)p;
  } else {
    SFRS_EACH (i, Chunk<S>::kSize)
      if (i < left) chunk.elements[i] = p[i];
  }
  return chunk;
}
template <bool kAligned, class S>
SFRS_DEVICE void store_chunk(S* p, const Chunk<S>& chunk, int64_t left) {
  if constexpr (kAligned) {
    if (left > 0) *(uint4*)p = chunk.whole;
  } else {
    SFRS_EACH (i, Chunk<S>::kSize)
      if (i < left) p[i] = chunk.elements[i];
  }
}

}  // namespace sfrs::cuda
