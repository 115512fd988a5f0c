// A tile of a map for products of pairs: positions lie along vectors and clusters along rows, so that the
// softmax needs no sums across lanes. `pairs` is the right side of the products over D (logits, and x dV^T of
// the backward), `rows` the left side of those over positions (sums of the forward, dW).
#pragma once

#include "aggregate_forward.inl"
#include "pairs.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {

constexpr int64_t kPairedTileBytes = 400 * 1024;

struct PairedSizes : Sizes<float> {
  int64_t depth;                             // D rounded up
  int64_t sides;                             // K + G rounded up
  int64_t depth_step, side_step, tile_step;  // from row to row of [..][D], [..][K + G], [..][p]

  explicit PairedSizes(const Aggregation& f)
      : Sizes<float>(f), depth(round_up(dim, kPairDepth)), sides(round_up(logits, kSide)) {
    rows = round_up(dim, kSide);
    // Two copies of a tile share L2 with the weights and the sums.
    int64_t fitting = kPairedTileBytes / 4 / larger<int64_t>(dim, 1) / kPairDepth * kPairDepth;
    tile = larger<int64_t>(kPairDepth, smaller(kLargestPairedTile, fitting));
    tile = smaller(tile, round_up(larger<int64_t>(f.x.positions(), 1), kPairDepth));
    depth_step = row_step<bf16>(depth);
    side_step = row_step<Word>(sides);
    tile_step = row_step<Word>(tile);
  }
};

// A side with `rows` rows, not initialised.
template <class E>
Side<E> take_side(Scratch& scratch, int64_t rows, int64_t row) {
  return {scratch.take<E>(rows * row), row};
}
template <class E>
void clear_rows(const Side<E>& side, int64_t first, int64_t end) {
  __builtin_memset(side.at + first * side.row, 0, (end - first) * side.row * sizeof(E));
}
// Rows [rows][dim], rounded, with zeros behind up to `depth`.
SFRS_INLINE void round_rows(const float* from, int64_t rows, int64_t dim, const Side<bf16>& to,
                            int64_t depth) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < depth; d += kSide)
      store(to.at + r * to.row + d, d < dim ? load_n(from + r * dim + d, dim - d) : F32{});
}

class PairedTile {
 public:
  static int64_t bytes(const PairedSizes& n) {
    return Scratch::bytes<Word>(n.depth / 2 * n.tile_step) + Scratch::bytes<bf16>(n.depth * n.tile_step) +
           2 * Scratch::bytes<float>(n.tile + kSide) + Scratch::bytes<int64_t>(n.tile);
  }
  PairedTile(const PairedSizes& n, Scratch& scratch)
      : n_(n),
        pairs_(take_side<Word>(scratch, n.depth / 2, n.tile_step)),
        rows_(take_side<bf16>(scratch, n.depth, n.tile_step)),
        squares_(scratch.take<float>(n.tile + kSide)),
        factors_(scratch.take<float>(n.tile + kSide)),
        index_(scratch.take<int64_t>(n.tile)) {
    clear_rows(pairs_, n.dim / 2, n.depth / 2);
    clear_rows(rows_, 0, n.depth);
  }

  Right pairs() const { return pairs_; }  // [D / 2][p]
  Left rows() const { return rows_; }     // [D][p], zero behind the last position
  float square(int64_t p) const { return squares_[p]; }
  bool shrunk() const { return shrunk_; }  // whether there are factors f other than one
  float factor(int64_t p) const { return shrunk_ ? factors_[p] : 1; }
  const float* factors() const { return factors_; }
  int64_t index(int64_t p) const { return index_[p]; }  // h * W + w
  int64_t count() const { return count_; }
  int64_t vectors_end() const { return round_up(count_, kSide); }
  int64_t pairs_end() const { return round_up(count_, kPairDepth); }

