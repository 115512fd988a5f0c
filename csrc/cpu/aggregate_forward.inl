// NetVLAD aggregation, forward. Idea: a tile of positions is copied once (converted, squared for the
// norms) and stays in L2; the logits (product 1), the softmax and the aggregation (product 2) read it
// there, so x is read once and assignments never leave the core. Vectors run over clusters, so the
// logits come out as the rows that product 2 wants. The norm of x is applied to logits and assignments.
// Given logits take the place of product 1.
// Floor: 4 (K + G) D P flops per image against D P reads; compute-bound for K >= 16.
#pragma once

#include "tile.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {

template <class T>
struct Sizes {
  int64_t dim, rows, clusters, logits, cluster_columns, logit_columns, tile, step;
  bool planes;

  explicit Sizes(const Aggregation& f)
      : dim(f.x.dim),
        rows(round_up(f.x.dim, kTileRows)),
        clusters(f.clusters),
        logits(f.logits()),
        cluster_columns(round_up(clusters, kPanel<T>)),
        logit_columns(round_up(logits, kPanel<T>)),
        planes(f.x.stride_w == 1) {
    // Multiples of 48: whole blocks of 6 and whole vectors of 16. A tile, the weights and the sums share L2,
    // which is 512 KB at least, and 1 MB where there is AVX-512.
    constexpr int64_t bytes = (SFRS_VECTOR_BYTES == 64 ? 200 : 100) * 1024;
    int64_t fitting = bytes / (int64_t)sizeof(T) / larger<int64_t>(dim, 1);
    tile = larger<int64_t>(48, smaller(kLargestTile, fitting / 48 * 48));
    tile = smaller(tile, round_up(larger<int64_t>(f.x.positions(), 1), 48));
    // An odd number of cache lines: rows of an even one would meet in few sets of L1.
    constexpr int64_t line = 64 / sizeof(T);
    step = (tile / line | 1) * line;
  }
  int64_t packed() const { return larger(round_up(dim, kLanes<T>), rows) * step + kLanes<T>; }
};

// Of a tile's product with `columns` columns, in vectors of multiply-adds per row of a register tile.
template <class T>
SFRS_INLINE int64_t work_of(const Sizes<T>& n, int64_t count, int64_t columns) {
  return (count + kTileRows - 1) / kTileRows * n.dim * ((columns + kLanes<T> - 1) / kLanes<T>);
}

// products[p][column] = sum_d tile[d][p] * right[d][column], both in panels; `next` is asked for meanwhile.
template <class T>
SFRS_INLINE void multiply_features(const Sizes<T>& n, int64_t count, const T* packed, const T* right,
                                   int64_t columns, T* products, Ahead& next) {
  constexpr int64_t most = kDepth<T> / 2;  // a step of the left side takes a cache line, not six values
  Tiles blocks = {(count + kTileRows - 1) / kTileRows, kTileRows, 0, kTileRows * kPanel<T>, &next};
  for (int64_t d = 0; d < n.dim; d += most)
    for (int64_t c = 0; c < columns; c += kPanel<T>)
      multiply<1, kGiven>(panel_vecs<T>(c, columns), 1, smaller<int64_t>(most, n.dim - d),
                          packed + d * n.step, 0, right + c * n.rows + d * kPanel<T>, kPanel<T>,
                          products + c * n.tile, kPanel<T>, d > 0, n.step, blocks);
}

// sums[d][column] += sum_p tile[d][p] * right[p][column], both in panels; `next` is asked for meanwhile.
template <class T>
SFRS_INLINE void aggregate_features(const Sizes<T>& n, int64_t count, const T* packed, const T* right,
                                    int64_t columns, T* sums, bool accumulate, Ahead& next) {
  for (int64_t d = 0; d < n.dim; d += kBlockRows) {
    Tiles blocks = {smaller(kBlockRows, n.rows - d) / kTileRows, kTileRows * n.step, 0, kTileRows * kPanel<T>,
                    &next};
    for (int64_t c = 0; c < columns; c += kPanel<T>)
      multiply<kGiven, 1>(panel_vecs<T>(c, columns), 1, count, packed + d * n.step, 0, right + c * n.tile,
                          kPanel<T>, sums + c * n.rows + d * kPanel<T>, kPanel<T>, accumulate, n.step,
                          blocks);
  }
}

// Walks the vectors of row p of a matrix in panels: body(pointer, column).
template <class T, class F>
SFRS_INLINE void each_vector(int64_t columns, int64_t tile, int64_t p, T* panels, const F& body) {
  T* at = panels + p * kPanel<T>;
  for (int64_t c = 0; c < columns; c += kPanel<T>, at += tile * kPanel<T>) {
#pragma GCC unroll 4
    for (int v = 0; v < kTileVecs; ++v)
      if (c + v * kLanes<T> < columns) body(at + v * kLanes<T>, c + v * kLanes<T>);
  }
}

