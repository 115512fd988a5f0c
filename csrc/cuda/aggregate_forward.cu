// Launches the forward of the aggregation.
#include "aggregate_forward.cuh"

#include "aggregate_pack.cuh"
#include "kernels.h"

namespace sfrs::cuda {
namespace {

template <class M, int kClusterTiles, int kLanes>
void run(const AggregationForward& f, const Machine& machine) {
  using S = typename M::Storage;
  using T = typename M::Sum;
  ForwardParameters<T> p{};
  p.f = f;
  p.x = f.x;
  if (f.regions == 1) flatten_rows(&p.x);
  p.n = make_tiling<M>(f, p.x, machine, kClusterTiles, false);
  const Tiling& n = p.n;
  bool norms = f.intra_norm || f.l2_norm || f.saved_scale;
  p.zero = f.centroids ? (const T*)f.centroids : f.weight ? (const T*)f.weight : (const T*)f.logits_given;
  p.finish_in_block = kFinishesInBlock<M, kClusterTiles> && n.splits == 1 && (n.chunks == 1 || !norms);
  if (!p.finish_in_block) {
    p.sums = machine.scratch<T>((int64_t)n.units * n.clusters * n.dim);
    p.masses = machine.scratch<T>((int64_t)n.units * n.clusters);
    p.squares = machine.scratch<T>(n.groups * n.clusters);
  }
  if (f.weight && !n.weight_resident) p.weight_cores = pack_weights_on<S, T>(machine, n, f.weight);
  dim3 grid((unsigned)n.blocks, (unsigned)n.chunks);
  if (f.x.stride_w == 1)
    launch(machine, aggregate_forward_kernel<M, kClusterTiles, kLanes, true>, grid, kThreads, n.shared, p);
  else
    launch(machine, aggregate_forward_kernel<M, kClusterTiles, kLanes, false>, grid, kThreads, n.shared, p);
  if (p.finish_in_block) return;
  dim3 rows((unsigned)n.groups, (unsigned)n.clusters);
  launch(machine, add_units<S, T>, rows, kThreads, kWarps * (int64_t)sizeof(T), p);
  if (norms) launch(machine, normalize_units<S, T>, rows, kThreads, 0, p);
}

}  // namespace

// The fewer clusters, the fewer registers; 64 logits are two per lane in the softmax.
template <class M>
void aggregate_forward_with(const AggregationForward& f, const Machine& machine) {
  if constexpr (sizeof(typename M::Storage) == 8) {
    run<M, 2, kMaxLogits64 / 32>(f, machine);
  } else {
    if (f.logits() > 64) return run<M, 4, kMaxLogits / 32>(f, machine);
    if (f.clusters > 32) return run<M, 4, 2>(f, machine);
    run<M, 2, 2>(f, machine);
  }
}

#ifdef SFRS_MATMUL  // one arithmetic per object file, so that they compile side by side
template void aggregate_forward_with<SFRS_MATMUL>(const AggregationForward&, const Machine&);
#else
#ifndef SFRS_EMULATE
extern template void aggregate_forward_with<Matmul<bf16> >(const AggregationForward&, const Machine&);
extern template void aggregate_forward_with<Matmul<f16> >(const AggregationForward&, const Machine&);
extern template void aggregate_forward_with<Matmul<double> >(const AggregationForward&, const Machine&);
extern template void aggregate_forward_with<Matmul<float, true> >(const AggregationForward&, const Machine&);
extern template void aggregate_forward_with<Matmul<float, false> >(const AggregationForward&, const Machine&);
#endif

void aggregate_forward(const AggregationForward& f, const Machine& machine) {
  if (f.x.batch == 0) return;
  check_limits(f);
  switch (f.x.dtype) {
    case DType::bf16: return aggregate_forward_with<Matmul<bf16> >(f, machine);
    case DType::f16: return aggregate_forward_with<Matmul<f16> >(f, machine);
    case DType::f64: return aggregate_forward_with<Matmul<double> >(f, machine);
    case DType::f32:
      if (f.tf32) return aggregate_forward_with<Matmul<float, true> >(f, machine);
      return aggregate_forward_with<Matmul<float, false> >(f, machine);
  }
}
#endif

}  // namespace sfrs::cuda
