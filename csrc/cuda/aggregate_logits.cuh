// Products of a tile's features with rows that all of its dimensions enter: with the weights (logits), and in
// the backward with the gradient of the sums.
#pragma once

#include "aggregate_tiles.cuh"

namespace sfrs::cuda {

// Rows of a matrix [rows, dim] as cores of S, padded with zeros to whole tasks and chunks. Eight neighbouring
// threads fill one core. Groups of eight rows are given out one by one, `first` and then every `step`-th.
// kWarps packers.
template <class S, class Packers = WholeBlock, class T>
SFRS_DEVICE void pack_cores(const T* from, int rows, int dim, int padded_rows, int padded_dim,
                            unsigned char* to, int first, int step) {
  constexpr int chunk = 16 / (int)sizeof(S), wide = 16 / (int)sizeof(T);
  bool aligned = dim % wide == 0 && (uint64_t)from % 16 == 0;
  int across = padded_dim / chunk, thread = Packers::thread(), within = thread % 8;
  for (int core = thread / 8; core < across; core += kThreads / 8) {
    int d = core * chunk;
    SFRS_UNROLL_BY(8)
    for (int group = first; group < padded_rows / 8; group += step) {
      int row = group * 8 + within;
      const T* in = from + (int64_t)row * dim;
      T v[chunk];
      if (aligned && row < rows && d + chunk <= dim) {
        SFRS_EACH (i, chunk / wide) {
          Packed<T, wide> part = *(const Packed<T, wide>*)(in + d + i * wide);
          SFRS_EACH (e, wide) v[i * wide + e] = part.v[e];
        }
      } else {
        SFRS_EACH (j, chunk) v[j] = row < rows && d + j < dim ? in[d + j] : (T)0;
      }
      Packed<S, chunk> out;
      SFRS_EACH (j, chunk / 2) out.set(j, v[2 * j], v[2 * j + 1]);
      *(Packed<S, chunk>*)(to + ((int64_t)group * across + core) * 128 + within * 16) = out;
    }
  }
}

// The weights of a block that keeps them, behind the next barrier.
template <class S, class T, class Packers = WholeBlock, class N>
SFRS_DEVICE void keep_weights(const N& n, const void* weight, unsigned char* memory) {
  if (n.weight_resident)
    pack_cores<S, Packers>((const T*)weight, n.logits, n.dim, n.logit_columns, n.padded_dim(),
                           memory + n.at.weight, 0, 1);
}

// A right operand: how many columns (clusters) it has, and where it lies, in shared memory or not; that of
// its products.
struct LogitOperand {
  int columns;
  bool resident;
  int shared;  // offset of the cores, if resident
  const unsigned char* global;
  int products;
};

// products[p][column] (+)= sum of x[p][d] operand[column][d] over the chunk in `x`, for up to two operands,
// and squares[slice][p] (+)= x[p]^2 if kSquares. All makers, with a barrier at the end. A task is 16
// kTaskRows positions by 32 columns over a slice of the dimensions; what slices share they add up in turns.
template <class M, class N, bool kPlanes, bool kSquares, bool kManyColumns, class Makers = WholeBlock>
struct LogitMaker {
  using S = typename M::Storage;
  using T = typename M::Sum;
  const N& n;
  unsigned char* memory;
  const Step& now;
  Panels<S> x;
  LogitOperand left, right;
  bool squares_wanted = false;  // if kSquares

  SFRS_DEVICE void run() const {
    int columns = left.columns + right.columns, warp = Makers::warp();
    int across = columns ? columns / kLogitTask : 1;
    int tasks = across << (row_bits() + n.slice_bits);
    if (!columns && !squares_wanted) tasks = 0;
    T sums[M::kTaskRows][4][4];
    Place at{};
    for (int task = warp; task < tasks; task += Makers::kCount) {
      at = place(task);
      multiply(at, sums);
      if (n.slices == 1 && columns) write(at, 0, sums);
    }
    if (n.slices > 1 && columns)
      for (int turn = 0; turn < n.slices; ++turn) {  // in order, so that sums are the same in every run
        if (warp < tasks) write(at, turn, sums);
        if (turn + 1 < n.slices) Makers::sync();
      }
    Makers::sync();
  }

