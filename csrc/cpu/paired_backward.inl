// NetVLAD aggregation of bfloat16 maps, backward, by products of pairs; see aggregate_backward.inl for the
// way of a tile. What goes into a product is rounded to bfloat16: dV, m a / |x| and dl / |x|. Everything else
// stays in float32: the softmax and its gradient, which subtract numbers of one size; the sums of parameters,
// which are over all positions; and the part of dx along x, which is taken of the rounded numbers, so that dx
// is normal to x.
#pragma once

#include "aggregate_backward.inl"
#include "paired_forward.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {

// The left side of [rows][columns] pairs turned over; both are multiples of kSide.
SFRS_NOINLINE void turn_words(const Right& from, int64_t rows, int64_t columns, const Side<bf16>& to) {
  for (int64_t r = 0; r < rows; r += kSide)
    for (int64_t c = 0; c < columns; c += kSide) {
      U32 square[kSide];
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) square[i] = load_bits<U32>(from.at + (r + i) * from.row + c);
      transpose_words(square);
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) store_bits(to.at + (c + i) * to.row + 2 * r, square[i]);
    }
}

// dx[p] = sum_j g[j][p] R[j] - along[p] x[p], with dV and W one above the other in R, as what stands before
// them in g.
class PairedInputGradient {
  static constexpr int64_t kBlock = 2 * kSide;  // rows of a product

 public:
  static int64_t bytes(const PairedSizes& n) {
    return Scratch::bytes<Word>(joined(n) / 2 * row_step<Word>(n.rows)) +
           Scratch::bytes<Word>(joined(n) / 2 * n.tile_step) +
           Scratch::bytes<bf16>(turned_rows(n) * row_step<bf16>(joined(n))) +
           Scratch::bytes<float>(kBlock * out_step(n));
  }
  PairedInputGradient(const AggregationBackward& f, const PairedSizes& n, Scratch& scratch)
      : f_(f),
        n_(n),
        sides_(take_side<Word>(scratch, joined(n) / 2, row_step<Word>(n.rows))),
        across_(take_side<Word>(scratch, joined(n) / 2, n.tile_step)),
        turned_(take_side<bf16>(scratch, turned_rows(n), row_step<bf16>(joined(n)))),
        out_(scratch.take<float>(kBlock * out_step(n))) {}

  // Rows of g, those behind the last one zero.
  static int64_t joined(const PairedSizes& n) { return round_up(n.clusters + n.logits, kPairDepth); }

  void begin_group(const float* dv) {
    auto row = [&](int64_t j) -> const float* {
      if (j < n_.clusters) return dv + j * n_.dim;
      bool of_weight = f_.weight && j < n_.clusters + n_.logits;
      return of_weight ? (const float*)f_.weight + (j - n_.clusters) * n_.dim : nullptr;
    };
    for (int64_t j = 0; j < joined(n_); j += 2)
      for (int64_t d = 0; d < n_.dim; d += kSide) {
        auto part = [&](const float* r) { return r ? load_n(r + d, n_.dim - d) : F32{}; };
        store_bits(sides_.at + j / 2 * sides_.row + d, pairs_of(part(row(j)), part(row(j + 1))));
      }
    if (n_.planes) turn_words(sides_, joined(n_) / 2, n_.rows, turned_);
  }

  void write(const PairedTile& tile, const float* g, const float* along, const Group& group, int64_t begin) {
    for (int64_t j = 0; j < joined(n_); j += 2)
      for (int64_t p = 0; p < tile.vectors_end(); p += kSide) {
        const float* at = g + j * n_.tile_step + p;
        store_bits(across_.at + j / 2 * across_.row + p, pairs_of(load(at), load(at + n_.tile_step)));
      }
    n_.planes ? write_planes(tile, along, group, begin) : write_tokens(tile, along, group, begin);
    if (tile.shrunk()) shrink_gradient<bf16>(f_, group, begin, tile.count(), tile.factors());
  }

 private:
  static int64_t turned_rows(const PairedSizes& n) { return n.planes ? n.rows : n.tile; }
  static int64_t out_step(const PairedSizes& n) { return n.planes ? n.tile_step : row_step<float>(n.rows); }

  // Rows = d, vectors over positions.
  void write_planes(const PairedTile& tile, const float* along, const Group& g, int64_t begin) {
    Segments segments(f_.x, g, begin, tile.count());
    Ahead rows = ahead_of(f_.dx, sizeof(bf16), g, begin, tile.count(), true);
    rows.spread(n_.rows * joined(n_) * tile.vectors_end());
    for (int64_t d = 0; d < n_.dim; d += kBlock) {
      multiply_pairs(smaller(kBlock, n_.rows - d), tile.vectors_end(), joined(n_), Left(turned_).from(d, 0),
                     across_, out_, n_.tile_step, false, rows);
      for (int64_t r = 0; r < smaller(kBlock, n_.dim - d); ++r) {
        const bf16* x = tile.rows().at + (d + r) * n_.tile_step;
        const float* product = out_ + r * n_.tile_step;
        bf16* dx = image_of<bf16>(f_.dx, g) + (d + r) * f_.dx.stride_d;
        for (const Segment& s : segments)
          for (int64_t i = 0; i < s.count; i += kSide) {
            int64_t at = overlapped<float>(i, s.count), p = s.at + at;
            store_n(dx + s.index + at, load(product + p) - load(along + p) * load(x + p), s.count - at);
          }
      }
    }
  }

