// What surrounds the backward of the aggregation: before it, the gradient passes the normalisations; after
// it, the sums of the blocks are added up in their order.
//
// Floor: the descriptors, their gradients and the sums of the blocks, all of which L2 holds.
#pragma once

#include "aggregate_blocks.cuh"
#include "norms.cuh"

namespace sfrs::cuda {

template <class T>
struct GradientParameters {
  const void *grad, *vlad;  // [groups, K, D]
  const T* scale;           // [groups, K + 1], see AggregationForward
  const T* centroids;       // or null
  int clusters, dim, padded_clusters, padded_dim;
  bool intra_norm, l2_norm;
  double* dots;          // [groups, K, 2]: <vlad_k, grad_k>, |vlad_k|^2
  unsigned char* cores;  // dV of the un-normalised sums
  T *cores_scale, *centroid_gradient;
};

// One block per group and cluster.
template <class S, class T>
SFRS_KERNEL(256)
gradient_dots(SFRS_CONSTANT GradientParameters<T> p) {
  SFRS_SHARED_MEMORY(memory);
  int64_t row = (int64_t)blockIdx.x * p.clusters + blockIdx.y;
  const S *grad = (const S*)p.grad + row * p.dim, *vlad = (const S*)p.vlad + row * p.dim;
  double dot = 0, square = 0;
  for (int d = (int)threadIdx.x; d < p.dim; d += kThreads) {
    double v = to_float(vlad[d]);
    dot += v * to_float(grad[d]);
    square += v * v;
  }
  dot = block_sum(dot, (double*)memory);
  square = block_sum(square, (double*)memory);
  if (threadIdx.x) return;
  p.dots[2 * row] = dot;
  p.dots[2 * row + 1] = square;
}

// dV_k = inner (outer (grad_k - D vlad_k) - along vlad_k): the backward of both normalisations, with
// D = <vlad, grad> and along the part that lies along vlad_k.
template <class S, class T>
struct NormBackward {
  const S *grad, *vlad;
  bool normalized;
  T inner = 1, outer = 1, whole = 0, along = 0;

  SFRS_DEVICE NormBackward(const GradientParameters<T>& p, int64_t group, int k)
      : grad((const S*)p.grad + (group * p.clusters + k) * p.dim),
        vlad((const S*)p.vlad + (group * p.clusters + k) * p.dim),
        normalized(p.intra_norm || p.l2_norm) {
    if (!normalized) return;
    const T* scale = p.scale + group * (p.clusters + 1);
    const double* dots = p.dots + 2 * group * p.clusters;
    outer = scale[p.clusters];
    double sum = 0;
    for (int i = (int)threadIdx.x % 32; i < p.clusters; i += 32) sum += dots[2 * i];
    sum = warp_sum(sum);
    if (p.l2_norm && norm_counts(outer)) whole = (T)sum;
    if (!p.intra_norm) return;
    inner = scale[k];
    if (norm_counts(inner)) along = (T)((dots[2 * k] - whole * dots[2 * k + 1]) / outer);
  }
  SFRS_DEVICE T at(int d) const {
    T v = normalized ? to_float(vlad[d]) : (T)0;
    return inner * (outer * (to_float(grad[d]) - whole * v) - along * v);
  }
};

// One block per group and padded cluster.
template <class S, class T>
SFRS_KERNEL(256)
vlad_gradients(SFRS_CONSTANT GradientParameters<T> p) {
  SFRS_SHARED_MEMORY(memory);
  int64_t group = blockIdx.x;
  int k = (int)blockIdx.y;
  bool pads = k >= p.clusters;
  NormBackward<S, T> gradient(p, group, pads ? 0 : k);
  T scale = 1;
  if constexpr (sizeof(S) == 2 && !__is_same(S, bf16)) scale = range_of(gradient, p.dim, (T*)memory);
  unsigned char* cores = p.cores + group * p.padded_clusters * p.padded_dim * (int64_t)sizeof(S);
  T dot = 0;
  for (int d = (int)threadIdx.x; d < p.padded_dim; d += kThreads) {
    T v = pads || d >= p.dim ? (T)0 : gradient.at(d);
    if (p.centroids && !pads && d < p.dim) dot += v * p.centroids[(int64_t)k * p.dim + d];
    store_as((S*)(cores + Cores<S, true>::offset(k, d, p.padded_dim)), v / scale);
  }
  dot = block_sum(dot, (T*)memory);
  if (threadIdx.x || pads) return;
  p.centroid_gradient[group * p.clusters + k] = dot;
  p.cores_scale[group * p.clusters + k] = scale;
}

// f16 only: the power of two that brings the largest of a row near one. A cluster that hardly anything is
// assigned to has a gradient that f16 could not hold.
template <class S, class T>
SFRS_DEVICE T range_of(const NormBackward<S, T>& gradient, int dim, T* shares) {
  T most = 0;
  for (int d = (int)threadIdx.x; d < dim; d += kThreads) {
    T v = gradient.at(d), size = v < 0 ? -v : v;
    most = size > most ? size : most;
  }
  most = warp_max(most);
  if (threadIdx.x % 32 == 0) shares[threadIdx.x / 32] = most;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) most = shares[w] > most ? shares[w] : most;
  __syncthreads();
  return most > 0 && most < (T)INFINITY ? (T)exp2(rint(log2(most))) : (T)1;
}

