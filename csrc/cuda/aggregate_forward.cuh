// NetVLAD aggregation, forward. Idea: attention without the running maximum. A tile of positions is copied
// into shared memory once, while its predecessor is worked on; logits are made from it on the tensor cores,
// soft-maxed by a few lanes per position, divided by the norms, and the tile is summed up by clusters into a
// K x D matrix that never leaves the registers. The weights wait in shared memory. Assignments never reach
// global memory. In 16 bits, four warps make the assignments of one tile while eight sum up the one before:
// the softmax is a chain of latencies, behind which the products of the sums hide.
//
// Floor: x read once. 2 D bytes against 4 (K + G) D flops per position in 16 bits: at K = 64 both the copy
// bandwidth and mma.sync of an H200 need 0.3 us per 30 x 40 x 512 map; exact float32 is bound by three TF32
// products instead of one. Shared memory is the third: products of 32 x 32 pieces read it twice over.
// `python -m benchmarks.predict` counts it all.
#pragma once

#include "aggregate_softmax.cuh"
#include "aggregate_sums.cuh"
#include "aggregate_walks.cuh"

namespace sfrs::cuda {

template <class T>
struct ForwardParameters {
  AggregationForward f;
  FeatureMap x;  // f.x with adjoining rows flattened
  Tiling n;
  unsigned char* weight_cores;  // packed weights, if they are not resident
  // Where a unit's sums go: the result itself if one block has all of a group, else these.
  bool finish_in_block;
  bool norms;     // whether a result is normalised, or its norms are saved
  T* sums;        // [units, K, D padded to fours]
  T* masses;      // [units, K]: sums of assignments
  T* squares;     // [groups, K]
  int* arrivals;  // [groups]: clusters whose units have been added up
};

// Whether registers are left to finish a group where its sums are; three TF32 products beside the most sums
// need them all.
template <class M, int kClusterTiles>
constexpr bool kFinishesInBlock = M::kRowTiles >= kClusterTiles;

// Whether four neighbours of results and centroids may be moved at once.
template <class S, class T>
SFRS_HOST_DEVICE bool four_together(const ForwardParameters<T>& p) {
  return p.n.dim % 4 == 0 && (uint64_t)p.f.centroids % alignof(Four<T>) == 0 &&
         (uint64_t)p.f.vlad % alignof(Four<S>) == 0;
}

template <class M, class Shape, bool kPlanes>
class ForwardBlock {
  using S = typename M::Storage;
  using T = typename M::Sum;
  using Cut = typename Shape::Cut;
  static constexpr int kClusterTiles = Shape::kClusterTiles;
  static constexpr bool kOneWindow = Shape::kOneWindow;
  using Makers = std::conditional_t<Cut::kOverlaps, Assigners, WholeBlock>;
  using Adders = std::conditional_t<Cut::kOverlaps, Summers, WholeBlock>;
  using BlockSums = Sums<M, kClusterTiles, Adders>;
  using TileSoftmax = Softmax<M, Cut, kOneWindow, sizeof(S) == 2 ? 4 : 8>;
  using Values = typename TileSoftmax::Values;

 public:
  SFRS_DEVICE ForwardBlock(const ForwardParameters<T>& p, unsigned char* memory)
      : p(p), f(p.f), n(Shape::of(p.n)), memory(memory), own((int)blockIdx.y) {}

  SFRS_DEVICE void run() {
    if (p.arrivals && blockIdx.x == 0 && own == 0)
      for (int group = this_thread(); group < n.groups; group += kThreads) p.arrivals[group] = 0;
    if constexpr (Cut::kOverlaps) {
      walk_overlapping<S, kPlanes, BlockSums, Values>(p.x, (int)f.parts, n, memory, *this);
    } else {
      BlockSums sums;
      sums.clear();
      walk<S, kPlanes>(p.x, (int)f.parts, n, memory, *this, sums);
    }
  }
  SFRS_DEVICE void prepare() const {
    keep_weights<S, T, Adders>(n, f.weight, memory);
    keep_bias<T, Adders>(n, f.bias, memory);
  }

  // A step of the whole block.
  template <class BlockSteps>
  SFRS_DEVICE void work(const BlockSteps& steps, int i, const Panels<S>& x, BlockSums& sums) const {
    const Step& now = steps.at(i);
    make_logits(now, x);
    if (n.stages == 2) steps.send(i + 1);
    if (!now.last_chunk(n)) return steps.plan(i + 1);
    Values none;
    soften(now, x, none);
    __syncthreads();
    steps.plan(i + 1);
    softmax().template add_rows<true>(n.logit_columns, now.first_tile(), part(n.at.masses));
    add_up(now, x, sums);
    if (now.last_tile()) __syncthreads();
    end_step(now, sums);
  }
  // The parts of a step when steps overlap. Every assigner waits once until it may write.
  SFRS_DEVICE void assign(const Step& now, const Panels<S>& x, Values& masses) const {
    if (now.valid()) make_logits(now, x);
    if (!now.valid() || !now.last_chunk(n)) return AssignmentsRead::sync();
    soften(now, x, masses);
    if (now.last_tile()) share_masses(now.unit, masses);
  }
  SFRS_DEVICE void add_up(const Step& now, const Panels<S>& x, BlockSums& sums) const {
    if (now.last_chunk(n)) sum_up<M, kClusterTiles, kPlanes>(n, assignment_view(), x, sums);
  }
  SFRS_DEVICE void end_step(const Step& now, BlockSums& sums) const {
    if (now.last_chunk(n) && now.last_tile()) finish(now.group, now.unit, sums);
  }

