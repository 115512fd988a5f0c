// The arithmetics that kernels exist in, and the choice between them. Launchers are templates of a Matmul
// whose definitions are compiled once per arithmetic (SFRS_MATMUL), side by side; the files that choose only
// declare them: SFRS_ARITHMETICS(SFRS_ELSEWHERE), where SFRS_ELSEWHERE(...) is an extern template of
// Matmul<__VA_ARGS__>.
#pragma once

#include "matrix.cuh"

#ifdef SFRS_EMULATE  // one file holds all
#define SFRS_ARITHMETICS(DO)
#else
#define SFRS_ARITHMETICS(DO) DO(bf16) DO(f16) DO(double) DO(float, true) DO(float, false)
#endif

namespace sfrs::cuda {

// Calls work(Matmul<...>()) with the arithmetic of a storage type.
template <class F>
void with_arithmetic([[maybe_unused]] DType dtype, [[maybe_unused]] bool tf32, const F& work) {
#ifdef SFRS_ONLY  // a check that is compiled for one, and calls no other
  return work(SFRS_ONLY());
#else
  switch (dtype) {
    case DType::bf16: return work(Matmul<bf16>());
    case DType::f16: return work(Matmul<f16>());
    case DType::f64: return work(Matmul<double>());
    case DType::f32: return tf32 ? work(Matmul<float, true>()) : work(Matmul<float, false>());
  }
#endif
}

}  // namespace sfrs::cuda
