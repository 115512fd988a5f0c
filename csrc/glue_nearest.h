// Torch tensors -> the plain-pointer nearest neighbours, see csrc/nearest.h and csrc/glue.h.
#pragma once

#include "glue.h"
#include "nearest.h"

namespace sfrs::glue {

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> nearest(Tensor x, Tensor y, int64_t k, bool own, OptionalTensor offsets,
                                           OptionalTensor excluded) {
  Backend backend(x);
  STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2, "sfrs_ext: x and y are not [M, D] and [N, D]");
  STD_TORCH_CHECK(y.size(0) < INT32_MAX, "sfrs_ext: y has 2^31 rows or more");
  STD_TORCH_CHECK(offsets.has_value() == excluded.has_value() && !(own && offsets),
                  "sfrs_ext: offsets and excluded go together, and not with own");
  STD_TORCH_CHECK(k >= 1 && k <= y.size(0), "sfrs_ext: k is not in 1 .. N");
  int64_t rows = x.size(0), gallery = y.size(0), dim = y.size(1);
  Tensor similarity = allocate(x, {rows, k}, ScalarType::Float);
  Tensor index = allocate(x, {rows, k}, ScalarType::Long);
  Tensor least = allocate(x, {rows}, ScalarType::Float);
  Arguments arguments(x);
  Nearest f{(const float*)arguments.read(x, {rows, dim}, ScalarType::Float, "x"),
            (const float*)arguments.read(y, {gallery, dim}, ScalarType::Float, "y"),
            rows,
            gallery,
            dim,
            k,
            own,
            (const int64_t*)arguments.read(offsets, {rows + 1}, ScalarType::Long, "offsets"),
            (const int64_t*)arguments.read(excluded, {excluded ? excluded->numel() : 0}, ScalarType::Long,
                                           "excluded"),
            (float*)similarity.mutable_data_ptr(),
            (int64_t*)index.mutable_data_ptr(),
            (float*)least.mutable_data_ptr()};
  for (int64_t i = 0; f.offsets && i < rows; ++i)
    STD_TORCH_CHECK(
        f.offsets[0] == 0 && f.offsets[i] <= f.offsets[i + 1] && f.offsets[rows] <= excluded->numel(),
        "sfrs_ext: offsets do not cut excluded into lists");
  backend.nearest(f);
  return {similarity, index, least};
}

}  // namespace sfrs::glue
