// The backward's last step for a tile: dx = (m a) dV + dl W, less its part along x.
#pragma once

#include "aggregate_tiles.cuh"

namespace sfrs::cuda {

template <class T>
struct BackwardParameters {
  AggregationBackward f;
  FeatureMap x, dx;  // with adjoining rows flattened
  Tiling n;
  unsigned char* weight_cores;    // packed weights, if they are read through L1
  unsigned char* gradient_cores;  // dV of the un-normalised sums: one [clusters, D] per group
  T* gradient_scale;              // [groups, K]: dV is stored divided by this
  T* centroid_gradient;           // [groups, K]: <c_k, dV_k>
  T* masses;                      // [units, K]: sums of assignments
  T* weight_sums;                 // [blocks, K + G, D padded to fours]
  T* bias_sums;                   // [blocks, K + G]

  SFRS_DEVICE int64_t gradient_bytes() const {
    return (int64_t)n.cluster_columns * n.padded_dim() * n.element_bytes;
  }
};

// Left operands of dx: assignments, and gradients of the logits.
template <class S, class N>
SFRS_DEVICE Panels<S> backward_assignments(const N& n, unsigned char* memory) {
  return {memory + n.at.assignment, n.positions, n.cluster_columns};
}
template <class S, class N>
SFRS_DEVICE Panels<S> logit_gradients(const N& n, unsigned char* memory) {
  return {memory + n.at.logit_gradient, n.positions, n.cluster_rows};
}

template <class M, class N, bool kPlanes, class Makers>
struct DxMaker {
  using S = typename M::Storage;
  using T = typename M::Sum;
  const BackwardParameters<T>& p;
  const N& n;
  unsigned char* memory;
  int own;

  // A warp makes some dimensions of all positions after the other, in pieces that lie like x in shared
  // memory: rows are dimensions in planes, positions in tokens.
  SFRS_DEVICE void run(const Step& now, const Panels<S>& x) const {
    for (int first = 0; first < n.positions; first += kPositions) {
      Place places[kPlaces];
      int lane = lane_of_thread();
      SFRS_EACH (i, kPlaces)
        places[i] = place(now, first + (kPlanes ? column_of(lane, i) : 8 * i + lane / 4));
      for (int d = Makers::warp() * kDimensions; d < n.chunk; d += Makers::kCount * kDimensions) {
        Sums sums;
        SFRS_EACH (i, kRowTiles)
          SFRS_EACH (j, 2 * kPairs)
            SFRS_EACH (e, 4) sums[i][j][e] = 0;
        add_products(backward_assignments<S>(n, memory), n.gradient_resident, n.at.gradient,
                     p.gradient_cores + now.group.index * p.gradient_bytes(), n.cluster_columns, first, d,
                     sums);
        if (!n.logits_given)
          add_products(logit_gradients<S>(n, memory), n.weight_resident, n.at.weight, p.weight_cores,
                       n.logit_columns, first, d, sums);
        Four<S> dx[kRows][kPairs];
        take_off_x(x, kPlanes ? d : first, kPlanes ? first : d, sums, dx);
        store(now, places, first, d, dx);
      }
    }
  }

 private:
  // A piece: 16 kRowTiles rows by 16 kPairs columns, twice as many dimensions where registers allow it. The
  // rows of a lane, and the places of its positions: four together, or one.
  static constexpr int kWide = N::kAlternates ? 2 : 1, kRowTiles = (kPlanes ? kWide : 1) * M::kTaskRows,
                       kPairs = kPlanes ? 2 : 2 * kWide, kRows = 2 * kRowTiles;
  static constexpr int kPositions = 16 * (kPlanes ? kPairs : kRowTiles),
                       kDimensions = 16 * (kPlanes ? kRowTiles : kPairs), kPlaces = kPlanes ? kPairs : kRows;
  using Sums = T[kRowTiles][2 * kPairs][4];

