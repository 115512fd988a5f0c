// NetVLAD aggregation, backward. Idea: per tile, x is packed once more and everything is made of it there:
//
//   da = xh dV^T - <c, dV>,  dl = a (m da - <a, m da>),  dW += dl^T xh,  dxh = (m a) dV + dl W
//
// The softmax is repeated from the saved logits (K numbers per position, an eighth of x at D = 8 K), which
// is cheaper than the product that would make them again. The gradient through |x| needs <xh, dxh>; it
// follows from numbers that the tile has already, sum_k (m a)_k <xh, dV_k> + dl_k l_k, so that dx is
// written once, straight from the product. Given logits take the place of the saved ones; their gradient dl
// goes out, and x gets none through them. Floor: 4 (2 K + G) D P flops, twice the forward.
#pragma once

#include "aggregate_forward.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {

// The backward of intra-normalisation and L2 for one image: dv = gradient of the un-normalised V.
template <class S, class T = Acc<S>>
SFRS_INLINE void vlad_gradient(const AggregationBackward& f, const Sizes<T>& n, const Group& g, T* dv) {
  int64_t first = (g.image * f.parts + g.part) * n.clusters * n.dim;
  const S* grad = (const S*)f.grad + first;
  for (int64_t i = 0; i < n.clusters * n.dim; i += kLanes<T>)
    store_n(dv + i, load_n(grad + i, n.clusters * n.dim - i), n.clusters * n.dim - i);
  if (!f.intra_norm && !f.l2_norm) return;

  const S* out = (const S*)f.vlad + first;
  const T* scale = (const T*)f.saved_scale + g.image * (n.clusters + 1);
  T outer = scale[n.clusters];
  auto dot = [&](int64_t begin, int64_t count) { return (T)accurate_dot(out + begin, dv + begin, count); };
  auto project = [&](int64_t begin, int64_t count, T along, T scaled) {  // dv = scaled (dv - along out)
    for (int64_t i = begin; i < begin + count; i += kLanes<T>) {
      int64_t left = begin + count - i;
      store_n(dv + i, scaled * (load_n(dv + i, left) - along * load_n(out + i, left)), left);
    }
  };
  int64_t size = n.clusters * n.dim;
  if (f.l2_norm) project(0, size, norm_counts(outer) ? dot(0, size) : 0, outer);
  if (!f.intra_norm) return;
  for (int64_t k = 0; k < n.clusters; ++k) {
    T inner = scale[k], along = 0;
    if (norm_counts(inner)) along = dot(k * n.dim, n.dim) / (outer * outer);  // out = U * outer, |U_k| = 1
    project(k * n.dim, n.dim, along, inner);
  }
}

// Rows [rows, D] into panels over D, each [panel][row][kPanel]; the last panel is padded with zeros.
template <class T>
SFRS_INLINE void pack_rows(const T* from, int64_t rows, int64_t dim, T* panels) {
  for (int64_t d = 0; d < dim; d += kPanel<T>)
    for (int64_t r = 0; r < rows; ++r, panels += kPanel<T>)
      for (int64_t i = 0; i < kPanel<T>; ++i) panels[i] = d + i < dim ? from[r * dim + d + i] : 0;
}

// W^T in panels, and the rows of W in panels over D, which tokens multiply.
template <class T>
struct BackwardWeights : Assignment<T> {
  const T* rows;

  static int64_t bytes(const Sizes<T>& n) { return Assignment<T>::bytes(n) + Scratch::bytes<T>(size(n)); }
  BackwardWeights(const Aggregation& f, const Sizes<T>& n, Scratch& scratch) : Assignment<T>(f, n, scratch) {
    T* panels = scratch.take<T>(size(n));
    if (f.weight && !n.planes) pack_rows((const T*)f.weight, n.logits, n.dim, panels);
    rows = panels;
  }

 private:
  static int64_t size(const Sizes<T>& n) { return n.planes ? 0 : round_up(n.dim, kPanel<T>) * n.logits; }
};

