// 3x3 convolution by Winograd's F(2x2, 3x3), see csrc/convolution.h. Idea: a block of tiles is transformed
// once, multiplied with all weights, transformed back and written; nothing between leaves the core's caches.
// Vectors run over channels. Every output depends on its own tile only and is added up in one order, so
// neither the blocks nor the number of threads change a bit.
// Floor: 8 C O flops per output against 18 C O of the direct form.
#pragma once

#include "gemm.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {

constexpr int64_t kChunk = 64;  // channels of a tile that lie side by side

// Where U and M of a block lie: U[k][chunk][row][kChunk], M[k][panel][row][kPanel].
struct WinogradBlock {
  int64_t channels, columns, rows, u_plane, m_plane;

  WinogradBlock(int64_t channels, int64_t out_channels, int64_t rows)
      : channels(channels),
        columns(round_up(out_channels, kPanel<float>)),
        rows(rows),
        // The odd lines keep the 16 planes out of one another's cache sets.
        u_plane(round_up(channels, kChunk) * rows + kOddLine),
        m_plane(columns * rows + kOddLine) {}
  int64_t bytes() const {
    return Scratch::bytes<float>(kWinograd * u_plane) + Scratch::bytes<float>(kWinograd * m_plane);
  }

 private:
  static constexpr int64_t kOddLine = 16;
};

// Tiles of 2x2 outputs of all images, numbered row by row.
struct WinogradTiles {
  int64_t down, across, count;

  explicit WinogradTiles(const FeatureMap& y)
      : down((y.height + 1) / 2), across((y.width + 1) / 2), count(y.batch * down * across) {}
};
struct WinogradTile {
  int64_t image, top, left;  // of the outputs

  WinogradTile(const WinogradTiles& tiles, int64_t i)
      : image(i / (tiles.down * tiles.across)),
        top(i / tiles.across % tiles.down * 2),
        left(i % tiles.across * 2) {}
};

SFRS_INLINE float* at(const FeatureMap& map, int64_t image, int64_t h, int64_t w) {
  return (float*)map.data + image * map.stride_b + h * map.stride_h + w * map.stride_w;
}

// The 16 pixels of a tile's patch, `zeros` outside the image.
SFRS_INLINE void patch_pixels(const FeatureMap& x, const WinogradTile& tile, const float* zeros,
                              const float** pixels) {
  for (int i = 0; i < 4; ++i) {
    int64_t h = tile.top - 1 + i;
    for (int j = 0; j < 4; ++j) {
      int64_t w = tile.left - 1 + j;
      bool inside = h >= 0 && h < x.height && w >= 0 && w < x.width;
      pixels[4 * i + j] = inside ? at(x, tile.image, h, w) : zeros;
    }
  }
}

// One vector of U from the 16 pixels that `get` reads; u[k * plane].
template <class Get>
SFRS_INLINE void transform_input(const Get& get, float* u, int64_t plane) {
  F32 rows[4][4];
  auto across = [&](int i) {
    F32 d0 = get(4 * i), d1 = get(4 * i + 1), d2 = get(4 * i + 2), d3 = get(4 * i + 3);
    rows[i][0] = d0 - d2, rows[i][1] = d1 + d2, rows[i][2] = d2 - d1, rows[i][3] = d1 - d3;
  };
  auto put = [&](int i, int j, F32 value) { store(u + (4 * i + j) * plane, value); };
  across(0), across(2);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) put(0, j, rows[0][j] - rows[2][j]);
  across(1);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) put(1, j, rows[1][j] + rows[2][j]), put(2, j, rows[2][j] - rows[1][j]);
  across(3);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) put(3, j, rows[1][j] - rows[3][j]);
}

SFRS_NOINLINE void transform_patch(const WinogradBlock& block, const float* const* pixels, float* u) {
  int64_t c = 0;
  auto target = [&] { return u + c / kChunk * block.rows * kChunk + c % kChunk; };
  for (; c + kLanes<float> <= block.channels; c += kLanes<float>)
    transform_input([&](int k) { return load(pixels[k] + c); }, target(), block.u_plane);
  if (c < block.channels)
    transform_input([&](int k) { return load_part(pixels[k] + c, block.channels - c); }, target(),
                    block.u_plane);
}

