// What both directions of the aggregation do with a tile of positions: load it, make logits from it,
// soft-max them, sum it up by clusters.
#pragma once

#include "aggregate_tiling.h"
#include "matrix.cuh"

namespace sfrs::cuda {

template <class T>
SFRS_DEVICE T inverse_norm(T square) {
  T norm = sqrt(square);
  return 1 / (norm < (T)kEps ? (T)kEps : norm);  // NaN stays NaN
}
// Whether the norm behind the inverse was large enough to divide by.
template <class T>
SFRS_DEVICE bool norm_counts(T inverse) {
  return inverse < (T)(1 / kEps);
}

// One image, or one quarter of one.
struct Group {
  int index;  // of the group
  int image, region, row, column, width, positions;

  SFRS_DEVICE Group(const FeatureMap& x, int regions, int index) : index(index) {
    image = regions == 1 ? index : index / 4;
    region = regions == 1 ? 0 : index % 4;
    int height = (int)x.height, half_height = height / 2, full = (int)x.width, half = full / 2;
    bool whole = regions == 1;
    row = !whole && region >= 2 ? half_height : 0;
    column = !whole && (region & 1) ? half : 0;
    int rows = whole ? height : region >= 2 ? height - half_height : half_height;
    width = whole ? full : (region & 1) ? full - half : half;
    positions = rows * width;
  }
  // Elements from the image's first to position i, and i's index among all positions of the image.
  SFRS_DEVICE int64_t offset(const FeatureMap& x, int i) const {
    int h = x.height == 1 ? 0 : i / width, w = i - h * width;
    return (row + h) * x.stride_h + (column + w) * x.stride_w;
  }
  SFRS_DEVICE int64_t position(const FeatureMap& x, int i) const {
    int h = x.height == 1 ? 0 : i / width, w = i - h * width;
    return (int64_t)(row + h) * x.width + column + w;
  }
};

// A step of a block: a tile and a chunk of its dimensions. Blocks walk units, their tiles, and of every tile
// the chunks, the block's own chunk last, because that is the one it sums up. Steps are the same for all
// threads; one thread makes them, in shared memory.
struct Step {
  int unit, split, units_left;
  int tile, tile_begin, tile_end, chunk_step;
  bool first_unit;
  Group group;

  SFRS_DEVICE Step(const Tiling& n, const FeatureMap& x, int regions, int block)
      : unit((int)((int64_t)n.units * block / n.blocks)),
        split(unit % n.splits),
        units_left((int)((int64_t)n.units * (block + 1) / n.blocks) - unit),
        chunk_step(0),
        first_unit(true),
        group(x, regions, unit / n.splits) {
    enter(n);
  }
  SFRS_DEVICE bool valid() const { return units_left > 0; }
  SFRS_DEVICE bool last_chunk(const Tiling& n) const { return chunk_step == n.chunks - 1; }
  SFRS_DEVICE bool first_tile() const { return tile == tile_begin; }
  SFRS_DEVICE bool first_of_block() const { return first_unit && first_tile(); }
  SFRS_DEVICE bool last_tile() const { return tile + 1 == tile_end; }
  SFRS_DEVICE int chunk(const Tiling& n, int own) const {
    int chunk = own + 1 + chunk_step;
    return chunk < n.chunks ? chunk : chunk - n.chunks;
  }
  SFRS_DEVICE int begin(const Tiling& n) const { return tile * n.positions; }
  SFRS_DEVICE int count(const Tiling& n) const {
    int left = group.positions - tile * n.positions;
    return left < 0 ? 0 : left < n.positions ? left : n.positions;
  }
  SFRS_DEVICE void advance(const Tiling& n, const FeatureMap& x, int regions) {
    if (!valid() || ++chunk_step < n.chunks) return;
    chunk_step = 0;
    if (++tile < tile_end) return;
    ++unit;
    --units_left;
    first_unit = false;
    if (++split == n.splits) {
      split = 0;
      group = Group(x, regions, unit / n.splits);
    }
    enter(n);
  }