 private:
  static constexpr int kTaskBits = M::kTaskRows == 2 ? 5 : 4;
  // 16-bit squares cost the tensor cores two of ten products: of two tasks with the same positions each makes
  // those of one piece of 16, which it takes first. If there may be one task only, it makes all.
  static constexpr bool kTurns = sizeof(S) == 2 && kManyColumns;

  // Halves of a block that both multiply wait for each other's loads: this one loads a step ahead.
  static constexpr bool kAhead = N::kAlternates;

  struct Pieces {
    typename M::Operand a[M::kTaskRows];
    typename M::Ready b[2];
  };
  struct Place {
    int column, m, slice, swap;
  };
  SFRS_DEVICE bool first() const { return now.chunk_step == 0; }
  SFRS_DEVICE int row_bits() const { return n.position_bits > kTaskBits ? n.position_bits - kTaskBits : 0; }
  SFRS_DEVICE Place place(int task) const {
    int slice = task & (n.slices - 1), rest = task >> n.slice_bits, column = rest >> row_bits();
    return {column * kLogitTask, (rest - (column << row_bits())) << kTaskBits, slice,
            kTurns ? column & 1 : 0};
  }
  SFRS_DEVICE int row(const Place& at, int i) const { return at.m + 16 * (kTurns ? i ^ at.swap : i); }

  SFRS_DEVICE void multiply(const Place& at, T (&sums)[M::kTaskRows][4][4]) const {
    bool is_right = at.column >= left.columns;
    int column = is_right ? at.column - left.columns : at.column;
    Cores<S, false> shared{memory + (is_right ? right.shared : left.shared), n.padded_dim()};
    if (left.columns + right.columns == 0)
      multiply_from<false>(shared, at, column, sums);
    else if (is_right ? right.resident : left.resident)
      multiply_from<true>(shared, at, column, sums);
    else
      multiply_from<true>(Cores<S, true>{is_right ? right.global : left.global, n.padded_dim()}, at, column,
                          sums);
  }

  template <bool kMultiplies, class View>
  SFRS_DEVICE void multiply_from(const View& w, const Place& at, int column,
                                 T (&sums)[M::kTaskRows][4][4]) const {
    constexpr int squared = !kSquares ? 0 : kMultiplies && kTurns ? 1 : M::kTaskRows;
    int lane = lane_of_thread(), d0 = now.d0, depth = round_up(now.dimensions, M::kBlock);
    int begin = at.slice * n.slice_depth;
    int end = begin + n.slice_depth < depth ? begin + n.slice_depth : depth;
    int rows[M::kTaskRows];
    SFRS_EACH (i, M::kTaskRows) rows[i] = row(at, i) & (n.positions - 1);  // 16 positions fill half a task
    typename M::Squares square[squared + !squared] = {};
    SFRS_EACH (i, M::kTaskRows)
      SFRS_EACH (j, 4)
        SFRS_EACH (e, 4) sums[i][j][e] = 0;
    auto load = [&](int k, int step) {
      Panels<S> xs = kPlanes ? x.from(k, 0) : x.from(0, k);
      View ws = w.from(column, d0 + k);
      Pieces pieces;
      SFRS_EACH (pair, 2)
        if constexpr (kMultiplies)
          pieces.b[pair] = M::ready(M::template load_b<false>(ws, 16 * pair, step * M::kStep, lane));
      SFRS_EACH (i, M::kTaskRows)
        pieces.a[i] = M::template load_a<kPlanes>(xs, rows[i], step * M::kStep, lane);
      return pieces;
    };
    auto multiply = [&](const Pieces& pieces) {
      SFRS_EACH (i, M::kTaskRows) {
        if constexpr (kSquares) {
          if (i < squared) M::add_squares(pieces.a[i], square[i < squared ? i : 0]);
        }
        if constexpr (kMultiplies) {
          auto ready = M::ready(pieces.a[i]);
          SFRS_EACH (pair, 2) M::multiply(sums[i][2 * pair], sums[i][2 * pair + 1], ready, pieces.b[pair]);
        }
      }
    };
    constexpr int steps = M::kBlock / M::kStep;
    Pieces now;
    if constexpr (kAhead) now = load(begin, 0);
    SFRS_ROLLED
    for (int k = begin; k < end; k += M::kBlock) {
      int next = k + M::kBlock < end ? k + M::kBlock : begin;  // behind the last there is nothing to load
      SFRS_UNROLL_BY(N::kKnown ? M::kTogether : 1)
      for (int step = 0; step < steps; ++step) {
        if constexpr (kAhead) {
          Pieces then = load(step + 1 < steps ? k : next, (step + 1) % steps);
          multiply(now);
          now = then;
        } else {
          multiply(load(k, step));
        }
      }
    }
    bool mine = kTurns ? at.column <= kLogitTask : at.column == 0;
    if (kSquares && squares_wanted && mine) write_squares(at, square);
  }

