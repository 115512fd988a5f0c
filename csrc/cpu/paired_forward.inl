// NetVLAD aggregation of bfloat16 maps, forward, by products of pairs; see aggregate_forward.inl for the way
// of a tile. Weights and assignments are rounded to bfloat16, as autocast rounds them. V = sum a xh - (sum a)
// c cancels where features lie close to their centroid, so both sums take the assignments as they were
// rounded.
#pragma once

#include "paired_tile.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {

// W as the left side of products, and the bias.
struct PairedAssignment {
  Left weight;  // [K + G][D], zeros behind
  const float* bias;

  static int64_t bytes(const PairedSizes& n) {
    return Scratch::bytes<bf16>(n.sides * n.depth_step) + Scratch::bytes<float>(n.sides);
  }
  PairedAssignment(const Aggregation& f, const PairedSizes& n, Scratch& scratch) {
    Side<bf16> rows = take_side<bf16>(scratch, n.sides, n.depth_step);
    float* padded = scratch.zeros<float>(n.sides);
    clear_rows(rows, n.logits, n.sides);
    if (f.weight) round_rows((const float*)f.weight, n.logits, n.dim, rows, n.depth);
    if (f.bias) __builtin_memcpy(padded, f.bias, n.logits * sizeof(float));
    weight = rows;
    bias = padded;
  }
};

// exp(logits - largest) in place of the logits of a vector of positions, which have the bias already; returns
// what makes them the softmax, 1 / sum.
SFRS_INLINE F32 softmax_vector(const PairedSizes& n, F32 top, float* logits) {
  F32 total = {};
  for (int64_t k = 0; k < n.logits; ++k) {
    float* at = logits + k * n.tile_step;
    F32 e = exp_nonpositive(load(at) - top);
    total += e;
    store(at, e);
  }
  return 1 / total;
}

// The right side of a product over positions, [p / 2][k], of rows [k][p].
SFRS_NOINLINE void pair_positions(const PairedSizes& n, const PairedTile& tile, int64_t columns,
                                  const float* rows, const Side<Word>& right) {
  for (int64_t p = 0; p < tile.pairs_end(); p += kPairDepth)
    for (int64_t k = 0; k < columns; k += kSide) {
      U32 square[kSide];
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) {
        const float* row = rows + (k + i) * n.tile_step + p;
        square[i] = pairs_along(load(row), load(row + kSide));
      }
      transpose_words(square);
      Word* to = right.at + p / 2 * right.row + k;
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) store_bits(to + i * right.row, square[i]);
    }
}

// sums[d][column] (+)= sum_p rows[d][p] right[p][column], in panels; `next` is asked for meanwhile.
SFRS_INLINE void aggregate_pairs(const PairedSizes& n, const PairedTile& tile, const Right& right,
                                 int64_t columns, float* sums, bool accumulate, Ahead& next) {
  for (int64_t c = 0; c < columns; c += kPanel<float>)
    multiply_pairs(n.rows, smaller<int64_t>(kPanel<float>, columns - c), tile.pairs_end(), tile.rows(),
                   right.from(0, c), sums + c * n.rows, kPanel<float>, accumulate, next);
}

class PairedForwardTile {
 public:
  static int64_t bytes(const PairedSizes& n) {
    return PairedTile::bytes(n) + Scratch::bytes<float>(n.sides * n.tile_step) +
           Scratch::bytes<Word>(n.tile / 2 * n.side_step) + Scratch::bytes<float>(n.sides * kSide) +
           Scratch::bytes<float>(n.tile);
  }
  PairedForwardTile(const AggregationForward& f, const PairedSizes& n, const PairedAssignment& assignment,
                    Scratch& scratch)
      : f_(f),
        n_(n),
        assignment_(assignment),
        tile_(n, scratch),
        logits_(scratch.zeros<float>(n.sides * n.tile_step)),
        assigned_(take_side<Word>(scratch, n.tile / 2, n.side_step)),
        weights_(scratch.take<float>(n.sides * kSide)),
        inverse_(scratch.zeros<float>(n.tile)) {}

  void run(const Tile& t, const Accumulator<float>& sum, Ahead next) {
    if (t.count == 0) return sum.clear(n_);
    if (t.opens) __builtin_memset(sum.weights, 0, n_.cluster_columns * sizeof(float));
    tile_.pack(f_.x, t.group, t.begin, t.count, f_.normalize_input);
    int64_t first = t.group.image * f_.x.positions(), columns = round_up(n_.clusters, kSide);
    next.spread((f_.logits_given ? 0 : n_.sides * n_.depth * tile_.vectors_end()) +
                n_.rows * columns * tile_.pairs_end());
    norms(first);
    if (f_.logits_given)
      turn_positions<false>(n_, tile_, logits_, (float*)f_.logits_given + first * n_.logits);
    else
      multiply_pairs(n_.sides, tile_.vectors_end(), n_.depth, assignment_.weight, tile_.pairs(), logits_,
                     n_.tile_step, false, next);
    if (f_.saved_logits)
      turn_positions<true>(n_, tile_, logits_, (float*)f_.saved_logits + first * n_.logits, inverse_);
    assign(first, sum);
    pair_positions(n_, tile_, columns, logits_, assigned_);
    aggregate_pairs(n_, tile_, assigned_, columns, sum.sums, !t.opens, next);
  }

 private:
  void norms(int64_t first) {
    for (int64_t p = 0; p < tile_.count(); ++p) {
      inverse_[p] = f_.normalize_input ? inverse_norm(tile_.square(p)) : 1;
      if (f_.saved_inv_norm)
        ((float*)f_.saved_inv_norm)[first + tile_.index(p)] = inverse_[p] * tile_.factor(p);
    }
  }

  // Rows of logits_ become m a / |x|, rounded; sums of m a go to `sum`.
  void assign(int64_t first, const Accumulator<float>& sum) {
    __builtin_memset(weights_, 0, n_.clusters * kSide * sizeof(float));
    for (int64_t p = 0; p < tile_.pairs_end(); p += kSide) {
      float* column = logits_ + p;
      if (p >= tile_.count()) {
        for (int64_t k = 0; k < n_.clusters; ++k) store(column + k * n_.tile_step, F32{});
        continue;
      }
      F32 inv = load(inverse_ + p), scale = f_.logits_given ? splat(1.0f) : inv;
      F32 top = splat(-__builtin_inff());
      for (int64_t k = 0; k < n_.logits; ++k) {
        F32 s = load(column + k * n_.tile_step) * scale + assignment_.bias[k];
        top = max_or_nan(s, top);
        store(column + k * n_.tile_step, s);
      }
      F32 factor = softmax_vector(n_, top, column) * inv * tile_.values(f_.mask, first, p), norm = 1 / inv;
      for (int64_t k = 0; k < n_.clusters; ++k) {
        float *at = column + k * n_.tile_step, *weight = weights_ + k * kSide;
        F32 a = tile_.within(p, as_rounded(load(at) * factor));
        store(weight, load(weight) + tile_.within(p, a * norm));
        store(at, a);
      }
    }
    for (int64_t k = 0; k < n_.clusters; ++k) sum.weights[k] += sum_lanes<float>(load(weights_ + k * kSide));
  }

  const AggregationForward& f_;
  const PairedSizes& n_;
  const PairedAssignment& assignment_;
  [[maybe_unused]] PairUnit unit_;
  PairedTile tile_;
  float* logits_;        // [k][p]
  Side<Word> assigned_;  // [p / 2][k]
  float* weights_;       // [k][lane]
  float* inverse_;       // 1 / |x|
};

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
