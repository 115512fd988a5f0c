// Torch tensors -> the plain-pointer convolution, see csrc/convolution.h and csrc/glue.h.
#pragma once

#include "convolution.h"
#include "glue.h"

namespace sfrs::glue {

template <class Backend>
Tensor conv3x3_weight(Tensor weight) {
  Backend backend(weight);
  STD_TORCH_CHECK(weight.dim() == 4, "sfrs_ext: weight is not [O, C, 3, 3]");
  Arguments arguments(weight);
  ConvolutionWeight f{nullptr, weight.size(0), weight.size(1), nullptr};
  f.weight =
      (const float*)arguments.read(weight, {f.out_channels, f.channels, 3, 3}, ScalarType::Float, "weight");
  Tensor packed =
      allocate(weight, {kWinograd, packed_columns(f.out_channels), f.channels}, ScalarType::Float);
  f.packed = (float*)packed.mutable_data_ptr();
  backend.pack_convolution(f);
  return packed;
}

// A channels_last map; strides written out, as torch may name those of dimensions of size one otherwise.
inline FeatureMap channels_last_map(void* data, int64_t batch, int64_t dim, int64_t height, int64_t width) {
  return {data, DType::f32, batch, dim, height, width, height * width * dim, 1, width * dim, dim};
}

template <class Backend>
Tensor conv3x3(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor packed, bool relu) {
  Backend backend(x);
  if (!packed) packed = conv3x3_weight<Backend>(weight);
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == ScalarType::Float,
                  "sfrs_ext: x is not [B, C, H, W] in float32");
  STD_TORCH_CHECK(weight.dim() == 4, "sfrs_ext: weight is not [O, C, 3, 3]");
  int64_t out_channels = weight.size(0);
  int64_t batch = x.size(0), dim = x.size(1), height = x.size(2), width = x.size(3);
  Arguments arguments(x);
  // Contiguous with the features last: a convolution reads a channels_last map in place.
  Tensor rows = torch::stable::transpose(torch::stable::transpose(x, 1, 2), 2, 3);
  Tensor y = allocate(x, {batch, out_channels, height, width}, ScalarType::Float, MemoryFormat::ChannelsLast);
  Convolution f{};
  f.x = channels_last_map(
      const_cast<void*>(arguments.read(rows, {batch, height, width, dim}, ScalarType::Float, "x")), batch,
      dim, height, width);
  f.packed = (const float*)arguments.read(packed, {kWinograd, packed_columns(out_channels), dim},
                                          ScalarType::Float, "packed");
  f.bias = (const float*)arguments.read(bias, {out_channels}, ScalarType::Float, "bias");
  f.relu = relu;
  f.y = channels_last_map(y.mutable_data_ptr(), batch, out_channels, height, width);
  backend.convolve(f);
  return y;
}

}  // namespace sfrs::glue
