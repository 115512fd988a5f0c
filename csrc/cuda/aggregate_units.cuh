// After a forward whose groups were split into units: their sums, less the centroids, and normalised.
//
// Floor: the sums of the units and the descriptors, all of which L2 holds.
#pragma once

#include "aggregate_blocks.cuh"
#include "aggregate_forward.cuh"

namespace sfrs::cuda {

// The sums of a group's units in their order, less the centroids, normalised by the block that is the last of
// its group. One block per group and cluster, those of a group side by side: it is normalised while others
// are added up.
template <class S, class T>
struct UnitsAdder {
  const ForwardParameters<T>& p;
  const Tiling& n;
  int64_t group;
  bool aligned;  // centroids and results, four at a time

  // Calls body(d) for every fourth dimension, all threads together.
  template <class F>
  SFRS_DEVICE void each_four(const F& body) const {
    for (int d = 4 * (int)threadIdx.x; d < n.dim; d += 4 * kThreads) body(d);
  }
  SFRS_DEVICE Four<T>* sums_of(int k, int d) const {
    return (Four<T>*)(p.sums + (group * n.splits * n.clusters + k) * n.sums_dim() + d);
  }
  SFRS_DEVICE Four<T> load(const T* from, int d) const {
    Four<T> four{};
    if (aligned) return *(const Four<T>*)from;
    SFRS_EACH (e, 4)
      if (d + e < n.dim) four.v[e] = from[e];
    return four;
  }
  SFRS_DEVICE void store(int k, int d, const Four<T>& v) const {
    S* to = (S*)p.f.vlad + (group * n.clusters + k) * n.dim + d;
    if (aligned) {
      Four<S> four;
      SFRS_EACH (e, 2) four.set(e, v.v[2 * e], v.v[2 * e + 1]);
      *(Four<S>*)to = four;
    } else {
      SFRS_EACH (e, 4)
        if (d + e < n.dim) store_as(to + e, v.v[e]);
    }
  }

  // Returns the square of cluster k, the same for every thread.
  SFRS_DEVICE T add(int k, bool norms, T* shares) const {
    T mass = 0, square = 0;
    for (int s = 0; s < n.splits; ++s) mass += p.masses[(group * n.splits + s) * n.clusters + k];
    each_four([&](int d) {
      Four<T>*sums = sums_of(k, d), v{};
      SFRS_UNROLL_BY(4)
      for (int s = 0; s < n.splits; ++s) {
        Four<T> unit = sums[(int64_t)s * n.clusters * (n.sums_dim() / 4)];
        SFRS_EACH (e, 4) v.v[e] += unit.v[e];
      }
      if (p.f.centroids) {
        Four<T> centroid = load((const T*)p.f.centroids + (int64_t)k * n.dim + d, d);
        SFRS_EACH (e, 4) v.v[e] -= mass * centroid.v[e];
      }
      SFRS_EACH (e, 4) square += v.v[e] * v.v[e];
      if (norms)
        *sums = v;
      else
        store(k, d, v);
    });
    return norms ? block_sum(square, shares) : square;
  }

  // Every warp takes every eighth cluster. What it reads at a time is read before any of it is written: the
  // compiler cannot know that they do not overlap, and this block alone waits for L2.
  SFRS_DEVICE void normalize(T* shares) const {
    constexpr int together = 4;
    int lane = lane_of_thread();
    const T* squares = p.squares + group * n.clusters;
    T total = 0;
    for (int k = (int)threadIdx.x; k < n.clusters; k += kThreads) {
      T inner = p.f.intra_norm ? inverse_norm(squares[k]) : 1;
      total += squares[k] * inner * inner;
    }
    total = block_sum(total, shares);
    T outer = p.f.l2_norm ? inverse_norm(total) : 1;
    T* saved = p.f.saved_scale ? (T*)p.f.saved_scale + group * (n.clusters + 1) : nullptr;
    if (saved && threadIdx.x == 0) saved[n.clusters] = outer;
    for (int k = warp_of_thread(); k < n.clusters; k += kWarps) {
      T inner = p.f.intra_norm ? inverse_norm(squares[k]) : 1;
      if (saved && lane == 0) saved[k] = inner;
      for (int first = 4 * lane; first < n.dim; first += 128 * together) {
        Four<T> v[together] = {};
        SFRS_EACH (i, together)
          if (first + 128 * i < n.dim) v[i] = *sums_of(k, first + 128 * i);
        SFRS_EACH (i, together) {
          SFRS_EACH (e, 4) v[i].v[e] *= inner * outer;
          if (first + 128 * i < n.dim) store(k, first + 128 * i, v[i]);
        }
      }
    }
  }
};

template <class S, class T>
SFRS_KERNEL(256)
add_units(SFRS_CONSTANT ForwardParameters<T> p) {
  SFRS_SHARED_MEMORY(memory);
  const Tiling& n = p.n;
  int group = (int)blockIdx.x / n.clusters, k = (int)blockIdx.x - group * n.clusters;
  bool norms = p.norms;
  UnitsAdder<S, T> adder{p, n, group, four_together<S, T>(p)};
  T square = adder.add(k, norms, (T*)memory);
  if (!norms) return;
  if (threadIdx.x == 0) p.squares[(int64_t)group * n.clusters + k] = square;
  if (last_of(p.arrivals + group, n.clusters, (int*)memory)) adder.normalize((T*)memory);
}

}  // namespace sfrs::cuda
