// Query-to-region similarity of all pairs. Idea: a block of gallery images, one per lane, is turned into
// panels once per cluster; the product with all queries gives d_i for the four quarters, and the nine
// regions are combined behind it, while it is in cache. Four ninths of the flops and a ninth of the memory
// of a GEMM over nine region descriptors. Floor: 8 Q N K D flops, compute-bound.

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
      Vec<T> squares[kRegions];
      region_squares(n_, panels, squares);
      for (int r = 0; r < kRegions; ++r) {
        Vec<T> inverse = inverse_norms<T>(squares[r]);
        T *at = of_region(inverse_, b, r), *total = of_region(total_, b, r);
        store(at, inverse);
        store(total, load(total) + squares[r] * inverse * inverse);
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

// What the backward knows of a gallery block before it walks the clusters, one value per lane.
template <class T>
struct BlockGradient {
  T* scaled;   // [Q][9][lanes]: grad_r / N_r
  T* clamped;  // [9][lanes]: coefficient of V_r where n_r < eps
  T* squares;  // [K][9][lanes]: n_r^2

  static int64_t size(const PairSizes<T>& n) { return (n.queries + 1 + n.clusters) * kRegions * kLanes<T>; }
  BlockGradient(const PairSizes<T>& n, T* memory)
      : scaled(memory),
        clamped(scaled + n.queries * kRegions * kLanes<T>),
        squares(clamped + kRegions * kLanes<T>) {}
};

template <class S, class T>
SFRS_INLINE void begin_block(const RegionSimilarityBackward& f, const PairSizes<T>& n, int64_t block,
                             const BlockGradient<T>& out) {
  Scratch scratch(Scratch::bytes<T>(n.dim * n.columns));
  T* panels = scratch.zeros<T>(n.dim * n.columns);
  Vec<T> total[kRegions] = {};
  for (int64_t k = 0; k < n.clusters; ++k) {
    pack_gallery<S>(f, n, block, k, panels);
    Vec<T> squares[kRegions];
    region_squares(n, panels, squares);
    for (int r = 0; r < kRegions; ++r) {
      Vec<T> inverse = inverse_norms<T>(squares[r]);
      total[r] += squares[r] * inverse * inverse;
      store(out.squares + (k * kRegions + r) * kLanes<T>, squares[r]);
    }
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
      out.clamped[r * kLanes<T> + l] = norm_counts(inverse) ? -along * inverse / ((T)kEps * (T)kEps) : 0;
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
    Vec<T> c[kRegions];
    weigh(gradient, c);
    if (f_.dquery) add_queries();
    if (f_.dquarters) write_gallery(block, c);
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
  // weights_ = w_i of every pair, and c_r summed over the queries.
  void weigh(const BlockGradient<T>& gradient, Vec<T>* c) {
    constexpr int per_panel = kTileVecs < kQuarters ? kTileVecs : kQuarters;
    Vec<T> inverse[kRegions], along[kRegions] = {};
    for (int r = 0; r < kRegions; ++r)
      inverse[r] = inverse_norms<T>(load(gradient.squares + (k_ * kRegions + r) * kLanes<T>));
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
    for (int r = 0; r < kRegions; ++r) {
      Vec<T> free = -along[r] * inverse[r] * inverse[r], clamped = load(gradient.clamped + r * kLanes<T>);
      c[r] = inverse[r] < 1 / (T)kEps ? free : clamped;
    }
  }
  void add_queries() {  // dU[q] += sum_column w[q][column] V[column]
    for (int64_t d = 0; d < n_.dim; d += kPanel<T>)
      for (int64_t q = 0; q < n_.queries; q += kTileRows)
        multiply<kPanel<T>, 1>(panel_vecs<T>(d, n_.dim), n_.columns / kPanel<T>, kPanel<T>,
                               weights_ + q * kPanel<T>, n_.query_rows * kPanel<T>, gallery_rows_ + d,
                               n_.dim_columns, dquery_ + q * n_.dim_columns + d, n_.dim_columns, true);
  }
  void write_gallery(int64_t block, const Vec<T>* c) {  // dV_i = sum_q w_i[q] U[q] + sum_{r with i} c_r V_r
    for (int64_t column = 0; column < n_.columns; column += kPanel<T>)
      for (int64_t row = 0; row < kPanel<T>;
           row += kTileRows)  // rows past the panel land where the next ones go
        for (int64_t d = 0; d < n_.dim; d += kPanel<T>)
          multiply<1, kPanel<T>>(panel_vecs<T>(d, n_.dim), 1, n_.queries,
                                 weights_ + column * n_.query_rows + row, 0, query_rows_ + d, n_.dim_columns,
                                 dgallery_ + (column + row) * n_.dim_columns + d, n_.dim_columns, false);
    for (int64_t l = 0; l < n_.images(block); ++l) {
      T of_image[kRegions];
      for (int r = 0; r < kRegions; ++r) of_image[r] = c[r][l];
      for (int64_t d = 0; d < n_.dim; d += kLanes<T>) {
        Vec<T> v[kQuarters], dv[kQuarters];
        for (int i = 0; i < kQuarters; ++i) {
          v[i] = load(gallery_rows_ + (i * kLanes<T> + l) * n_.dim_columns + d);
          dv[i] = load(dgallery_ + (i * kLanes<T> + l) * n_.dim_columns + d);
        }
        quarter_gradients(v, of_image, dv);
        for (int i = 0; i < kQuarters; ++i)
          store_n((S*)quarter(f_.dquarters, block, i * kLanes<T> + l) + d, dv[i], n_.dim - d);
      }
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
