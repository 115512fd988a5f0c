// Weights times rows, for both gradients of all pairs: a block makes its weights in shared memory, chunk by
// chunk, from scaled and 1 / n_r, and multiplies rows of V or U as they lie.
#pragma once

#include "similarity_lists_backward.cuh"
#include "similarity_pairs.cuh"

namespace sfrs::cuda {

// Two neighbours of a row, together if the row is aligned.
template <class S>
union Neighbours {
  S elements[2];
  uint32_t word;
  uint2 two_words;
  uint4 four_words;
};
template <class S>
SFRS_DEVICE void load_neighbours(const S* p, int64_t left, bool aligned, Accumulated<S> (&v)[2]) {
  Neighbours<S> pair;
  pair.four_words = make_uint4(0, 0, 0, 0);
  if (aligned && left > 0) {
    if constexpr (sizeof(S) == 2) pair.word = *(const uint32_t*)p;
    if constexpr (sizeof(S) == 4) pair.two_words = *(const uint2*)p;
    if constexpr (sizeof(S) == 8) pair.four_words = *(const uint4*)p;
  } else {
    if (left > 0) pair.elements[0] = p[0];
    if (left > 1) pair.elements[1] = p[1];
  }
  v[0] = to_float(pair.elements[0]), v[1] = to_float(pair.elements[1]);
}
template <class S>
SFRS_DEVICE void store_neighbours(S* p, int64_t left, bool aligned, Accumulated<S> first,
                                  Accumulated<S> second) {
  Neighbours<S> pair;
  store_as(&pair.elements[0], first);
  store_as(&pair.elements[1], second);
  if (aligned && left > 0) {
    if constexpr (sizeof(S) == 2) *(uint32_t*)p = pair.word;
    if constexpr (sizeof(S) == 4) *(uint2*)p = pair.two_words;
    if constexpr (sizeof(S) == 8) *(uint4*)p = pair.four_words;
  } else {
    if (left > 0) p[0] = pair.elements[0];
    if (left > 1) p[1] = pair.elements[1];
  }
}

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
      SFRS_UNROLL
      for (int e = 0; e < Chunk<S>::kSize; ++e) chunk.elements[e] = w[i + e];
      store_chunk<true>(weights(base).at(row, column + i), chunk, 1);
    }
  }
  static SFRS_DEVICE typename M::Ready load_weights(unsigned char* base, int m, int k, int lane) {
    if constexpr (sizeof(S) == 8) {
      return M::ready(M::template load_a<false>(weights(base), m, k, lane));
    } else {  // eight rows of four floats are eight rows of eight 16-bit elements
      uint32_t bits[4];
      load_matrices(bits, weights(base).at(m + lane % 16, k + lane / 16 * 4));
      typename M::Operand a;
      SFRS_UNROLL
      for (int i = 0; i < 4; ++i) a.r[i] = bits_float(bits[i]);
      return M::ready(a);
    }
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
    SFRS_UNROLL
    for (int i = 0; i < kQuarters; ++i) split(w[i], &high.elements[i], &low.elements[i]);
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

template <class S, bool kTf32>
struct WeightTile {
  using T = Accumulated<S>;
  using M = WeightMatmul<S, kTf32>;
  static constexpr int kRowWarps = 2, kColumnWarps = 4;
  static constexpr int kM = sizeof(S) == 8 ? 2 : 4, kN = __is_same(S, bf16) || kTf32 ? 4 : 2;
  static constexpr int kRows = kRowWarps * kM * 16, kDims = kColumnWarps * kN * 16;
  static constexpr int kDepth = M::kDepth;  // rows of V or U at a time
  static_assert(kRows == M::kRows);
  static constexpr int kWeightBytes = kRows * 128, kRowBytes = kDims * (int)sizeof(S);
  static constexpr int kStageBytes = kWeightBytes + kDepth * kRowBytes;
  static constexpr int64_t kShared = 2 * kStageBytes;
};

struct WeightParameters {
  const void* rows;          // dquery: quarters; dquarters: query
  const void* scaled;        // grad_r / N_r
  const void* inverse;       // [N, K, 9]
  const void* quarters;      // dquarters: [N, 4, K, D]
  const void* coefficients;  // dquarters: [N, K, 9]
  void* out;
  int64_t queries, gallery, clusters, dim;
  int64_t dim_tiles;
  bool aligned;
};

// kOfQuery: out rows are queries, the sum runs over quarters 4 n + i. Otherwise out rows are the quarters of
// images, numbered so that a thread holds all four of an image, and the sum runs over queries.
template <class S, bool kTf32, bool kOfQuery>
class WeightedRows {
  using T = Accumulated<S>;
  using Tile = WeightTile<S, kTf32>;
  using M = typename Tile::M;
  static constexpr int kM = Tile::kM, kN = Tile::kN, kSize = Chunk<S>::kSize;
  static constexpr int kImages = (kOfQuery ? Tile::kDepth : Tile::kRows) / kQuarters;
  static constexpr int kQueries = kOfQuery ? Tile::kRows : Tile::kDepth;
  static constexpr int kPairs = kImages * kQueries / kPairThreads;  // of a thread and chunk
  static_assert(kPairs * kPairThreads == kImages * kQueries);
  // What the next weights are made of is under way during one part of a chunk's product.
  static constexpr int kSteps = Tile::kDepth / M::kStep, kParts = kPairs < kSteps ? kPairs : kSteps;

 public:
  SFRS_DEVICE WeightedRows(const WeightParameters& p, unsigned char* memory)
      : p_(p), memory_(memory), size_(p.clusters * p.dim) {
    int64_t tile = blockIdx.x;
    if constexpr (kOfQuery) {
      const int64_t row_tiles = (p.queries + kQueries - 1) / kQueries;
      first_query_ = tile % row_tiles * kQueries, tile /= row_tiles;
      first_dim_ = (int)(tile % p.dim_tiles * Tile::kDims);
      cluster_ = (int)(tile / p.dim_tiles);
      depth_ = p.gallery * kQuarters;
    } else {
      first_dim_ = (int)(tile % p.dim_tiles * Tile::kDims), tile /= p.dim_tiles;
      cluster_ = (int)(tile % p.clusters);
      first_image_ = tile / p.clusters * kImages;
      depth_ = p.queries;
    }
    place();
  }

  SFRS_DEVICE void run() {
    if constexpr (!kOfQuery) load_inverse(first_image_ + image_);
    if (depth_ > 0) {
      load_rows(0, 0);
      SFRS_UNROLL
      for (int part = 0; part < kParts; ++part) {
        load_scaled(0, part);
        store_weights(0, part);
      }
    }
    for (int64_t at = 0; at < depth_; at += Tile::kDepth) {
      const int slot = at / Tile::kDepth % 2;
      const bool more = at + Tile::kDepth < depth_;
      copy_async_wait<0>();
      __syncthreads();
      if (more) load_rows(1 - slot, at + Tile::kDepth);
      SFRS_UNROLL
      for (int part = 0; part < kParts; ++part) {
        if (more) load_scaled(at + Tile::kDepth, part);
        multiply(slot, part);
        if (more) store_weights(1 - slot, part);
      }
    }
    if constexpr (kOfQuery)
      store_queries();
    else
      store_quarters();
  }

 private:
  SFRS_DEVICE int lane() const { return threadIdx.x % 32; }
  SFRS_DEVICE int row_warp() const { return threadIdx.x / 32 % Tile::kRowWarps; }
  SFRS_DEVICE int column_warp() const { return threadIdx.x / 32 / Tile::kRowWarps; }
  SFRS_DEVICE unsigned char* weights(int slot) const { return memory_ + slot * Tile::kStageBytes; }
  SFRS_DEVICE Panels<S> rows(int slot) const {
    return Panels<S>(weights(slot) + Tile::kWeightBytes, Tile::kDepth, Tile::kDims);
  }

  // Which pairs the thread makes the weights of: one image, kPairs queries. A warp reads whole lines of
  // scaled, and its weights go to banks of their own.
  SFRS_DEVICE void place() {
    if constexpr (kOfQuery) {
      image_ = threadIdx.x % kImages, query_ = threadIdx.x / kImages;
    } else {
      const int rest = threadIdx.x / 8, of_four = rest / 4;
      image_ = of_four % (kImages / 8) * 8 + threadIdx.x % 8;
      query_ = rest % 4 + of_four / (kImages / 8) * 4;
    }
  }
  SFRS_DEVICE static int query_step(int part, int j) {  // from the thread's first query; a multiple of 4
    return (part * (kPairs / kParts) + j) * (kPairThreads / kImages);
  }

  SFRS_DEVICE void load_inverse(int64_t image) {
    SFRS_UNROLL
    for (int r = 0; r < kRegions; ++r)
      inverse_[r] =
          image < p_.gallery ? ((const T*)p_.inverse)[(image * p_.clusters + cluster_) * kRegions + r] : 0;
  }
  SFRS_DEVICE void load_scaled(int64_t at, int part) {
    const int64_t image = (kOfQuery ? at / kQuarters : first_image_) + image_;
    if (kOfQuery && part == 0) load_inverse(image);
    const int64_t query = (kOfQuery ? first_query_ : at) + query_;
    const T* from = (const T*)p_.scaled + scaled_offset(query, image, 0, p_.queries);
    SFRS_UNROLL
    for (int j = 0; j < kPairs / kParts; ++j) {
      const int step = query_step(part, j);
      const bool valid = query + step < p_.queries && image < p_.gallery;
      SFRS_UNROLL
      for (int r = 0; r < kRegions; ++r) scaled_[j][r] = valid ? from[scaled_step(step, r)] : 0;
    }
  }
  SFRS_DEVICE void store_weights(int slot, int part) {
    SFRS_UNROLL
    for (int j = 0; j < kPairs / kParts; ++j) {
      SFRS_UNROLL
      for (int r = 0; r < kRegions; ++r) scaled_[j][r] *= inverse_[r];
      T w[kQuarters];
      quarter_sums(scaled_[j], w);
      const int query = query_ + query_step(part, j);
      if constexpr (kOfQuery) {
        M::put_quarters(weights(slot), query, image_ * kQuarters, w);
      } else {
        SFRS_UNROLL
        for (int i = 0; i < kQuarters; ++i)
          M::put(weights(slot), image_ / 8 * 32 + i * 8 + image_ % 8, query, w[i]);
      }
    }
  }

  SFRS_DEVICE void load_rows(int slot, int64_t at) {
    if (p_.aligned)
      load_rows<true>(rows(slot), at);
    else
      load_rows<false>(rows(slot), at);
    copy_async_commit();
  }
  template <bool kAligned>
  SFRS_DEVICE void load_rows(const Panels<S>& to, int64_t at) {
    constexpr int across = Tile::kDims / kSize, step = kPairThreads / across;
    const int column = threadIdx.x % across * kSize, row = threadIdx.x / across;
    const int64_t d = first_dim_ + column, left = p_.dim - d;
    const S* from = (const S*)p_.rows + (at + row) * size_ + cluster_ * p_.dim + d;
    SFRS_UNROLL
    for (int i = 0; i < Tile::kDepth; i += step) {
      const bool valid = at + row + i < depth_ && left > 0;
      if constexpr (kAligned)
        copy_async<16>(to.at(M::row_of(row + i), column), from + i * size_, valid);
      else
        store_chunk<true>(to.at(M::row_of(row + i), column),
                          load_chunk<false>(from + i * size_, valid ? left : 0), 1);
    }
  }

  SFRS_DEVICE void multiply(int slot, int part) {
    constexpr int kSpan = Tile::kDepth / kParts;
    SFRS_UNROLL
    for (int k = part * kSpan; k < (part + 1) * kSpan; k += M::kStep) {
      decltype(M::load_rows(rows(0), 0, 0, 0)) b[kN];
      SFRS_UNROLL
      for (int n = 0; n < kN; ++n) b[n] = M::load_rows(rows(slot), (column_warp() * kN + n) * 16, k, lane());
      SFRS_UNROLL
      for (int m = 0; m < kM; ++m) {
        auto a = M::load_weights(weights(slot), (row_warp() * kM + m) * 16, k, lane());
        SFRS_UNROLL
        for (int n = 0; n < kN; ++n) M::multiply(sums_[m][n][0], sums_[m][n][1], a, b[n]);
      }
    }
  }

  SFRS_DEVICE int64_t dim_of(int n, int piece) const {
    return first_dim_ + (column_warp() * kN + n) * 16 + piece * 8 + lane() % 4 * 2;
  }
  SFRS_DEVICE void store_queries() {
    SFRS_UNROLL
    for (int m = 0; m < kM; ++m) SFRS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t query = first_query_ + (row_warp() * kM + m) * 16 + half * 8 + lane() / 4;
      if (query >= p_.queries) continue;
      SFRS_UNROLL
      for (int n = 0; n < kN; ++n) SFRS_UNROLL
      for (int piece = 0; piece < 2; ++piece) {
        const int64_t d = dim_of(n, piece);
        store_neighbours((S*)p_.out + query * size_ + cluster_ * p_.dim + d, p_.dim - d, p_.aligned,
                         sums_[m][n][piece][2 * half], sums_[m][n][piece][2 * half + 1]);
      }
    }
  }
  // Quarter i of a thread's image is in row half i % 2 of piece i / 2.
  SFRS_DEVICE void store_quarters() {
    SFRS_UNROLL
    for (int m = 0; m < kM; m += 2) {
      const int64_t image = first_image_ + (row_warp() * kM + m) / 2 * 8 + lane() / 4;
      const bool valid = image < p_.gallery;
      T c[kRegions];
      SFRS_UNROLL
      for (int r = 0; r < kRegions; ++r)
        c[r] = valid ? ((const T*)p_.coefficients)[(image * p_.clusters + cluster_) * kRegions + r] : 0;
      SFRS_UNROLL
      for (int n = 0; n < kN; ++n) SFRS_UNROLL
      for (int piece = 0; piece < 2; ++piece) {
        __syncwarp();  // keeps the compiler from reading more ahead than there are registers for
        const int64_t d = dim_of(n, piece), left = valid ? p_.dim - d : 0;
        const int64_t offset = image * kQuarters * size_ + cluster_ * p_.dim + d;
        T quarters[kQuarters][2], results[kQuarters][2];
        SFRS_UNROLL
        for (int i = 0; i < kQuarters; ++i)
          load_neighbours((const S*)p_.quarters + offset + i * size_, left, p_.aligned, quarters[i]);
        SFRS_UNROLL
        for (int e = 0; e < 2; ++e) {
          T v[kQuarters], dv[kQuarters];
          SFRS_UNROLL
          for (int i = 0; i < kQuarters; ++i) {
            v[i] = quarters[i][e];
            dv[i] = sums_[m + i / 2][n][piece][i % 2 * 2 + e];
          }
          add_along_regions(v, c, dv);
          SFRS_UNROLL
          for (int i = 0; i < kQuarters; ++i) results[i][e] = dv[i];
        }
        SFRS_UNROLL
        for (int i = 0; i < kQuarters; ++i)
          store_neighbours((S*)p_.out + offset + i * size_, left, p_.aligned, results[i][0], results[i][1]);
      }
    }
  }

  const WeightParameters& p_;
  unsigned char* memory_;
  int64_t size_, first_query_ = 0, first_image_ = 0, depth_;
  int first_dim_, cluster_, image_, query_;
  T inverse_[kRegions], scaled_[kPairs / kParts][kRegions];
  T sums_[kM][kN][2][4] = {};
};

}  // namespace sfrs::cuda
