// Contract of the 3x3 convolution, stride 1, zero padding 1, by Winograd's minimal filtering F(2x2, 3x3)
// (Lavin & Gray, CVPR 2016): float32, features contiguous (channels_last).
//
//   U = B^T d B of every 4x4 patch d,  V = G g G^T of every filter g,  M[k] = U[k] V[k] for k < 16,  y = A^T
//   M A
//
//         1  0 -1  0          1    0    0
//   B^T = 0  1  1  0     G = 1/2  1/2  1/2    A^T = 1  1  1  0
//         0 -1  1  0         1/2 -1/2  1/2          0  1 -1 -1
//         0  1  0 -1          0    0    1
//
// 16 products for four outputs instead of 36. What is not finite in a patch may turn all four outputs to NaN.
#pragma once

#include "tensors.h"

namespace sfrs {

constexpr int kWinograd = 16;  // products per tile of 2x2 outputs, element 4 i + j of the 4x4 matrices

// V fills packed[kWinograd][ceil(O / panel)][C][panel]; the panel's width is the kernels' own and divides
// this.
constexpr int64_t kWidestPanel = 64;
// Divides every panel's width. So packed begins with V[0] of the first channel, which is g[0][0] unchanged,
// of this many outputs: enough to tell the packed weights of another filter.
constexpr int64_t kNarrowestPanel = 8;
inline int64_t packed_columns(int64_t out_channels) {
  return (out_channels + kWidestPanel - 1) / kWidestPanel * kWidestPanel;
}

struct ConvolutionWeight {
  const float* weight;  // [O, C, 3, 3], contiguous
  int64_t out_channels, channels;
  float* packed;  // [kWinograd, packed_columns(O), C]; opaque
};

struct Convolution {
  FeatureMap x;         // [B, C, H, W], stride_d == 1
  const float* packed;  // of the same kernels
  const float* bias;    // [O] or null
  bool relu;            // NaN stays NaN
  FeatureMap y;         // [B, O, H, W], stride_d == 1
  uint8_t* passes;      // where the ReLU lets gradients through, one bit each, or null: see below
};

// One bit for every output, bit o % 8 of byte o / 8: [B, H, W, bytes].
inline int64_t bytes_of_bits(int64_t out_channels) { return (out_channels + 7) / 8; }

// The gradient of the ReLU, pixel by pixel.
struct ConvolutionRelu {
  const float* grad;      // [pixels, O]
  const uint8_t* passes;  // [pixels, bytes]
  int64_t pixels, out_channels;
  float* masked;  // [pixels, O]
};

}  // namespace sfrs
