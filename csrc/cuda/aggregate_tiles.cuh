// Which tiles a block of the aggregation walks, and how they come into shared memory.
#pragma once

#include "aggregate_blocks.cuh"

namespace sfrs::cuda {

// One image, or one quarter of one.
struct Group {
  int index;  // of the group
  int part, row, column, width, positions;
  int64_t image;

  SFRS_DEVICE Group(const FeatureMap& x, int parts, int index) : index(index) {
    image = parts == 1 ? index : index / 4;
    part = parts == 1 ? 0 : index % 4;
    // Not carried through a block's loop by all its threads, as one of them makes groups.
    int height = here((int)x.height), half_height = height / 2, full = here((int)x.width), half = full / 2;
    bool whole = parts == 1;
    row = !whole && part >= 2 ? half_height : 0;
    column = !whole && (part & 1) ? half : 0;
    int rows = whole ? height : part >= 2 ? height - half_height : half_height;
    width = whole ? full : (part & 1) ? full - half : half;
    positions = rows * width;
  }
  // Elements from the image's first to position i, and i's index among the positions of all images.
  SFRS_DEVICE int64_t offset(const FeatureMap& x, int i) const {
    int h = x.height == 1 ? 0 : i / width, w = i - h * width;
    return (row + h) * x.stride_h + (column + w) * x.stride_w;
  }
  SFRS_DEVICE int64_t index_of(const FeatureMap& x, int i) const {
    int h = x.height == 1 ? 0 : i / width, w = i - h * width;
    return (image * x.height + row + h) * x.width + column + w;
  }
};

// A step of a block: a tile and a chunk of its dimensions. Blocks walk units, their tiles, and of every tile
// the chunks, the block's own chunk last, because that is the one it sums up. Steps are the same for all
// threads; one thread makes them, in shared memory.
struct Step {
  int unit, split, units_left;
  int tile, tile_begin, tile_end, chunk_step;
  bool first_unit;
  int begin, count;    // positions of the group
  int d0, dimensions;  // of the chunk
  Group group;

  template <class N>
  SFRS_DEVICE Step(const N& n, const FeatureMap& x, int parts, int block)
      : unit((int)((int64_t)n.units * block / n.blocks)),
        split(unit % n.splits),
        units_left((int)((int64_t)n.units * (block + 1) / n.blocks) - unit),
        chunk_step(0),
        first_unit(true),
        group(x, parts, unit / n.splits) {
    enter(n);
  }
  SFRS_DEVICE bool valid() const { return units_left > 0; }
  template <class N>
  SFRS_DEVICE bool last_chunk(const N& n) const {
    return chunk_step == n.chunks - 1;
  }
  SFRS_DEVICE bool first_tile() const { return tile == tile_begin; }
  SFRS_DEVICE bool first_of_block() const { return first_unit && first_tile(); }
  SFRS_DEVICE bool last_tile() const { return tile + 1 == tile_end; }

  template <class N>
  SFRS_DEVICE void advance(const N& n, const FeatureMap& x, int parts) {
    if (!valid()) return;
    if (++chunk_step < n.chunks) return cut(n);
    chunk_step = 0;
    if (++tile < tile_end) return cut(n);
    ++unit;
    --units_left;
    first_unit = false;
    if (++split == n.splits) {
      split = 0;
      group = Group(x, parts, unit / n.splits);
    }
    enter(n);
  }

 private:
  // A unit without positions has one tile behind the last position, so that its sums are written too.
  template <class N>
  SFRS_DEVICE void enter(const N& n) {
    int tiles = (group.positions + n.positions - 1) >> n.position_bits;
    tile = tile_begin = split * n.unit_tiles;
    tile_end = tile + n.unit_tiles < tiles ? tile + n.unit_tiles : tiles;
    if (tile_end <= tile) tile_end = tile + 1;
    cut(n);
  }
  template <class N>
  SFRS_DEVICE void cut(const N& n) {
    begin = tile << n.position_bits;
    int left = group.positions - begin, chunk = (int)blockIdx.y + 1 + chunk_step;
    count = left < 0 ? 0 : left < n.positions ? left : n.positions;
    d0 = (chunk < n.chunks ? chunk : chunk - n.chunks) * n.chunk;
    dimensions = n.dim - d0 < n.chunk ? n.dim - d0 : n.chunk;
  }
};

static_assert(sizeof(Step) <= kStepBytes);

// Planes: panels [chunk][positions]. Tokens: panels [positions][chunk].
template <class S, bool kPlanes, class N>
SFRS_DEVICE Panels<S> tile_view(const N& n, unsigned char* stage) {
  int features = N::kKnown ? 128 / (int)sizeof(S) : n.chunk;  // at least so many: whole rows
  return Panels<S>(stage, kPlanes ? n.chunk : n.positions, kPlanes ? n.positions : features);
}

// Starts copying positions [begin, begin + count) of dimensions [d0, d0 + chunk) into a stage; what lies
// outside the map becomes zero. All loaders.
template <class S, bool kPlanes, int kBytes, class Loaders, class N>
SFRS_DEVICE void load_tile(const FeatureMap& x, const N& n, const Group& g, int begin, int count, int d0,
                           const Panels<S>& to) {
  constexpr int unit = kBytes / (int)sizeof(S);
  const S* image = (const S*)x.data + g.image * x.stride_b;
  int left = n.dim - d0 < n.chunk ? n.dim - d0 : n.chunk;
  // What is not valid is not read.
  auto copy = [](S* shared, const S* global, bool valid) {
    if constexpr (kBytes >= 4)
      copy_async<kBytes>(shared, global, valid);
    else
      *shared = valid ? *global : S{};
  };
  if constexpr (kPlanes) {  // a thread copies the same positions of every so many dimensions
    constexpr int loader_bits = log2_of(32 * Loaders::kCount);
    int thread = Loaders::thread(), bits = n.position_bits - log2_of(unit), step_bits = loader_bits - bits;
    int p = (thread & ((1 << bits) - 1)) * unit, d = thread >> bits, step = 1 << step_bits;
    int end = p < count ? left : 0, passes = (n.chunk - d + step - 1) >> step_bits;
    const S* from = image + (p < count ? g.offset(x, begin + p) : 0) + (d0 + d) * x.stride_d;
    int64_t further = step * x.stride_d;
    S* shared = to.at(d, p);
    SFRS_UNROLL_BY(N::kOverlaps ? 4 : 8)
    for (int pass = 0; pass < passes; ++pass, d += step, from += further) {
      copy(shared, from, d < end);
      if (step % 8 == 0)  // such rows have the same swizzle
        shared += step * to.row_bytes / (int)sizeof(S);
      else
        shared = to.at(d + step, p);
    }
  } else {  // a warp copies features; where they lie, its lanes find out beforehand, one each
    constexpr int warps = Loaders::kCount;
    int warp = Loaders::warp(), lane = lane_of_thread(), mine = warp + warps * (lane & 15);
    const S* row = image + (mine < count ? g.offset(x, begin + mine) : 0) + d0;
    for (int d = lane * unit; d - lane * unit < n.chunk; d += 32 * unit) {
      SFRS_UNROLL_BY(4)
      for (int i = 0; i < n.positions / warps; ++i) {
        int p = warp + warps * i;
        const S* from = image + __shfl_sync(kAllLanes, (int64_t)(row - image), i) + d;
        if (d < n.chunk) copy(to.at(p, d), from, p < count && d < left);
      }
    }
  }
}

}  // namespace sfrs::cuda
