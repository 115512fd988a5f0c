// NetVLAD aggregation, forward. Idea: attention without the running maximum. A tile of positions is copied
// into shared memory once, while its predecessor is worked on; logits are made from it on the tensor cores,
// soft-maxed, divided by the norms, and the tile is summed up by clusters into a K x D matrix that never
// leaves the registers. The weights wait in shared memory. Assignments never reach global memory.
//
// Floor: x read once. 2 D bytes against 4 (K + G) D flops per position in 16 bits: at K = 64 both the copy
// bandwidth and mma.sync of an H200 need 0.3 us per 30 x 40 x 512 map; exact float32 is bound by three TF32
// products instead of one. Shared memory comes third:
// 490 KB per tile of 64 positions. `python -m benchmarks.predict` counts it all.
#pragma once

#include "aggregate_logits.cuh"
#include "aggregate_sums.cuh"

namespace sfrs::cuda {

template <class T>
struct ForwardParameters {
  AggregationForward f;
  FeatureMap x;  // f.x with adjoining rows flattened
  Tiling n;
  unsigned char* weight_cores;  // packed weights, if they are not resident
  // Where a unit's sums go: the result itself if one block has all of a group, else these.
  bool finish_in_block;
  T* sums;     // [units, K, D]
  T* masses;   // [units, K]: sums of assignments
  T* squares;  // [groups, K]
};

// Whether registers are left to finish a group where its sums are; three TF32 products beside the most sums
// need them all.
template <class M, int kClusterTiles>
constexpr bool kFinishesInBlock = M::kRowTiles >= kClusterTiles;

template <class M, int kClusterTiles, int kLanes, bool kPlanes>
class ForwardBlock {
  using S = typename M::Storage;
  using T = typename M::Sum;
  using BlockSums = Sums<M, kClusterTiles>;

 public:
  SFRS_DEVICE ForwardBlock(const ForwardParameters<T>& p, unsigned char* memory)
      : p(p), f(p.f), n(p.n), memory(memory), own((int)blockIdx.y) {}

  SFRS_DEVICE void run() {
    keep_weights<S, T>(n, f.weight, memory);
    BlockSums sums(n);
    walk<S, kPlanes>(p.x, (int)f.regions, n, memory, *this, sums);
  }

  SFRS_DEVICE void work(const Step& now, const Panels<S>& x, BlockSums& sums) const {
    LogitOperand<T> weights{n.weight_resident ? memory + n.at.weight : p.weight_cores, n.weight_resident,
                            n.logits_given ? 0 : n.logit_columns, logits(), n.logit_stride()};
    LogitMaker<M, kPlanes>{n, now, x, f.normalize_input, part(n.at.squares), weights, {}}.run();
    if (!now.last_chunk(n)) return;
    assign(now, x);
    __syncthreads();
    add_shares(n, logits(), n.clusters, now.first_tile(), part(n.at.masses));
    sum_up<M, kClusterTiles, kPlanes>(n, assignment_view(), x, sums);
    if (!now.last_tile()) return;
    __syncthreads();
    finish(now.group, now.unit, sums);
  }

 private:
  SFRS_DEVICE T* part(int offset) const { return (T*)(memory + offset); }
  SFRS_DEVICE T* logits() const { return part(n.at.logits); }

  SFRS_DEVICE Panels<S> assignment_view() const {
    return {memory + n.at.assignment, n.positions, n.cluster_rows};
  }

