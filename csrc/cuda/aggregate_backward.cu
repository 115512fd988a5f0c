// Launches the backward of the aggregation.
#include "aggregate_backward.cuh"
#include "aggregate_gradients.cuh"
#include "aggregate_pack.cuh"
#include "arithmetic.h"
#include "kernels.h"

namespace sfrs::cuda {
namespace {

template <class S, class T>
void pass_norms(BackwardParameters<T>* p, const Machine& machine) {
  const AggregationBackward& f = p->f;
  const Tiling& n = p->n;
  int64_t rows = (int64_t)n.groups * n.clusters;
  p->gradient_cores = machine.scratch<unsigned char>(n.groups * p->gradient_bytes());
  p->gradient_scale = machine.scratch<T>(rows);
  p->centroid_gradient = machine.scratch<T>(rows);
  GradientParameters<T> g{f.grad,
                          f.vlad,
                          (const T*)f.saved_scale,
                          (const T*)f.centroids,
                          n.clusters,
                          n.dim,
                          n.cluster_columns,
                          n.padded_dim(),
                          f.intra_norm,
                          f.l2_norm,
                          nullptr,
                          p->gradient_cores,
                          p->gradient_scale,
                          p->centroid_gradient};
  int64_t shared = kWarps * (int64_t)sizeof(double);
  if (f.intra_norm || f.l2_norm) {
    g.dots = machine.scratch<double>(2 * rows);
    dim3 grid((unsigned)n.groups, (unsigned)n.clusters);
    launch(machine, gradient_dots<S, T>, grid, kThreads, shared, g);
  }
  dim3 grid((unsigned)n.groups, (unsigned)n.cluster_columns);
  launch(machine, vlad_gradients<S, T>, grid, kThreads, shared, g);
}

template <class S, class T>
void add_up(const BackwardParameters<T>& p, const Machine& machine) {
  const AggregationBackward& f = p.f;
  const Tiling& n = p.n;
  if (!f.dweight && !f.dbias && !f.dcentroids) return;
  ParameterSums<T> s{p.weight_sums, p.bias_sums,     p.masses,          p.gradient_cores, p.gradient_scale,
                     n.blocks,      n.groups,        n.splits,          n.clusters,       n.logits,
                     n.dim,         n.sums_dim(),    n.cluster_columns, n.padded_dim(),   (T*)f.dweight,
                     (T*)f.dbias,   (T*)f.dcentroids};
  dim3 grid((unsigned)n.logits, (unsigned)((n.dim + kSumColumns - 1) / kSumColumns), f.dcentroids ? 2 : 1);
  launch(machine, add_blocks<S, T>, grid, kThreads, (kWarps * kSumColumns + kWarps) * (int64_t)sizeof(T), s);
}

template <class M, class Shape>
void run(BackwardParameters<typename M::Sum>& p, const Machine& machine) {
  using S = typename M::Storage;
  using T = typename M::Sum;
  const AggregationBackward& f = p.f;
  Tiling& n = p.n;
  n.by_position = f.mask || f.dmask || f.logits_given;
  if (f.dx.data) n.store_bytes = copy_bytes(p.dx, (int)f.parts, sizeof(S));
  if (n.groups == 0) return add_up<S, T>(p, machine);  // zeros
  pass_norms<S, T>(&p, machine);
  if (f.weight && !n.weight_resident) p.weight_cores = pack_weights_on<S, T>(machine, n, f.weight);
  if (f.dcentroids) p.masses = machine.scratch<T>((int64_t)n.units * n.clusters);
  if (f.dweight) p.weight_sums = machine.scratch<T>((int64_t)n.blocks * n.logits * n.sums_dim());
  if (f.dbias) p.bias_sums = machine.scratch<T>((int64_t)n.blocks * n.logits);
  dim3 grid((unsigned)n.blocks, (unsigned)n.chunks);
  if (f.x.stride_w == 1)
    launch(machine, aggregate_backward_kernel<M, Shape, true>, grid, kThreads, n.shared, p);
  else
    launch(machine, aggregate_backward_kernel<M, Shape, false>, grid, kThreads, n.shared, p);
  add_up<S, T>(p, machine);
}

}  // namespace

template <class M>
void aggregate_backward_with(const AggregationBackward& f, const Machine& machine) {
  BackwardParameters<typename M::Sum> p{};
  p.f = f;
  p.x = f.x;
  p.dx = f.dx;
  if (f.parts == 1 && flatten_rows(&p.x)) flatten_rows(&p.dx);
  with_size<M, true>(f, p.x, machine, [&](auto size, const Tiling& n) {
    p.n = n;
    run<M, decltype(size)>(p, machine);
  });
}

#ifdef SFRS_MATMUL
template void aggregate_backward_with<SFRS_MATMUL>(const AggregationBackward&, const Machine&);
#else
#define SFRS_ELSEWHERE(...)                                                                     \
  extern template void aggregate_backward_with<Matmul<__VA_ARGS__>>(const AggregationBackward&, \
                                                                    const Machine&);
SFRS_ARITHMETICS(SFRS_ELSEWHERE)

void aggregate_backward(const AggregationBackward& f, const Machine& machine) {
  check_limits(f);
  with_arithmetic(f.x.dtype, f.tf32,
                  [&](auto matmul) { aggregate_backward_with<decltype(matmul)>(f, machine); });
}
#endif

}  // namespace sfrs::cuda