  // Of the vector of positions that begins at p: zero where there is none.
  F32 within(int64_t p, F32 v) const {
    constexpr VecOf<float>::mask lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lanes < (int32_t)(count_ - p) ? v : F32{};
  }
  // Its values of a [B, P] array, one if it is null; `first` is the image's first position.
  F32 values(const void* array, int64_t first, int64_t p) const {
    F32 v = splat(1.0f);
    for (int64_t i = 0; array && i < smaller(kSide, count_ - p); ++i)
      v[i] = ((const float*)array)[first + index_[p + i]];
    return v;
  }

  // Features of large norm are taken as f x, as pack_in_range does it, if they are to be normalised.
  void pack(const FeatureMap& x, const Group& g, int64_t begin, int64_t count, bool normalize) {
    count_ = count;
    Segments segments(x, g, begin, count);
    for (const Segment& s : segments)
      for (int64_t i = 0; i < s.count; ++i) index_[s.at + i] = s.index + i;
    if (x.stride_w == 1) {
      for (const Segment& s : segments) pack_segment(x, image_of<bf16>(x, g) + s.offset, s.at, s.count);
      clear_behind(count);
    } else {
      pack_tokens(x, g, begin);
      clear_behind(vectors_end());
    }
    shrunk_ = false;
    for (int64_t p = 0; normalize && p < count; ++p) shrunk_ |= squares_[p] > kLargeSquare<float>;
    for (int64_t p = 0; shrunk_ && p < count; ++p) shrink_large(p, x.dim);
  }

 private:
  // Dimensions d and d + 1 of the vector of positions that begins at p.
  SFRS_INLINE void put(int64_t d, int64_t p, F32 a, F32 b) {
    U32 first = (U32)a >> 16, second = (U32)b >> 16;
    store_bits(pairs_.at + d / 2 * pairs_.row + p, first | (U32)b);
    store_bits(rows_.at + d * rows_.row + p, narrowed(first));
    store_bits(rows_.at + (d + 1) * rows_.row + p, narrowed(second));
  }

