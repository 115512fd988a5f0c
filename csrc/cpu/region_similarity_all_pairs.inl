// Query-to-region similarity of all pairs. Idea: a block of gallery images, one per lane, is turned into
// panels once per cluster; the product with all queries gives d_i for the four quarters, and the nine
// regions are combined behind it, while it is in cache. Four ninths of the flops and a ninth of the memory
// of a GEMM over nine region descriptors. Floor: 8 Q N K D flops, compute-bound.
#pragma once

#include "region_similarity.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {

template <class T>
struct PairSizes {
  int64_t queries, gallery, clusters, dim, query_rows, dim_columns, blocks;
  static constexpr int64_t columns = kQuarters * kLanes<T>;  // column i * lanes + l: quarter i of image l

  explicit PairSizes(const RegionSimilarity& f)
      : queries(f.queries),
        gallery(f.gallery),
        clusters(f.clusters),
        dim(f.dim),
        query_rows(round_up(f.queries, kTileRows)),
        dim_columns(round_up(f.dim, kPanel<T>)),
        blocks((f.gallery + kLanes<T> - 1) / kLanes<T>) {}
  int64_t images(int64_t block) const { return smaller<int64_t>(kLanes<T>, gallery - block * kLanes<T>); }
};

// One cluster of a gallery block in panels [panel][d][kPanel]; lanes without an image stay zero.
template <class S, class T>
SFRS_INLINE void pack_gallery(const RegionSimilarity& f, const PairSizes<T>& n, int64_t block, int64_t k,
                              T* panels) {
  const S* first = (const S*)f.quarters + block * kLanes<T> * kQuarters * n.clusters * n.dim + k * n.dim;
  for (int i = 0; i < kQuarters; ++i) {
    int64_t column = i * kLanes<T>;
    rows_to_panels(first + i * n.clusters * n.dim, kQuarters * n.clusters * n.dim, n.images(block), n.dim,
                   panels + column / kPanel<T> * n.dim * kPanel<T> + column % kPanel<T>, n.dim);
  }
}

template <class T>
SFRS_INLINE Vec<T> gallery_vector(const T* panels, int64_t rows, int64_t row, int quarter) {
  constexpr int per_panel = kTileVecs < kQuarters ? kTileVecs : kQuarters;
  return load(panels + (quarter / per_panel * rows + row) * kPanel<T> + quarter % per_panel * kLanes<T>);
}

// |V_r[k]|^2 of the block's images for the nine regions.
template <class T>
SFRS_INLINE void region_squares(const PairSizes<T>& n, const T* panels, Vec<T>* squares) {
  for (int r = 0; r < kRegions; ++r) squares[r] = Vec<T>{};
  for (int64_t d = 0; d < n.dim; ++d) {
    Vec<T> v[kQuarters];
#pragma GCC unroll 4
    for (int i = 0; i < kQuarters; ++i) v[i] = gallery_vector(panels, n.dim, d, i);
    Vec<T> region[kRegions];
    region_vectors(v, region);
#pragma GCC unroll 9
    for (int r = 0; r < kRegions; ++r) squares[r] += region[r] * region[r];
  }
}
template <class T>
SFRS_INLINE Vec<T> inverse_norms(Vec<T> squares) {
  for (int l = 0; l < kLanes<T>; ++l) squares[l] = inverse_norm<T>(squares[l]);
  return squares;
}

// 1 / max(n_r, eps) of one cluster of a block's images, zero where the quarters of r cancel; adds the
// cluster's part of N_r^2 to `total`.
template <class T>
struct RegionNorms {
  Vec<T> inverse[kRegions];

  RegionNorms(const RegionSimilarity& f, const PairSizes<T>& n, int64_t images, const T* panels,
              Vec<T>* total) {
    Vec<T> squares[kRegions], before[kRegions];
    region_squares(n, panels, squares);
    for (int r = 0; r < kRegions; ++r) {
      Vec<T> terms = region_sum(r, squares + kRegions - kQuarters);
      inverse[r] = squares[r] < (T)cancelled_below(f.dtype) * terms ? Vec<T>{} : inverse_norms<T>(squares[r]);
      before[r] = total[r];
      total[r] += squares[r] * inverse[r] * inverse[r];
    }
    if constexpr (std::is_same_v<T, float>)
      for (int64_t l = 0; l < images; ++l)
        if (!exact(n, panels, squares, l)) widen(f, n, panels, l, before, total);
  }

