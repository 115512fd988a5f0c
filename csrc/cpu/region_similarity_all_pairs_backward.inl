// Query-to-region similarity of all pairs, backward. Idea: w^T U and w V are products as the forward's is;
// what goes along V_r has one coefficient per image, cluster and region, summed over the queries. Floor: 24 Q
// N K D flops, compute-bound.
#pragma once

#include "region_similarity_all_pairs.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {

// What the backward knows of a gallery block before it walks the clusters, one value per lane.
template <class T>
struct BlockGradient {
  T* scaled;   // [Q][9][lanes]: grad_r / N_r
  T* clamped;  // [9][lanes]: eps^2 times the coefficient of V_r where n_r < eps
  T* inverse;  // [K][9][lanes]: 1 / max(n_r, eps)

  static int64_t size(const PairSizes<T>& n) { return (n.queries + 1 + n.clusters) * kRegions * kLanes<T>; }
  BlockGradient(const PairSizes<T>& n, T* memory)
      : scaled(memory),
        clamped(scaled + n.queries * kRegions * kLanes<T>),
        inverse(clamped + kRegions * kLanes<T>) {}
};

template <class S, class T>
SFRS_INLINE void begin_block(const RegionSimilarityBackward& f, const PairSizes<T>& n, int64_t block,
                             const BlockGradient<T>& out) {
  Scratch scratch(Scratch::bytes<T>(n.dim * n.columns));
  T* panels = scratch.zeros<T>(n.dim * n.columns);
  Vec<T> total[kRegions] = {};
  for (int64_t k = 0; k < n.clusters; ++k) {
    pack_gallery<S>(f, n, block, k, panels);
    RegionNorms<T> norms(f, n, n.images(block), panels, total);
    for (int r = 0; r < kRegions; ++r) store(out.inverse + (k * kRegions + r) * kLanes<T>, norms.inverse[r]);
  }
  for (int r = 0; r < kRegions; ++r)
    for (int64_t l = 0; l < kLanes<T>; ++l) {
      T inverse = inverse_norm<T>(total[r][l]), along = 0;
      for (int64_t q = 0; q < n.queries; ++q) {
        int64_t at = (q * n.gallery + block * kLanes<T> + l) * kRegions + r;
        T scaled = l < n.images(block) ? ((const T*)f.grad)[at] * inverse : 0;
        out.scaled[(q * kRegions + r) * kLanes<T> + l] = scaled;
        if (l < n.images(block)) along += scaled * ((const T*)f.similarity)[at];
      }
      out.clamped[r * kLanes<T> + l] = norm_counts(inverse) ? -along * inverse : 0;
    }
}

// One cluster against all queries and gallery blocks. w^T U and w V are products again.
template <class S>
class AllPairsCluster {
  using T = Acc<S>;

 public:
  static int64_t bytes(const PairSizes<T>& n) {
    return 2 * Scratch::bytes<T>(n.query_rows * n.dim_columns) + Scratch::bytes<T>(n.query_rows * n.dim) +
           Scratch::bytes<T>(n.dim * n.columns) +
           2 * Scratch::bytes<T>((n.columns + kTileRows) * n.dim_columns) +
           2 * Scratch::bytes<T>(n.query_rows * n.columns + kTileRows);
  }
  AllPairsCluster(const RegionSimilarityBackward& f, const PairSizes<T>& n, int64_t k, Scratch& scratch)
      : f_(f),
        n_(n),
        k_(k),
        query_rows_(scratch.zeros<T>(n.query_rows * n.dim_columns)),
        dquery_(scratch.zeros<T>(n.query_rows * n.dim_columns)),
        queries_(scratch.zeros<T>(n.query_rows * n.dim)),
        panels_(scratch.zeros<T>(n.dim * n.columns)),
        gallery_rows_(scratch.zeros<T>((n.columns + kTileRows) * n.dim_columns)),
        dgallery_(scratch.take<T>((n.columns + kTileRows) * n.dim_columns)),
        dots_(scratch.zeros<T>(n.query_rows * n.columns + kTileRows)),
        weights_(scratch.zeros<T>(n.query_rows * n.columns + kTileRows)) {
    pack_queries<S>(f, n, k, queries_);
    for (int64_t q = 0; q < n.queries; ++q) copy_row(query(f.query, q), query_rows_ + q * n.dim_columns);
  }

