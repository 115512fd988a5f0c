// Assignments: logits of a tile from its features and the weights, and the softmax over them.
#pragma once

#include "aggregate_tiles.cuh"
#include "norms.cuh"

namespace sfrs::cuda {

// Rows of a float matrix [rows, dim] as cores of S, padded with zeros to whole tasks and chunks.
template <class S, class T>
SFRS_DEVICE void pack_cores(const T* from, int rows, int dim, int padded_rows, int padded_dim,
                            unsigned char* to, int64_t first, int64_t step) {
  constexpr int chunk = 16 / (int)sizeof(S);
  int64_t across = padded_dim / chunk, count = padded_rows * across;
  for (int64_t i = first; i < count; i += step) {
    int64_t core = i / 8;  // eight neighbouring threads fill one core
    int row = (int)(core / across * 8 + i % 8), d = (int)(core % across) * chunk;
    S* out = (S*)(to + core * 128 + i % 8 * 16);
    SFRS_EACH (j, chunk)
      store_as(out + j, row < rows && d + j < dim ? from[(int64_t)row * dim + d + j] : (T)0);
  }
}

// The weights of a block that keeps them, behind the next barrier.
template <class S, class T>
SFRS_DEVICE void keep_weights(const Tiling& n, const void* weight, unsigned char* memory) {
  if (n.weight_resident)
    pack_cores<S>((const T*)weight, n.logits, n.dim, n.logit_columns, n.padded_dim(), memory + n.at.weight,
                  (int64_t)threadIdx.x, (int64_t)kThreads);
}

// A right operand of the logits: where it lies, how many columns (clusters) it has, where its products go.
template <class T>
struct LogitOperand {
  unsigned char* cores;
  bool resident;
  int columns;
  T* products;
  int stride;
};

// products[p][column] (+)= sum of x[p][d] operand[column][d] over the chunk in `x`, for one or two operands,
// and squares[slot][p] (+)= the share of x[p]^2 of each warp. All warps, with a barrier at the end.
template <class M, bool kPlanes>
struct LogitMaker {
  using S = typename M::Storage;
  using T = typename M::Sum;
  const Tiling& n;
  const Step& now;
  Panels<S> x;
  bool squares_wanted;
  T* squares;
  LogitOperand<T> left, right;  // the right one may have no columns, the left one then still makes squares

  SFRS_DEVICE void run() const {
    int warp = warp_of_thread(),
        tasks = row_tasks<M>(n) * (left_tasks() + right.columns / kLogitTask) * n.slices;
    T sums[M::kTaskRows][4][4];
    Place at{};
    for (int task = warp; task < tasks; task += kWarps) {
      at = place(task);
      multiply(at, sums);
      if (n.slices == 1) write(at, sums, first());
    }
    if (n.slices > 1)
      for (int slice = 0; slice < n.slices; ++slice) {  // in order, so that sums are the same in every run
        if (warp < tasks && at.slice == slice) write(at, sums, first() && slice == 0);
        if (slice + 1 < n.slices) __syncthreads();
      }
    __syncthreads();
  }

 private:
  SFRS_DEVICE bool first() const { return now.chunk_step == 0; }

  struct Place {
    bool is_right;
    int column, m, slice;
  };

  SFRS_DEVICE int left_tasks() const { return left.columns ? left.columns / kLogitTask : 1; }
  SFRS_DEVICE Place place(int task) const {
    int across = left_tasks() + right.columns / kLogitTask, c = task % across, rest = task / across;
    bool is_right = c >= left_tasks();
    return {is_right, (is_right ? c - left_tasks() : c) * kLogitTask,
            rest % row_tasks<M>(n) * 16 * M::kTaskRows, rest / row_tasks<M>(n)};
  }

  SFRS_DEVICE void multiply(const Place& at, T (&sums)[M::kTaskRows][4][4]) const {
    unsigned char* cores = at.is_right ? right.cores : left.cores;
    if (at.is_right ? right.resident : left.resident)
      multiply_from(Cores<S, false>{cores, n.padded_dim()}, at, sums);
    else
      multiply_from(Cores<S, true>{cores, n.padded_dim()}, at, sums);
  }