// M[k] = U[k] V[k]
SFRS_INLINE void multiply_planes(const WinogradBlock& block, const float* u, const float* packed, float* m) {
  constexpr int64_t step = kDepth<float>;
  static_assert(step % kChunk == 0 && kWidestPanel % kPanel<float> == 0 &&
                kPanel<float> % kNarrowestPanel == 0);
  Tiles tiles = {block.rows / kTileRows, kTileRows * kChunk, 0, kTileRows * kPanel<float>};
  for (int k = 0; k < kWinograd; ++k) {
    const float* right = packed + k * block.columns * block.channels;
    for (int64_t c = 0; c < block.channels; c += step) {
      int64_t depth = smaller(step, block.channels - c), whole = depth / kChunk * kChunk;
      for (int64_t o = 0; o < block.columns; o += kPanel<float>) {
        const float* panel = right + o * block.channels + c * kPanel<float>;
        const float* left = u + k * block.u_plane + c * block.rows;
        float* out = m + k * block.m_plane + o * block.rows;
        if (whole)
          multiply<kChunk, 1>(kTileVecs, whole / kChunk, kChunk, left, block.rows * kChunk, panel,
                              kPanel<float>, out, kPanel<float>, c > 0, 0, tiles);
        if (depth > whole)
          multiply<kChunk, 1>(kTileVecs, 1, depth - whole, left + whole * block.rows, 0,
                              panel + whole * kPanel<float>, kPanel<float>, out, kPanel<float>, c + whole > 0,
                              0, tiles);
      }
    }
  }
}

// The four outputs of one vector of M, y[2 * row + column].
SFRS_INLINE void transform_output(const float* m, int64_t plane, F32 y[4]) {
  auto across = [&](int i, F32 sums[2]) {
    F32 m0 = load(m + 4 * i * plane), m1 = load(m + (4 * i + 1) * plane);
    F32 m2 = load(m + (4 * i + 2) * plane), m3 = load(m + (4 * i + 3) * plane);
    sums[0] = m0 + m1 + m2, sums[1] = m1 - m2 - m3;
  };
  F32 rows[4][2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) across(i, rows[i]);
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    y[j] = rows[0][j] + rows[1][j] + rows[2][j];
    y[2 + j] = rows[1][j] - rows[2][j] - rows[3][j];
  }
}

SFRS_INLINE void pack_bits(const float* y, int64_t count, uint8_t* bits) {
  for (int64_t o = 0; o < count; o += 8) {
    unsigned byte = 0;
    for (int64_t i = 0; i < smaller<int64_t>(8, count - o); ++i) byte |= (unsigned)!(y[o + i] <= 0) << i;
    bits[o / 8] = (uint8_t)byte;
  }
}

SFRS_NOINLINE void write_tile(const Convolution& f, const WinogradBlock& block, const WinogradTile& tile,
                              const float* bias, const float* m) {
  bool inside[4];
  float* to[4];
  for (int k = 0; k < 4; ++k) {
    int64_t h = tile.top + k / 2, w = tile.left + k % 2;
    inside[k] = h < f.y.height && w < f.y.width;
    to[k] = inside[k] ? at(f.y, tile.image, h, w) : nullptr;
  }
  for (int64_t o = 0; o < f.y.dim; o += kLanes<float>) {
    F32 y[4];
    transform_output(m + o / kPanel<float> * block.rows * kPanel<float> + o % kPanel<float>, block.m_plane,
                     y);
    F32 add = load(bias + o);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      F32 value = y[k] + add;
      if (f.relu) value = value < 0.0f ? F32{} : value;
      if (inside[k]) store_n(to[k] + o, value, f.y.dim - o);
    }
  }
  if (!f.passes) return;
  for (int k = 0; k < 4; ++k)
    if (inside[k])
      pack_bits(to[k], f.y.dim, f.passes + (to[k] - (float*)f.y.data) / f.y.dim * bytes_of_bits(f.y.dim));
}

// Rows of a block, about the same in all: many where the weights, which every block reads, come from afar.
SFRS_INLINE int64_t winograd_rows(const Convolution& f, int64_t tiles, int threads) {
  int64_t weights = kWinograd * f.x.dim * f.y.dim * (int64_t)sizeof(float);
  int64_t most = weights > 8 * 1024 * 1024 ? 96 : 48;
  int64_t blocks = round_up((tiles + most - 1) / most, smaller<int64_t>(threads, tiles));
  return round_up((tiles + blocks - 1) / blocks, kTileRows);
}

