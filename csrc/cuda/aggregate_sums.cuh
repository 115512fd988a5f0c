// Sums over the positions of a tile: of features by cluster, in registers, and of assignments.
#pragma once

#include "aggregate_tiles.cuh"

namespace sfrs::cuda {

// A warp's part of a K x chunk matrix of sums, in registers: clusters from `row`, dimensions from `column`.
template <class M, int kClusterTiles>
struct Sums {
  using T = typename M::Sum;
  int row, column;
  T v[kClusterTiles][M::kColumnTiles][4];

  SFRS_DEVICE explicit Sums(const Tiling& n) {
    int warp = warp_of_thread(), along = kWarps / n.cluster_warps;
    row = warp / along * 16 * kClusterTiles;
    column = warp % along * M::kColumnTiles * 8;
    clear();
  }
  SFRS_DEVICE void clear() {
    SFRS_EACH (i, kClusterTiles)
      SFRS_EACH (j, M::kColumnTiles)
        SFRS_EACH (e, 4) v[i][j][e] = 0;
  }
  // Calls body(cluster, dimension, sum, next dimension's sum) for all pairs of this lane, row by row. Sums
  // that lie outside the matrix are zero; a dimension may be.
  template <class F>
  SFRS_DEVICE void each_pair(const F& body) {
    SFRS_EACH (i, kClusterTiles)
      SFRS_EACH (half, 2) {
        int lane = lane_of_thread();
        SFRS_EACH (j, M::kColumnTiles)
          body(row + 16 * i + 8 * half + lane / 4, column + 8 * j + 2 * (lane % 4), v[i][j][2 * half],
               v[i][j][2 * half + 1]);
      }
  }
};

// Writes a block's part of [clusters, dim], each cluster times its scale if there are scales.
template <class S, class T>
struct WriteSums {
  S* out;
  int clusters, dim, d0, chunk;
  const T* scale;
  T outer;
  SFRS_DEVICE void operator()(int k, int within, T first, T second) const {
    int d = d0 + within;
    if (k >= clusters || within >= chunk || d >= dim) return;
    T factor = scale ? scale[k] * outer : (T)1;
    S* to = out + (int64_t)k * dim + d;
    store_as(to, first * factor);
    if (d + 1 < dim) store_as(to + 1, second * factor);
  }
};

// sums[k][d] += sum_p assignment[p][k] x[p][d].
template <class M, int kClusterTiles, bool kPlanes>
SFRS_DEVICE void sum_up(const Tiling& n, const Panels<typename M::Storage>& assignment,
                        const Panels<typename M::Storage>& x, Sums<M, kClusterTiles>& sums) {
  int lane = lane_of_thread();
  if (sums.column >= n.chunk) return;
  constexpr int at_once = kClusterTiles < M::kRowTiles ? kClusterTiles : M::kRowTiles;
  SFRS_ROLLED
  for (int p = 0; p < n.positions; p += M::kStep)
    SFRS_EACH (part, kClusterTiles / at_once) {
      typename M::Ready a[at_once];
      SFRS_EACH (i, at_once)
        a[i] = M::ready(
            M::template load_a<true, !kPlanes>(assignment, sums.row + 16 * (part * at_once + i), p, lane));
      SFRS_EACH (pair, M::kColumnTiles / 2) {
        auto b = M::ready(M::template load_b<!kPlanes, !kPlanes>(x, sums.column + 16 * pair, here(p), lane));
        SFRS_EACH (i, at_once) {
          auto& row = sums.v[part * at_once + i];
          M::multiply(row[2 * pair], row[2 * pair + 1], a[i], b);
        }
      }
    }
}

// Sums over positions, one per cluster. A warp leaves those of its positions of a tile in a row of logits
// that only it reads; after a barrier thread k adds the rows up, in order, to the total of cluster k.
template <int kLanes, class T>
SFRS_DEVICE void leave_share(const Tiling& n, T* row, const T (&share)[kLanes]) {
  SFRS_EACH (j, kLanes) {
    int k = (int)threadIdx.x % 32 + 32 * j;
    if (k < n.logits) row[k] = share[j];
  }
}
template <class T>
SFRS_DEVICE void add_shares(const Tiling& n, const T* rows, int count, bool first, T* totals) {
  for (int k = (int)threadIdx.x; k < count; k += kThreads) {
    T sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += rows[w * n.logit_stride() + k];
    totals[k] = first ? sum : totals[k] + sum;
  }
}

}  // namespace sfrs::cuda
