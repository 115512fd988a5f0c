// Query-to-region similarity of all pairs: u [T, K, D] by quarters [N, 4, K, D]. Idea: per cluster a product
// on the tensor cores gives d_i of 128 queries and 24 images (16 for float and double); the columns of the
// tile are numbered so that a thread holds the four quarters of its pairs, and adds the nine regions behind
// the product without leaving registers. Four ninths of the flops and a ninth of the memory of a GEMM over
// region descriptors. Blocks may share the clusters of a tile; a second kernel then adds in order.
//
// Floor: 8 T N K D flops; the quarters are read once for the norms and once here. What limits it is the way
// from L2: nine sums and four products per pair fill the registers of an SM at 128 x 24 pairs, so a tile
// feeds 128 x 96 FMA from 224 elements, 27 FMA per byte of bf16. At about 28 bytes per clock and SM that is
// 770 of the 1230 FMA per clock that mma.sync reaches. Exact float is bound by its three products: 205 FMA
// per clock, where a tile of 128 x 16 pairs could be fed for 300.
// Predicted on an H200 for 256 x 2,048, K = 64, D = 512, norms not counted: bf16 430 us (240 if L2 keeps up
// with mma.sync), TF32 1.05 ms, exact float 1.5 ms.
#pragma once

#include "similarity_regions.cuh"

namespace sfrs::cuda {

constexpr int kPairThreads = 256, kPairStages = 3;

template <class S>
struct PairTile {
  using T = Accumulated<S>;
  static constexpr int kRowWarps = 4, kColumnWarps = 2;
  static constexpr int kM = sizeof(S) == 8 ? 1 : 2, kN = sizeof(S) == 2 ? 3 : 2;  // 16 x 16 pieces of a warp
  static constexpr int kQueries = kRowWarps * kM * 16, kColumns = kColumnWarps * kN * 16;
  static constexpr int kImages = kColumns / kQuarters;
  static constexpr int kDepth = 128 / (int)sizeof(S);
  static constexpr int kQueryBytes = kQueries * 128, kPanelBytes = kQueryBytes + kColumns * 128;
  static constexpr int kNormBytes = (kImages * kRegions * (int)sizeof(T) + 1023) / 1024 * 1024;
  static constexpr int kStageBytes = kPanelBytes + kNormBytes;
  static constexpr int64_t kShared = kPairStages * kStageBytes;
  // The backward has no use for the norms, but adds up over row warps.
  static constexpr int64_t kBackwardShared =
      kPairStages * kPanelBytes + kRowWarps * kImages * kRegions * (int64_t)sizeof(T);

  // Column 16 g + 8 h + 2 t + e is quarter 2 h + e of image 4 g + t.
  SFRS_DEVICE static int image_of(int column) { return column / 16 * 4 + column % 8 / 2; }
  SFRS_DEVICE static int quarter_of(int column) { return column % 16 / 8 * 2 + column % 2; }
};

// scaled[q, n, r] lies as [N / 8, T / 4, 9, 4, 8]: a warp that spreads over 4 queries and 8 images reads one
// line per region, at distances that are known to the compiler.
SFRS_DEVICE int64_t scaled_offset(int64_t query, int64_t image, int region, int64_t queries) {
  const int64_t group = image / 8 * ((queries + 3) / 4) + query / 4;
  return (group * kRegions + region) * 32 + query % 4 * 8 + image % 8;
}
// From a query's region 0 to region `region` of the query that comes `step` later, a multiple of 4.
SFRS_DEVICE int scaled_step(int step, int region) { return (step / 4 * kRegions + region) * 32; }
constexpr int64_t scaled_size(int64_t queries, int64_t gallery) {
  return (gallery + 7) / 8 * ((queries + 3) / 4) * kRegions * 32;
}

struct PairParameters {
  const void* query;
  const void* quarters;
  const void* inverse;        // forward: [N, K, 9]
  const void* inverse_total;  // forward: [N, 9], null if the sums are to be added up by similarity_add_splits
  const void* scaled;         // backward: grad_r / N_r, laid out as scaled_offset says
  void* out;  // forward: [T, N, 9] for each split; backward: sum_q scaled_r sum_{i in r} d_i as [query tiles,
              // N, K, 9]
  int64_t queries, gallery, clusters, dim;
  int64_t query_tiles, image_tiles, clusters_per_split;
  bool aligned;
};

template <class S, bool kTf32, bool kBackward>
class PairProducts {
  using T = Accumulated<S>;
  using Tile = PairTile<S>;
  using M = Matmul<S, kTf32>;
  static constexpr int kM = Tile::kM, kN = Tile::kN, kSize = Chunk<S>::kSize;
  static constexpr int kStageBytes = kBackward ? Tile::kPanelBytes : Tile::kStageBytes;

