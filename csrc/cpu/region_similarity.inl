// Query-to-region similarity over per-query lists. Idea: four dot products and nine
// squares per cluster, read in one pass over the quarter VLADs, hold everything the nine regions need; no
// region descriptor is built.
// Floor: one read of the quarters (forward), one read and one write (backward); memory-bound.
#pragma once

#include "gemm.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {

SFRS_INLINE bool holds(int region, int quarter) { return kRegionQuarters[region] >> quarter & 1; }

// V is T or Vec<T>: one gallery image, or one per lane.
template <class V>
SFRS_INLINE V region_sum(int region, const V* d) {  // sum_{i in r} d_i
  V sum = {};
#pragma GCC unroll 4
  for (int i = 0; i < kQuarters; ++i)
    if (holds(region, i)) sum += d[i];
  return sum;
}
// The sums of quarters that the nine regions are, with five additions.
template <class V>
SFRS_INLINE void region_vectors(const V* quarter, V* region) {
  region[1] = quarter[0] + quarter[1];
  region[2] = quarter[2] + quarter[3];
  region[3] = quarter[0] + quarter[2];
  region[4] = quarter[1] + quarter[3];
  region[0] = region[1] + region[2];
#pragma GCC unroll 4
  for (int i = 0; i < kQuarters; ++i) region[5 + i] = quarter[i];
}

// d_i and n_r^2 of one cluster; stride parts the quarters.
template <class S, class T = Acc<S>>
SFRS_INLINE void cluster_dots(const S* u, const S* v, int64_t stride, int64_t dim, double* dots) {
  // In double: the gradient takes u's part along V_r away, and what is left of it would add up over
  // positions.
  Vec<double> sums[kDots] = {};
  for (int64_t d = 0; d < dim; d += kLanes<T>) {
    int64_t left = dim - d;
    Vec<double> query[kWide<T>], part[kQuarters][kWide<T>];
    widen(load_n(u + d, left), query);
#pragma GCC unroll 4
    for (int i = 0; i < kQuarters; ++i) widen(load_n(v + i * stride + d, left), part[i]);
#pragma GCC unroll 2
    for (int w = 0; w < kWide<T>; ++w) {
      Vec<double> quarter[kQuarters] = {part[0][w], part[1][w], part[2][w], part[3][w]}, region[kRegions];
      region_vectors(quarter, region);
#pragma GCC unroll 4
      for (int i = 0; i < kQuarters; ++i) sums[i] += query[w] * quarter[i];
#pragma GCC unroll 9
      for (int r = 0; r < kRegions; ++r) sums[kQuarters + r] += region[r] * region[r];
    }
  }
  for (int i = 0; i < kDots; ++i) dots[i] = sum_lanes<double>(sums[i]);
}

// 1 / max(n_r, eps) of one cluster from n_r^2 of all regions; zero where the quarters of region r cancel.
SFRS_INLINE double region_inverse(const RegionSimilarity& f, int r, const double* squares) {
  double terms = region_sum(r, squares + kRegions - kQuarters);
  return squares[r] < cancelled_below(f.dtype) * terms ? 0 : inverse_norm(squares[r]);
}

template <class S, class T>
struct Pairs {
  const RegionSimilarity& f;
  int64_t size = f.clusters * f.dim;

  const S* query(int64_t t) const { return (const S*)f.query + t * size; }
  const S* quarters(int64_t t, int64_t g) const {
    return (const S*)f.quarters + (f.all_pairs ? g : t * f.gallery + g) * kQuarters * size;
  }
};

