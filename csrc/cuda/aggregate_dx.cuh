// The backward's last step for a tile: dx = (m a) dV + dl W, less its part along x, in the place of x.
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

template <class M, class N, bool kPlanes>
struct DxMaker {
  using S = typename M::Storage;
  using T = typename M::Sum;
  const BackwardParameters<T>& p;
  const N& n;
  unsigned char* memory;
  int own;

  // dx in the place of x, and on its way. A warp makes 32 dimensions of all positions, in pieces that lie in
  // shared memory like x: rows are dimensions in planes, positions in tokens.
  SFRS_DEVICE void run(const Step& now, const Panels<S>& x) const {
    constexpr int rows = 16 * M::kTaskRows;
    for (int strip = warp_of_thread() * kLogitTask; strip < n.chunk; strip += kWarps * kLogitTask) {
      int row_end = kPlanes ? strip + kLogitTask : n.positions, columns = kPlanes ? n.positions : kLogitTask;
      for (int row = kPlanes ? strip : 0; row < row_end; row += rows)
        for (int column = kPlanes ? 0 : strip, end = column + columns; column < end; column += kLogitTask) {
          T sums[M::kTaskRows][4][4];
          SFRS_EACH (i, M::kTaskRows)
            SFRS_EACH (j, 4)
              SFRS_EACH (e, 4) sums[i][j][e] = 0;
          add_products(backward_assignments<S>(n, memory), n.gradient_resident, n.at.gradient,
                       p.gradient_cores + now.group.index * p.gradient_bytes(), n.cluster_columns, row,
                       column, sums);
          if (!n.logits_given)
            add_products(logit_gradients<S>(n, memory), n.weight_resident, n.at.weight, p.weight_cores,
                         n.logit_columns, row, column, sums);
          replace_x(x, row, column, sums);
        }
      __syncwarp();
      store_dx(now, x, strip);
    }
  }

 private:
  SFRS_DEVICE T* part(int offset) const { return (T*)(memory + offset); }

  SFRS_DEVICE void add_products(const Panels<S>& a, bool resident, int shared, const unsigned char* global,
                                int clusters, int row, int column, T (&sums)[M::kTaskRows][4][4]) const {
    if (resident)
      add_products_from(a, Cores<S, false>{memory + shared, n.padded_dim()}, clusters, row, column, sums);
    else
      add_products_from(a, Cores<S, true>{global, n.padded_dim()}, clusters, row, column, sums);
  }
  // sums[p][d] += sum_k a[p][k] cores[k][d], or with p and d exchanged. 16 positions fill half a piece.
  template <class View>
  SFRS_DEVICE void add_products_from(const Panels<S>& a, const View& cores, int clusters, int row, int column,
                                     T (&sums)[M::kTaskRows][4][4]) const {
    int lane = lane_of_thread(), within = n.positions - 1, d0 = own * n.chunk + (kPlanes ? row : column);
    SFRS_ROLLED
    for (int k = 0; k < clusters; k += kLogitTask) {
      View right = cores.from(k, 0);
      SFRS_UNROLL_BY(N::kKnown ? M::kTogether : 1)
      for (int step = 0; step < kLogitTask / M::kStep; ++step) {
        int ks = step * M::kStep;
        typename M::Ready b[2];
        SFRS_EACH (pair, 2) {
          if constexpr (kPlanes)
            b[pair] = M::ready(M::template load_b<false>(a, (column + 16 * pair) & within, k + ks, lane));
          else
            b[pair] = M::ready(M::template load_b<true>(right, d0 + 16 * pair, ks, lane));
        }
        SFRS_EACH (i, M::kTaskRows) {
          typename M::Ready left;
          if constexpr (kPlanes)
            left = M::ready(M::template load_a<true>(right, d0 + 16 * i, ks, lane));
          else
            left = M::ready(M::template load_a<false>(a, (row + 16 * i) & within, k + ks, lane));
          SFRS_EACH (pair, 2) M::multiply(sums[i][2 * pair], sums[i][2 * pair + 1], left, b[pair]);
        }
      }
    }
  }
  SFRS_DEVICE void replace_x(const Panels<S>& x, int first_row, int first_column,
                             const T (&sums)[M::kTaskRows][4][4]) const {
    constexpr bool scaled = sizeof(S) == 2 && !__is_same(S, bf16);  // see rescale_vectors
    constexpr int together = kPlanes ? 4 : M::kTaskRows * 2;        // positions, or pairs of them, of a lane
    const T *onto_x = part(n.at.along), *power = onto_x + n.positions;
    int lane = lane_of_thread(), within = n.positions - 1;
    Packed<T, 2> along[together], by[together];
    SFRS_EACH (i, together) {
      int position = kPlanes ? first_column + 8 * i + 2 * (lane % 4) : first_row + 8 * i + lane / 4;
      position &= within;
      along[i].set(0, onto_x[position], onto_x[kPlanes ? position + 1 : position]);
      by[i].set(0, (T)1, (T)1);
      if constexpr (scaled) by[i].set(0, power[position], power[kPlanes ? position + 1 : position]);
    }
    SFRS_EACH (i, M::kTaskRows)
      SFRS_EACH (half, 2) {
        int row = first_row + 16 * i + 8 * half + lane / 4;
        Packed<S, 2> old[4] = {}, *at[4];
        bool inside[4];
        SFRS_EACH (j, 4) {  // all loads before the stores
          int column = first_column + 8 * j + 2 * (lane % 4);
          inside[j] = n.positions > 16 || (kPlanes ? column : row) < n.positions;
          at[j] = (Packed<S, 2>*)x.at(row, column);
          if (inside[j]) old[j] = *at[j];
        }
        SFRS_EACH (j, 4) {
          const S* values = (const S*)&old[j];
          int of = kPlanes ? j : 2 * i + half;
          Packed<S, 2> dx;
          dx.set(0, sums[i][j][2 * half] * by[of].v[0] - to_float(values[0]) * along[of].v[0],
                 sums[i][j][2 * half + 1] * by[of].v[1] - to_float(values[1]) * along[of].v[1]);
          if (inside[j]) *at[j] = dx;
        }
      }
  }