 private:
  // Whether no square of image l has overflowed or lost digits.
  static bool exact(const PairSizes<T>& n, const T* panels, const Vec<T>* squares, int64_t l) {
    for (int i = 0; i < kQuarters; ++i) {
      T square = squares[kRegions - kQuarters + i][l];
      if (square > (T)0x1p-80 && square < (T)0x1p100) continue;
      if (square != 0) return false;
      for (int64_t d = 0; d < n.dim; ++d)
        if (gallery_vector(panels, n.dim, d, i)[l] != 0) return false;
    }
    return true;
  }
  SFRS_NOINLINE void widen(const RegionSimilarity& f, const PairSizes<T>& n, const T* panels, int64_t l,
                           const Vec<T>* before, Vec<T>* total) {
    double squares[kRegions] = {};
    for (int64_t d = 0; d < n.dim; ++d) {
      double quarter[kQuarters], region[kRegions];
      for (int i = 0; i < kQuarters; ++i) quarter[i] = gallery_vector(panels, n.dim, d, i)[l];
      region_vectors(quarter, region);
      for (int r = 0; r < kRegions; ++r) squares[r] += region[r] * region[r];
    }
    for (int r = 0; r < kRegions; ++r) {
      double wide = region_inverse(f, r, squares);
      inverse[r][l] = (T)wide;
      total[r][l] = before[r][l] + (T)(squares[r] * wide * wide);
    }
  }
};

// Queries of one cluster.
template <class S, class T>
SFRS_INLINE void pack_queries(const RegionSimilarity& f, const PairSizes<T>& n, int64_t k, T* packed) {
  rows_to_blocks((const S*)f.query + k * n.dim, n.clusters * n.dim, n.queries, n.dim, packed);
}

// dots[q][column] = <u_q, V_column> of some blocks' columns, in panels of query_rows. A few rows of queries
// stay in L2 while all panels pass, since those of all clusters come from memory.
template <class T>
SFRS_INLINE void pair_dots(const PairSizes<T>& n, const T* queries, int64_t columns, const T* panels,
                           T* dots) {
  constexpr int64_t rows = 8 * kTileRows;
  for (int64_t d = 0; d < n.dim; d += kDepth<T>) {
    int64_t depth = smaller<int64_t>(kDepth<T>, n.dim - d);
    for (int64_t q = 0; q < n.queries; q += rows) {
      Tiles blocks = {(smaller(rows, n.queries - q) + kTileRows - 1) / kTileRows, kTileRows * n.dim, 0,
                      kTileRows * kPanel<T>};
      for (int64_t c = 0; c < columns; c += kPanel<T>)
        multiply<1, kTileRows>(kTileVecs, 1, depth, queries + q * n.dim + d * kTileRows, 0,
                               panels + c * n.dim + d * kPanel<T>, kPanel<T>,
                               dots + c * n.query_rows + q * kPanel<T>, kPanel<T>, d > 0, 0, blocks);
    }
  }
}

// The similarities of gallery blocks that are worked on together, summed over the clusters.
template <class S>
class PairsOfBlocks {
  using T = Acc<S>;

 public:
  static int64_t bytes(const PairSizes<T>& n, int64_t blocks) {
    return Scratch::bytes<T>(blocks * n.dim * n.columns) +
           Scratch::bytes<T>(blocks * n.query_rows * n.columns) + Scratch::bytes<T>(blocks * sum_size(n)) +
           Scratch::bytes<T>(2 * blocks * kRegions * kLanes<T>);
  }
  PairsOfBlocks(const RegionSimilarityForward& f, const PairSizes<T>& n, int64_t first, int64_t blocks,
                Scratch& scratch)
      : f_(f),
        n_(n),
        first_(first),
        blocks_(blocks),
        panels_(scratch.zeros<T>(blocks * n.dim * n.columns)),
        dots_(scratch.take<T>(blocks * n.query_rows * n.columns)),
        sums_(scratch.zeros<T>(blocks * sum_size(n))),
        inverse_(scratch.zeros<T>(2 * blocks * kRegions * kLanes<T>)),
        total_(inverse_ + blocks * kRegions * kLanes<T>) {}

