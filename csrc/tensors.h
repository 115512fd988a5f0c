// Plain-pointer views that the torch glue hands to the kernels. No torch header below this line.
#pragma once

#include <cstdint>

namespace sfrs {

// Storage types. Kernels accumulate in float, and in double for f64: the "accumulation type" of a view.
enum class DType { f32, f64, bf16, f16 };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Local features [B, D, H, W]; tokens [B, N, D] are a map with H = 1. Strides count elements.
// Either stride_w == 1 (planes: NCHW and its crops) or stride_d == 1 (channels_last, tokens).
struct FeatureMap {
  void* data;
  DType dtype;
  int64_t batch, dim, height, width;
  int64_t stride_b, stride_d, stride_h, stride_w;

  int64_t positions() const { return height * width; }
};

// Runs task(context, i) for i in [0, tasks), each i exactly once, possibly at the same time.
struct Parallel {
  int threads;
  void (*run)(int64_t tasks, void (*task)(void* context, int64_t i), void* context);

  template <class F>
  void each(int64_t tasks, const F& f) const {
    run(tasks, [](void* context, int64_t i) { (*static_cast<const F*>(context))(i); }, const_cast<F*>(&f));
  }
};

}  // namespace sfrs
