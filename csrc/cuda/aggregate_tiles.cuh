// Which tiles a block of the aggregation walks, and how they come into shared memory.
#pragma once

#include "aggregate_tiling.h"
#include "matrix.cuh"

namespace sfrs::cuda {

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
  // The chunk's first dimension, and how many of its dimensions there are.
  SFRS_DEVICE int first_dimension(const Tiling& n) const {
    int chunk = (int)blockIdx.y + 1 + chunk_step;
    return (chunk < n.chunks ? chunk : chunk - n.chunks) * n.chunk;
  }
  SFRS_DEVICE int dimensions(const Tiling& n) const {
    int left = n.dim - first_dimension(n);
    return left < n.chunk ? left : n.chunk;
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
SFRS_DEVICE void load_step(const FeatureMap& x, const Tiling& n, const Step& step, unsigned char* stage) {
  Panels<S> to = tile_view<S, kPlanes>(n, stage);
  int count = step.count(n), begin = step.begin(n), d0 = step.first_dimension(n);
  constexpr int narrow = narrow_copy(sizeof(S));
  if (n.load_bytes == 16)
    load_tile<S, kPlanes, 16>(x, n, step.group, begin, count, d0, to);
  else if (n.load_bytes == narrow)
    load_tile<S, kPlanes, narrow>(x, n, step.group, begin, count, d0, to);
  else if constexpr (narrow > sizeof(S))
    load_tile<S, kPlanes, 0>(x, n, step.group, begin, count, d0, to);
  copy_async_commit();
}

// Runs block.work(step, its tile, sums) for all steps of a block, whose shared memory begins with the stages.
// With two stages the next tile travels meanwhile.
template <class S, bool kPlanes, class Block, class BlockSums>
SFRS_DEVICE void walk(const FeatureMap& x, int regions, const Tiling& n, unsigned char* memory,
                      const Block& block, BlockSums& sums) {
  Step* steps = (Step*)(memory + n.at.steps);
  int behind = n.stages - 1;
  if (threadIdx.x == 0) steps[0] = Step(n, x, regions, (int)blockIdx.x);
  __syncthreads();
  for (int i = 0;; ++i) {  // tile i is sent for, tile i - behind is worked on
    const Step &coming = steps[i & 3], &now = steps[(i - behind) & 3];
    if (i >= behind && !now.valid()) break;
    if (coming.valid()) load_step<S, kPlanes>(x, n, coming, memory + (i & behind) * n.stage_bytes);
    if (threadIdx.x == 0) {
      steps[(i + 1) & 3] = coming;
      steps[(i + 1) & 3].advance(n, x, regions);
    }
    if (!behind) {
      copy_async_wait<0>();
      __syncthreads();
    }
    if (i >= behind)
      block.work(now, tile_view<S, kPlanes>(n, memory + ((i - behind) & behind) * n.stage_bytes), sums);
    // After this the next tile is here, and nobody reads this one, nor what was made of it, any more.
    if (behind) copy_async_wait<0>();
    __syncthreads();
  }
}

}  // namespace sfrs::cuda