// What a task sums over its positions, in task order afterwards.
template <class T>
struct ParameterSums {
  T *dweight, *dcentroids, *dbias;

  static int64_t bytes(const Sizes<T>& n) {
    return Scratch::bytes<T>(n.logit_columns * n.rows) + Scratch::bytes<T>(n.clusters * n.dim) +
           Scratch::bytes<T>(n.logit_columns);
  }
  ParameterSums(const Sizes<T>& n, Scratch& scratch)
      : dweight(scratch.take<T>(n.logit_columns * n.rows)),
        dcentroids(scratch.take<T>(n.clusters * n.dim)),
        dbias(scratch.take<T>(n.logit_columns)) {}
  void clear(const Sizes<T>& n) const {
    __builtin_memset(dweight, 0, n.logit_columns * n.rows * sizeof(T));
    __builtin_memset(dcentroids, 0, n.clusters * n.dim * sizeof(T));
    __builtin_memset(dbias, 0, n.logit_columns * sizeof(T));
  }
  // Clusters [begin, end), of one vector that begins at `begin`.
  void add(const Sizes<T>& n, const ParameterSums& other, int64_t begin, int64_t end) const {
    int64_t at = panel_offset<T>(begin, n.rows);
    for (int64_t d = 0; d < n.dim; ++d, at += kPanel<T>)
      store(dweight + at, load(dweight + at) + load(other.dweight + at));
    store(dbias + begin, load(dbias + begin) + load(other.dbias + begin));
    for (int64_t i = begin * n.dim; i < smaller(end, n.clusters) * n.dim; ++i)
      dcentroids[i] += other.dcentroids[i];
  }
};

// What was written is the gradient of f x, f the factors of pack_in_range.
template <class S, class T = Acc<S>>
SFRS_NOINLINE void shrink_gradient(const AggregationBackward& f, const Group& g, int64_t begin, int64_t count,
                                   const T* factors) {
  for (int64_t p = 0; p < count; ++p) {
    if (factors[p] == 1) continue;
    int64_t offset, index;
    locate(f.x, g, begin + p, &offset, &index);
    S* dx = image_of<S>(f.dx, g) + index * f.dx.stride_w;
    for (int64_t d = 0; d < f.x.dim; ++d, dx += f.dx.stride_d) store_one(dx, load_one(dx) * factors[p]);
  }
}

template <class S>
class BackwardTile {
  using T = Acc<S>;

 public:
  static int64_t bytes(const Sizes<T>& n) {
    int64_t columns = n.cluster_columns + n.logit_columns, panels = round_up(n.dim, kPanel<T>);
    return Scratch::bytes<T>(n.packed()) + 3 * Scratch::bytes<T>(n.tile + kLanes<T>) +
           Scratch::bytes<T>(n.tile * n.cluster_columns) + Scratch::bytes<T>(n.tile * n.logit_columns) +
           Scratch::bytes<T>(n.clusters * n.dim) + Scratch::bytes<T>(columns * n.rows) +
           3 * Scratch::bytes<T>(n.cluster_columns) + Scratch::bytes<T>(n.logit_columns) +
           (n.planes
                ? Scratch::bytes<T>(n.tile * columns) + Scratch::bytes<T>(kBlockRows * n.tile + kLanes<T>)
                : Scratch::bytes<T>(panels * n.clusters) + Scratch::bytes<T>(kTileRows * panels));
  }
  BackwardTile(const AggregationBackward& f, const Sizes<T>& n, const BackwardWeights<T>& weights,
               const ParameterSums<T>& sums, Scratch& scratch)
      : f_(f),
        n_(n),
        assignment_(weights),
        sums_(sums),
        packed_(scratch.zeros<T>(n.packed())),
        squares_(scratch.take<T>(n.tile + kLanes<T>)),
        factors_(scratch.take<T>(n.tile + kLanes<T>)),
        along_(scratch.take<T>(n.tile + kLanes<T>)),
        products_(scratch.take<T>(n.tile * n.cluster_columns)),
        logits_(scratch.take<T>(n.tile * n.logit_columns)),
        dv_(scratch.take<T>(n.clusters * n.dim)),
        dv_columns_(scratch.zeros<T>((n.cluster_columns + n.logit_columns) * n.rows)),
        dv_centroid_(scratch.zeros<T>(n.cluster_columns)),
        weights_(scratch.zeros<T>(n.cluster_columns)),
        da_(scratch.take<T>(n.cluster_columns)),
        dbias_(scratch.take<T>(n.logit_columns)) {
    if (n.planes) {
      __builtin_memcpy(dv_columns_ + n.cluster_columns * n.rows, weights.weight,
                       n.logit_columns * n.rows * sizeof(T));
      across_ = scratch.zeros<T>(n.tile * (n.cluster_columns + n.logit_columns));
      out_ = scratch.take<T>(kBlockRows * n.tile + kLanes<T>);
    } else {
      int64_t panels = round_up(n.dim, kPanel<T>);
      dv_rows_ = scratch.take<T>(panels * n.clusters);
      out_ = scratch.take<T>(kTileRows * panels);
    }
  }

