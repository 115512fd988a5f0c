// The register tile that every product of this library runs in, and its panel layout.
//
// A panel holds kPanel columns side by side: element (row, column) of a matrix in panels lies at
// (column / kPanel * rows + row) * kPanel + column % kPanel. The tile is 6 rows by up to kTileVecs
// vectors: 12 accumulators on 16 registers, 24 on AVX-512.
#pragma once

#include "ahead.inl"
#include "vec.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {

#if SFRS_VECTOR_BYTES == 64
constexpr int kTileVecs = 4;
#else
constexpr int kTileVecs = 2;
#endif
constexpr int kTileRows = 6;

template <class T>
constexpr int kPanel = kTileVecs * kLanes<T>;

// Steps of the long dimension after which a panel of the right side still fits L1 beside the left one.
template <class T>
constexpr int64_t kDepth = 16 * 1024 / (kPanel<T> * (int64_t)sizeof(T));

// Rows of a product that one panel of the right side serves before the next one comes to L1.
constexpr int64_t kBlockRows = 8 * kTileRows;

// Vectors in use of the panel that begins at `column` of `columns`.
template <class T>
SFRS_INLINE int panel_vecs(int64_t column, int64_t columns) {
  return (int)smaller<int64_t>((columns - column + kLanes<T> - 1) / kLanes<T>, kTileVecs);
}

// Where column `column` of a matrix in panels of `rows` rows begins.
template <class T>
SFRS_INLINE int64_t panel_offset(int64_t column, int64_t rows) {
  return column / kPanel<T> * rows * kPanel<T> + column % kPanel<T>;
}

constexpr int kGiven = 0;  // as ARow or AInner: a_stride, which is known at run time only

// Steps per turn of the loop: beside a neighbour on the same core instructions count, not only multiply-adds.
constexpr int kUnrolled = 2;

// The same pointer. Addresses that the compiler knows to be related get a register each if a loop is
// unrolled, more than there are.
template <class T>
SFRS_INLINE T* opaque(T* p) {
  asm("" : "+r"(p));
  return p;
}

// A row of tiles that one call computes: how far a, b and c move on from one to the next, and the memory that
// is asked for meanwhile.
struct Tiles {
  int64_t count = 1, a = 0, b = 0, c = 0;
  Ahead* ahead = nullptr;
};

// c[6][nv * lanes] += a * b, summed over `outer` blocks of `inner` steps. Row r of a at step (o, i) lies
// at a[o * a_outer + i * AInner + r * ARow]; b advances by b_row at every step.
template <int NV, int ARow, int AInner, class T>
SFRS_NOINLINE void multiply_tiles(Tiles tiles, int64_t outer, int64_t inner, const T* a, int64_t a_outer,
                                  const T* b, int64_t b_row, T* c, int64_t c_row, bool accumulate,
                                  int64_t a_stride) {
  const int64_t a_row = ARow == kGiven ? a_stride : ARow, a_inner = AInner == kGiven ? a_stride : AInner;
  const int64_t jump = a_outer - inner * a_inner, blocks = (ARow > 1 ? outer : 1) * (inner / kUnrolled);
  for (; tiles.count > 0; --tiles.count, a += tiles.a, b += tiles.b, c += tiles.c) {
    if (tiles.ahead) tiles.ahead->advance(outer * inner * NV);
    const T *left = a, *right = b;
    Vec<T> acc[kTileRows][NV] = {};
    auto steps = [&](auto count) {
#pragma GCC unroll 4
      for (int i = 0; i < count.value; ++i) {
        Vec<T> columns[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) columns[v] = load(right + v * kLanes<T>);
        const T* half = left + 3 * a_row;
        if (ARow == kGiven) half = opaque(half);
#pragma GCC unroll 6
        for (int r = 0; r < kTileRows; ++r) {
          Vec<T> row = splat(r < 3 ? left[r * a_row] : half[(r - 3) * a_row]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[r][v] += row * columns[v];
        }
        left = opaque(left + a_inner);
        right = opaque(right + b_row);
      }
    };
    for (int64_t rest = inner, n = blocks; n > 0; --n) {
      steps(Count<kUnrolled>());
      if (ARow > 1 && (rest -= kUnrolled) == 0) {
        rest = inner;
        left += jump;
      }
    }
    for (int64_t n = inner % kUnrolled; n > 0; --n) steps(Count<1>());
    auto finish = [&](auto add) {
#pragma GCC unroll 6
      for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          T* to = c + r * c_row + v * kLanes<T>;
          store(to, add.value ? load(to) + acc[r][v] : acc[r][v]);
        }
      }
    };
    accumulate ? finish(std::true_type()) : finish(std::false_type());
  }
}