  SFRS_DEVICE void store_dx(const Step& now, const Panels<S>& x, int strip) const {
    with_copy_bytes<S>(n.store_bytes, [&](auto bytes) {
      store_dx_by<decltype(bytes)::value>(now.group, now.begin, now.count, x, strip);
    });
  }
  template <int kBytes>
  SFRS_DEVICE void store_dx_by(const Group& g, int begin, int count, const Panels<S>& x, int strip) const {
    constexpr int unit = kBytes / (int)sizeof(S);
    S* image = (S*)p.dx.data + g.image * p.dx.stride_b;
    int lane = lane_of_thread(), left = n.dim - own * n.chunk;
    auto store = [&](S* to, int row, int column) {
      *(Packed<S, unit>*)to = *(const Packed<S, unit>*)x.at(row, column);
    };
    if constexpr (kPlanes) {
      int bits = n.position_bits - log2_of(unit);
      int position = (lane & ((1 << bits) - 1)) * unit, d = strip + (lane >> bits);
      if (bits > 5) bits = 5, d = strip;  // one position at a time is more than a warp
      for (; position < n.positions; position += 32 * unit) {
        if (position >= count) continue;
        S* to = image + g.offset(p.dx, begin + position) + (own * n.chunk + d) * p.dx.stride_d;
        for (int at = d; at < strip + kLogitTask && at < left;
             at += 32 >> bits, to += (32 >> bits) * p.dx.stride_d)
          store(to, at, position);
      }
    } else {
      constexpr int bits = log2_of(kLogitTask / unit), rows = 32 >> bits;
      int d = strip + (lane & ((1 << bits) - 1)) * unit;
      for (int first = 0; first < n.positions; first += 32) {  // lanes find out where features lie, one each
        int64_t offset = first + lane < count ? g.offset(p.dx, begin + first + lane) : 0;
        for (int i = lane >> bits; i < 32; i += rows) {
          S* to = image + __shfl_sync(kAllLanes, offset, i) + own * n.chunk + d;
          if (first + i < count && d < left) store(to, first + i, d);
        }
      }
    }
  }
};

}  // namespace sfrs::cuda