  void begin_group(const Group& g) {
    vlad_gradient<S>(f_, n_, g, dv_);
    rows_to_panels(dv_, n_.dim, n_.clusters, n_.dim, dv_columns_, n_.rows);
    if (!n_.planes) pack_rows(dv_, n_.clusters, n_.dim, dv_rows_);
    for (int64_t k = 0; k < n_.clusters; ++k) {
      weights_[k] = dv_centroid_[k] = 0;
      if (!f_.centroids) continue;
      dv_centroid_[k] = (T)accurate_dot((const T*)f_.centroids + k * n_.dim, dv_ + k * n_.dim, n_.dim);
    }
  }

  // dC = -diag(sum_p m a) dV; to be called when the group, or the task's part of it, is complete.
  void end_group() {
    for (int64_t k = 0; k < n_.clusters; ++k)
      for (int64_t d = 0; d < n_.dim; ++d)
        sums_.dcentroids[k * n_.dim + d] -= weights_[k] * dv_[k * n_.dim + d];
  }

  void run(const Tile& t, Ahead next) {
    if (t.count == 0) return;
    next.spread(work_of(n_, t.count, n_.clusters) + (f_.dweight ? work_of(n_, t.count, n_.logits) : 0));
    copy(t);
    multiply_gradient(t, next);
    assign(t);
    if (f_.dweight) sum_weights(t, next);
    if (f_.dx.data) write(t);
  }

  // The steps of it.
  void copy(const Tile& t) {
    if (f_.normalize_input)
      shrunk_ = pack_in_range<S>(f_.x, t.group, t.begin, t.count, packed_, n_.step, squares_, factors_);
    else
      pack<S>(f_.x, t.group, t.begin, t.count, packed_, n_.step, squares_);
  }
  void multiply_gradient(const Tile& t, Ahead& next) {
    multiply_features(n_, t.count, packed_, dv_columns_, n_.clusters, products_, next);
  }
  // products_: m a / |x| for dV;  logits_: dl / |x| for W and dW;  along_: what of x leaves dx.
  void assign(const Tile& t) {
    for (int64_t k = 0; k < n_.logit_columns; ++k) dbias_[k] = 0;
    for (const Segment& s : Segments(f_.x, t.group, t.begin, t.count))
      for (int64_t i = 0; i < s.count; ++i)
        assign_position(s.at + i, t.group.image * f_.x.positions() + s.index + i);
    // Tile by tile: a running sum over all positions would lose digits.
    for (int64_t k = 0; k < n_.logit_columns; ++k) sums_.dbias[k] += dbias_[k];
  }
  void sum_weights(const Tile& t, Ahead& next) {
    aggregate_features(n_, t.count, packed_, logits_, n_.logits, sums_.dweight, true, next);
  }
  void write(const Tile& t) {
    if (n_.planes)
      write_planes(t.group, t.begin, t.count);
    else
      write_tokens(t.group, t.begin, t.count);
    if (shrunk_) shrink_gradient<S>(f_, t.group, t.begin, t.count, factors_);
  }

