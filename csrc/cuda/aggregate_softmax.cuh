// The softmax of a tile and what is made of it. kSharers neighbouring lanes share a position and all lanes of
// the block work at once: a lane holds `kFours` times four clusters of a window of 64.
#pragma once

#include "aggregate_logits.cuh"
#include "norms.cuh"

namespace sfrs::cuda {

template <class M, class N, bool kOneWindow, int kLanesPerPosition>
struct Softmax {
  using S = typename M::Storage;
  using T = typename M::Sum;
  static constexpr int kSharers = kLanesPerPosition, kAtOnce = 32 / kSharers, kFours = kWindow / 4 / kSharers;
  using Values = T[kFours][4];

  const N& n;
  unsigned char* memory;
  const T* logits_given;  // of all positions, or null
  bool aligned;           // they may be read four at a time

  SFRS_DEVICE Softmax(const N& n, unsigned char* memory, const void* logits_given)
      : n(n),
        memory(memory),
        logits_given((const T*)logits_given),
        aligned(n.logits % 4 == 0 && (uint64_t)logits_given % 16 == 0) {}

  // The clusters of a block's windows; with one window the loops over windows are none.
  SFRS_DEVICE int windows() const { return kOneWindow ? kWindow : n.logit_columns; }
  SFRS_DEVICE static int cluster(int window, int j) {
    return window + 4 * (j * kSharers + lane_of_thread() % kSharers);
  }
  SFRS_DEVICE T* part(int offset) const { return (T*)(memory + offset); }
  SFRS_DEVICE Four<T>& logits(int i, int k) const {
    return *(Four<T>*)(part(n.at.logits) + n.logit_row(i) + k);
  }
  SFRS_DEVICE Four<T>& products(int i, int k) const {
    return *(Four<T>*)(part(n.at.products) + n.product_row(i) + k);
  }