  SFRS_DEVICE int64_t stride_d() const { return kPlanes ? p.dx.stride_d : 1; }
  SFRS_DEVICE T* part(int offset) const { return (T*)(memory + offset); }

  SFRS_DEVICE void add_products(const Panels<S>& a, bool resident, int shared, const unsigned char* global,
                                int clusters, int first, int d, Sums& sums) const {
    if (resident)
      add_products_from(a, Cores<S, false>{memory + shared, n.padded_dim()}, clusters, first, d, sums);
    else
      add_products_from(a, Cores<S, true>{global, n.padded_dim()}, clusters, first, d, sums);
  }
  // sums[p][d] += sum_k a[p][k] cores[k][d], or with p and d exchanged. 16 positions fill half a piece.
  template <class View>
  SFRS_DEVICE void add_products_from(const Panels<S>& a, const View& cores, int clusters, int first, int d,
                                     Sums& sums) const {
    int lane = lane_of_thread(), within = n.positions - 1;
    SFRS_ROLLED
    for (int k = 0; k < clusters; k += kLogitTask) {
      SFRS_UNROLL_BY(N::kKnown ? M::kTogether : 1)
      for (int step = 0; step < kLogitTask / M::kStep; ++step) {
        int ks = k + step * M::kStep;
        View right = cores.from(ks & ~7, own * n.chunk + d);
        typename M::Ready of_positions[kPositions / 16];
        SFRS_EACH (i, kPositions / 16) {
          int position = (first + 16 * i) & within;
          if constexpr (kPlanes)
            of_positions[i] = M::ready(M::template load_b<false>(a, position, ks, lane));
          else
            of_positions[i] = M::ready(M::template load_a<false>(a, position, ks, lane));
        }
        SFRS_EACH (j, kDimensions / 16) {
          typename M::Ready of_dimensions;
          if constexpr (kPlanes)
            of_dimensions = M::ready(M::template load_a<true>(right, 16 * j, ks & 7, lane));
          else
            of_dimensions = M::ready(M::template load_b<true>(right, 16 * j, ks & 7, lane));
          SFRS_EACH (i, kPositions / 16) {
            if constexpr (kPlanes)
              M::multiply(sums[j][2 * i], sums[j][2 * i + 1], of_dimensions, of_positions[i]);
            else
              M::multiply(sums[i][2 * j], sums[i][2 * j + 1], of_positions[i], of_dimensions);
          }
        }
      }
    }
  }

  // What is left of a piece without the part along x. Of two pieces of eight columns a lane and its neighbour
  // exchange halves, so that each stores four elements, and four lanes a sector or more.
  SFRS_DEVICE void take_off_x(const Panels<S>& x, int first_row, int first_column, const Sums& sums,
                              Four<S> (&dx)[kRows][kPairs]) const {
    constexpr bool scaled = sizeof(S) == 2 && !__is_same(S, bf16);  // see rescale_vectors
    constexpr int together = kPlanes ? 2 * kPairs : kRows;          // positions, or pairs of them, of a lane
    const T *onto_x = part(n.at.along), *power = onto_x + n.positions;
    int lane = lane_of_thread(), within = n.positions - 1;
    bool odd = lane & 1;
    Packed<T, 2> along[together], by[together];
    SFRS_EACH (i, together) {
      int position = kPlanes ? first_column + 8 * i + 2 * (lane % 4) : first_row + 8 * i + lane / 4;
      position &= within;
      along[i] = pair_of(onto_x + position);
      by[i].set(0, (T)1, (T)1);
      if constexpr (scaled) by[i] = pair_of(power + position);
    }
    SFRS_EACH (i, kRowTiles)
      SFRS_EACH (pair, kPairs) {
        int row = first_row + 16 * i, column = first_column + 16 * pair;
        Packed<S, 2> under[2][2];
        M::load_under(x, kPlanes ? row : row & within, kPlanes ? column & within : column, lane, under);
        SFRS_EACH (half, 2) {
          Packed<S, 2> pieces[2];
          SFRS_EACH (e, 2) {
            int of = kPlanes ? 2 * pair + e : 2 * i + half;
            const T* sum = sums[i][2 * pair + e] + 2 * half;
            pieces[e].set(0, sum[0] * by[of].v[0] - under[half][e].get(0) * along[of].v[0],
                          sum[1] * by[of].v[1] - under[half][e].get(1) * along[of].v[1]);
          }
          dx[2 * i + half][pair] = exchanged(pieces, odd);
        }
      }
  }
  // Two neighbours of what is known of positions in planes, the same twice in tokens.
  SFRS_DEVICE static Packed<T, 2> pair_of(const T* at) {
    if constexpr (kPlanes) return *(const Packed<T, 2>*)at;
    return {{*at, *at}};
  }
  // Four neighbours of a row: of the even piece for even lanes, of the odd one for odd lanes.
  SFRS_DEVICE static Four<S> exchanged(const Packed<S, 2> (&pieces)[2], bool odd) {
    constexpr int words = sizeof(Four<S>::v) / sizeof(Four<S>::v[0]) / 2;
    Four<S> four;
    SFRS_EACH (e, words) {
      auto kept = odd ? pieces[1].v[e] : pieces[0].v[e];
      auto given = __shfl_xor_sync(kAllLanes, odd ? pieces[0].v[e] : pieces[1].v[e], 1);
      four.v[e] = odd ? given : kept;
      four.v[words + e] = odd ? kept : given;
    }
    return four;
  }