 private:
  // A unit without positions has one tile behind the last position, so that its sums are written too.
  SFRS_DEVICE void enter(const Tiling& n) {
    int tiles = (group.positions + n.positions - 1) / n.positions;
    tile = tile_begin = split * n.unit_tiles;
    tile_end = tile + n.unit_tiles < tiles ? tile + n.unit_tiles : tiles;
    if (tile_end <= tile) tile_end = tile + 1;
  }
};

static_assert(sizeof(Step) <= kStepBytes);

// Planes: panels [chunk][positions]. Tokens: panels [positions][chunk].
template <class S, bool kPlanes>
SFRS_DEVICE Panels<S> tile_view(const Tiling& n, unsigned char* stage) {
  return Panels<S>(stage, kPlanes ? n.chunk : n.positions, kPlanes ? n.positions : n.chunk);
}

// Starts copying positions [begin, begin + count) of dimensions [d0, d0 + chunk) into a stage; what lies
// outside the map becomes zero.
template <class S, bool kPlanes, int kBytes>
SFRS_DEVICE void load_tile(const FeatureMap& x, const Tiling& n, const Group& g, int begin, int count, int d0,
                           const Panels<S>& to) {
  constexpr int unit = kBytes ? kBytes / (int)sizeof(S) : 1;
  const S* image = (const S*)x.data + g.image * x.stride_b;
  auto copy = [&](S* shared, const S* global, bool valid) {
    if constexpr (kBytes)
      copy_async<kBytes>(shared, valid ? global : (const S*)x.data, valid);
    else
      *shared = valid ? *global : S{};
  };
  int left = n.dim - d0;
  if constexpr (kPlanes) {
    int across = n.positions / unit, p = (int)threadIdx.x % across * unit;
    const S* column = image + (p < count ? g.offset(x, begin + p) : 0);
    for (int d = (int)threadIdx.x / across; d < n.chunk; d += kThreads / across)
      copy(to.at(d, p), column + (d0 + d) * x.stride_d, p < count && d < left);
  } else {
    for (int p = (int)threadIdx.x / 32; p < n.positions; p += kWarps) {
      const S* row = image + (p < count ? g.offset(x, begin + p) : 0) + d0;
      for (int d = (int)threadIdx.x % 32 * unit; d < n.chunk; d += 32 * unit)
        copy(to.at(p, d), row + d, p < count && d < left);
    }
  }
}

template <class S, bool kPlanes>
SFRS_DEVICE void load_step(const FeatureMap& x, const Tiling& n, const Step& step, int own,
                           unsigned char* stage) {
  Panels<S> to = tile_view<S, kPlanes>(n, stage);
  int count = step.count(n), begin = step.begin(n), d0 = step.chunk(n, own) * n.chunk;
  constexpr int narrow = narrow_copy(sizeof(S));
  if (n.load_bytes == 16)
    load_tile<S, kPlanes, 16>(x, n, step.group, begin, count, d0, to);
  else if (n.load_bytes == narrow)
    load_tile<S, kPlanes, narrow>(x, n, step.group, begin, count, d0, to);
  else if constexpr (narrow > sizeof(S))
    load_tile<S, kPlanes, 0>(x, n, step.group, begin, count, d0, to);
  copy_async_commit();
}

// Runs work(step, its tile) for all steps of a block. With two stages the next tile travels meanwhile.
template <class S, bool kPlanes, class F>
SFRS_DEVICE void walk(const FeatureMap& x, int regions, const Tiling& n, unsigned char* stages, Step* steps,
                      const F& work) {
  int own = (int)blockIdx.y, behind = n.stages - 1;
  if (threadIdx.x == 0) steps[0] = Step(n, x, regions, (int)blockIdx.x);
  __syncthreads();
  for (int i = 0;; ++i) {  // tile i is sent for, tile i - behind is worked on
    const Step &coming = steps[i & 3], &now = steps[(i - behind) & 3];
    if (i >= behind && !now.valid()) break;
    if (coming.valid()) load_step<S, kPlanes>(x, n, coming, own, stages + (i & behind) * n.stage_bytes);
    if (threadIdx.x == 0) {
      steps[(i + 1) & 3] = coming;
      steps[(i + 1) & 3].advance(n, x, regions);
    }
    if (!behind) {
      copy_async_wait<0>();
      __syncthreads();
    }
    if (i >= behind) work(now, tile_view<S, kPlanes>(n, stages + ((i - behind) & behind) * n.stage_bytes));
    // After this the next tile is here, and nobody reads this one, nor what was made of it, any more.
    if (behind) copy_async_wait<0>();
    __syncthreads();
  }
}

// Rows of a float matrix [rows, dim] as cores of S, padded with zeros to whole tasks and chunks.
template <class S, class T>
SFRS_DEVICE void pack_cores(const T* from, int rows, int dim, int padded_rows, int padded_dim,
                            unsigned char* to, int64_t first, int64_t step) {
  constexpr int chunk = 16 / (int)sizeof(S);
  int64_t across = padded_dim / chunk, count = padded_rows * across;
  for (int64_t i = first; i < count; i += step) {
    int64_t core = i / 8;  // eight neighbouring threads fill one core
    int row = (int)(core / across * 8 + i % 8), d = (int)(core % across) * chunk;
    S* out = (S*)(to + core * 128 + i % 8 * 16);
    SFRS_EACH (j, chunk)
      store_as(out + j, row < rows && d + j < dim ? from[(int64_t)row * dim + d + j] : (T)0);
  }
}

// A right operand of the logits: where it lies, how many columns (clusters) it has, where its products go.
template <class T>
struct LogitOperand {
  unsigned char* cores;
  bool resident;
  int columns;
  T* products;
  int stride;
};

// products[p][column] (+)= sum of x[p][d] operand[column][d] over the chunk in `x`, for one or two operands,
// and squares[slot][p] (+)= the share of x[p]^2 of each warp. All warps, with a barrier at the end.
template <class M, bool kPlanes>
struct LogitMaker {
  using S = typename M::Storage;
  using T = typename M::Sum;
  const Tiling& n;
  Panels<S> x;
  int d0, depth;  // first dimension of the chunk, its dimensions padded to whole steps
  bool first, squares_wanted;
  T* squares;
  LogitOperand<T> left, right;  // the right one may have no columns, the left one then still makes squares