template <class S>
void similarity_lists_forward(const RegionSimilarityForward& f, const Parallel& parallel) {
  using T = Acc<S>;
  Pairs<S, T> pairs{f};
  parallel.each(f.queries * f.gallery, [&](int64_t pair) {
    const S *u = pairs.query(pair / f.gallery), *v = pairs.quarters(pair / f.gallery, pair % f.gallery);
    double sums[kRegions] = {}, squares[kRegions] = {};
    for (int64_t k = 0; k < f.clusters; ++k) {
      double dots[kDots];
      cluster_dots(u + k * f.dim, v + k * f.dim, pairs.size, f.dim, dots);
      for (int r = 0; r < kRegions; ++r) {
        double square = dots[kQuarters + r], inverse = region_inverse(f, r, dots + kQuarters);
        sums[r] += region_sum(r, dots) * inverse;
        squares[r] += square * inverse * inverse;
      }
      if (f.saved_dots)
        __builtin_memcpy((double*)f.saved_dots + (pair * f.clusters + k) * kDots, dots, sizeof(dots));
    }
    for (int r = 0; r < kRegions; ++r)
      ((T*)f.similarity)[pair * kRegions + r] = (T)(sums[r] * inverse_norm(squares[r]));
  });
}

// The gradient of one pair as coefficients of one cluster: dV_i = w_i u + sum_{r with i} c_r V_r,
// du = sum_i w_i V_i.
template <class T>
struct PairGradient {
  const RegionSimilarity& f;
  double scaled[kRegions];   // grad_r / N_r
  double clamped[kRegions];  // coefficient of V_r where n_r < eps: only N_r depends on it then

  PairGradient(const RegionSimilarityBackward& f, int64_t pair, const double* dots) : f(f) {
    double squares[kRegions] = {};
    for (int64_t k = 0; k < f.clusters; ++k)
      for (int r = 0; r < kRegions; ++r) {
        const double* of_cluster = dots + k * kDots + kQuarters;
        double inverse = region_inverse(f, r, of_cluster);
        squares[r] += of_cluster[r] * inverse * inverse;
      }
    for (int r = 0; r < kRegions; ++r) {
      double inverse = inverse_norm(squares[r]);
      scaled[r] = ((const T*)f.grad)[pair * kRegions + r] * inverse;
      double along = norm_counts(inverse) ? ((const T*)f.similarity)[pair * kRegions + r] * inverse : 0;
      clamped[r] = -scaled[r] * along / (kEps * kEps);
    }
  }
  void coefficients(const double* dots, double* w, double* c) const {
    for (int i = 0; i < kQuarters; ++i) w[i] = 0;
    for (int r = 0; r < kRegions; ++r) {
      double inverse = region_inverse(f, r, dots + kQuarters);
      double of_u = scaled[r] * inverse;
      c[r] = norm_counts(inverse) ? -of_u * region_sum(r, dots) * inverse * inverse : clamped[r];
      for (int i = 0; i < kQuarters; ++i)
        if (holds(r, i)) w[i] += of_u;
    }
  }
};

// Whether T holds c_r, which is about 1 / n_r^2, with all its digits.
template <class T>
SFRS_INLINE bool in_range(const double* c) {
  for (int r = 0; std::is_same_v<T, float> && r < kRegions; ++r)
    if (c[r] != 0 && !(__builtin_fabs(c[r]) > 0x1p-100 && __builtin_fabs(c[r]) < 0x1p100)) return false;
  return true;
}

// dv_i = w_i u + sum_{r with i} c_r v_r, one vector of one cluster.
template <class V, class C>
SFRS_INLINE void quarter_gradients(const V* quarter, const C* c, V* dv) {
  V region[kRegions];
  region_vectors(quarter, region);
#pragma GCC unroll 9
  for (int r = 0; r < kRegions; ++r) {
    region[r] *= c[r];
#pragma GCC unroll 4
    for (int i = 0; i < kQuarters; ++i)
      if (holds(r, i)) dv[i] += region[r];
  }
}

// The same over a whole cluster, and du += sum_i w_i v_i; either result may be null.
template <class S, class T = Acc<S>>
SFRS_INLINE void apply_gradient(const S* u, const S* v, int64_t stride, int64_t dim, const T* w, const T* c,
                                T* du, S* dv) {
  for (int64_t d = 0; d < dim; d += kLanes<T>) {
    int64_t left = dim - d;
    Vec<T> quarter[kQuarters];
#pragma GCC unroll 4
    for (int i = 0; i < kQuarters; ++i) quarter[i] = load_n(v + i * stride + d, left);
    if (du) {
      Vec<T> sum = load(du + d);
#pragma GCC unroll 4
      for (int i = 0; i < kQuarters; ++i) sum += w[i] * quarter[i];
      store(du + d, sum);
    }
    if (!dv) continue;
    Vec<T> query = load_n(u + d, left), result[kQuarters];
#pragma GCC unroll 4
    for (int i = 0; i < kQuarters; ++i) result[i] = w[i] * query;
    quarter_gradients(quarter, c, result);
#pragma GCC unroll 4
    for (int i = 0; i < kQuarters; ++i) store_n(dv + i * stride + d, result[i], left);
  }
}