  // Where dx of a position lies, from the block's first dimension on, if there is one.
  struct Place {
    S* dx;
    bool valid;
  };
  SFRS_DEVICE Place place(const Step& now, int position) const {
    bool valid = position < now.count;
    S* image = (S*)p.dx.data + now.group.image * p.dx.stride_b + own * n.chunk * stride_d();
    return {image + (valid ? now.group.offset(p.dx, now.begin + position) : 0), valid};
  }
  SFRS_DEVICE static int column_of(int lane, int pair) { return 16 * pair + 8 * (lane & 1) + (lane & 2) * 2; }

  // Stores a piece whose dimensions begin at d, four elements at a time or, where rows are odd, one by one.
  SFRS_DEVICE void store(const Step& now, const Place (&places)[kPlaces], int first, int d,
                         const Four<S> (&dx)[kRows][kPairs]) const {
    int lane = lane_of_thread(), left = n.dim - own * n.chunk - d, row = lane / 4;
    int64_t further = 8 * stride_d(), begin = (d + row) * stride_d();
    if (n.store_bytes < 4 * (int)sizeof(S)) return store_singly(now, places, first, d, dx);
    SFRS_EACH (pair, kPairs) {
      S* to = places[kPlanes ? pair : 0].dx + begin;
      SFRS_EACH (i, kRows) {
        if constexpr (kPlanes) {
          if (places[pair].valid && row + 8 * i < left) *(Four<S>*)to = dx[i][pair];
          to += further;
        } else {
          int column = column_of(lane, pair);
          if (places[i].valid && column < left) *(Four<S>*)(places[i].dx + d + column) = dx[i][pair];
        }
      }
    }
  }
  SFRS_DEVICE void store_singly(const Step& now, const Place (&places)[kPlaces], int first, int d,
                                const Four<S> (&dx)[kRows][kPairs]) const {
    int lane = lane_of_thread(), left = n.dim - own * n.chunk - d;
    SFRS_EACH (pair, kPairs)
      SFRS_EACH (e, 4) {
        int column = column_of(lane, pair) + e;
        Place of_one{};
        if (kPlanes) of_one = place(now, first + column);
        SFRS_EACH (i, kRows) {
          int of = kPlanes ? lane / 4 + 8 * i : column;
          const Place& at = kPlanes ? of_one : places[kPlanes ? pair : i];
          if (at.valid && of < left) at.dx[(d + of) * stride_d()] = ((const S*)dx[i][pair].v)[e];
        }
      }
  }
};

}  // namespace sfrs::cuda