template <class T>
struct ParameterSums {
  const T *weight_sums, *bias_sums;  // [blocks, K + G, sums_dim], [blocks, K + G]
  const T* masses;                   // [units, K]
  const unsigned char* cores;
  const T* cores_scale;
  int blocks, groups, splits, clusters, logits, dim, sums_dim, padded_clusters, padded_dim;
  T *dweight, *dbias, *dcentroids;

  SFRS_DEVICE T mass(int group, int k) const {
    T sum = 0;
    for (int s = 0; s < splits; ++s) sum += masses[((int64_t)group * splits + s) * clusters + k];
    return sum;
  }
};

constexpr int kSumColumns = 64;  // dimensions of a block that adds up

// Block (k, 64 dimensions, which): every eighth part of the terms belongs to one warp.
template <class S, class T>
SFRS_KERNEL(256)
add_blocks(SFRS_CONSTANT ParameterSums<T> p) {
  SFRS_SHARED_MEMORY(memory);
  T* shares = (T*)memory;
  int k = (int)blockIdx.x, lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
  bool centroids = blockIdx.z == 1;
  T sums[2] = {}, bias = 0;
  if (centroids ? k >= p.clusters || !p.dcentroids : !p.dweight && !p.dbias) return;
  for (int i = warp; i < (centroids ? p.groups : p.blocks); i += kWarps) {
    T factor = centroids ? -p.mass(i, k) * p.cores_scale[(int64_t)i * p.clusters + k] : (T)1;
    const unsigned char* cores = p.cores + (int64_t)i * p.padded_clusters * p.padded_dim * (int64_t)sizeof(S);
    SFRS_EACH (e, 2) {
      int d = (int)blockIdx.y * kSumColumns + lane + 32 * e;
      if (d >= p.dim) continue;
      if (centroids)
        sums[e] += factor * to_float(*(const S*)(cores + Cores<S, true>::offset(k, d, p.padded_dim)));
      else if (p.dweight)
        sums[e] += p.weight_sums[((int64_t)i * p.logits + k) * p.sums_dim + d];
    }
    if (!centroids && p.dbias) bias += p.bias_sums[(int64_t)i * p.logits + k];
  }
  SFRS_EACH (e, 2) shares[warp * kSumColumns + lane + 32 * e] = sums[e];
  if (lane == 0) shares[kWarps * kSumColumns + warp] = bias;
  __syncthreads();
  int d = (int)blockIdx.y * kSumColumns + (int)threadIdx.x;
  T* out = centroids ? p.dcentroids : p.dweight;
  if (threadIdx.x < kSumColumns && d < p.dim && out) {
    T sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shares[w * kSumColumns + (int)threadIdx.x];
    out[(int64_t)k * p.dim + d] = sum;
  }
  if (threadIdx.x == 0 && blockIdx.y == 0 && !centroids && p.dbias) {
    T sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shares[kWarps * kSumColumns + w];
    p.dbias[k] = sum;
  }
}

}  // namespace sfrs::cuda
