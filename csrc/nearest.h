// Contract of exact nearest neighbours by inner product: for every row of x the k rows of y with the largest
// products, largest first, among equal ones the lowest row first; and the smallest product with any row.
// float32.
#pragma once

#include <cstdint>

namespace sfrs {

struct Nearest {
  const float* x;  // [M, D], contiguous
  const float* y;  // [N, D], contiguous; N < 2^31
  int64_t rows, gallery, dim, k;
  bool own;                // y is x: the product of a row with itself counts as infinite, and not for `least`
  const int64_t* offsets;  // [M + 1]; null: nothing is excluded. Not together with `own`
  const int64_t* excluded;  // rows of y that do not count for row i: [offsets[i], offsets[i + 1]), ascending
  float* similarity;        // [M, k]
  int64_t* index;           // [M, k]; -1 where fewer than k products are numbers above -infinity
  float* least;             // [M]; infinite if there is no product
};

}  // namespace sfrs
