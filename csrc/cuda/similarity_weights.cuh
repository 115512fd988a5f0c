// Weights times rows, for both gradients of all pairs. Idea: a block makes its weights in shared memory,
// chunk by chunk, from scaled and 1 / n_r, while it multiplies the chunk before, and takes rows of V or U as
// they lie. The nine values per pair that the weights are made of are the largest stream: 36 of 52 kB per
// chunk of 128 x 32 weights by 256 dimensions, 1 M FMA. Both gradients need 8 T N K D flops; dV reads and
// writes the quarters once besides.
#pragma once

#include "similarity_lists_backward.cuh"
#include "similarity_pairs.cuh"
#include "similarity_weight_matmul.cuh"

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

constexpr int kRegionCoefficients = kRegions + 1;  // c_0..c_8 in a unit, the unit

struct WeightParameters {
  const void* rows;          // dquery: quarters; dquarters: query
  const void* scaled;        // grad_r / N_r
  const void* inverse;       // [N, K, 9]
  const void* quarters;      // dquarters: [N, 4, K, D]
  const void* coefficients;  // dquarters: [N, K, 10]
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
      SFRS_EACH (part, kParts) {
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
      SFRS_EACH (part, kParts) {
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
  SFRS_DEVICE int row_warp() const { return warp_of_thread() % Tile::kRowWarps; }
  SFRS_DEVICE int column_warp() const { return warp_of_thread() / Tile::kRowWarps; }
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
    SFRS_EACH (r, kRegions)
      inverse_[r] =
          image < p_.gallery ? ((const T*)p_.inverse)[(image * p_.clusters + cluster_) * kRegions + r] : 0;
  }
  SFRS_DEVICE void load_scaled(int64_t at, int part) {
    const int64_t image = (kOfQuery ? at / kQuarters : first_image_) + image_;
    if (kOfQuery && part == 0) load_inverse(image);
    const int64_t query = (kOfQuery ? first_query_ : at) + query_;
    const T* from = (const T*)p_.scaled + scaled_offset(query, image, 0, p_.queries);
    SFRS_EACH (j, kPairs / kParts) {
      const int step = query_step(part, j);
      const bool valid = query + step < p_.queries && image < p_.gallery;
      SFRS_EACH (r, kRegions) scaled_[j][r] = valid ? from[scaled_step(step, r)] : 0;
    }
  }
  SFRS_DEVICE void store_weights(int slot, int part) {
    const int image = here(image_), first = here(query_);  // or the addresses would fill the registers
    SFRS_EACH (j, kPairs / kParts) {
      SFRS_EACH (r, kRegions) scaled_[j][r] *= inverse_[r];
      T w[kQuarters];
      quarter_sums(scaled_[j], w);
      const int query = first + query_step(part, j);
      if constexpr (kOfQuery) {
        M::put_quarters(weights(slot), query, image * kQuarters, w);
      } else {
        SFRS_EACH (i, kQuarters) M::put(weights(slot), image / 8 * 32 + i * 8 + image % 8, query, w[i]);
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
    const int lane = lane_of_thread(), row_warp = this->row_warp(), column_warp = this->column_warp();
    constexpr int kSpan = Tile::kDepth / kParts;
    SFRS_UNROLL
    for (int k = part * kSpan; k < (part + 1) * kSpan; k += M::kStep) {
      decltype(M::load_rows(rows(0), 0, 0, 0)) b[kN];
      SFRS_EACH (n, kN) b[n] = M::load_rows(rows(slot), (column_warp * kN + n) * 16, k, lane);
      SFRS_EACH (m, kM) {
        auto a = M::load_weights(weights(slot), (row_warp * kM + m) * 16, k, lane);
        SFRS_EACH (n, kN) M::multiply(sums_[m][n][0], sums_[m][n][1], a, b[n]);
      }
    }
  }

  SFRS_DEVICE int64_t dim_of(int n, int piece) const {
    return first_dim_ + (column_warp() * kN + n) * 16 + piece * 8 + lane_of_thread() % 4 * 2;
  }
  SFRS_DEVICE void store_queries() {
    SFRS_EACH (m, kM)
      SFRS_EACH (half, 2) {
        const int64_t query = first_query_ + (row_warp() * kM + m) * 16 + half * 8 + lane_of_thread() / 4;
        if (query >= p_.queries) continue;
        SFRS_EACH (n, kN)
          SFRS_EACH (piece, 2) {
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
      const int64_t image = first_image_ + (row_warp() * kM + m) / 2 * 8 + lane_of_thread() / 4;
      const bool valid = image < p_.gallery;
      const T* from = (const T*)p_.coefficients + (image * p_.clusters + cluster_) * kRegionCoefficients;
      T c[kRegions], unit = valid ? from[kRegions] : 0;
      SFRS_EACH (r, kRegions) c[r] = valid ? from[r] : 0;
      SFRS_EACH (n, kN)
        SFRS_EACH (piece, 2) {
          __syncwarp();  // keeps the compiler from reading more ahead than there are registers for
          const int64_t d = dim_of(n, piece), left = valid ? p_.dim - d : 0;
          const int64_t offset = image * kQuarters * size_ + cluster_ * p_.dim + d;
          T quarters[kQuarters][2], results[kQuarters][2];
          SFRS_EACH (i, kQuarters)
            load_neighbours((const S*)p_.quarters + offset + i * size_, left, p_.aligned, quarters[i]);
          SFRS_EACH (e, 2) {
            T v[kQuarters], dv[kQuarters];
            SFRS_EACH (i, kQuarters) {
              v[i] = quarters[i][e];
              dv[i] = sums_[m + i / 2][n][piece][i % 2 * 2 + e];
            }
            add_along_regions(v, c, unit, dv);
            SFRS_EACH (i, kQuarters) results[i][e] = dv[i];
          }
          SFRS_EACH (i, kQuarters)
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