  // N vectors of positions of all planes, of which the last one has `rest` lanes; zeros follow.
  template <int N, bool kWhole>
  SFRS_NOINLINE void pack_vectors(const bf16* from, int64_t stride, int64_t dim, int64_t at, int64_t rest) {
    F32 sums[N] = {};
    auto vector = [&](const bf16* row, int i) {
      row += i * kSide;
      return kWhole || i + 1 < N ? load(row) : load_part(row, rest);
    };
    auto step = [&](int64_t d, auto pair) {
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        F32 a = vector(from, i), b = {};
        if (pair.value) b = vector(from + stride, i);
        sums[i] += a * a;
        sums[i] += b * b;
        put(d, at + i * kSide, a, b);
      }
      from += 2 * stride;
    };
    for (int64_t d = 0; d + 1 < dim; d += 2) step(d, std::true_type());
    if (dim % 2) step(dim - 1, std::false_type());
    for (int i = 0; i < N; ++i) store(squares_ + at + i * kSide, sums[i]);
  }
  // What is written behind the segment, the next one overwrites.
  void pack_segment(const FeatureMap& x, const bf16* from, int64_t at, int64_t count) {
    constexpr int64_t most = 4 * kSide;
    for (; count > most; count -= most, from += most, at += most)
      pack_vectors<4, true>(from, x.stride_d, x.dim, at, kSide);
    int64_t vectors = (count + kSide - 1) / kSide, rest = count - (vectors - 1) * kSide;
    auto run = [&](auto n) {
      rest == kSide ? pack_vectors<n.value, true>(from, x.stride_d, x.dim, at, rest)
                    : pack_vectors<n.value, false>(from, x.stride_d, x.dim, at, rest);
    };
    vectors == 1   ? run(Count<1>())
    : vectors == 2 ? run(Count<2>())
    : vectors == 3 ? run(Count<3>())
                   : run(Count<4>());
  }

  // Sixteen positions at a time; behind the last one it stands again.
  SFRS_NOINLINE void pack_tokens(const FeatureMap& x, const Group& g, int64_t begin) {
    for (int64_t p = 0; p < count_; p += kSide) {
      const bf16* from[kSide];
      for (int64_t i = 0; i < kSide; ++i) {
        int64_t offset, index;
        locate(x, g, begin + smaller(p + i, count_ - 1), &offset, &index);
        from[i] = image_of<bf16>(x, g) + offset;
      }
      F32 sum = {};
      for (int64_t d = 0; d < x.dim; d += kSide) {
        F32 square[kSide];
#pragma GCC unroll 16
        for (int i = 0; i < kSide; ++i) square[i] = load_n(from[i] + d, x.dim - d);
        transpose<float>(square);
#pragma GCC unroll 8
        for (int i = 0; i < kSide; i += 2) {
          sum += square[i] * square[i];
          sum += square[i + 1] * square[i + 1];
          put(d + i, p, square[i], square[i + 1]);
        }
      }
      store(squares_ + p, sum);
    }
  }

  SFRS_NOINLINE void shrink_large(int64_t p, int64_t dim) {
    factors_[p] = 1;
    if (!(squares_[p] > kLargeSquare<float>)) return;
    auto number = [&](int64_t d) { return rows_.at + d * rows_.row + p; };
    float largest = 0, square = 0;
    for (int64_t d = 0; d < dim; ++d) largest = larger(largest, __builtin_fabsf(load_one(number(d))));
    float factor = shrinking<float>(largest);
    if (factor == 1) return;
    for (int64_t d = 0; d < dim; ++d) {
      float v = load_one(number(d)) * factor;
      square += v * v;
      store_one(number(d), v);
      Word& pair = pairs_.at[d / 2 * pairs_.row + p];
      Word bits = number(d)->bits;
      pair = d % 2 ? (pair & 0xffffu) | bits << 16 : (pair & 0xffff0000u) | bits;
    }
    squares_[p] = square, factors_[p] = factor;
  }

  // Zeros in `rows` from `written` on, as far as a product reads: what an earlier tile left there need not be
  // finite.
  void clear_behind(int64_t written) {
    int64_t end = smaller(used_, pairs_end());
    for (int64_t d = 0; written < end && d < n_.depth; ++d)
      __builtin_memset(rows_.at + d * rows_.row + written, 0, (end - written) * sizeof(bf16));
    used_ = larger(written, used_ > end ? used_ : 0);
  }

  const PairedSizes& n_;
  Side<Word> pairs_;
  Side<bf16> rows_;
  float *squares_, *factors_;
  int64_t* index_;
  int64_t count_ = 0, used_ = 0;
  bool shrunk_ = false;
};

// Square by square between [k][p] of a tile and its positions' rows in [P, K + G] of an image, which are
// multiplied by `scale` of each position if it is given.
template <bool kToRows>
SFRS_NOINLINE void turn_positions(const PairedSizes& n, const PairedTile& tile, float* clusters, float* image,
                                  const float* scale = nullptr) {
  for (int64_t p = 0; p < tile.count(); p += kSide)
    for (int64_t k = 0; k < n.logits; k += kSide) {
      int64_t positions = smaller(kSide, tile.count() - p), columns = n.logits - k;
      F32 square[kSide] = {};
      auto row = [&](int64_t i) { return image + tile.index(p + i) * n.logits + k; };
      if (kToRows)
        for (int64_t i = 0; i < kSide; ++i) square[i] = load(clusters + (k + i) * n.tile_step + p);
      else
        for (int64_t i = 0; i < positions; ++i) square[i] = load_n(row(i), columns);
      transpose<float>(square);
      if (kToRows)
        for (int64_t i = 0; i < positions; ++i)
          store_n(row(i), scale ? square[i] * scale[p + i] : square[i], columns);
      else
        for (int64_t i = 0; i < kSide; ++i) store(clusters + (k + i) * n.tile_step + p, square[i]);
    }
}

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