  // l of position i of the tile, `at` among all positions; zero behind the last cluster. Positions that are
  // not valid read nothing of what is given.
  SFRS_DEVICE void load_logits(int window, int i, int64_t at, bool valid, T inverse, Values& l) const {
    if (n.logits_given) return load_given(window, at, valid, l);
    SFRS_EACH (j, kFours) {
      int k = cluster(window, j);
      Four<T> four{};
      if (k < n.logit_columns) four = logits(i, k);
      SFRS_EACH (e, 4) l[j][e] = four.v[e] * inverse;
    }
  }
  SFRS_DEVICE void load_given(int window, int64_t at, bool valid, Values& l) const {
    const T* row = logits_given + at * n.logits;
    int end = valid ? n.logits : 0;
    SFRS_EACH (j, kFours) {
      int k = cluster(window, j);
      Four<T> four{};
      if (aligned) {
        if (k < end) four = *(const Four<T>*)(row + k);
      } else {
        SFRS_EACH (e, 4)
          if (k + e < end) four.v[e] = row[k + e];
      }
      SFRS_EACH (e, 4) l[j][e] = four.v[e];
    }
  }
  // l + b, -infinity behind the last cluster.
  SFRS_DEVICE void add_bias(int window, const Values& l, Values& biased) const {
    SFRS_EACH (j, kFours) {
      int k = cluster(window, j);
      Four<T> bias;
      SFRS_EACH (e, 4) bias.v[e] = (T)-INFINITY;
      if (k < n.logit_columns) bias = *(const Four<T>*)(part(n.at.bias) + k);
      SFRS_EACH (e, 4) biased[j][e] = l[j][e] + bias.v[e];
    }
  }
  SFRS_DEVICE static void raise(const Values& l, T& top) {
    SFRS_EACH (j, kFours)
      SFRS_EACH (e, 4) top = max(top, l[j][e]);
  }
  // l becomes exp(l - top). A NaN makes all of its position NaN, through the sum.
  SFRS_DEVICE static void exponentiate(T top, Values& l) {
    SFRS_EACH (j, kFours)
      SFRS_EACH (e, 4) {
        if constexpr (sizeof(S) == 2)
          l[j][e] = exp_quick(l[j][e] - top);
        else
          l[j][e] = exp_exact(l[j][e] - top);
      }
  }
  SFRS_DEVICE static T sum_of(const Values& v) {
    T sums[4];
    SFRS_EACH (e, 4) {
      sums[e] = v[0][e];
      for (int j = 1; j < kFours; ++j) sums[e] += v[j][e];
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  SFRS_DEVICE static T inverse_of(T sum) {
    if constexpr (sizeof(S) == 2)
      return inverse_quick(sum);
    else
      return 1 / sum;
  }
  // Over the lanes that share a position.
  SFRS_DEVICE static T share_sum(T v) {
    SFRS_UNROLL
    for (int step = 1; step < kSharers; step *= 2) v += __shfl_xor_sync(kAllLanes, v, step);
    return v;
  }
  SFRS_DEVICE static T share_max(T v) {
    SFRS_UNROLL
    for (int step = 1; step < kSharers; step *= 2) v = max(v, __shfl_xor_sync(kAllLanes, v, step));
    return v;
  }

  // The exponentials of a position: load(window) brings its logits with the bias into l, where with one
  // window the exponentials stay; returns the inverse of their sum.
  template <class F>
  SFRS_DEVICE T normalize(const F& load, T& top, Values& l) const {
    T total = 0;
    top = (T)-INFINITY;
    for (int window = 0; window < windows(); window += kWindow) {
      load(window);
      raise(l, top);
    }
    top = share_max(top);
    for (int window = 0; window < windows(); window += kWindow) {
      if (!kOneWindow) load(window);
      exponentiate(top, l);
      total += sum_of(l);
    }
    return inverse_of(share_sum(total));
  }
  // Those of one window once more.
  template <class F>
  SFRS_DEVICE static void restore(const F& load, int window, T top, Values& l) {
    if (kOneWindow) return;
    load(window);
    exponentiate(top, l);
  }

  // totals[k] = (first ? 0 : totals[k]) + the sum over the positions of `rows`, in order: four lanes take
  // every fourth position each. All warps.
  template <bool kLogits>
  SFRS_DEVICE void add_rows(int columns, bool first, T* totals) const {
    int thread = this_thread(), begin = thread % 4, next = kLogits ? n.logit_row(4) : n.product_row(4);
    const T* row =
        kLogits ? part(n.at.logits) + n.logit_row(begin) : part(n.at.products) + n.product_row(begin);
    for (int k = thread / 4; k < columns; k += kThreads / 4) {
      const T* at = row + k;
      T sum = 0;
      SFRS_UNROLL_BY(4)
      for (int i = 0; i < n.positions / 4; ++i, at += next) sum += *at;
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (begin == 0) totals[k] = first ? sum : totals[k] + sum;
    }
  }
};

// b in shared memory, behind the next barrier.
template <class T, class Keepers = WholeBlock, class N>
SFRS_DEVICE void keep_bias(const N& n, const void* bias, unsigned char* memory) {
  T* to = (T*)(memory + n.at.bias);
  for (int k = Keepers::thread(); k < n.logit_columns; k += 32 * Keepers::kCount)
    to[k] = k >= n.logits ? (T)-INFINITY : bias ? ((const T*)bias)[k] : (T)0;
}

// f16 only: brings feature vectors whose norm is far from one within [2^-8, 2^8] by a power of two, so that
// assignments divided by the norm stay in the range of f16. Every lane gives 1 / |x| of the position that it
// shares with kSharers - 1 others, and gets its power. The vectors lie in x, from position `first` on.
template <class S, bool kPlanes, int kSharers, class N, class T>
SFRS_DEVICE T rescale_vectors(const N& n, const Panels<S>& x, int first, T inverse) {
  T power = 1;
  if constexpr (sizeof(S) == 2 && !__is_same(S, bf16)) {
    auto far = [](T v) { return !(v >= (T)0x1p-8 && v <= (T)0x1p8); };
    if (!__any_sync(kAllLanes, far(inverse))) return power;
    int lane = lane_of_thread();
    for (int q = 0; q < 32 / kSharers; ++q) {
      T of = __shfl_sync(kAllLanes, inverse, q * kSharers);
      if (!far(of)) continue;
      T by = (T)exp2(rint(log2(of)));
      if (lane / kSharers == q) power = by;
      for (int d = lane; d < n.chunk; d += 32) {
        S* v = kPlanes ? x.at(d, first + q) : x.at(first + q, d);
        store_as(v, to_float(*v) * by);
      }
    }
  }
  return power;
}

}  // namespace sfrs::cuda