  SFRS_DEVICE void run() const {
    int warp = warp_of_thread(),
        tasks = row_tasks<M>(n) * (left_tasks() + right.columns / kLogitTask) * n.slices;
    T sums[M::kTaskRows][4][4];
    Place at{};
    for (int task = warp; task < tasks; task += kWarps) {
      at = place(task);
      multiply(at, sums);
      if (n.slices == 1) write(at, sums, first);
    }
    if (n.slices > 1)
      for (int slice = 0; slice < n.slices; ++slice) {  // in order, so that sums are the same in every run
        if (warp < tasks && at.slice == slice) write(at, sums, first && slice == 0);
        if (slice + 1 < n.slices) __syncthreads();
      }
    __syncthreads();
  }

 private:
  struct Place {
    bool is_right;
    int column, m, slice;
  };

  SFRS_DEVICE int left_tasks() const { return left.columns ? left.columns / kLogitTask : 1; }
  SFRS_DEVICE Place place(int task) const {
    int across = left_tasks() + right.columns / kLogitTask, c = task % across, rest = task / across;
    bool is_right = c >= left_tasks();
    return {is_right, (is_right ? c - left_tasks() : c) * kLogitTask,
            rest % row_tasks<M>(n) * 16 * M::kTaskRows, rest / row_tasks<M>(n)};
  }

  SFRS_DEVICE void multiply(const Place& at, T (&sums)[M::kTaskRows][4][4]) const {
    unsigned char* cores = at.is_right ? right.cores : left.cores;
    if (at.is_right ? right.resident : left.resident)
      multiply_from(Cores<S, false>{cores, n.padded_dim()}, at, sums);
    else
      multiply_from(Cores<S, true>{cores, n.padded_dim()}, at, sums);
  }

  template <class View>
  SFRS_DEVICE void multiply_from(const View& w, const Place& at, T (&sums)[M::kTaskRows][4][4]) const {
    int lane = lane_of_thread(), share = round_up((depth + n.slices - 1) / n.slices, M::kStep);
    int end = (at.slice + 1) * share < depth ? (at.slice + 1) * share : depth;
    bool two = n.positions > 16, squares_here = squares_wanted && !at.is_right;
    bool multiplies = at.is_right || left.columns > 0;
    T square[M::kTaskRows][2] = {};
    int turn = at.column / kLogitTask;  // warps that share rows take turns at their squares
    SFRS_EACH (i, M::kTaskRows)
      SFRS_EACH (j, 4)
        SFRS_EACH (e, 4) sums[i][j][e] = 0;
    SFRS_ROLLED
    for (int k = at.slice * share; k < end; k += M::kStep) {
      bool my_turn = squares_here && turn-- == 0;
      if (my_turn) turn = left_tasks() - 1;
      typename M::Ready b[2];
      if (M::kTaskRows > 1 && multiplies)
        SFRS_EACH (pair, 2) b[pair] = load_right(w, at, pair, k);
      SFRS_EACH (i, M::kTaskRows) {
        if (i == 1 && !two) continue;
        auto a = M::template load_a<kPlanes>(x, at.m + 16 * i, k, lane);
        if (my_turn) M::add_squares(a, square[i]);
        if (!multiplies) continue;
        auto ready = M::ready(a);
        SFRS_EACH (pair, 2) {
          if (M::kTaskRows == 1) b[pair] = load_right(w, at, pair, k);
          M::multiply(sums[i][2 * pair], sums[i][2 * pair + 1], ready, b[pair]);
        }
      }
    }
    if (squares_here) write_squares(at, square);
  }