 private:
  SFRS_DEVICE T* part(int offset) const { return (T*)(memory + offset); }
  SFRS_DEVICE TileSoftmax softmax() const { return {n, memory, f.logits_given}; }
  SFRS_DEVICE Panels<S> assignment_view() const {
    return {memory + n.at.assignment, n.positions, n.cluster_rows};
  }

  SFRS_DEVICE void make_logits(const Step& now, const Panels<S>& x) const {
    LogitOperand weights{n.logits_given ? 0 : n.logit_columns, n.weight_resident, n.at.weight, p.weight_cores,
                         n.at.logits};
    LogitMaker<M, Cut, kPlanes, true, kClusterTiles == 4, Makers>{n,  memory,           now, x, weights,
                                                                  {}, f.normalize_input}
        .run();
  }

  // The softmax over clusters takes the place of the logits, or is added to masses when steps overlap;
  // divided by the feature's norm it is the left operand of sum_up.
  SFRS_DEVICE void soften(const Step& now, const Panels<S>& x, Values& masses) const {
    TileSoftmax soft = softmax();
    int lane = lane_of_thread(), begin = now.begin, count = now.count;
    for (int first = Makers::warp() * soft.kAtOnce; first < n.positions;
         first += Makers::kCount * soft.kAtOnce) {
      int i = first + lane / soft.kSharers;
      bool valid = i < count;
      int64_t at = 0;  // among all positions
      if (n.by_position && valid) at = now.group.index_of(p.x, begin + i);
      T inverse = 1, top;
      if (f.normalize_input) {
        inverse = inverse_norm(square_of(n, part(n.at.squares), i));
        if (!valid) inverse = 1;
      }
      if (f.saved_inv_norm && own == 0 && valid && lane % soft.kSharers == 0)
        ((T*)f.saved_inv_norm)[at] = inverse;
      Values l;
      auto load = [&](int window) {
        soft.load_logits(window, i, at, valid, inverse, l);
        soft.add_bias(window, l, l);
      };
      T scale = soft.normalize(load, top, l);
      if (f.mask && valid) scale *= ((const T*)f.mask)[at];
      T factor = inverse / rescale_vectors<S, kPlanes, soft.kSharers>(n, x, first, inverse);
      if (Cut::kOverlaps && first < Makers::kCount * soft.kAtOnce) AssignmentsRead::sync();
      for (int window = 0; window < soft.windows(); window += kWindow) {
        soft.restore(load, window, top, l);
        write(window, i, valid ? scale : 0, factor, l, masses);
      }
      for (int k = round_up(n.logit_columns, kWindow) + soft.cluster(0, 0); k < n.cluster_rows;
           k += 4 * soft.kSharers)
        assignment_view().put(i, k, Four<S>{});
    }
  }
  SFRS_DEVICE void write(int window, int i, T scale, T factor, const Values& l, Values& masses) const {
    SFRS_EACH (j, TileSoftmax::kFours) {
      int k = TileSoftmax::cluster(window, j);
      Four<T> kept;
      Four<S> left;
      SFRS_EACH (e, 4) kept.v[e] = k + e < n.clusters ? l[j][e] * scale : (T)0;
      SFRS_EACH (e, 2) left.set(e, kept.v[2 * e] * factor, kept.v[2 * e + 1] * factor);
      if constexpr (Cut::kOverlaps) {
        SFRS_EACH (e, 4) masses[j][e] += kept.v[e];
      } else {
        if (k < n.logit_columns) softmax().logits(i, k) = kept;
      }
      if (k < n.cluster_rows) assignment_view().put(i, k, left);
    }
  }

  // When steps overlap: an assigner's share of a unit's sums of assignments, which then begin anew.
  SFRS_DEVICE T* mass_share(int unit, int assigner) const {
    return part(n.at.masses) + (unit % 2 * kAssigners + assigner) * n.cluster_columns;
  }
  SFRS_DEVICE void share_masses(int unit, Values& masses) const {
    T* to = mass_share(unit, Makers::warp());
    SFRS_EACH (j, TileSoftmax::kFours) {
      Four<T> sum;
      SFRS_EACH (e, 4) {
        SFRS_UNROLL
        for (int step = TileSoftmax::kSharers; step < 32; step *= 2)
          masses[j][e] += __shfl_xor_sync(kAllLanes, masses[j][e], step);
        sum.v[e] = masses[j][e];
        masses[j][e] = 0;
      }
      if (lane_of_thread() < TileSoftmax::kSharers) *(Four<T>*)(to + TileSoftmax::cluster(0, j)) = sum;
    }
  }
  SFRS_DEVICE T mass_of(int unit, int k) const {
    if constexpr (!Cut::kOverlaps) return part(n.at.masses)[k];
    T sum = 0;
    SFRS_EACH (assigner, kAssigners) sum += mass_share(unit, assigner)[k];
    return sum;
  }