 private:
  void assign_position(int64_t p, int64_t position) {
    T inv = ((const T*)f_.saved_inv_norm)[position];
    if (shrunk_ && factors_[p] != 1) inv = inverse_norm(squares_[p]);  // of f x
    T m = f_.mask ? ((const T*)f_.mask)[position] : 1;
    const T* saved = (const T*)(f_.logits_given ? f_.logits_given : f_.saved_logits) + position * n_.logits;
    T* out = f_.dlogits ? (T*)f_.dlogits + position * n_.logits : nullptr;
    load_logits(n_, p, saved, logits_);
    softmax_row(n_, p, (T)1, assignment_.bias, logits_);

    T* row = logits_ + p * kPanel<T>;
    auto assigned = [&](int64_t k) {
      return load(row + k / kPanel<T> * kPanel<T> * n_.tile + k % kPanel<T>);
    };
    Vec<T> da_sum = {}, x_sum = {};  // <a, da> over the kept clusters, <xh, dxh>
    each_vector(n_.clusters, n_.tile, p, products_, [&](T* at, int64_t k) {
      Vec<T> a = kept(assigned(k), n_.clusters - k), xdv = load(at) * inv;
      Vec<T> da = xdv - load(dv_centroid_ + k);
      da_sum += kept(a * da, n_.clusters - k);
      x_sum += kept(a * m * xdv, n_.clusters - k);
      store(weights_ + k, load(weights_ + k) + a * m);
      store(da_ + k, da);
      store(at, a * (m * inv));
    });
    T da_total = sum_lanes<T>(da_sum);
    if (f_.dmask) ((T*)f_.dmask)[position] = da_total;
    each_vector(n_.logits, n_.tile, p, logits_, [&](T* at, int64_t k) {
      Vec<T> da = k < n_.clusters ? kept(load(da_ + k), n_.clusters - k) : Vec<T>{};
      Vec<T> dl = kept(load(at) * (m * (da - da_total)), n_.logits - k);
      store(dbias_ + k, load(dbias_ + k) + dl);
      if (out) store_n(out + k, dl, n_.logits - k);
      if (!f_.logits_given) x_sum += dl * load_n(saved + k, n_.logits - k);
      store(at, dl * inv);
    });
    along_[p] = f_.normalize_input && norm_counts(inv) ? sum_lanes<T>(x_sum) * inv * inv : 0;
  }
  static Vec<T> kept(Vec<T> v, int64_t n) {  // zero behind the first n lanes
    if (n >= kLanes<T>) return v;
    for (int64_t i = larger<int64_t>(n, 0); i < kLanes<T>; ++i) v[i] = 0;
    return v;
  }

  // c[6][vecs] (+)= sum over columns j < count of a[r][j] b[j], a in panels whose rows are a_rows long.
  static void multiply_columns(int vecs, int64_t count, const T* a, int64_t a_rows, const T* b, int64_t b_row,
                               T* c, int64_t c_row, bool accumulate, int64_t blocks = 1,
                               Ahead* ahead = nullptr) {
    int64_t full = count / kPanel<T>, rest = count % kPanel<T>;
    Tiles tiles = {blocks, kTileRows * kPanel<T>, 0, kTileRows * c_row, ahead};
    if (full)
      multiply<kPanel<T>, 1>(vecs, full, kPanel<T>, a, a_rows * kPanel<T>, b, b_row, c, c_row, accumulate, 0,
                             tiles);
    if (rest)
      multiply<kPanel<T>, 1>(vecs, 1, rest, a + full * a_rows * kPanel<T>, 0, b + full * kPanel<T> * b_row,
                             b_row, c, c_row, accumulate || full, 0, tiles);
  }