  // A warp per position: the softmax over clusters, divided by the feature's norm, as left operand of sum_up.
  SFRS_DEVICE void assign(const Step& now, const Panels<S>& x) const {
    int lane = lane_of_thread(), warp = warp_of_thread();
    int begin = now.begin(n), count = now.count(n);
    T weights[kLanes] = {};
    for (int i = warp; i < n.positions; i += kWarps) {
      T l[kLanes] = {}, scale = 0, inverse = 1;
      if (i < count) {
        int64_t at = p.x.height * p.x.width * now.group.image + now.group.position(p.x, begin + i);
        if (f.normalize_input) inverse = inverse_norm(square_of(n, part(n.at.squares), i));
        if (f.saved_inv_norm && own == 0 && lane == 0) ((T*)f.saved_inv_norm)[at] = inverse;
        load_logits(i, at, inverse, l);
        scale = exponentials<M, kLanes>(l, n.logit_columns);
        if (f.mask) scale *= ((const T*)f.mask)[at];
        inverse /= rescale_vector<S, kPlanes>(n, x, i, inverse);
      }
      SFRS_EACH (j, kLanes) {
        int k = lane + 32 * j;
        T a = k < n.clusters ? l[j] * scale : (T)0;
        weights[j] += a;
        if (k < n.cluster_rows) store_as(assignment_view().at(i, k), a * inverse);
      }
      for (int k = lane + 32 * kLanes; k < n.cluster_rows; k += 32)
        store_as(assignment_view().at(i, k), (T)0);
    }
    leave_share(n, logits() + warp * n.logit_stride(), weights);
  }
  SFRS_DEVICE void load_logits(int i, int64_t at, T inverse, T (&l)[kLanes]) const {
    int lane = lane_of_thread();
    SFRS_EACH (j, kLanes) {
      int k = lane + 32 * j;
      l[j] = (T)-INFINITY;
      if (k >= n.logits) continue;
      T bias = f.bias ? ((const T*)f.bias)[k] : (T)0;
      T made = n.logits_given ? ((const T*)f.logits_given)[at * n.logits + k]
                              : logits()[i * n.logit_stride() + k] * inverse;
      l[j] = made + bias;
    }
  }

  SFRS_DEVICE void finish(const Group& g, int64_t unit, BlockSums& sums) const {
    int64_t first = unit * n.clusters * n.dim;
    bool in_block = false;
    if constexpr (kFinishesInBlock<M, kClusterTiles>) in_block = p.finish_in_block;
    if (in_block) {
      T* shares = logits();  // no longer needed; now [warps along dimensions, clusters] of the squares
      T* scale = shares + kWarps / n.cluster_warps * n.cluster_rows;  // [clusters], then the descriptor's
      subtract_centroids(shares, sums);
      bool norms = f.intra_norm || f.l2_norm || f.saved_scale;
      if (norms) {
        __syncthreads();
        if (warp_of_thread() == 0) make_scales(g, shares, scale);
        __syncthreads();
      }
      sums.each_pair(WriteSums<S, T>{(S*)f.vlad + first, n.clusters, n.dim, own * n.chunk, n.chunk,
                                     norms ? scale : nullptr, norms ? scale[n.cluster_rows] : (T)1});
    } else {
      sums.each_pair(
          WriteSums<T, T>{p.sums + first, n.clusters, n.dim, own * n.chunk, n.chunk, nullptr, (T)1});
      if (own == 0)
        for (int k = (int)threadIdx.x; k < n.clusters; k += kThreads)
          p.masses[unit * n.clusters + k] = part(n.at.masses)[k];
    }
    sums.clear();
  }
  // Takes the centroids away and leaves every warp's share of each cluster's square.
  SFRS_DEVICE void subtract_centroids(T* shares, BlockSums& sums) const {
    SFRS_EACH (i, kClusterTiles)
      SFRS_EACH (half, 2) {
        int lane = lane_of_thread(), k = sums.row + 16 * i + 8 * half + lane / 4;
        int first = own * n.chunk + sums.column + 2 * (lane % 4);
        int end = (own + 1) * n.chunk < n.dim ? (own + 1) * n.chunk : n.dim;
        T square = 0, weight_sum = k < n.clusters ? part(n.at.masses)[k] : (T)0;
        const T* centroid = (const T*)f.centroids + (int64_t)(k < n.clusters ? k : 0) * n.dim;
        constexpr int together =
            M::kRowTiles;  // pieces whose centroids travel together: no branch between loads
        SFRS_EACH (run, M::kColumnTiles / together) {
          T of[together][2] = {};
          if (f.centroids)
            SFRS_EACH (j, together)
              SFRS_EACH (e, 2) {
                int d = first + 8 * (run * together + j) + e;
                of[j][e] = centroid[d < end ? d : 0];
              }
          SFRS_EACH (j, together)
            SFRS_EACH (e, 2) {
              T& v = sums.v[i][run * together + j][2 * half + e];
              if (first + 8 * (run * together + j) + e < end) v -= weight_sum * of[j][e];
              square += v * v;
            }
        }
        square += __shfl_xor_sync(kAllLanes, square, 1);
        square += __shfl_xor_sync(kAllLanes, square, 2);
        if (lane % 4 == 0)
          shares[warp_of_thread() % (kWarps / n.cluster_warps) * n.cluster_rows + k] = square;
      }
  }
  SFRS_DEVICE void make_scales(const Group& g, const T* shares, T* scale) const {
    int lane = lane_of_thread();
    T total = 0;
    T* saved = f.saved_scale ? (T*)f.saved_scale + g.image * (n.clusters + 1) : nullptr;
    for (int k = lane; k < n.clusters; k += 32) {
      T square = 0;
      for (int w = 0; w < kWarps / n.cluster_warps; ++w) square += shares[w * n.cluster_rows + k];
      T inner = f.intra_norm ? inverse_norm(square) : 1;
      scale[k] = inner;
      if (saved) saved[k] = inner;
      total += square * inner * inner;
    }
    total = warp_sum(total);
    T outer = f.l2_norm ? inverse_norm(total) : 1;
    if (lane == 0) {
      scale[n.cluster_rows] = outer;
      if (saved) saved[n.clusters] = outer;
    }
  }

