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

// Features last and contiguous: a channels_last map is read in place.
inline Tensor pixels_of(const Tensor& map) {
  return torch::stable::transpose(torch::stable::transpose(map, 1, 2), 2, 3);
}

// Exact where packed is of this weight, see kNarrowestPanel; of another, or of kernels with other panels, the
// first eight outputs of the first two channels hardly ever agree.
inline bool begins_with(const float* packed, int64_t panel, const Tensor& weight) {
  if (weight.numel() == 0) return true;
  const float* filters = (const float*)weight.const_data_ptr();
  for (int64_t c = 0; c < 2 && c < weight.size(1); ++c)
    for (int64_t o = 0; o < kNarrowestPanel && o < weight.size(0); ++o) {
      float a = packed[c * panel + o], b = filters[o * weight.stride(0) + c * weight.stride(1)];
      if (a != b && (a == a || b == b)) return false;
    }
  return true;
}

template <class Backend>
std::tuple<Tensor, Tensor> conv3x3(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor packed,
                                   bool relu, bool save) {
  Backend backend(x);
  bool given = packed.has_value();
  if (!given) packed = conv3x3_weight<Backend>(weight);
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == ScalarType::Float,
                  "sfrs_ext: x is not [B, C, H, W] in float32");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == ScalarType::Float,
                  "sfrs_ext: weight is not [O, C, 3, 3] in float32");
  int64_t out_channels = weight.size(0);
  int64_t batch = x.size(0), dim = x.size(1), height = x.size(2), width = x.size(3);
  Arguments arguments(x);
  Tensor y = allocate(x, {batch, out_channels, height, width}, ScalarType::Float, MemoryFormat::ChannelsLast);
  Tensor passes =
      allocate(x, {save && relu ? batch : 0, height, width, bytes_of_bits(out_channels)}, ScalarType::Byte);
  Convolution f{};
  f.x = channels_last_map(
      const_cast<void*>(arguments.read(pixels_of(x), {batch, height, width, dim}, ScalarType::Float, "x")),
      batch, dim, height, width);
  f.packed = (const float*)arguments.read(packed, {kWinograd, packed_columns(out_channels), dim},
                                          ScalarType::Float, "packed");
  STD_TORCH_CHECK(
      !given || begins_with(f.packed, backend.packed_panel(), weight),
      "conv3x3: packed was made of another weight, of other values of this one or by other kernels; expected "
      "conv3x3_weight(weight)");
  f.bias = (const float*)arguments.read(bias, {out_channels}, ScalarType::Float, "bias");
  f.relu = relu;
  f.y = channels_last_map(y.mutable_data_ptr(), batch, out_channels, height, width);
  if (save && relu) f.passes = (uint8_t*)passes.mutable_data_ptr();
  backend.convolve(f);
  return {y, passes};
}

template <class Backend>
Tensor conv3x3_relu_backward(Tensor grad, Tensor passes) {
  Backend backend(grad);
  STD_TORCH_CHECK(grad.dim() == 4, "sfrs_ext: grad is not [B, O, H, W]");
  int64_t batch = grad.size(0), out_channels = grad.size(1), height = grad.size(2), width = grad.size(3);
  Arguments arguments(grad);
  Tensor masked =
      allocate(grad, {batch, out_channels, height, width}, ScalarType::Float, MemoryFormat::ChannelsLast);
  backend.mask_gradient(
      {(const float*)arguments.read(pixels_of(grad), {batch, height, width, out_channels}, ScalarType::Float,
                                    "grad"),
       (const uint8_t*)arguments.read(passes, {batch, height, width, bytes_of_bits(out_channels)},
                                      ScalarType::Byte, "passes"),
       batch * height * width, out_channels, (float*)masked.mutable_data_ptr()});
  return masked;
}

}  // namespace sfrs::glue