  template <int kCount>
  SFRS_DEVICE void write_squares(const Place& at, const typename M::Squares (&squares)[kCount]) const {
    int lane = lane_of_thread();
    T* to = (T*)(memory + n.at.squares) + at.slice * n.positions;
    bool adds = !first();
    SFRS_EACH (i, kCount) {
      T square[2];
      bool takes = M::take_squares(squares[i], lane, square);
      SFRS_EACH (half, 2) {
        int p = row(at, i) + 8 * half + lane / 4;
        if (takes && p < n.positions) to[p] = adds ? to[p] + square[half] : square[half];
      }
    }
  }

  // A slice writes the part of its columns whose turn it is: the first to write stores.
  SFRS_DEVICE void write(const Place& at, int turn, const T (&sums)[M::kTaskRows][4][4]) const {
    bool is_right = at.column >= left.columns, store = first() && turn == 0;
    int lane = lane_of_thread(), part = (at.slice + turn) & (n.slices - 1);
    T* products = (T*)(memory + (is_right ? right.products : left.products)) + at.column;
    if (is_right) products -= left.columns;
    Packed<T, 2>* to[M::kTaskRows][2];
    bool inside[M::kTaskRows];
    SFRS_EACH (i, M::kTaskRows) {
      inside[i] = n.positions > 16 || row(at, i) < n.positions;
      SFRS_EACH (half, 2) {
        int p = row(at, i) + 8 * half + lane / 4;
        int begins = is_right ? n.product_row(p) : n.logit_row(p);
        to[i][half] = (Packed<T, 2>*)(products + begins + 2 * (lane % 4));
      }
    }
    SFRS_EACH (j, 4) {
      if (j >> (2 - n.slice_bits) != part) continue;
      Packed<T, 2> old[M::kTaskRows][2] = {};
      if (!store) {  // all loads before the stores
        SFRS_EACH (i, M::kTaskRows)
          SFRS_EACH (half, 2)
            if (inside[i]) old[i][half] = to[i][half][4 * j];
      }
      SFRS_EACH (i, M::kTaskRows)
        SFRS_EACH (half, 2) {
          Packed<T, 2>& sum = old[i][half];
          sum.set(0, sum.v[0] + sums[i][j][2 * half], sum.v[1] + sums[i][j][2 * half + 1]);
          if (inside[i]) to[i][half][4 * j] = sum;
        }
    }
  }
};

// |x[p]|^2 from the shares of the slices.
template <class T, class N>
SFRS_DEVICE T square_of(const N& n, const T* squares, int p) {
  T sum = squares[p];
  SFRS_EACH (slice, kMaxSlices)
    if (slice > 0 && slice < n.slices) sum += squares[slice * n.positions + p];
  return sum;
}

}  // namespace sfrs::cuda
