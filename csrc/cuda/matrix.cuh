// Matrices as warps see them: where an element lies (views), and how a warp multiplies (Matmul<S>).
//
// A warp multiplies pieces of 16 x k by k x 16, k = Matmul::kStep, on the tensor cores. Every type leaves
// its sums in the same places (see device.cuh), so kernels are written once for all of them.
#pragma once

#include "device.cuh"

namespace sfrs::cuda {

// A matrix in shared memory that is written by rows of 16-byte chunks and read in either direction: panels
// of 128-byte rows, chunk c of row r at c ^ (r % 8), so that eight rows of one chunk never share a bank.
// Narrower matrices have rows of 32 or 64 bytes and fewer chunks to exchange. These are the swizzles that the
// hardware calls 128B, 64B and 32B.
template <class S>
struct Panels {
  static constexpr bool kGlobal = false;
  unsigned char* base;  // 1024-byte aligned
  int rows, row_bytes;

  SFRS_DEVICE Panels(unsigned char* base, int rows, int columns)
      : base(base), rows(rows), row_bytes(columns * (int)sizeof(S) < 128 ? columns * (int)sizeof(S) : 128) {}
  SFRS_DEVICE S* at(int row, int column) const {
    int byte = column * (int)sizeof(S), within = byte & (row_bytes - 1);
    // The swizzle knows a row by its last three bits: eight rows further is as many bytes further.
    int swizzle = (row & 7) * row_bytes >> 3 & (row_bytes - 16);
    return (S*)(base + (byte - within) * rows + row * row_bytes + (within ^ swizzle));
  }
  // Four neighbours, `column` a multiple of 4: 16 bytes at a time.
  SFRS_DEVICE void put(int row, int column, const Four<S>& v) const {
    if constexpr (sizeof(S) == 8) {
      SFRS_EACH (i, 2) *(Packed<S, 2>*)at(row, column + 2 * i) = {v.v[2 * i], v.v[2 * i + 1]};
    } else {
      *(Four<S>*)at(row, column) = v;
    }
  }
  // The matrix from there on: `row` a multiple of 8, `column` of a panel's columns.
  SFRS_DEVICE Panels from(int row, int column) const {
    Panels rest = *this;
    rest.base += column * (int)sizeof(S) * rows + row * row_bytes;
    return rest;
  }
};

// A matrix of cores, 8 rows of 16 bytes each: what a warp loads for one 8-column piece is contiguous, in
// shared memory (no bank conflicts) and in global memory (whole lines).
template <class S, bool kInGlobal>
struct Cores {
  static constexpr bool kGlobal = kInGlobal;
  static constexpr int kChunk = 16 / (int)sizeof(S);
  using Offset = std::conditional_t<kInGlobal, int64_t, int>;
  std::conditional_t<kInGlobal, const unsigned char, unsigned char>* base;
  int columns;  // multiple of kChunk

  SFRS_DEVICE const S* at(int row, int column) const {
    return (const S*)(base + offset(row, column, columns));
  }
  SFRS_DEVICE static Offset offset(int row, int column, int columns) {
    Offset core = (Offset)(row >> 3) * (columns / kChunk) + column / kChunk;
    return core * 128 + (row & 7) * 16 + column % kChunk * (int)sizeof(S);
  }
  // The matrix from there on: `row` a multiple of 8, `column` of kChunk.
  SFRS_DEVICE Cores from(int row, int column) const {
    return {base + (Offset)(row >> 3) * (columns / kChunk * 128) + (Offset)column * (128 / kChunk), columns};
  }
};

SFRS_DEVICE uint32_t pair_at(const void* p) { return *(const uint32_t*)p; }
template <class S>
SFRS_DEVICE uint32_t pair_of(const S* low, const S* high) {
  return (uint32_t)low->bits | (uint32_t)high->bits << 16;
}

// Operands: load_a reads rows m..m+15 by kStep of k, load_b reads kStep of k by columns n..n+15. The view
// holds them with k along its rows, or, kTransposed, with k down its columns. kPaired numbers k within a
// step in another order, the same for both operands, which spares 32-bit transposed loads their bank
// conflicts. A warp sums up kColumnTiles pieces of 8 columns and, at a time, kRowTiles of 16 rows; a task of
// other products is kTaskRows of 16 rows by 32 columns: what the registers hold. `ready` turns loaded
// operands into what multiply takes, once for all products they enter. kBlock numbers of k are 128 bytes of a
// row: loops over k go by blocks, whose addresses then are a moving base and constants, and kTogether of
// their steps are unrolled: what the registers hold.
template <class S, bool kTf32 = false>
struct Matmul {
  static_assert(sizeof(S) == 2);
  using Storage = S;
  using Sum = float;
  static constexpr int kStep = 16, kBlock = 4 * kStep, kColumnTiles = 8, kRowTiles = 4, kTaskRows = 2;
  static constexpr int kTogether = 4;
  struct Operand {
    uint32_t r[4];
  };
  using Ready = Operand;