 public:
  SFRS_DEVICE PairProducts(const PairParameters& p, unsigned char* memory)
      : p_(p),
        memory_(memory),
        size_(p.clusters * p.dim),
        steps_((int)((p.dim + Tile::kDepth - 1) / Tile::kDepth)) {
    int64_t tile = blockIdx.x;
    query_tile_ = (int)(tile % p.query_tiles), tile /= p.query_tiles;
    first_query_ = (int64_t)query_tile_ * Tile::kQueries;
    first_image_ = tile % p.image_tiles * Tile::kImages;
    split_ = (int)(tile / p.image_tiles);
    first_cluster_ = (int)(split_ * p.clusters_per_split);
    end_cluster_ = at_most((int)(first_cluster_ + p.clusters_per_split), p.clusters);
    place();
  }

  SFRS_DEVICE void run() {
    if constexpr (kBackward) load_scaled();
    int load_cluster = first_cluster_, load_step = 0, cluster = first_cluster_, step = 0;
    auto fetch = [&](int slot) {
      if (load_cluster < end_cluster_) {
        load(slot, load_cluster, load_step);
        if (++load_step == steps_) load_step = 0, ++load_cluster;
      }
      copy_async_commit();
    };
    for (int slot = 0; slot < kPairStages - 1; ++slot) fetch(slot);
    int slot = 0, free_slot = kPairStages - 1;
    while (cluster < end_cluster_) {
      copy_async_wait<kPairStages - 2>();
      __syncthreads();  // the slot is filled, and nobody reads the one that was computed before it
      fetch(free_slot);
      multiply(slot);
      if (++step == steps_) {
        if constexpr (kBackward)
          add_queries(cluster);
        else
          add_regions(slot);
        step = 0, ++cluster;
      }
      free_slot = slot;
      slot = slot + 1 == kPairStages ? 0 : slot + 1;
    }
    // The last groups are empty: nothing is under way any more.
    if constexpr (!kBackward) store();
  }

 private:
  SFRS_DEVICE int row_warp() const { return warp_of_thread() % Tile::kRowWarps; }
  SFRS_DEVICE int column_warp() const { return warp_of_thread() / Tile::kRowWarps; }
  SFRS_DEVICE int row_of(int m, int half) const {
    return (row_warp() * kM + m) * 16 + half * 8 + lane_of_thread() / 4;
  }
  SFRS_DEVICE int image_of(int n) const { return (column_warp() * kN + n) * 4 + lane_of_thread() % 4; }
  SFRS_DEVICE Panels<S> queries(int slot) const {
    return Panels<S>(memory_ + slot * kStageBytes, Tile::kQueries, Tile::kDepth);
  }
  SFRS_DEVICE Panels<S> columns(int slot) const {
    return Panels<S>(memory_ + slot * kStageBytes + Tile::kQueryBytes, Tile::kColumns, Tile::kDepth);
  }
  SFRS_DEVICE T* norms(int slot) const { return (T*)(memory_ + slot * kStageBytes + Tile::kPanelBytes); }

  // A thread copies chunk threadIdx.x % 8 of every 32nd row, of the queries and of the columns.
  SFRS_DEVICE void place() {
    const int row = threadIdx.x / 8, column = threadIdx.x % 8 * kSize;
    const int64_t quarter = (first_image_ + Tile::image_of(row)) * kQuarters + Tile::quarter_of(row);
    query_from_ = (const S*)p_.query + (first_query_ + row) * size_ + column;
    quarter_from_ = (const S*)p_.quarters + quarter * size_ + column;
    queries_left_ = at_most(Tile::kQueries, p_.queries - first_query_ - row);
    quarters_left_ = at_most(Tile::kColumns, p_.gallery * kQuarters - quarter);
    to_ = (int)((unsigned char*)queries(0).at(row, column) - memory_);
  }
  SFRS_DEVICE static int at_most(int bound, int64_t n) { return n < bound ? (int)n : bound; }