  template <class View>
  SFRS_DEVICE void multiply_from(const View& w, const Place& at, T (&sums)[M::kTaskRows][4][4]) const {
    int lane = lane_of_thread(), depth = round_up(now.dimensions(n), M::kStep);
    int d0 = now.first_dimension(n), share = round_up((depth + n.slices - 1) / n.slices, M::kStep);
    int end = (at.slice + 1) * share < depth ? (at.slice + 1) * share : depth;
    bool two = n.positions > 16, squares_here = squares_wanted && !at.is_right;
    bool multiplies = at.is_right || left.columns > 0;
    T square[M::kTaskRows][2] = {};
    int turn = at.column / kLogitTask;  // warps that share rows take turns at their squares
    SFRS_EACH (i, M::kTaskRows)
      SFRS_EACH (j, 4)
        SFRS_EACH (e, 4) sums[i][j][e] = 0;
    SFRS_ROLLED
    for (int k = at.slice * share; k < end; k += M::kStep) {
      bool my_turn = squares_here && turn-- == 0;
      if (my_turn) turn = left_tasks() - 1;
      typename M::Ready b[2];
      if (M::kTaskRows > 1 && multiplies)
        SFRS_EACH (pair, 2) b[pair] = load_right(w, at, pair, d0 + k);
      SFRS_EACH (i, M::kTaskRows) {
        if (i == 1 && !two) continue;
        auto a = M::template load_a<kPlanes>(x, at.m + 16 * i, k, lane);
        if (my_turn) M::add_squares(a, square[i]);
        if (!multiplies) continue;
        auto ready = M::ready(a);
        SFRS_EACH (pair, 2) {
          if (M::kTaskRows == 1) b[pair] = load_right(w, at, pair, d0 + k);
          M::multiply(sums[i][2 * pair], sums[i][2 * pair + 1], ready, b[pair]);
        }
      }
    }
    if (squares_here) write_squares(at, square);
  }

  template <class View>
  SFRS_DEVICE typename M::Ready load_right(const View& w, const Place& at, int pair, int dimension) const {
    return M::ready(M::template load_b<false>(w, at.column + 16 * pair, dimension, lane_of_thread()));
  }

  SFRS_DEVICE void write_squares(const Place& at, const T (&square)[M::kTaskRows][2]) const {
    int lane = lane_of_thread();
    T* slot = squares + (at.slice * left_tasks() + at.column / kLogitTask) * n.positions;
    SFRS_EACH (i, M::kTaskRows)
      SFRS_EACH (half, 2) {
        T sum = square[i][half];
        sum += __shfl_xor_sync(kAllLanes, sum, 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        int p = at.m + 16 * i + 8 * half + lane / 4;
        if (lane % 4 == 0 && p < n.positions) slot[p] = first() ? sum : slot[p] + sum;
      }
  }

  SFRS_DEVICE void write(const Place& at, const T (&sums)[M::kTaskRows][4][4], bool store) const {
    if (!at.is_right && left.columns == 0) return;
    int lane = lane_of_thread(), stride = at.is_right ? right.stride : left.stride;
    T* products = (at.is_right ? right.products : left.products) + at.column + 2 * (lane % 4);
    SFRS_EACH (i, M::kTaskRows)
      SFRS_EACH (half, 2) {
        int p = at.m + 16 * i + 8 * half + lane / 4;
        if (p >= n.positions) continue;
        SFRS_EACH (j, 4) {
          Pair<T>* to = (Pair<T>*)(products + p * stride + 8 * j);
          Pair<T> sum{sums[i][j][2 * half], sums[i][j][2 * half + 1]};
          *to = store ? sum : Pair<T>{to->first + sum.first, to->second + sum.second};
        }
      }
  }
};

// x[p]^2 from the shares of the warps.
template <class T>
SFRS_DEVICE T square_of(const Tiling& n, const T* squares, int p) {
  int slots = (n.logits_given ? 1 : n.logit_columns / kLogitTask) * n.slices;
  T sum = 0;
  for (int slot = 0; slot < slots; ++slot) sum += squares[slot * n.positions + p];
  return sum;
}

// In place: logits of clusters lane, lane + 32, ..., -inf behind the last, become exp(l - max); returns
// 1 / their sum.
template <class M, int kLanes, class T>
SFRS_DEVICE T exponentials(T (&l)[kLanes], int columns) {
  T top = (T)-INFINITY, total = 0;
  SFRS_EACH (j, kLanes)
    if (32 * j < columns) top = l[j] > top || l[j] != l[j] ? l[j] : top;
  top = warp_max(top);
  SFRS_EACH (j, kLanes)
    if (32 * j < columns) {
      if constexpr (sizeof(typename M::Storage) == 2)
        l[j] = exp_quick(l[j] - top);
      else
        l[j] = exp_exact(l[j] - top);
      total += l[j];
    }
  return 1 / warp_sum(total);
}

// f16 only: brings a feature vector whose norm is far from one within [2^-8, 2^8] by a power of two, so that
// assignments divided by the norm stay in the range of f16. Returns the power; the vector lies in x.
template <class S, bool kPlanes, class T>
SFRS_DEVICE T rescale_vector(const Tiling& n, const Panels<S>& x, int p, T inverse) {
  if (sizeof(S) != 2 || __is_same(S, bf16) || (inverse >= (T)0x1p-8 && inverse <= (T)0x1p8)) return 1;
  T power = (T)exp2(rint(log2(inverse)));
  for (int d = (int)threadIdx.x % 32; d < n.chunk; d += 32) {
    S* v = kPlanes ? x.at(d, p) : x.at(p, d);
    store_as(v, to_float(*v) * power);
  }
  return power;
}

}  // namespace sfrs::cuda