  template <bool kTransposed, bool kPaired = false, class View>
  static SFRS_DEVICE Operand load_a(const View& v, int m, int k, int lane) {
    Operand a;
    if constexpr (View::kGlobal) {
      Operand b = load_b<kTransposed, kPaired>(v, m, k, lane);
      SFRS_EACH (i, 4) a.r[i] = b.r[(i & 1) * 2 + (i >> 1)];
    } else if constexpr (kTransposed) {
      load_matrices_transposed(a.r, v.at(k + (lane & 7) + (lane >> 4) * 8, m + (lane >> 3 & 1) * 8));
    } else {
      load_matrices(a.r, v.at(m + (lane & 15), k + (lane >> 4) * 8));
    }
    return a;
  }
  template <bool kTransposed, bool kPaired = false, class View>
  static SFRS_DEVICE Operand load_b(const View& v, int n, int k, int lane) {
    Operand b;
    if constexpr (!View::kGlobal && kTransposed) {
      load_matrices_transposed(b.r, v.at(k + (lane & 7) + (lane >> 3 & 1) * 8, n + (lane >> 4) * 8));
    } else if constexpr (!View::kGlobal) {
      load_matrices(b.r, v.at(n + (lane & 7) + (lane >> 4) * 8, k + (lane >> 3 & 1) * 8));
    } else {
      int g = lane >> 2, t = lane & 3;
      SFRS_EACH (i, 4) {
        int column = n + g + (i >> 1) * 8, step = k + 2 * t + (i & 1) * 8;
        if constexpr (kTransposed)
          b.r[i] = pair_of(v.at(step, column), v.at(step + 1, column));
        else
          b.r[i] = pair_at(v.at(column, step));
      }
    }
    return b;
  }
  // Of 16 rows by 16 columns of a panel what lies where a lane's sums do: [upper and lower rows][left and
  // right].
  template <class View>
  static SFRS_DEVICE void load_under(const View& v, int m, int n, int lane, Packed<S, 2> (&under)[2][2]) {
    Operand a = load_a<false>(v, m, n, lane);
    SFRS_EACH (i, 4) under[i & 1][i >> 1].v[0] = a.r[i];
  }
  static SFRS_DEVICE Ready ready(const Operand& o) { return o; }
  static SFRS_DEVICE void multiply(float (&c0)[4], float (&c1)[4], const Ready& a, const Ready& b) {
    if constexpr (kBrain) {
      multiply_bf16(c0, a.r, b.r[0], b.r[1]);
      multiply_bf16(c1, a.r, b.r[2], b.r[3]);
    } else {
      multiply_f16(c0, a.r, b.r[0], b.r[1]);
      multiply_f16(c1, a.r, b.r[2], b.r[3]);
    }
  }
  // |row|^2 of the 16 rows of operands: the tensor cores multiply each half of the rows with itself, which
  // takes no instruction but theirs. What is not on the diagonals is ignored.
  struct Squares {
    float c[2][4];
  };
  static SFRS_DEVICE void add_squares(const Operand& a, Squares& sum) {
    SFRS_EACH (half, 2) {
      if constexpr (kBrain)
        multiply_bf16(sum.c[half], a.r, a.r[half], a.r[half + 2]);
      else
        multiply_f16(sum.c[half], a.r, a.r[half], a.r[half + 2]);
    }
  }
  // Rows lane / 4 and lane / 4 + 8, in the lanes that return true. All lanes.
  static SFRS_DEVICE bool take_squares(const Squares& sum, int lane, float (&square)[2]) {
    bool odd = lane >> 2 & 1;
    square[0] = odd ? sum.c[0][1] : sum.c[0][0];
    square[1] = odd ? sum.c[1][3] : sum.c[1][2];
    return lane % 4 == lane / 8;
  }