// Row p of `logits` from a position's logits in memory.
template <class T>
SFRS_INLINE void load_logits(const Sizes<T>& n, int64_t p, const T* from, T* logits) {
  each_vector(n.logits, n.tile, p, logits,
              [&](T* at, int64_t k) { store(at, load_n(from + k, n.logits - k)); });
}

// In place: row p of `logits` (W x, times inv = W xh) becomes softmax(W xh + bias).
template <class T>
SFRS_INLINE void softmax_row(const Sizes<T>& n, int64_t p, T inv, const T* bias, T* logits) {
  Vec<T> high = splat((T)-__builtin_inf()), total = {};
  each_vector(n.logits, n.tile, p, logits, [&](T* at, int64_t c) {
    Vec<T> s = load(at) * inv + load(bias + c);
    high = max_or_nan(s, high);
    store(at, s);
  });
  T top = max_lanes<T>(high);
  each_vector(n.logits, n.tile, p, logits, [&](T* at, int64_t) {
    Vec<T> e = exp_nonpositive(load(at) - top);
    total += e;
    store(at, e);
  });
  T scale = 1 / sum_lanes<T>(total);
  each_vector(n.logits, n.tile, p, logits, [&](T* at, int64_t) { store(at, load(at) * scale); });
}

// W^T in panels and the bias, -inf where there is no cluster so that padding takes no part in the softmax.
template <class T>
struct Assignment {
  const T *weight, *bias;

  static int64_t bytes(const Sizes<T>& n) {
    return Scratch::bytes<T>(n.logit_columns * n.rows) + Scratch::bytes<T>(n.logit_columns);
  }
  Assignment(const Aggregation& f, const Sizes<T>& n, Scratch& scratch) {
    T* panels = scratch.zeros<T>(n.logit_columns * n.rows);
    T* padded = scratch.take<T>(n.logit_columns);
    if (f.weight) rows_to_panels((const T*)f.weight, n.dim, n.logits, n.dim, panels, n.rows);
    for (int64_t k = 0; k < n.logit_columns; ++k)
      padded[k] = k >= n.logits ? (T)-__builtin_inf() : f.bias ? ((const T*)f.bias)[k] : 0;
    weight = panels;
    bias = padded;
  }
};

// Un-normalised V of one group: sums[d][k] = sum_p m a_k xh in panels, and weights[k] = sum_p m a_k.
template <class T>
struct Accumulator {
  T *sums, *weights;

  static int64_t bytes(const Sizes<T>& n) {
    return Scratch::bytes<T>(n.cluster_columns * n.rows) + Scratch::bytes<T>(n.cluster_columns);
  }
  Accumulator(const Sizes<T>& n, Scratch& scratch)
      : sums(scratch.take<T>(n.cluster_columns * n.rows)), weights(scratch.take<T>(n.cluster_columns)) {}
  void clear(const Sizes<T>& n) const {
    __builtin_memset(sums, 0, n.cluster_columns * n.rows * sizeof(T));
    __builtin_memset(weights, 0, n.cluster_columns * sizeof(T));
  }
  // The vector of clusters that begins at k.
  void add(const Sizes<T>& n, const Accumulator& other, int64_t k) const {
    int64_t at = panel_offset<T>(k, n.rows);
    for (int64_t d = 0; d < n.dim; ++d, at += kPanel<T>)
      store(sums + at, load(sums + at) + load(other.sums + at));
    store(weights + k, load(weights + k) + load(other.weights + k));
  }
};

template <class S>
class ForwardTile {
  using T = Acc<S>;

 public:
  static int64_t bytes(const Sizes<T>& n) {
    return Scratch::bytes<T>(n.packed()) + 2 * Scratch::bytes<T>(n.tile + kLanes<T>) +
           Scratch::bytes<T>(n.tile * n.logit_columns);
  }
  ForwardTile(const AggregationForward& f, const Sizes<T>& n, const Assignment<T>& assignment,
              Scratch& scratch)
      : f_(f),
        n_(n),
        assignment_(assignment),
        packed_(scratch.zeros<T>(n.packed())),
        squares_(scratch.take<T>(n.tile + kLanes<T>)),
        factors_(scratch.take<T>(n.tile + kLanes<T>)),
        logits_(scratch.take<T>(n.tile * n.logit_columns)) {}

  void run(const Tile& t, const Accumulator<T>& sum, Ahead next) {
    if (t.count == 0) return sum.clear(n_);
    next.spread((f_.logits_given ? 0 : work_of(n_, t.count, n_.logits)) + work_of(n_, t.count, n_.clusters));
    if (t.opens) __builtin_memset(sum.weights, 0, n_.cluster_columns * sizeof(T));
    if (f_.normalize_input)
      shrunk_ = pack_in_range<S>(f_.x, t.group, t.begin, t.count, packed_, n_.step, squares_, factors_);
    else
      pack<S>(f_.x, t.group, t.begin, t.count, packed_, n_.step, squares_);
    if (!f_.logits_given)
      multiply_features(n_, t.count, packed_, assignment_.weight, n_.logits, logits_, next);
    assign(t.group, t.begin, t.count, sum);
    aggregate_features(n_, t.count, packed_, logits_, n_.clusters, sum.sums, !t.opens, next);
  }

