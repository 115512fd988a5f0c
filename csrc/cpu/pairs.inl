// Products of bfloat16 numbers, added up in float32, on processors that multiply such numbers. They take two
// neighbours of the dimension that is summed over at a time, a pair: one 32-bit word, the first number in its
// lower half. The left side of a product is rows of numbers, [m][k]; the right side is rows of pairs, [k /
// 2][n].
//
// SFRS_PAIRS names the unit: 1, vectors of words (vdpbf16ps of AVX512-BF16), or 2, tiles of 16 x 16 sums
// (tdpbf16ps of AMX). Both take subnormal numbers for zero. Where the compiler may not use it, as in tests,
// the same is done in plain vectors.
#pragma once

#include "gemm.inl"

#ifndef SFRS_PAIRS  // as in isa.h
#define SFRS_PAIRS 1
#endif

namespace sfrs::cpu::SFRS_ISA {
namespace {

constexpr int64_t kSide = 16;       // m and n are multiples of it,
constexpr int64_t kPairDepth = 32;  // k of this
static_assert(kLanes<float> == kSide, "a row of pairs is walked by vectors of sixteen words");

typedef uint32_t Word;

// Elements from a row to the next: rows an odd number of cache lines apart do not meet in few sets of L1.
template <class T>
SFRS_INLINE int64_t row_step(int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);
  return ((count + line - 1) / line | 1) * line;
}

// ---- numbers to pairs

#ifdef __AVX512BF16__
SFRS_INLINE U32 rounded(F32 v) { return widened((U16)_mm512_cvtneps_pbh((__m512)v)); }
SFRS_INLINE F32 dot_pairs(F32 sum, U32 a, U32 b) {
  return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#else
SFRS_INLINE U32 rounded(F32 v) { return bf16_bits(v); }
SFRS_INLINE F32 dot_pairs(F32 sum, U32 a, U32 b) {
  constexpr uint32_t upper = 0xffff0000u;
  return sum + (F32)(a << 16) * (F32)(b << 16) + (F32)(a & upper) * (F32)(b & upper);
}
#endif

SFRS_INLINE F32 as_rounded(F32 v) { return (F32)(rounded(v) << 16); }

// Pairs, lane by lane.
SFRS_INLINE U32 pairs_of(F32 first, F32 second) { return rounded(first) | rounded(second) << 16; }
// Pairs of neighbours: lanes 0 and 1, 2 and 3, ..., of `first`, then of `second`.
SFRS_INLINE U32 pairs_along(F32 first, F32 second) {
  bf16 numbers[2 * kSide];
  store_bits(numbers, narrowed(rounded(first)));
  store_bits(numbers + kSide, narrowed(rounded(second)));
  return load_bits<U32>(numbers);
}

SFRS_INLINE void transpose_words(U32* rows) { transpose<float>((F32*)rows); }

// ---- products

// One side of a product, its rows `row` elements apart.
template <class E>
struct Side {
  E* at;
  int64_t row;

  Side from(int64_t r, int64_t column) const { return {at + r * row + column, row}; }
  operator Side<const E>() const { return {at, row}; }
};
typedef Side<const bf16> Left;
typedef Side<const Word> Right;

#if SFRS_PAIRS == 2

// The eight tile registers of a thread: each sixteen rows of 64 bytes.
#ifdef __AMX_BF16__
template <int T>
SFRS_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
SFRS_INLINE void load_tile(const void* p, int64_t row_bytes) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(p), "r"(row_bytes) : "memory");
}
template <int T>
SFRS_INLINE void store_tile(void* p, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(p), "r"(row_bytes) : "memory");
}
template <int Sum, int A, int B>
SFRS_INLINE void dot_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}
// Makes the registers what the products ask for, on this thread, for as long as it lives.
class PairUnit {
 public:
  PairUnit() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }
  PairUnit(const PairUnit&) = delete;
  PairUnit& operator=(const PairUnit&) = delete;
  ~PairUnit() { asm volatile("tilerelease"); }
};
#else
struct TileRegister {
  Word row[kSide][kSide];
};
template <int T>
TileRegister& tile_register() {
  thread_local TileRegister instance;
  return instance;
}
template <int T>
void clear_tile() {
  tile_register<T>() = {};
}
template <int T>
void load_tile(const void* p, int64_t row_bytes) {
  for (int64_t r = 0; r < kSide; ++r)
    __builtin_memcpy(tile_register<T>().row[r], (const char*)p + r * row_bytes, 64);
}
template <int T>
void store_tile(void* p, int64_t row_bytes) {
  for (int64_t r = 0; r < kSide; ++r)
    __builtin_memcpy((char*)p + r * row_bytes, tile_register<T>().row[r], 64);
}
template <int Sum, int A, int B>
void dot_tiles() {
  for (int64_t r = 0; r < kSide; ++r)
    for (int64_t i = 0; i < kSide; ++i) {
      Word* row = tile_register<Sum>().row[r];
      U32 left = U32{} + tile_register<A>().row[r][i], right = load_bits<U32>(tile_register<B>().row[i]);
      store_bits(row, dot_pairs(load_bits<F32>(row), left, right));
    }
}
struct PairUnit {};
#endif

