// Launches the forward of the aggregation.
#include "aggregate_forward.cuh"

#include "aggregate_pack.cuh"
#include "aggregate_units.cuh"
#include "arithmetic.h"
#include "kernels.h"

namespace sfrs::cuda {
namespace {

template <class M, class Shape>
void run(ForwardParameters<typename M::Sum>& p, const Machine& machine) {
  using S = typename M::Storage;
  using T = typename M::Sum;
  const AggregationForward& f = p.f;
  p.n.by_position = f.mask || f.saved_inv_norm || f.logits_given;
  const Tiling& n = p.n;
  p.norms = f.intra_norm || f.l2_norm || f.saved_scale;
  p.finish_in_block = kFinishesInBlock<M, Shape::kClusterTiles> && n.splits == 1 &&
                      (n.chunks == 1 || !p.norms) && four_together<S, T>(p);
  if (!p.finish_in_block) {
    p.sums = machine.scratch<T>((int64_t)n.units * n.clusters * n.sums_dim());
    p.masses = machine.scratch<T>((int64_t)n.units * n.clusters);
    if (p.norms) {
      p.squares = machine.scratch<T>(n.groups * n.clusters);
      p.arrivals = machine.scratch<int>(n.groups);
    }
  }
  if (f.weight && !n.weight_resident) p.weight_cores = pack_weights_on<S, T>(machine, n, f.weight);
  dim3 grid((unsigned)n.blocks, (unsigned)n.chunks);
  if (f.x.stride_w == 1)
    launch(machine, aggregate_forward_kernel<M, Shape, true>, grid, Shape::kThreadsOfBlock, n.shared, p);
  else
    launch(machine, aggregate_forward_kernel<M, Shape, false>, grid, Shape::kThreadsOfBlock, n.shared, p);
  if (p.finish_in_block) return;
  dim3 rows((unsigned)(n.groups * n.clusters));
  launch(machine, add_units<S, T>, rows, kThreads, kWarps * (int64_t)sizeof(T), p);
}

}  // namespace

template <class M>
void aggregate_forward_with(const AggregationForward& f, const Machine& machine) {
  ForwardParameters<typename M::Sum> p{};
  p.f = f;
  p.x = f.x;
  if (f.parts == 1) flatten_rows(&p.x);
  with_size<M, false>(f, p.x, machine, [&](auto size, const Tiling& n) {
    p.n = n;
    run<M, decltype(size)>(p, machine);
  });
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