 private:
  static constexpr bool kBrain = __is_same(S, bf16);
};

// The wider types' load_under.
template <class S>
struct PairsUnder {
  template <class View>
  static SFRS_DEVICE void load_under(const View& v, int m, int n, int lane, Packed<S, 2> (&under)[2][2]) {
    SFRS_EACH (half, 2)
      SFRS_EACH (piece, 2)
        under[half][piece] =
            *(const Packed<S, 2>*)v.at(m + 8 * half + lane / 4, n + 8 * piece + 2 * (lane % 4));
  }
};

// Squares of two rows, a share in each of the four lanes that hold them.
template <class T>
struct LaneSquares {
  T v[2];
  SFRS_DEVICE bool take(int lane, T (&square)[2]) const {
    SFRS_EACH (half, 2) square[half] = v[half];
    SFRS_EACH (step, 2)
      SFRS_EACH (half, 2) square[half] += __shfl_xor_sync(kAllLanes, square[half], 1 << step);
    return lane % 4 == 0;
  }
};

// float: one product of operands rounded to TF32, or three of operands split into two TF32 parts each,
// which keep 22 bits and leave the error of a float product. Sums are another matter: tensor cores cut them
// off at every step (add_truncated in csrc/testing/emulator.h), which adds up to 2e-5 over 10,000 positions.
template <bool kTf32>
struct Matmul<float, kTf32> : PairsUnder<float> {
  using Storage = float;
  using Sum = float;
  static constexpr int kStep = 8, kBlock = 4 * kStep, kColumnTiles = 8;
  static constexpr int kRowTiles = kTf32 ? 4 : 2, kTaskRows = kTf32 ? 2 : 1, kTogether = 1;
  struct Operand {
    float r[4];
  };
  struct Ready {
    uint32_t high[4], low[kTf32 ? 1 : 4];
  };