  SFRS_DEVICE void finish(const Group& g, int unit, BlockSums& sums) const {
    int own = here(this->own);  // what follows from it is not carried through the loop of all tiles
    bool in_block = false;
    if constexpr (kFinishesInBlock<M, kClusterTiles>) in_block = p.finish_in_block;
    if (in_block) {
      T* shares = part(n.at.shares);  // [warps along dimensions, clusters] of the squares
      T* scale = shares + (n.cluster_rows << n.along_bits);  // [clusters]
      T* masses = part(n.at.masses);
      if constexpr (Cut::kOverlaps) {
        masses = scale;  // until the scales take their place
        for (int k = Adders::thread(); k < n.clusters; k += kThreads) masses[k] = mass_of(unit, k);
        Adders::sync();
      }
      subtract_centroids(masses, shares, sums);
      if (p.norms) {
        Adders::sync();
        if (Adders::warp() == 0) make_scales(g, shares, scale);
        Adders::sync();
      }
      sums.each_four(n, WriteSums<S, T>{(S*)f.vlad + (int64_t)(unsigned)unit * (unsigned)n.clusters * n.dim,
                                        n.clusters, n.dim, own * n.chunk, n.chunk, p.norms, scale});
    } else {
      sums.each_four(n,
                     WriteSums<T, T>{p.sums + (int64_t)(unsigned)unit * (unsigned)n.clusters * n.sums_dim(),
                                     n.clusters, n.sums_dim(), own * n.chunk, n.chunk});
      if (own == 0)
        for (int k = Adders::thread(); k < n.clusters; k += kThreads)
          p.masses[(int64_t)(unsigned)unit * (unsigned)n.clusters + k] = mass_of(unit, k);
    }
    sums.clear();
  }
  // Takes the centroids away and leaves every warp's share of each cluster's square.
  SFRS_DEVICE void subtract_centroids(const T* masses, T* shares, BlockSums& sums) const {
    constexpr int together = Cut::kOverlaps ? M::kColumnTiles / 2 : M::kColumnTiles;  // registers are few
    SFRS_EACH (i, kClusterTiles)
      SFRS_EACH (half, 2) {
        int own = here(this->own), lane = lane_of_thread(),
            first = own * n.chunk + sums.column(n) + 2 * (lane % 4);
        int end = (own + 1) * n.chunk < n.dim ? (own + 1) * n.chunk : n.dim;
        int k = sums.row(n) + 16 * i + 8 * half + lane / 4;
        const T* centroid = (const T*)f.centroids + (int64_t)(k < n.clusters ? k : 0) * n.dim;
        T square = 0, mass = k < n.clusters ? masses[k] : (T)0;
        SFRS_EACH (begin, M::kColumnTiles / together) {
          Packed<T, 2> of[together] = {};
          if (f.centroids)
            SFRS_EACH (j, together) {
              int d = first + 8 * (begin * together + j);
              if (d < end) of[j] = *(const Packed<T, 2>*)(centroid + d);
            }
          SFRS_EACH (j, together)
            SFRS_EACH (e, 2) {
              T& v = sums.v[i][begin * together + j][2 * half + e];
              v -= mass * of[j].v[e];
              square += v * v;
            }
        }
        square += __shfl_xor_sync(kAllLanes, square, 1);
        square += __shfl_xor_sync(kAllLanes, square, 2);
        if (lane % 4 == 0) shares[sums.share(n) * n.cluster_rows + k] = square;
      }
  }
  SFRS_DEVICE void make_scales(const Group& g, const T* shares, T* scale) const {
    int lane = lane_of_thread();
    T total = 0;
    T* saved = f.saved_scale ? (T*)f.saved_scale + g.image * (n.clusters + 1) : nullptr;
    for (int k = lane; k < n.clusters; k += 32) {
      T square = 0;
      for (int w = 0; w < 1 << n.along_bits; ++w) square += shares[w * n.cluster_rows + k];
      T inner = f.intra_norm ? inverse_norm(square) : 1;
      scale[k] = inner;
      if (saved) saved[k] = inner;
      total += square * inner * inner;
    }
    total = warp_sum(total);
    T outer = f.l2_norm ? inverse_norm(total) : 1;
    if (saved && lane == 0) saved[(unsigned)n.clusters] = outer;
    for (int k = lane; k < n.clusters; k += 32) scale[k] *= outer;
  }

  const ForwardParameters<T>& p;
  const AggregationForward& f;
  const Cut& n;
  unsigned char* memory;
  int own;
};

template <class M, class Shape, bool kPlanes>
SFRS_KERNEL(Shape::kThreadsOfBlock)
aggregate_forward_kernel(SFRS_CONSTANT ForwardParameters<typename M::Sum> p) {
  SFRS_SHARED_MEMORY(memory);
  ForwardBlock<M, Shape, kPlanes>(p, memory).run();
}

}  // namespace sfrs::cuda