  const ForwardParameters<T>& p;
  const AggregationForward& f;
  const Tiling& n;
  unsigned char* memory;
  int own;
};

template <class M, int kClusterTiles, int kLanes, bool kPlanes>
SFRS_KERNEL(256)
aggregate_forward_kernel(SFRS_CONSTANT ForwardParameters<typename M::Sum> p) {
  SFRS_SHARED_MEMORY(memory);
  ForwardBlock<M, kClusterTiles, kLanes, kPlanes>(p, memory).run();
}

// The sums of a group's units in their order, less the centroids. One block per group and cluster.
template <class S, class T>
SFRS_KERNEL(256)
add_units(SFRS_CONSTANT ForwardParameters<T> p) {
  SFRS_SHARED_MEMORY(memory);
  const Tiling& n = p.n;
  int64_t group = blockIdx.x, first = group * n.splits, row = (int64_t)n.clusters * n.dim;
  int k = (int)blockIdx.y;
  bool norms = p.f.intra_norm || p.f.l2_norm || p.f.saved_scale;
  T mass = 0, square = 0;
  for (int s = 0; s < n.splits; ++s) mass += p.masses[(first + s) * n.clusters + k];
  for (int d = (int)threadIdx.x; d < n.dim; d += kThreads) {
    T* at = p.sums + first * row + (int64_t)k * n.dim + d;
    T v = 0;
    for (int s = 0; s < n.splits; ++s) v += at[s * row];
    if (p.f.centroids) v -= mass * ((const T*)p.f.centroids)[(int64_t)k * n.dim + d];
    square += v * v;
    if (norms)
      *at = v;
    else
      store_as((S*)p.f.vlad + group * row + (int64_t)k * n.dim + d, v);
  }
  if (!norms) return;
  square = warp_sum(square);
  T* shares = (T*)memory;
  if (threadIdx.x % 32 == 0) shares[threadIdx.x / 32] = square;
  __syncthreads();
  if (threadIdx.x) return;
  T total = 0;
  for (int w = 0; w < kWarps; ++w) total += shares[w];
  p.squares[group * n.clusters + k] = total;
}

// Normalises what add_units left. One block per group and cluster.
template <class S, class T>
SFRS_KERNEL(256)
normalize_units(SFRS_CONSTANT ForwardParameters<T> p) {
  const Tiling& n = p.n;
  int64_t group = blockIdx.x, row = (int64_t)n.clusters * n.dim;
  int k = (int)blockIdx.y;
  const T* squares = p.squares + group * n.clusters;
  T total = 0;
  for (int i = (int)threadIdx.x % 32; i < n.clusters; i += 32) {
    T inner = p.f.intra_norm ? inverse_norm(squares[i]) : 1;
    total += squares[i] * inner * inner;
  }
  T inner = p.f.intra_norm ? inverse_norm(squares[k]) : 1;
  T outer = p.f.l2_norm ? inverse_norm(warp_sum(total)) : 1;
  if (p.f.saved_scale && threadIdx.x == 0) {
    T* saved = (T*)p.f.saved_scale + group * (n.clusters + 1);
    saved[k] = inner;
    if (k == 0) saved[n.clusters] = outer;
  }
  const T* from = p.sums + group * n.splits * row + (int64_t)k * n.dim;
  S* to = (S*)p.f.vlad + group * row + (int64_t)k * n.dim;
  for (int d = (int)threadIdx.x; d < n.dim; d += kThreads) store_as(to + d, from[d] * inner * outer);
}

}  // namespace sfrs::cuda