  void run(int64_t block, const BlockGradient<T>& gradient) {
    pack_gallery<S>(f_, n_, block, k_, panels_);
    for (int64_t column = 0; column < n_.columns; ++column)
      if (column % kLanes<T> < n_.images(block))
        copy_row(quarter(f_.quarters, block, column), gallery_rows_ + column * n_.dim_columns);
    pair_dots(n_, queries_, n_.columns, panels_, dots_);
    Vec<T> along[kRegions];
    weigh(gradient, along);
    if (f_.dquery) add_queries();
    if (f_.dquarters) write_gallery(block, gradient, along);
  }
  void finish() {
    if (!f_.dquery) return;
    for (int64_t q = 0; q < n_.queries; ++q) write_row(dquery_ + q * n_.dim_columns, (S*)query(f_.dquery, q));
  }

 private:
  const S* query(const void* base, int64_t q) const {
    return (const S*)base + (q * n_.clusters + k_) * n_.dim;
  }
  const S* quarter(const void* base, int64_t block, int64_t column) const {
    int64_t image = block * kLanes<T> + column % kLanes<T>, i = column / kLanes<T>;
    return (const S*)base + ((image * kQuarters + i) * n_.clusters + k_) * n_.dim;
  }
  void copy_row(const S* from, T* to) const {
    for (int64_t d = 0; d < n_.dim; d += kLanes<T>) store(to + d, load_n(from + d, n_.dim - d));
  }
  void write_row(const T* from, S* to) const {
    for (int64_t d = 0; d < n_.dim; d += kLanes<T>) store_n(to + d, load(from + d), n_.dim - d);
  }
  // weights_ = w_i of every pair, and u's part along V_r summed over the queries.
  void weigh(const BlockGradient<T>& gradient, Vec<T>* along) {
    constexpr int per_panel = kTileVecs < kQuarters ? kTileVecs : kQuarters;
    Vec<T> inverse[kRegions];
    for (int r = 0; r < kRegions; ++r) {
      inverse[r] = load(gradient.inverse + (k_ * kRegions + r) * kLanes<T>);
      along[r] = Vec<T>{};
    }
    for (int64_t q = 0; q < n_.queries; ++q) {
      Vec<T> d[kQuarters], w[kQuarters] = {};
      for (int i = 0; i < kQuarters; ++i) d[i] = gallery_vector(dots_, n_.query_rows, q, i);
#pragma GCC unroll 9
      for (int r = 0; r < kRegions; ++r) {
        Vec<T> of_u = load(gradient.scaled + (q * kRegions + r) * kLanes<T>) * inverse[r];
        along[r] += of_u * region_sum(r, d);
#pragma GCC unroll 4
        for (int i = 0; i < kQuarters; ++i)
          if (holds(r, i)) w[i] += of_u;
      }
      for (int i = 0; i < kQuarters; ++i)
        store(weights_ + (i / per_panel * n_.query_rows + q) * kPanel<T> + i % per_panel * kLanes<T>, w[i]);
    }
  }
  // c_r of image l, in V.
  template <class V>
  void coefficients(const BlockGradient<T>& gradient, const Vec<T>* along, int64_t l, V* c) const {
    for (int r = 0; r < kRegions; ++r) {
      V inverse = gradient.inverse[(k_ * kRegions + r) * kLanes<T> + l];
      V clamped = gradient.clamped[r * kLanes<T> + l];
      c[r] = norm_counts((T)inverse) ? -(V)along[r][l] * inverse * inverse : clamped / ((V)kEps * (V)kEps);
    }
  }
  void add_queries() {  // dU[q] += sum_column w[q][column] V[column]
    for (int64_t d = 0; d < n_.dim; d += kPanel<T>)
      for (int64_t q = 0; q < n_.queries; q += kTileRows)
        multiply<kPanel<T>, 1>(panel_vecs<T>(d, n_.dim), n_.columns / kPanel<T>, kPanel<T>,
                               weights_ + q * kPanel<T>, n_.query_rows * kPanel<T>, gallery_rows_ + d,
                               n_.dim_columns, dquery_ + q * n_.dim_columns + d, n_.dim_columns, true);
  }
  void write_gallery(int64_t block, const BlockGradient<T>& gradient,
                     const Vec<T>* along) {  // dV_i = sum_q w_i[q] U[q] + sum_{r with i} c_r V_r
    for (int64_t column = 0; column < n_.columns; column += kPanel<T>)
      for (int64_t row = 0; row < kPanel<T>;
           row += kTileRows)  // rows past the panel land where the next ones go
        for (int64_t d = 0; d < n_.dim; d += kPanel<T>)
          multiply<1, kPanel<T>>(panel_vecs<T>(d, n_.dim), 1, n_.queries,
                                 weights_ + column * n_.query_rows + row, 0, query_rows_ + d, n_.dim_columns,
                                 dgallery_ + (column + row) * n_.dim_columns + d, n_.dim_columns, false);
    for (int64_t l = 0; l < n_.images(block); ++l) {
      T c[kRegions];
      double wide[kRegions];
      coefficients(gradient, along, l, wide);
      if (!in_range<T>(wide)) {
        write_image(block, l, wide);
        continue;
      }
      coefficients(gradient, along, l, c);
      for (int64_t d = 0; d < n_.dim; d += kLanes<T>) {
        Vec<T> v[kQuarters], dv[kQuarters];
        for (int i = 0; i < kQuarters; ++i) {
          v[i] = load(gallery_rows_ + (i * kLanes<T> + l) * n_.dim_columns + d);
          dv[i] = load(dgallery_ + (i * kLanes<T> + l) * n_.dim_columns + d);
        }
        quarter_gradients(v, c, dv);
        for (int i = 0; i < kQuarters; ++i)
          store_n((S*)quarter(f_.dquarters, block, i * kLanes<T> + l) + d, dv[i], n_.dim - d);
      }
    }
  }
  // One image, with coefficients that T does not hold.
  SFRS_NOINLINE void write_image(int64_t block, int64_t l, const double* c) {
    for (int64_t d = 0; d < n_.dim; ++d) {
      double v[kQuarters], dv[kQuarters];
      for (int i = 0; i < kQuarters; ++i) {
        v[i] = gallery_rows_[(i * kLanes<T> + l) * n_.dim_columns + d];
        dv[i] = dgallery_[(i * kLanes<T> + l) * n_.dim_columns + d];
      }
      quarter_gradients(v, c, dv);
      for (int i = 0; i < kQuarters; ++i)
        store_one((S*)quarter(f_.dquarters, block, i * kLanes<T> + l) + d, (T)dv[i]);
    }
  }

  const RegionSimilarityBackward& f_;
  const PairSizes<T>& n_;
  int64_t k_;
  T *query_rows_, *dquery_, *queries_, *panels_, *gallery_rows_, *dgallery_, *dots_, *weights_;
};

template <class S>
void similarity_all_pairs_backward(const RegionSimilarityBackward& f, const Parallel& parallel) {
  using T = Acc<S>;
  PairSizes<T> n(f);
  int64_t block_size = BlockGradient<T>::size(n);
  Scratch shared(Scratch::bytes<T>(n.blocks * block_size));
  T* memory = shared.take<T>(n.blocks * block_size);
  parallel.each(n.blocks, [&](int64_t block) {
    begin_block<S>(f, n, block, BlockGradient<T>(n, memory + block * block_size));
  });
  // One task owns a cluster, hence its slices of both gradients: nothing is summed across tasks.
  parallel.each(n.clusters, [&](int64_t k) {
    Scratch scratch(AllPairsCluster<S>::bytes(n));
    AllPairsCluster<S> cluster(f, n, k, scratch);
    for (int64_t block = 0; block < n.blocks; ++block)
      cluster.run(block, BlockGradient<T>(n, memory + block * block_size));
    cluster.finish();
  });
}

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