  template <bool kPaired>
  static SFRS_DEVICE int step_of(int t, int half) {
    return kPaired ? 2 * t + half : t + 4 * half;
  }
  template <bool kTransposed, bool kPaired = false, class View>
  static SFRS_DEVICE Operand load_a(const View& v, int m, int k, int lane) {
    Operand a;
    if constexpr (!kTransposed && !kPaired && !View::kGlobal) {  // the same fragment, of matrices of halves
      uint32_t bits[4];
      load_matrices(bits, v.at(m + (lane & 15), k + (lane >> 4) * 4));
      SFRS_EACH (i, 4) a.r[i] = bits_float(bits[i]);
      return a;
    }
    SFRS_EACH (i, 4) {
      int row = m + (lane >> 2) + (i & 1) * 8, step = k + step_of<kPaired>(lane & 3, i >> 1);
      a.r[i] = kTransposed ? *v.at(step, row) : *v.at(row, step);
    }
    return a;
  }
  template <bool kTransposed, bool kPaired = false, class View>
  static SFRS_DEVICE Operand load_b(const View& v, int n, int k, int lane) {
    Operand b;
    if constexpr (!kTransposed && !kPaired && !View::kGlobal) {
      uint32_t bits[4];
      load_matrices(bits, v.at(n + (lane & 7) + (lane >> 4) * 8, k + (lane >> 3 & 1) * 4));
      SFRS_EACH (i, 4) b.r[i] = bits_float(bits[i]);
      return b;
    }
    SFRS_EACH (i, 4) {
      int column = n + (lane >> 2) + (i >> 1) * 8, step = k + step_of<kPaired>(lane & 3, i & 1);
      b.r[i] = kTransposed ? *v.at(step, column) : *v.at(column, step);
    }
    return b;
  }
  static SFRS_DEVICE Ready ready(const Operand& o) {
    Ready r;
    SFRS_EACH (i, 4) {
      if constexpr (kTf32) {
        r.high[i] = to_tf32(o.r[i]);
      } else {
        // Rounds like to_tf32, in three instructions for both parts instead of a dozen: the tensor cores
        // ignore the low bits of what is left. A NaN that wraps to -0 here is NaN there.
        r.high[i] = (float_bits(o.r[i]) + 0x1000u) & ~0x1fffu;
        r.low[i] = float_bits(o.r[i] - bits_float(r.high[i]));
      }
    }
    return r;
  }
  static SFRS_DEVICE void multiply(float (&c0)[4], float (&c1)[4], const Ready& a, const Ready& b) {
    if constexpr (!kTf32) {
      multiply_tf32(c0, a.low, b.high[0], b.high[1]);
      multiply_tf32(c1, a.low, b.high[2], b.high[3]);
      multiply_tf32(c0, a.high, b.low[0], b.low[1]);
      multiply_tf32(c1, a.high, b.low[2], b.low[3]);
    }
    multiply_tf32(c0, a.high, b.high[0], b.high[1]);
    multiply_tf32(c1, a.high, b.high[2], b.high[3]);
  }
  using Squares = LaneSquares<float>;
  static SFRS_DEVICE void add_squares(const Operand& a, Squares& sum) {
    SFRS_EACH (i, 4) sum.v[i & 1] += a.r[i] * a.r[i];
  }
  static SFRS_DEVICE bool take_squares(const Squares& sum, int lane, float (&square)[2]) {
    return sum.take(lane, square);
  }
};

template <bool kTf32>
struct Matmul<double, kTf32> : PairsUnder<double> {
  using Storage = double;
  using Sum = double;
  static constexpr int kStep = 4, kBlock = 4 * kStep, kColumnTiles = 4, kRowTiles = 2, kTaskRows = 1,
                       kTogether = 4;
  struct Operand {
    double r[2];
  };
  using Ready = Operand;

  template <bool kTransposed, bool kPaired = false, class View>
  static SFRS_DEVICE Operand load_a(const View& v, int m, int k, int lane) {
    int row = m + (lane >> 2), step = k + (lane & 3);
    if constexpr (kTransposed) return {{*v.at(step, row), *v.at(step, row + 8)}};
    return {{*v.at(row, step), *v.at(row + 8, step)}};
  }
  template <bool kTransposed, bool kPaired = false, class View>
  static SFRS_DEVICE Operand load_b(const View& v, int n, int k, int lane) {
    return load_a<kTransposed>(v, n, k, lane);
  }
  static SFRS_DEVICE Ready ready(const Operand& o) { return o; }
  static SFRS_DEVICE void multiply(double (&c0)[4], double (&c1)[4], const Ready& a, const Ready& b) {
    multiply_f64(c0, a.r[0], a.r[1], b.r[0]);
    multiply_f64(c1, a.r[0], a.r[1], b.r[1]);
  }
  using Squares = LaneSquares<double>;
  static SFRS_DEVICE void add_squares(const Operand& a, Squares& sum) {
    SFRS_EACH (i, 2) sum.v[i] += a.r[i] * a.r[i];
  }
  static SFRS_DEVICE bool take_squares(const Squares& sum, int lane, double (&square)[2]) {
    return sum.take(lane, square);
  }
};

// Sums over the lanes of a warp, in one order for all lanes.
template <class T>
SFRS_DEVICE T warp_sum(T v) {
  SFRS_UNROLL
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}
template <class T>
SFRS_DEVICE T warp_max(T v) {
  SFRS_UNROLL
  for (int step = 16; step > 0; step /= 2) {
    T other = __shfl_xor_sync(kAllLanes, v, step);
    v = v > other || v != v ? v : other;  // NaN wins
  }
  return v;
}

}  // namespace sfrs::cuda