// A block of 16 Down by 16 Across sums. Tiles 0 to 3 are sums, 4 and 5 the left side, 6 and 7 the right.
template <int Down, int Across>
SFRS_NOINLINE void multiply_tiles(int64_t k, Left a, Right b, float* c, int64_t c_row, bool accumulate) {
  const int64_t a_bytes = a.row * sizeof(bf16), b_bytes = b.row * sizeof(Word);
  const int64_t c_bytes = c_row * sizeof(float);
  float* lower = c + kSide * c_row;
  if (accumulate) {
    load_tile<0>(c, c_bytes);
    if (Across > 1) load_tile<1>(c + kSide, c_bytes);
    if (Down > 1) load_tile<2>(lower, c_bytes);
    if (Down > 1 && Across > 1) load_tile<3>(lower + kSide, c_bytes);
  } else {
    clear_tile<0>(), clear_tile<1>(), clear_tile<2>(), clear_tile<3>();
  }
  for (int64_t i = 0; i < k; i += kPairDepth, a.at += kPairDepth, b.at += kPairDepth / 2 * b.row) {
    load_tile<4>(a.at, a_bytes);
    load_tile<6>(b.at, b_bytes);
    dot_tiles<0, 4, 6>();
    if (Across > 1) load_tile<7>(b.at + kSide, b_bytes);
    if (Across > 1) dot_tiles<1, 4, 7>();
    if (Down > 1) load_tile<5>(a.at + kSide * a.row, a_bytes);
    if (Down > 1) dot_tiles<2, 5, 6>();
    if (Down > 1 && Across > 1) dot_tiles<3, 5, 7>();
  }
  store_tile<0>(c, c_bytes);
  if (Across > 1) store_tile<1>(c + kSide, c_bytes);
  if (Down > 1) store_tile<2>(lower, c_bytes);
  if (Down > 1 && Across > 1) store_tile<3>(lower + kSide, c_bytes);
}
constexpr int64_t kDown = 2 * kSide, kMostDepth = 1 << 20;
SFRS_INLINE int64_t block_columns(int64_t n) { return n > kSide ? 2 * kSide : kSide; }

SFRS_INLINE void multiply_block(int64_t rows, int64_t columns, int64_t k, const Left& a, const Right& b,
                                float* c, int64_t c_row, bool accumulate) {
  auto run = [&](auto down, auto across) {
    multiply_tiles<down.value, across.value>(k, a, b, c, c_row, accumulate);
  };
  if (rows > kSide)
    columns > kSide ? run(Count<2>(), Count<2>()) : run(Count<2>(), Count<1>());
  else
    columns > kSide ? run(Count<1>(), Count<2>()) : run(Count<1>(), Count<1>());
}

#else

struct PairUnit {};
constexpr int64_t kDown = kSide / 2, kMostDepth = 256;  // a panel of the right side fits L1
SFRS_INLINE int64_t block_columns(int64_t n) {
  int64_t vectors = n / kSide;
  return kSide * (vectors == 4 ? 2 : smaller<int64_t>(vectors, 3));
}

// A block of kDown by 16 Across sums.
template <int Across>
SFRS_NOINLINE void multiply_rows(int64_t k, Left a, Right b, float* c, int64_t c_row, bool accumulate) {
  F32 sums[kDown][Across] = {};
  const bf16* half = opaque(a.at + kDown / 2 * a.row);
  for (int64_t i = 0; i < k; i += 2, b.at += b.row) {
    U32 columns[Across];
#pragma GCC unroll 3
    for (int v = 0; v < Across; ++v) columns[v] = load_bits<U32>(b.at + v * kSide);
#pragma GCC unroll 8
    for (int r = 0; r < kDown; ++r) {
      Word pair;
      __builtin_memcpy(&pair, (r < kDown / 2 ? a.at + r * a.row : half + (r - kDown / 2) * a.row) + i,
                       sizeof(pair));
#pragma GCC unroll 3
      for (int v = 0; v < Across; ++v) sums[r][v] = dot_pairs(sums[r][v], U32{} + pair, columns[v]);
    }
  }
  for (int r = 0; r < kDown; ++r)
    for (int v = 0; v < Across; ++v) {
      float* to = c + r * c_row + v * kSide;
      store(to, accumulate ? load(to) + sums[r][v] : sums[r][v]);
    }
}
SFRS_INLINE void multiply_block(int64_t, int64_t columns, int64_t k, const Left& a, const Right& b, float* c,
                                int64_t c_row, bool accumulate) {
  auto run = [&](auto across) { multiply_rows<across.value>(k, a, b, c, c_row, accumulate); };
  columns == kSide ? run(Count<1>()) : columns == 2 * kSide ? run(Count<2>()) : run(Count<3>());
}

#endif

// c[m][n] (+)= a b; m and n are multiples of kSide, k of kPairDepth. `ahead` is asked for meanwhile; its work
// is m n k.
SFRS_NOINLINE void multiply_pairs(int64_t m, int64_t n, int64_t k, Left a, Right b, float* c, int64_t c_row,
                                  bool accumulate, Ahead& ahead) {
  for (int64_t i = 0; i < k; i += kMostDepth)
    for (int64_t column = 0, columns; column < n; column += columns) {
      columns = block_columns(n - column);
      for (int64_t row = 0; row < m; row += kDown) {
        int64_t rows = smaller(kDown, m - row), depth = smaller(kMostDepth, k - i);
        ahead.advance(rows * columns * depth);
        multiply_block(rows, columns, depth, a.from(row, i), b.from(i / 2, column), c + row * c_row + column,
                       c_row, accumulate || i > 0);
      }
    }
}

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