  template <class View>
  SFRS_DEVICE typename M::Ready load_right(const View& w, const Place& at, int pair, int k) const {
    return M::ready(M::template load_b<false>(w, at.column + 16 * pair, d0 + k, lane_of_thread()));
  }

  SFRS_DEVICE void write_squares(const Place& at, const T (&square)[M::kTaskRows][2]) const {
    int lane = lane_of_thread();
    T* slot = squares + (at.slice * left_tasks() + at.column / kLogitTask) * n.positions;
    SFRS_EACH (i, M::kTaskRows)
      SFRS_EACH (half, 2) {
        T sum = square[i][half];
        sum += __shfl_xor_sync(kAllLanes, sum, 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        int p = at.m + 16 * i + 8 * half + lane / 4;
        if (lane % 4 == 0 && p < n.positions) slot[p] = first ? sum : slot[p] + sum;
      }
  }

  SFRS_DEVICE void write(const Place& at, const T (&sums)[M::kTaskRows][4][4], bool store) const {
    if (!at.is_right && left.columns == 0) return;
    int lane = lane_of_thread(), stride = at.is_right ? right.stride : left.stride;
    T* products = (at.is_right ? right.products : left.products) + at.column + 2 * (lane % 4);
    SFRS_EACH (i, M::kTaskRows)
      SFRS_EACH (half, 2) {
        int p = at.m + 16 * i + 8 * half + lane / 4;
        if (p >= n.positions) continue;
        SFRS_EACH (j, 4) {
          Pair<T>* to = (Pair<T>*)(products + p * stride + 8 * j);
          Pair<T> sum{sums[i][j][2 * half], sums[i][j][2 * half + 1]};
          *to = store ? sum : Pair<T>{to->first + sum.first, to->second + sum.second};
        }
      }
  }
};

// x[p]^2 from the shares of the warps.
template <class T>
SFRS_DEVICE T square_of(const Tiling& n, const T* squares, int p) {
  int slots = (n.logits_given ? 1 : n.logit_columns / kLogitTask) * n.slices;
  T sum = 0;
  for (int slot = 0; slot < slots; ++slot) sum += squares[slot * n.positions + p];
  return sum;
}

// Sums over positions, one per cluster. A warp leaves those of its positions of a tile in a row of logits
// that only it reads; after a barrier thread k adds the rows up, in order, to the total of cluster k.
template <int kLanes, class T>
SFRS_DEVICE void leave_share(const Tiling& n, T* row, const T (&share)[kLanes]) {
  SFRS_EACH (j, kLanes) {
    int k = (int)threadIdx.x % 32 + 32 * j;
    if (k < n.logits) row[k] = share[j];
  }
}
template <class T>
SFRS_DEVICE void add_shares(const Tiling& n, const T* rows, int count, bool first, T* totals) {
  for (int k = (int)threadIdx.x; k < count; k += kThreads) {
    T sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += rows[w * n.logit_stride() + k];
    totals[k] = first ? sum : totals[k] + sum;
  }
}

// In place: logits of clusters lane, lane + 32, ..., -inf behind the last, become exp(l - max); returns
// 1 / their sum.
template <class M, int kLanes, class T>
SFRS_DEVICE T exponentials(T (&l)[kLanes], int columns) {
  T top = (T)-INFINITY, total = 0;
  SFRS_EACH (j, kLanes)
    if (32 * j < columns) top = l[j] > top || l[j] != l[j] ? l[j] : top;
  top = warp_max(top);
  SFRS_EACH (j, kLanes)
    if (32 * j < columns) {
      if constexpr (sizeof(typename M::Storage) == 2)
        l[j] = exp_quick(l[j] - top);
      else
        l[j] = exp_exact(l[j] - top);
      total += l[j];
    }
  return 1 / warp_sum(total);
}

// f16 only: brings a feature vector whose norm is far from one within [2^-8, 2^8] by a power of two, so that
// assignments divided by the norm stay in the range of f16. Returns the power; the vector lies in x.
template <class S, bool kPlanes, class T>
SFRS_DEVICE T rescale_vector(const Tiling& n, const Panels<S>& x, int p, T inverse) {
  if (sizeof(S) != 2 || __is_same(S, bf16) || (inverse >= (T)0x1p-8 && inverse <= (T)0x1p8)) return 1;
  T power = (T)exp2(rint(log2(inverse)));
  for (int d = (int)threadIdx.x % 32; d < n.chunk; d += 32) {
    S* v = kPlanes ? x.at(d, p) : x.at(p, d);
    store_as(v, to_float(*v) * power);
  }
  return power;
}

// A warp's part of a K x chunk matrix of sums, in registers: clusters from `row`, dimensions from `column`.
template <class M, int kClusterTiles>
struct Sums {
  using T = typename M::Sum;
  int row, column;
  T v[kClusterTiles][M::kColumnTiles][4];