  void add_cluster(int64_t k, const T* queries) {
    for (int64_t b = 0; b < blocks_; ++b) {
      T* panels = panels_ + b * n_.dim * n_.columns;
      pack_gallery<S>(f_, n_, first_ + b, k, panels);
      Vec<T> total[kRegions];
      for (int r = 0; r < kRegions; ++r) total[r] = load(of_region(total_, b, r));
      RegionNorms<T> norms(f_, n_, n_.images(first_ + b), panels, total);
      for (int r = 0; r < kRegions; ++r) {
        store(of_region(inverse_, b, r), norms.inverse[r]);
        store(of_region(total_, b, r), total[r]);
      }
    }
    pair_dots(n_, queries, blocks_ * n_.columns, panels_, dots_);
    for (int64_t b = 0; b < blocks_; ++b) add_regions(b);
  }
  void write() {
    for (int64_t b = 0; b < blocks_; ++b) {
      Vec<T> inverse[kRegions];
      for (int r = 0; r < kRegions; ++r) inverse[r] = inverse_norms<T>(load(of_region(total_, b, r)));
      const T* sums = sums_ + b * sum_size(n_);
      int64_t images = n_.images(first_ + b), image = (first_ + b) * kLanes<T>;
      for (int64_t q = 0; q < n_.queries; ++q)
        for (int64_t l = 0; l < images; ++l)
          for (int r = 0; r < kRegions; ++r)
            ((T*)f_.similarity)[(q * n_.gallery + image + l) * kRegions + r] =
                sums[(q * kRegions + r) * kLanes<T> + l] * inverse[r][l];
    }
  }

 private:
  static int64_t sum_size(const PairSizes<T>& n) { return n.queries * kRegions * kLanes<T>; }
  T* of_region(T* values, int64_t block, int region) const {
    return values + (block * kRegions + region) * kLanes<T>;
  }
  void add_regions(int64_t b) {
    const T* dots = dots_ + b * n_.query_rows * n_.columns;
    Vec<T> inverse[kRegions];
    for (int r = 0; r < kRegions; ++r) inverse[r] = load(of_region(inverse_, b, r));
    for (int64_t q = 0; q < n_.queries; ++q) {
      Vec<T> d[kQuarters];
      for (int i = 0; i < kQuarters; ++i) d[i] = gallery_vector(dots, n_.query_rows, q, i);
      T* sum = sums_ + b * sum_size(n_) + q * kRegions * kLanes<T>;
#pragma GCC unroll 9
      for (int r = 0; r < kRegions; ++r)
        store(sum + r * kLanes<T>, load(sum + r * kLanes<T>) + region_sum(r, d) * inverse[r]);
    }
  }

  const RegionSimilarityForward& f_;
  const PairSizes<T>& n_;
  int64_t first_, blocks_;
  T *panels_, *dots_, *sums_, *inverse_, *total_;
};

// Blocks that share what is read of the queries, if enough tasks are left for all threads.
constexpr int64_t kBlocksTogether = 4;

template <class S>
void similarity_all_pairs_forward(const RegionSimilarityForward& f, const Parallel& parallel) {
  using T = Acc<S>;
  PairSizes<T> n(f);
  int64_t query_size = n.query_rows * n.dim;
  int64_t together = smaller(kBlocksTogether, n.blocks / (4 * parallel.threads) + 1);
  Scratch shared(Scratch::bytes<T>(n.clusters * query_size));
  T* queries = shared.zeros<T>(n.clusters * query_size);
  parallel.each(n.clusters, [&](int64_t k) { pack_queries<S>(f, n, k, queries + k * query_size); });

  parallel.each((n.blocks + together - 1) / together, [&](int64_t task) {
    int64_t first = task * together, blocks = smaller(together, n.blocks - first);
    Scratch scratch(PairsOfBlocks<S>::bytes(n, blocks));
    PairsOfBlocks<S> pairs(f, n, first, blocks, scratch);
    for (int64_t k = 0; k < n.clusters; ++k) pairs.add_cluster(k, queries + k * query_size);
    pairs.write();
  });
}

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
