// Launches the forward of the aggregation.
#include "aggregate_forward.cuh"

#include "aggregate_pack.cuh"
#include "arithmetic.h"
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

template <class M>
void aggregate_forward_with(const AggregationForward& f, const Machine& machine) {
  with_size<M>(f.clusters, f.logits(),
               [&](auto size) { run<M, decltype(size)::kClusterTiles, decltype(size)::kLanes>(f, machine); });
}

#ifdef SFRS_MATMUL
template void aggregate_forward_with<SFRS_MATMUL>(const AggregationForward&, const Machine&);
#else
#define SFRS_ELSEWHERE(...) \
  extern template void aggregate_forward_with<Matmul<__VA_ARGS__>>(const AggregationForward&, const Machine&);
SFRS_ARITHMETICS(SFRS_ELSEWHERE)

void aggregate_forward(const AggregationForward& f, const Machine& machine) {
  if (f.x.batch == 0) return;
  check_limits(f);
  with_arithmetic(f.x.dtype, f.tf32,
                  [&](auto matmul) { aggregate_forward_with<decltype(matmul)>(f, machine); });
}
#endif

}  // namespace sfrs::cuda