inline void convolve(const Convolution& f, const Parallel& parallel) {
  WinogradTiles tiles(f.y);
  if (tiles.count == 0 || f.y.dim == 0) return;
  WinogradBlock block(f.x.dim, f.y.dim, winograd_rows(f, tiles.count, parallel.threads));
  parallel.each((tiles.count + block.rows - 1) / block.rows, [&](int64_t task) {
    Scratch scratch(block.bytes() + Scratch::bytes<float>(block.columns) + Scratch::bytes<float>(f.x.dim));
    float* bias = scratch.zeros<float>(block.columns);
    if (f.bias) __builtin_memcpy(bias, f.bias, f.y.dim * sizeof(float));
    const float* zeros = scratch.zeros<float>(f.x.dim);
    float* u = scratch.take<float>(kWinograd * block.u_plane);
    float* m = scratch.take<float>(kWinograd * block.m_plane);
    int64_t first = task * block.rows;
    const float* pixels[kWinograd];
    for (int64_t r = 0; r < block.rows; ++r) {
      if (first + r < tiles.count)
        patch_pixels(f.x, WinogradTile(tiles, first + r), zeros, pixels);
      else
        for (const float*& pixel : pixels) pixel = zeros;
      transform_patch(block, pixels, u + r * kChunk);
    }
    if (f.x.dim == 0) __builtin_memset(m, 0, kWinograd * block.m_plane * sizeof(float));
    multiply_planes(block, u, f.packed, m);
    for (int64_t r = 0; r < block.rows && first + r < tiles.count; ++r)
      write_tile(f, block, WinogradTile(tiles, first + r), bias, m + r * kPanel<float>);
  });
}

inline void mask_gradient(const ConvolutionRelu& f, const Parallel& parallel) {
  constexpr int64_t pixels = 256;  // of a task
  int64_t bytes = bytes_of_bits(f.out_channels);
  parallel.each((f.pixels + pixels - 1) / pixels, [&](int64_t task) {
    for (int64_t p = task * pixels; p < smaller((task + 1) * pixels, f.pixels); ++p) {
      const float* grad = f.grad + p * f.out_channels;
      float* masked = f.masked + p * f.out_channels;
      const uint8_t* bits = f.passes + p * bytes;
      int64_t o = 0;
      for (; o + 8 <= f.out_channels; o += 8)
        for (int i = 0; i < 8; ++i) masked[o + i] = bits[o / 8] >> i & 1 ? grad[o + i] : 0;
      for (; o < f.out_channels; ++o) masked[o] = bits[o / 8] >> o % 8 & 1 ? grad[o] : 0;
    }
  });
}

// V of one filter, in double: rounded once.
SFRS_INLINE void transform_filter(const float* g, float* packed, int64_t plane) {
  double rows[4][3];
  for (int j = 0; j < 3; ++j) {
    double g0 = g[j], g1 = g[3 + j], g2 = g[6 + j];
    rows[0][j] = g0, rows[1][j] = (g0 + g1 + g2) / 2, rows[2][j] = (g0 - g1 + g2) / 2, rows[3][j] = g2;
  }
  for (int i = 0; i < 4; ++i) {
    double g0 = rows[i][0], g1 = rows[i][1], g2 = rows[i][2];
    double v[4] = {g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2};
    for (int j = 0; j < 4; ++j) packed[(4 * i + j) * plane] = (float)v[j];
  }
}

inline void pack_convolution(const ConvolutionWeight& f, const Parallel& parallel) {
  int64_t columns = round_up(f.out_channels, kPanel<float>), plane = columns * f.channels;
  int64_t rest = packed_columns(f.out_channels) - columns;  // no kernel reads it; the tensor has it
  __builtin_memset(f.packed + kWinograd * plane, 0, kWinograd * rest * f.channels * sizeof(float));
  parallel.each(columns / kPanel<float>, [&](int64_t panel) {
    for (int64_t c = 0; c < f.channels; ++c) {
      float* to = f.packed + (panel * f.channels + c) * kPanel<float>;
      for (int64_t i = 0; i < kPanel<float>; ++i) {
        int64_t o = panel * kPanel<float> + i;
        const float nothing[9] = {};
        transform_filter(o < f.out_channels ? f.weight + (o * f.channels + c) * 9 : nothing, to + i, plane);
      }
    }
  });
}

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