 private:
  void assign(const Group& g, int64_t begin, int64_t count, const Accumulator<T>& sum) {
    for (const Segment& s : Segments(f_.x, g, begin, count))
      for (int64_t i = 0; i < s.count; ++i) {
        int64_t p = s.at + i, position = g.image * f_.x.positions() + s.index + i;
        T inv = f_.normalize_input ? inverse_norm(squares_[p]) : 1;
        if (f_.saved_inv_norm) ((T*)f_.saved_inv_norm)[position] = shrunk_ ? inv * factors_[p] : inv;
        if (f_.logits_given)
          load_logits(n_, p, (const T*)f_.logits_given + position * n_.logits, logits_);
        else
          save_logits(p, position, inv);
        softmax_row(n_, p, f_.logits_given ? (T)1 : inv, assignment_.bias, logits_);
        T m = f_.mask ? ((const T*)f_.mask)[position] : 1;
        each_vector(n_.clusters, n_.tile, p, logits_, [&](T* at, int64_t k) {
          Vec<T> a = load(at) * m;
          store(sum.weights + k, load(sum.weights + k) + a);
          store(at, a * inv);
        });
      }
  }
  void save_logits(int64_t p, int64_t position, T inv) {
    if (!f_.saved_logits) return;
    T* saved = (T*)f_.saved_logits + position * n_.logits;
    each_vector(n_.logits, n_.tile, p, logits_,
                [&](T* at, int64_t k) { store_n(saved + k, load(at) * inv, n_.logits - k); });
  }

  const AggregationForward& f_;
  const Sizes<T>& n_;
  const Assignment<T>& assignment_;
  T *packed_, *squares_, *factors_, *logits_;
  bool shrunk_ = false;
};

// 1 / max(|v|, eps) from the square of |v|, which has overflowed where it is infinite, and is exact in
// double.
template <class T>
SFRS_INLINE T inverse_norm(T square, double exact) {
  return square < (T)__builtin_inf() ? inverse_norm(square) : (T)inverse_norm(exact);
}

// From the sums of one group to its result, in two steps, as clusters can be finished one by one but the norm
// of the descriptor needs all of them. `rows` is scratch of K * D, `squares` of K.
template <class S, class T = Acc<S>>
class Finish {
 public:
  Finish(const AggregationForward& f, const Sizes<T>& n, const Group& g, T* rows, double* squares)
      : f_(f),
        n_(n),
        normalized_(f.intra_norm || f.l2_norm),
        squares_(squares),
        out_((S*)f.vlad + (g.image * f.parts + g.part) * n.clusters * n.dim),
        rows_(std::is_same_v<S, T> && !normalized_ ? (T*)out_ : rows),
        scale_(f.saved_scale ? (T*)f.saved_scale + g.image * (n.clusters + 1) : nullptr) {}

  // Clusters [begin, end): turns them over, subtracts the centroids and normalises each; begin is a vector's.
  void clusters(const Accumulator<T>& sum, int64_t begin, int64_t end) const {
    panels_to_rows(sum.sums + panel_offset<T>(begin, n_.rows), n_.rows, end - begin, n_.dim,
                   rows_ + begin * n_.dim, n_.dim);
    for (int64_t k = begin; k < end; ++k) {
      T* row = rows_ + k * n_.dim;
      if (f_.centroids) {
        const T* centroid = (const T*)f_.centroids + k * n_.dim;
        for (int64_t d = 0; d < n_.dim; ++d) row[d] -= sum.weights[k] * centroid[d];
      }
      double exact = normalized_ ? accurate_dot(row, row, n_.dim) : 0;
      T square = (T)exact, scale = f_.intra_norm ? inverse_norm(square, exact) : 1;
      if (scale_) scale_[k] = scale;
      // As T computes it, unless the square leaves its range.
      bool fits = square > (T)0x1p-100 && square < (T)0x1p100;
      squares_[k] = fits ? square * scale * scale : exact * scale * scale;
      if (f_.intra_norm)
        for (int64_t d = 0; d < n_.dim; ++d) row[d] *= scale;
    }
  }
  // Once all clusters are done: normalises the descriptor and writes clusters [begin, end) of it.
  void write(int64_t begin, int64_t end) const {
    T total = 0;
    double exact = 0;
    for (int64_t k = 0; k < n_.clusters; ++k) total += (T)squares_[k], exact += squares_[k];
    T scale = f_.l2_norm ? inverse_norm(total, exact) : 1;
    if (scale_ && begin == 0) scale_[n_.clusters] = scale;
    if ((void*)rows_ == out_) return;
    for (int64_t i = begin * n_.dim; i < end * n_.dim; i += kLanes<T>) {
      int64_t left = end * n_.dim - i;
      store_n(out_ + i, load_n(rows_ + i, left) * scale, left);
    }
  }

 private:
  const AggregationForward& f_;
  const Sizes<T>& n_;
  bool normalized_;
  double* squares_;
  S* out_;
  T* rows_;  // the result itself, if that is all
  T* scale_;
};

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
