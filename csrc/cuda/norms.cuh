// Norms that divide.
#pragma once

#include "../aggregation.h"
#include "device.cuh"

namespace sfrs::cuda {

// 1 / max(|v|, eps) from the square of |v|; NaN stays NaN.
template <class T>
SFRS_DEVICE T inverse_norm(T square) {
  T norm = sqrt(square);
  return 1 / (norm < (T)kEps ? (T)kEps : norm);
}
// False where the bound eps was the larger one, which ends the norm's own gradient.
template <class T>
SFRS_DEVICE bool norm_counts(T inverse) {
  return inverse < 1 / (T)kEps;
}

}  // namespace sfrs::cuda