// The same in double, for coefficients that T does not hold.
template <class S, class T = Acc<S>>
SFRS_NOINLINE void apply_wide_gradient(const S* u, const S* v, int64_t stride, int64_t dim, const double* w,
                                       const double* c, T* du, S* dv) {
  for (int64_t d = 0; d < dim; ++d) {
    double quarter[kQuarters], result[kQuarters], sum = 0;
    for (int i = 0; i < kQuarters; ++i) {
      quarter[i] = load_one(v + i * stride + d);
      sum += w[i] * quarter[i];
      result[i] = w[i] * load_one(u + d);
    }
    if (du) du[d] += (T)sum;
    if (!dv) continue;
    quarter_gradients(quarter, c, result);
    for (int i = 0; i < kQuarters; ++i) store_one(dv + i * stride + d, (T)result[i]);
  }
}

template <class S>
void similarity_lists_backward(const RegionSimilarityBackward& f, const Parallel& parallel) {
  using T = Acc<S>;
  Pairs<S, T> pairs{f};
  int64_t pair_count = f.queries * f.gallery;
  Scratch shared(Scratch::bytes<T>(pair_count * f.clusters * kDots));
  T* coefficients = shared.take<T>(pair_count * f.clusters * kDots);
  auto dots_of = [&](int64_t pair) { return (const double*)f.saved_dots + pair * f.clusters * kDots; };
  constexpr T elsewhere = __builtin_nan("");  // in place of the first, where T does not hold them
  parallel.each(pair_count, [&](int64_t pair) {
    const double* dots = dots_of(pair);
    PairGradient<T> gradient(f, pair, dots);
    for (int64_t k = 0; k < f.clusters; ++k) {
      T* c = coefficients + (pair * f.clusters + k) * kDots;
      double made[kDots];
      gradient.coefficients(dots + k * kDots, made, made + kQuarters);
      for (int i = 0; i < kDots; ++i) c[i] = (T)made[i];
      if (!in_range<T>(made + kQuarters)) c[0] = elsewhere;
    }
  });
  // One task owns a cluster of a query: du is summed over the gallery in order.
  parallel.each(f.queries * f.clusters, [&](int64_t task) {
    int64_t t = task / f.clusters, k = task % f.clusters, padded = round_up(f.dim, kLanes<T>);
    Scratch scratch(Scratch::bytes<T>(padded));
    T* du = f.dquery ? scratch.zeros<T>(padded) : nullptr;
    for (int64_t g = 0; g < f.gallery; ++g) {
      int64_t pair = t * f.gallery + g;
      const T* c = coefficients + (pair * f.clusters + k) * kDots;
      S* dv = f.dquarters ? (S*)f.dquarters + pair * kQuarters * pairs.size + k * f.dim : nullptr;
      const S *u = pairs.query(t) + k * f.dim, *v = pairs.quarters(t, g) + k * f.dim;
      if (c[0] == c[0]) {
        apply_gradient(u, v, pairs.size, f.dim, c, c + kQuarters, du, dv);
        continue;
      }
      double made[kDots];
      PairGradient<T>(f, pair, dots_of(pair)).coefficients(dots_of(pair) + k * kDots, made, made + kQuarters);
      apply_wide_gradient(u, v, pairs.size, f.dim, made, made + kQuarters, du, dv);
    }
    if (!du) return;
    S* out = (S*)f.dquery + t * pairs.size + k * f.dim;
    for (int64_t d = 0; d < f.dim; d += kLanes<T>) store_n(out + d, load(du + d), f.dim - d);
  });
}

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
