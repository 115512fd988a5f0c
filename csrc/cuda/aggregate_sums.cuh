// Sums over the positions of a tile: of features by cluster, in registers.
#pragma once

#include "aggregate_tiles.cuh"

namespace sfrs::cuda {

// A warp's part of a K x chunk matrix of sums, in registers: clusters from row(), dimensions from column().
// kWarps holders have them.
template <class M, int kClusterTiles, class Holders = WholeBlock>
struct Sums {
  using T = typename M::Sum;
  T v[kClusterTiles][M::kColumnTiles][4];

  template <class N>
  SFRS_DEVICE static int row(const N& n) {
    return n.cluster_warps == 1 ? 0 : (Holders::warp() >> n.along_bits) * 16 * kClusterTiles;
  }
  template <class N>
  SFRS_DEVICE static int column(const N& n) {
    return share(n) * M::kColumnTiles * 8;
  }
  // The warp's number among those that have the same clusters.
  template <class N>
  SFRS_DEVICE static int share(const N& n) {
    return Holders::warp() & ((1 << n.along_bits) - 1);
  }
  SFRS_DEVICE void clear() {
    SFRS_EACH (i, kClusterTiles)
      SFRS_EACH (j, M::kColumnTiles)
        SFRS_EACH (e, 4) v[i][j][e] = 0;
  }
  // Calls body(cluster, dimension, four sums of that dimension and the next) for all that this warp holds:
  // of two pieces of eight dimensions a lane and its neighbour exchange halves. Sums that lie outside the
  // matrix are zero; a dimension may be. All lanes.
  template <class N, class F>
  SFRS_DEVICE void each_four(const N& n, const F& body) const {
    SFRS_EACH (i, kClusterTiles)
      SFRS_EACH (half, 2)
        SFRS_EACH (pair, M::kColumnTiles / 2) {
          int lane = lane_of_thread();
          bool odd = lane & 1;
          const T *even_piece = v[i][2 * pair] + 2 * half, *odd_piece = v[i][2 * pair + 1] + 2 * half;
          T kept[2], given[2];
          SFRS_EACH (e, 2) {
            kept[e] = odd ? odd_piece[e] : even_piece[e];
            given[e] = __shfl_xor_sync(kAllLanes, odd ? even_piece[e] : odd_piece[e], 1);
          }
          T four[4] = {odd ? given[0] : kept[0], odd ? given[1] : kept[1], odd ? kept[0] : given[0],
                       odd ? kept[1] : given[1]};
          body(row(n) + 16 * i + 8 * half + lane / 4, column(n) + 16 * pair + 8 * odd + (lane & 2) * 2, four);
        }
  }
};

// Writes a block's part of [clusters, dim], each cluster times its scale if `scales`. `dim` is a multiple of
// 4, and four elements lie together.
template <class S, class T>
struct WriteSums {
  S* out;
  int clusters, dim, d0, chunk;
  bool scales = false;
  const T* scale = nullptr;
  SFRS_DEVICE void operator()(int k, int within, const T (&sums)[4]) const {
    int d = d0 + within;
    if (k >= clusters || within >= chunk || d >= dim) return;
    T factor = scales ? scale[k] : (T)1;
    Four<S> four;
    SFRS_EACH (e, 2) four.set(e, sums[2 * e] * factor, sums[2 * e + 1] * factor);
    *(Four<S>*)(out + (int64_t)k * dim + d) = four;
  }
};

// sums[k][d] += sum_p assignment[p][k] x[p][d].
template <class M, int kClusterTiles, bool kPlanes, class Holders, class N>
SFRS_DEVICE void sum_up(const N& n, const Panels<typename M::Storage>& assignment,
                        const Panels<typename M::Storage>& x, Sums<M, kClusterTiles, Holders>& sums) {
  int lane = lane_of_thread(), first_row = sums.row(n), first_column = sums.column(n);
  if (first_column >= n.chunk) return;
  const Panels<typename M::Storage> from = kPlanes ? x : x.from(0, first_column);
  if (!kPlanes) first_column = 0;
  constexpr int at_once = kClusterTiles < M::kRowTiles ? kClusterTiles : M::kRowTiles;
  // Where the wider types are loaded from is found out each time, and in blocks of more warps: no registers
  // are left to keep it.
  constexpr bool keeps = sizeof(typename M::Storage) == 2 && N::kKnown && !N::kOverlaps;
  SFRS_UNROLL_BY(keeps ? 2 : 1)
  for (int p = 0; p < n.positions; p += M::kStep)
    SFRS_EACH (part, kClusterTiles / at_once) {
      if (N::kOverlaps) lane = lane_of_thread() & 31;  // found out anew, and known to be below 32
      typename M::Ready a[at_once];
      SFRS_EACH (i, at_once)
        a[i] = M::ready(M::template load_a<true, !kPlanes>(assignment, first_row + 16 * (part * at_once + i),
                                                           keeps ? p : here(p), lane));
      SFRS_EACH (pair, M::kColumnTiles / 2) {
        auto b = M::ready(M::template load_b<!kPlanes, !kPlanes>(from, first_column + 16 * pair,
                                                                 keeps ? p : here(p), lane));
        SFRS_EACH (i, at_once) {
          auto& row = sums.v[part * at_once + i];
          M::multiply(row[2 * pair], row[2 * pair + 1], a[i], b);
        }
      }
    }
}

}  // namespace sfrs::cuda