  SFRS_DEVICE explicit Sums(const Tiling& n) {
    int warp = warp_of_thread(), along = kWarps / n.cluster_warps;
    row = warp / along * 16 * kClusterTiles;
    column = warp % along * M::kColumnTiles * 8;
    clear();
  }
  SFRS_DEVICE void clear() {
    SFRS_EACH (i, kClusterTiles)
      SFRS_EACH (j, M::kColumnTiles)
        SFRS_EACH (e, 4) v[i][j][e] = 0;
  }
  // Calls body(cluster, dimension, sum, next dimension's sum) for all pairs of this lane, row by row. Sums
  // that lie outside the matrix are zero; a dimension may be.
  template <class F>
  SFRS_DEVICE void each_pair(const F& body) {
    SFRS_EACH (i, kClusterTiles)
      SFRS_EACH (half, 2) {
        int lane = lane_of_thread();
        SFRS_EACH (j, M::kColumnTiles)
          body(row + 16 * i + 8 * half + lane / 4, column + 8 * j + 2 * (lane % 4), v[i][j][2 * half],
               v[i][j][2 * half + 1]);
      }
  }
};

// Writes a block's part of [clusters, dim], each cluster times its scale if there are scales.
template <class S, class T>
struct WriteSums {
  S* out;
  int clusters, dim, d0, chunk;
  const T* scale;
  T outer;
  SFRS_DEVICE void operator()(int k, int within, T first, T second) const {
    int d = d0 + within;
    if (k >= clusters || within >= chunk || d >= dim) return;
    T factor = scale ? scale[k] * outer : (T)1;
    S* to = out + (int64_t)k * dim + d;
    store_as(to, first * factor);
    if (d + 1 < dim) store_as(to + 1, second * factor);
  }
};

// sums[k][d] += sum_p assignment[p][k] x[p][d].
template <class M, int kClusterTiles, bool kPlanes>
SFRS_DEVICE void sum_up(const Tiling& n, const Panels<typename M::Storage>& assignment,
                        const Panels<typename M::Storage>& x, Sums<M, kClusterTiles>& sums) {
  int lane = lane_of_thread();
  if (sums.column >= n.chunk) return;
  constexpr int at_once = kClusterTiles < M::kRowTiles ? kClusterTiles : M::kRowTiles;
  SFRS_ROLLED
  for (int p = 0; p < n.positions; p += M::kStep)
    SFRS_EACH (part, kClusterTiles / at_once) {
      typename M::Ready a[at_once];
      SFRS_EACH (i, at_once)
        a[i] = M::ready(
            M::template load_a<true, !kPlanes>(assignment, sums.row + 16 * (part * at_once + i), p, lane));
      SFRS_EACH (pair, M::kColumnTiles / 2) {
        auto b = M::ready(M::template load_b<!kPlanes, !kPlanes>(x, sums.column + 16 * pair, here(p), lane));
        SFRS_EACH (i, at_once) {
          auto& row = sums.v[part * at_once + i];
          M::multiply(row[2 * pair], row[2 * pair + 1], a[i], b);
        }
      }
    }
}

}  // namespace sfrs::cuda