  SFRS_DEVICE void load(int slot, int cluster, int step) {
    const int64_t at = (int64_t)step * Tile::kDepth, offset = cluster * p_.dim + at;
    const int64_t left = p_.dim - at - here(threadIdx.x) % 8 * kSize;
    unsigned char* to = memory_ + here(slot) * kStageBytes + to_;
    if (p_.aligned)
      load_rows<true>(offset, left, to);
    else
      load_rows<false>(offset, left, to);
    if constexpr (!kBackward) {
      if (step == steps_ - 1)
        for (int i = threadIdx.x; i < Tile::kImages * kRegions; i += kPairThreads) {
          const int64_t image = first_image_ + i / kRegions;
          const bool valid = image < p_.gallery;
          const T* from =
              (const T*)p_.inverse + (valid ? (image * p_.clusters + cluster) * kRegions + i % kRegions : 0);
          copy_async<sizeof(T)>(norms(slot) + i, from, valid);
        }
    }
  }
  // 32 rows on are 32 rows of the source on, for columns as well: eight images.
  template <bool kAligned>
  SFRS_DEVICE void load_rows(int64_t offset, int64_t left, unsigned char* to) const {
    constexpr int kStep = kPairThreads / 8;
    SFRS_UNROLL
    for (int i = 0; i < Tile::kQueries; i += kStep)
      load_row<kAligned>(query_from_ + offset + i * size_, i < queries_left_ ? left : 0, to + i * 128);
    SFRS_UNROLL
    for (int i = 0; i < Tile::kColumns; i += kStep)
      load_row<kAligned>(quarter_from_ + offset + i * size_, i < quarters_left_ ? left : 0,
                         to + Tile::kQueryBytes + i * 128);
  }
  template <bool kAligned>
  SFRS_DEVICE static void load_row(const S* from, int64_t left, unsigned char* to) {
    if constexpr (kAligned)
      copy_async<16>(to, from, left > 0);
    else
      store_chunk<true>((S*)to, load_chunk<false>(from, left), 1);
  }

  SFRS_DEVICE void multiply(int slot) {
    const int lane = lane_of_thread(), row_warp = this->row_warp(), column_warp = this->column_warp();
    Panels<S> u = queries(slot), v = columns(slot);
    SFRS_UNROLL
    for (int k = 0; k < Tile::kDepth; k += M::kStep) {
      typename M::Ready b[kN];
      SFRS_EACH (n, kN) b[n] = M::ready(M::template load_b<false>(v, (column_warp * kN + n) * 16, k, lane));
      SFRS_EACH (m, kM) {
        auto a = M::ready(M::template load_a<false>(u, (row_warp * kM + m) * 16, k, lane));
        SFRS_EACH (n, kN) M::multiply(dots_[m][n][0], dots_[m][n][1], a, b[n]);
      }
    }
  }
  // sum_{i in r} d_i of one pair; the products begin again at zero.
  SFRS_DEVICE void take_regions(int m, int n, int half, T (&regions)[kRegions]) {
    T quarters[kQuarters];
    SFRS_EACH (i, kQuarters) {
      quarters[i] = dots_[m][n][i / 2][2 * half + i % 2];
      dots_[m][n][i / 2][2 * half + i % 2] = 0;
    }
    region_sums(quarters, regions);
  }

  SFRS_DEVICE void add_regions(int slot) {
    SFRS_EACH (n, kN) {
      T inverse[kRegions];
      SFRS_EACH (r, kRegions) inverse[r] = norms(slot)[image_of(n) * kRegions + r];
      SFRS_EACH (m, kM)
        SFRS_EACH (half, 2) {
          T regions[kRegions];
          take_regions(m, n, half, regions);
          SFRS_EACH (r, kRegions) values_[m][n][half][r] += regions[r] * inverse[r];
        }
    }
  }
  SFRS_DEVICE void store() {
    T* out = (T*)p_.out + split_ * p_.queries * p_.gallery * kRegions;
    SFRS_EACH (n, kN) {
      const int64_t image = first_image_ + image_of(n);
      if (image >= p_.gallery) continue;
      T scale[kRegions];
      SFRS_EACH (r, kRegions)
        scale[r] = p_.inverse_total ? ((const T*)p_.inverse_total)[image * kRegions + r] : 1;
      SFRS_EACH (m, kM)
        SFRS_EACH (half, 2) {
          const int64_t query = first_query_ + row_of(m, half);
          if (query >= p_.queries) continue;
          SFRS_EACH (r, kRegions)
            out[(query * p_.gallery + image) * kRegions + r] = values_[m][n][half][r] * scale[r];
        }
    }
  }