  // Rows = positions, vectors over d.
  void write_tokens(const PairedTile& tile, const float* along, const Group& g, int64_t begin) {
    int64_t step = out_step(n_);
    Ahead nothing;
    turn_words(across_, joined(n_) / 2, tile.vectors_end(), turned_);
    for (int64_t p = 0; p < tile.count(); p += kBlock) {
      multiply_pairs(smaller(kBlock, tile.vectors_end() - p), n_.rows, joined(n_), Left(turned_).from(p, 0),
                     sides_, out_, step, false, nothing);
      for (int64_t r = 0; r < smaller(kBlock, tile.count() - p); ++r) {
        int64_t offset, index;
        locate(f_.x, g, begin + p + r, &offset, &index);
        const bf16* x = image_of<bf16>(f_.x, g) + offset;
        bf16* dx = image_of<bf16>(f_.dx, g) + index * f_.dx.stride_w;
        float of_x = along[p + r] * tile.factor(p + r);  // x is read as it came
        for (int64_t d = 0; d < n_.dim; d += kSide) {
          int64_t left = n_.dim - d;
          store_n(dx + d, load(out_ + r * step + d) - of_x * load_n(x + d, left), left);
        }
      }
    }
  }

  const AggregationBackward& f_;
  const PairedSizes& n_;
  Side<Word> sides_, across_;  // [j / 2][d] and [j / 2][p]
  Side<bf16> turned_;          // the one that is the left side, [d][j] of planes or [p][j] of tokens
  float* out_;
};

class PairedBackwardTile {
 public:
  static int64_t bytes(const PairedSizes& n) {
    return PairedTile::bytes(n) + PairedInputGradient::bytes(n) +
           Scratch::bytes<float>(gradient_rows(n) * n.tile_step) +
           Scratch::bytes<Word>(n.tile / 2 * n.side_step) + Scratch::bytes<float>(n.clusters * n.dim) +
           Scratch::bytes<bf16>(n.sides * n.depth_step) + Scratch::bytes<float>(n.sides) +
           4 * Scratch::bytes<float>(n.sides * kSide) + Scratch::bytes<float>(n.tile);
  }
  PairedBackwardTile(const AggregationBackward& f, const PairedSizes& n, const PairedAssignment& assignment,
                     const ParameterSums<float>& sums, Scratch& scratch)
      : f_(f),
        n_(n),
        assignment_(assignment),
        sums_(sums),
        tile_(n, scratch),
        input_(f, n, scratch),
        products_(scratch.zeros<float>(gradient_rows(n) * n.tile_step)),
        logits_(products_ + n.clusters * n.tile_step),
        right_(take_side<Word>(scratch, n.tile / 2, n.side_step)),
        dv_(scratch.take<float>(n.clusters * n.dim)),
        dv_rows_(take_side<bf16>(scratch, n.sides, n.depth_step)),
        dv_centroid_(scratch.zeros<float>(n.sides)),
        assigned_(scratch.take<float>(n.sides * kSide)),
        da_(scratch.zeros<float>(n.sides * kSide)),
        weights_(scratch.take<float>(n.sides * kSide)),
        dbias_(scratch.take<float>(n.sides * kSide)),
        along_(scratch.take<float>(n.tile)) {
    clear_rows(dv_rows_, n.clusters, n.sides);
  }

  void begin_group(const Group& g) {
    vlad_gradient<bf16>(f_, n_, g, dv_);
    round_rows(dv_, n_.clusters, n_.dim, dv_rows_, n_.depth);
    __builtin_memset(weights_, 0, n_.clusters * kSide * sizeof(float));
    for (int64_t k = 0; f_.centroids && k < n_.clusters; ++k)  // of dV as it is rounded: x dV - c dV cancels
      dv_centroid_[k] = (float)accurate_dot((const float*)f_.centroids + k * n_.dim,
                                            dv_rows_.at + k * dv_rows_.row, n_.dim);
    if (f_.dx.data) input_.begin_group(dv_);
  }

  // dC = -diag(sum_p m a) dV; to be called when the group, or the task's part of it, is complete.
  void end_group() {
    for (int64_t k = 0; k < n_.clusters; ++k) {
      float weight = sum_lanes<float>(load(weights_ + k * kSide));
      for (int64_t d = 0; d < n_.dim; ++d) sums_.dcentroids[k * n_.dim + d] -= weight * dv_[k * n_.dim + d];
    }
  }

