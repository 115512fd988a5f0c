// Torch tensors -> the plain-pointer nearest neighbours, see csrc/nearest.h and csrc/glue.h.
#pragma once

#include "glue.h"
#include "nearest.h"

namespace sfrs::glue {

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> nearest(Tensor x, Tensor y, int64_t k, bool own) {
  Backend backend(x);
  STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2, "sfrs_ext: x and y are not [M, D] and [N, D]");
  STD_TORCH_CHECK(y.size(0) < INT32_MAX, "sfrs_ext: y has 2^31 rows or more");
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
            (float*)similarity.mutable_data_ptr(),
            (int64_t*)index.mutable_data_ptr(),
            (float*)least.mutable_data_ptr()};
  backend.nearest(f);
  return {similarity, index, least};
}

}  // namespace sfrs::glue