  SFRS_DEVICE void load_scaled() {
    SFRS_EACH (n, kN)
      SFRS_EACH (m, kM)
        SFRS_EACH (half, 2) {
          const int64_t query = first_query_ + row_of(m, half), image = first_image_ + image_of(n);
          if (query < p_.queries && image < p_.gallery)
            SFRS_EACH (r, kRegions)
              values_[m][n][half][r] = ((const T*)p_.scaled)[scaled_offset(query, image, r, p_.queries)];
        }
  }
  SFRS_DEVICE void add_queries(int cluster) {
    T* shared = (T*)(memory_ + kPairStages * kStageBytes);  // [row warp][image][9]
    SFRS_EACH (n, kN) {
      T sum[kRegions] = {};
      SFRS_EACH (m, kM)
        SFRS_EACH (half, 2) {
          T regions[kRegions];
          take_regions(m, n, half, regions);
          SFRS_EACH (r, kRegions) sum[r] += regions[r] * values_[m][n][half][r];
        }
      SFRS_EACH (r, kRegions) {
        SFRS_UNROLL
        for (int step = 4; step < 32; step *= 2) sum[r] += __shfl_xor_sync(kAllLanes, sum[r], step);
        if (lane_of_thread() < 4) shared[(row_warp() * Tile::kImages + image_of(n)) * kRegions + r] = sum[r];
      }
    }
    __syncthreads();
    for (int i = here(threadIdx.x); i < Tile::kImages * kRegions; i += kPairThreads) {
      const int64_t image = first_image_ + i / kRegions;
      if (image >= p_.gallery) continue;
      T sum = 0;
      SFRS_EACH (w, Tile::kRowWarps) sum += shared[w * Tile::kImages * kRegions + i];
      ((T*)p_.out)[((query_tile_ * p_.gallery + image) * p_.clusters + cluster) * kRegions + i % kRegions] =
          sum;
    }
  }

  const PairParameters& p_;
  unsigned char* memory_;
  int64_t size_, first_query_, first_image_;
  int steps_, query_tile_, split_, first_cluster_, end_cluster_;
  const S *query_from_, *quarter_from_;  // the first row that the thread copies
  int queries_left_, quarters_left_;     // rows from there to the end
  int to_;
  T dots_[kM][kN][2][4] = {};           // d_i of the cluster
  T values_[kM][kN][2][kRegions] = {};  // forward: the nine sums; backward: scaled_r
};

template <class S, bool kTf32>
SFRS_KERNEL(kPairThreads)
similarity_pairs_forward(SFRS_CONSTANT PairParameters p) {
  SFRS_SHARED_MEMORY(memory);
  PairProducts<S, kTf32, false>(p, memory).run();
}
template <class S, bool kTf32>
SFRS_KERNEL(kPairThreads)
similarity_pairs_backward(SFRS_CONSTANT PairParameters p) {
  SFRS_SHARED_MEMORY(memory);
  PairProducts<S, kTf32, true>(p, memory).run();
}

struct AddSplitsParameters {
  const void* parts;          // [splits, T, N, 9]
  const void* inverse_total;  // [N, 9]
  void* similarity;
  int64_t count, image_count, splits;  // T N 9, N 9
};
template <class T>
SFRS_KERNEL(kPairThreads)
similarity_add_splits(SFRS_CONSTANT AddSplitsParameters p) {
  const int64_t i = (int64_t)blockIdx.x * kPairThreads + threadIdx.x;
  if (i >= p.count) return;
  T sum = 0;
  for (int64_t s = 0; s < p.splits; ++s) sum += ((const T*)p.parts)[s * p.count + i];
  ((T*)p.similarity)[i] = sum * ((const T*)p.inverse_total)[i % p.image_count];
}

}  // namespace sfrs::cuda