  // Rows = d, vectors over positions: both assignment gradients are turned over first.
  void write_planes(const Group& g, int64_t begin, int64_t count) {
    T* across_logits = across_ + n_.clusters * n_.tile;
    panels_to_rows(products_, n_.tile, n_.clusters, count, across_, n_.tile);
    if (!f_.logits_given) panels_to_rows(logits_, n_.tile, n_.logits, count, across_logits, n_.tile);
    // W stands behind dV: where dV fills its panels, both products are one.
    int64_t second = f_.logits_given ? 0 : n_.logits, first = n_.clusters;
    if (n_.clusters == n_.cluster_columns) first += std::exchange(second, 0);
    Segments segments(f_.x, g, begin, count);
    Ahead rows = ahead_of(f_.dx, sizeof(S), g, begin, count, true);
    rows.spread(n_.rows / kTileRows * (first + second) * ((count + kLanes<T> - 1) / kLanes<T>));
    for (int64_t d = 0; d < n_.dim; d += kBlockRows) {
      int64_t blocks = smaller(kBlockRows, n_.rows - d) / kTileRows;
      for (int64_t p = 0; p < count; p += kPanel<T>) {
        int vecs = panel_vecs<T>(p, count);
        multiply_columns(vecs, first, dv_columns_ + d * kPanel<T>, n_.rows, across_ + p, n_.tile, out_ + p,
                         n_.tile, false, blocks, &rows);
        if (second)
          multiply_columns(vecs, second, assignment_.weight + d * kPanel<T>, n_.rows, across_logits + p,
                           n_.tile, out_ + p, n_.tile, true, blocks, &rows);
      }
      for (int64_t r = 0; r < smaller(kBlockRows, n_.dim - d); ++r) {
        const T *x = packed_ + (d + r) * n_.step, *product = out_ + r * n_.tile;
        S* dx = image_of<S>(f_.dx, g) + (d + r) * f_.dx.stride_d;
        for (const Segment& s : segments)
          for (int64_t i = 0; i < s.count; i += kLanes<T>) {
            int64_t at = overlapped<T>(i, s.count), p = s.at + at;
            store_n(dx + s.index + at, load(product + p) - load(along_ + p) * load(x + p), s.count - at);
          }
      }
    }
  }

  // Rows = positions, vectors over d.
  void write_tokens(const Group& g, int64_t begin, int64_t count) {
    int64_t out_row = round_up(n_.dim, kPanel<T>);
    for (int64_t p = 0; p < count; p += kTileRows) {
      for (int64_t d = 0; d < n_.dim; d += kPanel<T>) {
        int vecs = panel_vecs<T>(d, n_.dim);
        multiply_columns(vecs, n_.clusters, products_ + p * kPanel<T>, n_.tile, dv_rows_ + d * n_.clusters,
                         kPanel<T>, out_ + d, out_row, false);
        if (f_.logits_given) continue;
        multiply_columns(vecs, n_.logits, logits_ + p * kPanel<T>, n_.tile, assignment_.rows + d * n_.logits,
                         kPanel<T>, out_ + d, out_row, true);
      }
      for (int64_t r = 0; r < smaller<int64_t>(kTileRows, count - p); ++r) {
        int64_t offset, index;
        locate(f_.x, g, begin + p + r, &offset, &index);
        const S* x = image_of<S>(f_.x, g) + offset;
        S* dx = image_of<S>(f_.dx, g) + index * f_.dx.stride_w;
        T along = shrunk_ ? along_[p + r] * factors_[p + r] : along_[p + r];  // x is read as it came
        for (int64_t d = 0; d < n_.dim; d += kLanes<T>) {
          int64_t left = n_.dim - d;
          store_n(dx + d, load(out_ + r * out_row + d) - along * load_n(x + d, left), left);
        }
      }
    }
  }

  const AggregationBackward& f_;
  const Sizes<T>& n_;
  const BackwardWeights<T>& assignment_;
  const ParameterSums<T>& sums_;
  T *packed_, *squares_, *factors_, *along_, *products_, *logits_, *dv_, *dv_columns_, *dv_centroid_,
      *weights_, *da_, *dbias_;
  T *across_ = nullptr, *dv_rows_ = nullptr, *out_ = nullptr;
  bool shrunk_ = false;
};

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