  void run(const Tile& t, Ahead next) {
    if (t.count == 0) return;
    tile_.pack(f_.x, t.group, t.begin, t.count, f_.normalize_input);
    int64_t first = t.group.image * f_.x.positions();
    next.spread(round_up(n_.clusters, kSide) * n_.depth * tile_.vectors_end() +
                (f_.dweight ? n_.rows * n_.sides * tile_.pairs_end() : 0));
    multiply_pairs(round_up(n_.clusters, kSide), tile_.vectors_end(), n_.depth, dv_rows_, tile_.pairs(),
                   products_, n_.tile_step, false, next);
    const void* given = f_.logits_given ? f_.logits_given : f_.saved_logits;
    turn_positions<false>(n_, tile_, logits_, (float*)given + first * n_.logits);
    assign(first);
    if (f_.dlogits) turn_positions<true>(n_, tile_, logits_, (float*)f_.dlogits + first * n_.logits);
    if (f_.dweight) {
      pair_positions(n_, tile_, n_.sides, logits_, right_);
      aggregate_pairs(n_, tile_, right_, n_.sides, sums_.dweight, true, next);
    }
    if (f_.dx.data) input_.write(tile_, products_, along_, t.group, t.begin);
  }

 private:
  static int64_t gradient_rows(const PairedSizes& n) {
    return larger(PairedInputGradient::joined(n), n.clusters + n.sides);
  }

  // Rows of products_ become m a / |x| and those of logits_ dl / |x|, both rounded, or dl if logits are
  // given; along_: what of x leaves dx.
  void assign(int64_t first) {
    __builtin_memset(dbias_, 0, n_.logits * kSide * sizeof(float));
    for (int64_t p = 0; p < tile_.pairs_end(); p += kSide) assign_vector(first, p);
    // Tile by tile: a running sum over all positions would lose digits.
    for (int64_t k = 0; k < n_.logits; ++k) sums_.dbias[k] += sum_lanes<float>(load(dbias_ + k * kSide));
  }

  void assign_vector(int64_t first, int64_t p) {
    float *products = products_ + p, *logits = logits_ + p;
    if (p >= tile_.count()) {
      for (int64_t k = 0; k < n_.logits; ++k) store(logits + k * n_.tile_step, F32{});
      return;
    }
    F32 inv = tile_.values(f_.saved_inv_norm, first, p);
    for (int64_t i = 0; tile_.shrunk() && i < smaller(kSide, tile_.count() - p); ++i)
      if (tile_.factor(p + i) != 1) inv[i] = inverse_norm(tile_.square(p + i));  // of f x
    F32 mask = tile_.values(f_.mask, first, p);
    F32 top = splat(-__builtin_inff()), total = {};
    for (int64_t k = 0; k < n_.logits; ++k)
      top = max_or_nan(load(logits + k * n_.tile_step) + assignment_.bias[k], top);
    for (int64_t k = 0; k < n_.logits; ++k) {
      F32 e = exp_nonpositive(load(logits + k * n_.tile_step) + assignment_.bias[k] - top);
      total += e;
      store(assigned_ + k * kSide, e);
    }
    F32 scale = 1 / total, da_sum = {}, x_sum = {};  // <a, da> over the kept clusters, <x, dx>
    for (int64_t k = 0; k < n_.clusters; ++k) {
      float *assigned = assigned_ + k * kSide, *weight = weights_ + k * kSide;
      F32 a = load(assigned) * scale, product = load(products + k * n_.tile_step);
      F32 da = product * inv - dv_centroid_[k], into_v = as_rounded(a * (mask * inv));
      da_sum += a * da;
      x_sum += into_v * product;
      store(weight, load(weight) + tile_.within(p, a * mask));
      store(da_ + k * kSide, da);
      store(products + k * n_.tile_step, into_v);
    }
    for (int64_t i = 0; f_.dmask && i < smaller(kSide, tile_.count() - p); ++i)
      ((float*)f_.dmask)[first + tile_.index(p + i)] = da_sum[i];
    F32 norm = inv > 0.0f ? 1 / inv : F32{}, factor = scale * mask;
    for (int64_t k = 0; k < n_.logits; ++k) {
      float *at = logits + k * n_.tile_step, *sum = dbias_ + k * kSide;
      F32 dl = tile_.within(p, load(assigned_ + k * kSide) * factor * (load(da_ + k * kSide) - da_sum));
      F32 into_x = f_.logits_given ? dl : as_rounded(dl * inv);
      if (!f_.logits_given) x_sum += into_x * load(at) * norm;
      store(sum, load(sum) + dl);
      store(at, into_x);
    }
    F32 along = inv < (float)(1 / kEps) ? x_sum * inv * inv : F32{};  // else eps was larger than the norm
    store(along_ + p, f_.normalize_input ? along : F32{});
  }

  const AggregationBackward& f_;
  const PairedSizes& n_;
  const PairedAssignment& assignment_;
  const ParameterSums<float>& sums_;
  [[maybe_unused]] PairUnit unit_;
  PairedTile tile_;
  PairedInputGradient input_;
  float *products_, *logits_;  // [k][p], one above the other
  Side<Word> right_;           // [p / 2][k]
  float* dv_;
  Side<bf16> dv_rows_;
  float* dv_centroid_;                         // <c, dV>
  float *assigned_, *da_, *weights_, *dbias_;  // [k][lane]
  float* along_;
};

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
