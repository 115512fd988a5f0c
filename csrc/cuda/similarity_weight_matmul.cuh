// How a warp multiplies weights by rows: Matmul of matrix.cuh for operands of two types.
#pragma once

#include "similarity_regions.cuh"

namespace sfrs::cuda {

// Weights of the accumulation type T by rows of storage type S, on the tensor cores. The weights of a block
// lie in shared memory in kDepth columns of 128 bytes; kDepth rows lie beside them as they came.
template <class S, bool kTf32>
struct WeightMatmul : Matmul<S, kTf32> {  // float and double
  using M = Matmul<S, kTf32>;
  static constexpr int kRows = sizeof(S) == 8 ? 64 : 128, kDepth = 128 / (int)sizeof(S);

  // Where row k of V or U goes: the rows that lanes of a warp read together, t and t + 4, as far apart as
  // the swizzle wants them.
  static SFRS_DEVICE int row_of(int k) { return sizeof(S) == 8 ? k : (k & ~7) + k % 4 * 2 + k / 4 % 2; }
  static SFRS_DEVICE Panels<S> weights(unsigned char* base) { return Panels<S>(base, kRows, kDepth); }
  static SFRS_DEVICE void put(unsigned char* base, int row, int column, S w) {
    *weights(base).at(row, column) = w;
  }
  static SFRS_DEVICE void put_quarters(unsigned char* base, int row, int column, const S (&w)[kQuarters]) {
    SFRS_UNROLL
    for (int i = 0; i < kQuarters; i += Chunk<S>::kSize) {
      Chunk<S> chunk;
      SFRS_EACH (e, Chunk<S>::kSize) chunk.elements[e] = w[i + e];
      store_chunk<true>(weights(base).at(row, column + i), chunk, 1);
    }
  }
  static SFRS_DEVICE typename M::Ready load_weights(unsigned char* base, int m, int k, int lane) {
    return M::ready(M::template load_a<false>(weights(base), m, k, lane));
  }
  static SFRS_DEVICE typename M::Ready load_rows(const Panels<S>& rows, int n, int k, int lane) {
    return M::ready(M::template load_b<true, true>(rows, n, k, lane));
  }
};

// bf16: a weight is the sum of two bf16, which keep 16 bits; each has a panel.
template <bool kTf32>
struct WeightMatmul<bf16, kTf32> {
  using M = Matmul<bf16>;
  static constexpr int kRows = 128, kDepth = 32, kStep = M::kStep;
  static SFRS_DEVICE int row_of(int k) { return k; }
  struct Split {
    typename M::Ready high, low;
  };

  static SFRS_DEVICE Panels<bf16> panel(unsigned char* base, int low) {
    return Panels<bf16>(base + low * kRows * kDepth * 2, kRows, kDepth);
  }
  static SFRS_DEVICE void split(float w, bf16* high, bf16* low) {
    store_as(high, w);
    store_as(low, w - to_float(*high));
  }
  static SFRS_DEVICE void put(unsigned char* base, int row, int column, float w) {
    split(w, panel(base, 0).at(row, column), panel(base, 1).at(row, column));
  }
  static SFRS_DEVICE void put_quarters(unsigned char* base, int row, int column,
                                       const float (&w)[kQuarters]) {
    union {
      bf16 elements[kQuarters];
      uint2 whole;
    } high, low;
    SFRS_EACH (i, kQuarters) split(w[i], &high.elements[i], &low.elements[i]);
    *(uint2*)panel(base, 0).at(row, column) = high.whole;
    *(uint2*)panel(base, 1).at(row, column) = low.whole;
  }
  static SFRS_DEVICE Split load_weights(unsigned char* base, int m, int k, int lane) {
    return {M::load_a<false>(panel(base, 0), m, k, lane), M::load_a<false>(panel(base, 1), m, k, lane)};
  }
  static SFRS_DEVICE typename M::Ready load_rows(const Panels<bf16>& rows, int n, int k, int lane) {
    return M::load_b<true>(rows, n, k, lane);
  }
  static SFRS_DEVICE void multiply(float (&c0)[4], float (&c1)[4], const Split& a,
                                   const typename M::Ready& b) {
    M::multiply(c0, c1, a.low, b);
    M::multiply(c0, c1, a.high, b);
  }
};

// f16 has not the range for weights: they are split into two TF32, which hold every f16.
template <bool kTf32>
struct WeightMatmul<f16, kTf32> : WeightMatmul<float, false> {
  using M = Matmul<float, false>;
  struct Widened {
    static constexpr bool kGlobal = false;
    Panels<f16> panels;
    struct Element {
      float value;
      SFRS_DEVICE float operator*() const { return value; }
    };
    SFRS_DEVICE Element at(int row, int column) const { return {to_float(*panels.at(row, column))}; }
  };
  using Exact = Matmul<float, true>;

  static SFRS_DEVICE Exact::Ready load_rows(const Panels<f16>& rows, int n, int k, int lane) {
    return Exact::ready(Exact::load_b<true, true>(Widened{rows}, n, k, lane));
  }
  static SFRS_DEVICE void multiply(float (&c0)[4], float (&c1)[4], const M::Ready& a, const Exact::Ready& b) {
    multiply_tf32(c0, a.low, b.high[0], b.high[1]);
    multiply_tf32(c1, a.low, b.high[2], b.high[3]);
    multiply_tf32(c0, a.high, b.high[0], b.high[1]);
    multiply_tf32(c1, a.high, b.high[2], b.high[3]);
  }
};

}  // namespace sfrs::cuda
