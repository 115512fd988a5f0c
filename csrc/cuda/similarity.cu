// Launches region similarity over per-query lists, and all pairs of a single query, which are a list.
#include "kernels.h"
#include "launch.h"
#include "similarity.h"
#include "similarity_lists_backward.cuh"

namespace sfrs::cuda {

namespace {

// Calls f with a value of the storage type.
template <class F>
void with_storage(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::f64: return f(double{});
    case DType::bf16: return f(bf16{});
    case DType::f16: return f(f16{});
  }
}
int64_t bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

bool aligned(const RegionSimilarity& f) {
  int64_t row = f.dim * bytes_of(f.dtype);
  return aligned_rows(f.query, row) && aligned_rows(f.quarters, row);
}

// d_i and n_r^2 of every pair and cluster.
void launch_dots(const RegionSimilarity& f, const Machine& machine, double* dots) {
  DotsParameters p{f.query, f.quarters, dots, f.gallery, f.clusters, f.dim, aligned(f)};
  const int64_t warps = kDotsThreads / 32, along = divide_up(f.clusters, warps), most = 65535;
  dim3 blocks = grid_of(f.queries * f.gallery);
  blocks.y = (unsigned)(along < most ? along : most);
  with_storage(f.dtype,
               [&](auto s) { launch(machine, similarity_dots<decltype(s)>, blocks, kDotsThreads, 0, p); });
}

}  // namespace

void similarity_lists_forward(const RegionSimilarityForward& f, const Machine& machine) {
  const int64_t pairs = f.queries * f.gallery;
  if (pairs == 0) return;
  auto* dots = f.all_pairs ? nullptr : (double*)f.saved_dots;
  if (!dots) dots = machine.scratch<double>(pairs * f.clusters * kDots);
  launch_dots(f, machine, dots);
  CombineParameters p{dots, f.similarity, f.clusters, cancelled_below(f.dtype)};
  auto* combine = f.dtype == DType::f64 ? similarity_combine<double> : similarity_combine<float>;
  launch(machine, combine, grid_of(pairs), kRegionThreads, 0, p);
}

void similarity_lists_backward(const RegionSimilarityBackward& f, const Machine& machine) {
  const int64_t pairs = f.queries * f.gallery;
  if (f.queries == 0 || (!f.dquery && !f.dquarters)) return;
  const int64_t wide = f.dtype == DType::f64 ? 8 : 4;
  char* coefficients = nullptr;
  if (pairs > 0) {
    auto* dots = (const double*)f.saved_dots;
    if (f.all_pairs) {
      auto* made = machine.scratch<double>(pairs * f.clusters * kDots);
      launch_dots(f, machine, made);
      dots = made;
    }
    coefficients = machine.scratch<char>(pairs * f.clusters * kCoefficients * wide);
    CoefficientParameters p{f.grad, f.similarity, dots, coefficients, f.clusters, cancelled_below(f.dtype)};
    auto* kernel = f.dtype == DType::f64 ? similarity_coefficients<double> : similarity_coefficients<float>;
    launch(machine, kernel, grid_of(pairs), kRegionThreads, kCoefficientShared, p);
  }

  const int64_t row_bytes = f.dim * bytes_of(f.dtype), slices = divide_up(row_bytes, 512);
  int ways = 1;
  while (ways < kGradientWarps && ways < f.gallery) ways *= 2;
  ListsBackwardParameters p{
      f.query,      f.quarters,
      coefficients, f.dquery,
      f.dquarters,  f.queries * f.clusters,
      f.gallery,    f.clusters,
      f.dim,        slices,
      ways,         aligned(f) && aligned_rows(f.dquery, row_bytes) && aligned_rows(f.dquarters, row_bytes)};
  const int64_t blocks = divide_up(p.rows * slices * ways, kGradientWarps);
  with_storage(f.dtype, [&](auto s) {
    using S = decltype(s);
    launch(machine, similarity_gradients<S>, grid_of(blocks), kGradientThreads, kListsBackwardShared<S>, p);
  });
}

void similarity_forward(const RegionSimilarityForward& f, const Machine& machine) {
  if (f.all_pairs && f.queries > 1)
    similarity_all_pairs_forward(f, machine);
  else
    similarity_lists_forward(f, machine);
}
void similarity_backward(const RegionSimilarityBackward& f, const Machine& machine) {
  if (f.all_pairs && f.queries != 1)
    similarity_all_pairs_backward(f, machine);
  else
    similarity_lists_backward(f, machine);
}

}  // namespace sfrs::cuda