template <int ARow, int AInner, class T>
SFRS_INLINE void multiply(int vecs, int64_t outer, int64_t inner, const T* a, int64_t a_outer, const T* b,
                          int64_t b_row, T* c, int64_t c_row, bool accumulate, int64_t a_stride = 0,
                          Tiles tiles = {}) {
  auto run = [&](auto nv) {
    multiply_tiles<nv.value, ARow, AInner>(tiles, outer, inner, a, a_outer, b, b_row, c, c_row, accumulate,
                                           a_stride);
  };
  if constexpr (kTileVecs == 4) {
    if (vecs == 4) return run(Count<4>());
    if (vecs == 3) return run(Count<3>());
  }
  if (vecs == 2) return run(Count<2>());
  return run(Count<1>());
}

// Between panels and rows, square by square: rows[column * ld + row] <-> element (row, column) in panels that
// are panel_rows long. Neither the panels' padding nor what lies behind a row is touched.
template <bool kToPanels, class T, class S>
SFRS_NOINLINE void turn(T* panels, int64_t panel_rows, S* rows, int64_t ld, int64_t columns, int64_t count) {
  constexpr int lanes = kLanes<T>;
  for (int64_t c = 0; c < columns; c += lanes) {
    T* panel = panels + panel_offset<T>(c, panel_rows);
    int64_t wide = smaller<int64_t>(lanes, columns - c), r = 0;
    for (; wide == lanes && r + lanes <= count; r += lanes) {
      S* side = rows + c * ld + r;
      T* top = panel + r * kPanel<T>;
      Vec<T> square[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) square[i] = kToPanels ? load(side + i * ld) : load(top + i * kPanel<T>);
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i)
        kToPanels ? store(top + i * kPanel<T>, square[i]) : store(side + i * ld, square[i]);
    }
    for (; r < count; ++r)
      for (int64_t i = 0; i < wide; ++i) {
        S* side = rows + (c + i) * ld + r;
        T* top = panel + r * kPanel<T> + i;
        if constexpr (kToPanels)
          *top = load_one(side);
        else
          store_one(side, *top);
      }
  }
}
template <class S, class T>
SFRS_INLINE void rows_to_panels(const S* rows, int64_t ld, int64_t columns, int64_t count, T* panels,
                                int64_t panel_rows) {
  turn<true>(panels, panel_rows, const_cast<S*>(rows), ld, columns, count);
}
template <class T>
SFRS_INLINE void panels_to_rows(const T* panels, int64_t panel_rows, int64_t columns, int64_t count, T* rows,
                                int64_t ld) {
  turn<false>(const_cast<T*>(panels), panel_rows, rows, ld, columns, count);
}

// Rows as the left side of a product, in blocks of six: [row / 6][d][6]. Rows behind the last are left as
// they are.
template <class S, class T>
SFRS_INLINE void rows_to_blocks(const S* rows, int64_t ld, int64_t count, int64_t dim, T* blocks) {
  for (int64_t r = 0; r < count; ++r) {
    T* to = blocks + r / kTileRows * kTileRows * dim + r % kTileRows;
    for (int64_t d = 0; d < dim; ++d) to[d * kTileRows] = load_one(rows + r * ld + d);
  }
}

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
