// NetVLAD aggregation, backward. Idea: a tile of positions is copied into shared memory once and everything
// is made of it there, in five products on the tensor cores (da and dl in registers and shared memory only):
//
//   l = xh W^T,  da = xh dV^T - <c, dV>,  dl = a (m da - <a, m da>),  dW += dl^T xh,  dxh = (m a) dV + dl W
//
// dW stays in the registers of a block over all its tiles. The gradient through |x| needs <xh, dxh>, which
// follows from numbers at hand, sum_k (m a)_k <xh, dV_k> + dl_k l_k, so dx replaces x in shared memory and
// leaves from there in whole lines. Softmax and assignments are repeated, not read.
//
// Floor: x read, dx written, 4 D bytes against 4 (2 K + G) D flops per position in 16 bits: at K = 64 an
// H200 needs 0.6 us per 30 x 40 x 512 map for the bytes and about as long for mma.sync.
#pragma once

#include "aggregate_logits.cuh"
#include "aggregate_sums.cuh"

namespace sfrs::cuda {

template <class T>
struct BackwardParameters {
  AggregationBackward f;
  FeatureMap x, dx;  // with adjoining rows flattened
  Tiling n;
  unsigned char* weight_cores;    // packed weights, if they are read through L1
  unsigned char* gradient_cores;  // dV of the un-normalised sums: one [clusters, D] per group
  T* gradient_scale;              // [groups, K]: dV is stored divided by this
  T* centroid_gradient;           // [groups, K]: <c_k, dV_k>
  T* masses;                      // [units, K]: sums of assignments
  T* weight_sums;                 // [blocks, K + G, D]
  T* bias_sums;                   // [blocks, K + G]

  SFRS_DEVICE int64_t gradient_bytes() const {
    return (int64_t)n.cluster_columns * n.padded_dim() * n.element_bytes;
  }
};

template <class M, int kClusterTiles, int kLanes, bool kPlanes>
class BackwardBlock {
  using S = typename M::Storage;
  using T = typename M::Sum;
  using BlockSums = Sums<M, kClusterTiles>;

 public:
  SFRS_DEVICE BackwardBlock(const BackwardParameters<T>& p, unsigned char* memory)
      : p(p), f(p.f), n(p.n), memory(memory), own((int)blockIdx.y) {}

  SFRS_DEVICE void run() {
    keep_weights<S, T>(n, f.weight, memory);
    BlockSums sums(n);
    walk<S, kPlanes>(p.x, (int)f.regions, n, memory, *this, sums);
    finish(sums);
  }

  SFRS_DEVICE void work(const Step& now, const Panels<S>& x, BlockSums& sums) const {
    if (n.gradient_resident && now.first_tile() && now.chunk_step == 0) load_gradient(now.group.index);
    LogitOperand<T> weights{weight_cores(), n.weight_resident, n.logits_given ? 0 : n.logit_columns, logits(),
                            n.logit_stride()};
    LogitOperand<T> gradients{gradient_cores(now.group.index), n.gradient_resident, n.cluster_columns,
                              part(n.at.products), n.product_stride()};
    LogitMaker<M, kPlanes>{n, now, x, f.normalize_input, part(n.at.squares), weights, gradients}.run();
    if (!now.last_chunk(n)) return;
    differentiate(now, x);
    __syncthreads();
    add_shares(n, logits(), n.clusters, now.first_tile(), part(n.at.masses));
    add_shares(n, logits() + kWarps * n.logit_stride(), n.logits, now.first_of_block(),
               part(n.at.masses) + n.logit_columns);
    if (f.dweight) sum_up<M, kClusterTiles, kPlanes>(n, logit_gradient_view(), x, sums);
    if (now.last_tile() && own == 0 && p.masses)
      for (int k = (int)threadIdx.x; k < n.clusters; k += kThreads)  // each thread reads what it wrote
        p.masses[(int64_t)now.unit * n.clusters + k] = part(n.at.masses)[k];
    if (!f.dx.data) return;
    __syncthreads();  // x has been summed up and may be replaced
    make_dx(now, x);
  }

 private:
  SFRS_DEVICE T* part(int offset) const { return (T*)(memory + offset); }
  SFRS_DEVICE T* logits() const { return part(n.at.logits); }

  SFRS_DEVICE unsigned char* weight_cores() const {
    return n.weight_resident ? memory + n.at.weight : p.weight_cores;
  }
  SFRS_DEVICE unsigned char* gradient_cores(int group) const {
    return n.gradient_resident ? memory + n.at.gradient : p.gradient_cores + group * p.gradient_bytes();
  }
  SFRS_DEVICE Panels<S> assignment_view() const {
    return {memory + n.at.assignment, n.positions, n.cluster_columns};
  }
  SFRS_DEVICE Panels<S> logit_gradient_view() const {
    return {memory + n.at.logit_gradient, n.positions, n.cluster_rows};
  }

  SFRS_DEVICE void load_gradient(int group) const {
    const unsigned char* from = p.gradient_cores + group * p.gradient_bytes();
    for (int64_t i = (int)threadIdx.x * 16; i < p.gradient_bytes(); i += kThreads * 16)
      copy_async<16>(memory + n.at.gradient + i, from + i, true);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
  }

  // A warp per position: from logits and <x, dV> to the left operands of dW and dx.
  SFRS_DEVICE void differentiate(const Step& now, const Panels<S>& x) const {
    int lane = lane_of_thread(), warp = warp_of_thread();
    int begin = now.begin(n), count = now.count(n);
    T masses[kLanes] = {}, biases[kLanes] = {};
    for (int i = warp; i < n.positions; i += kWarps) {
      T a[kLanes] = {}, dl[kLanes] = {}, inverse = 1;
      if (i < count) {
        if (f.normalize_input) inverse = inverse_norm(square_of(n, part(n.at.squares), i));
        int64_t at = p.x.height * p.x.width * now.group.image + now.group.position(p.x, begin + i);
        T onto_x = softmax_backward(i, now.group.index, at, inverse, a, dl);
        T power = rescale_vector<S, kPlanes>(n, x, i, inverse);
        bool counts = f.normalize_input && norm_counts(inverse);
        if (lane == 0) {
          part(n.at.along)[i] = counts ? onto_x * inverse * inverse / power : (T)0;
          part(n.at.along)[n.positions + i] = power;
        }
        inverse /= power;
      }
      const T* scale = p.gradient_scale + (int64_t)now.group.index * n.clusters;
      SFRS_EACH (j, kLanes) {
        int k = lane + 32 * j;
        masses[j] += a[j];
        biases[j] += dl[j];
        if (k < n.cluster_columns)
          store_as(assignment_view().at(i, k), k < n.clusters ? a[j] * inverse * scale[k] : (T)0);
        if (k < n.cluster_rows) store_as(logit_gradient_view().at(i, k), dl[j] * inverse);
      }
      for (int k = lane + 32 * kLanes; k < n.cluster_rows; k += 32)
        store_as(logit_gradient_view().at(i, k), (T)0);
    }
    leave_share(n, logits() + warp * n.logit_stride(), masses);
    leave_share(n, logits() + (kWarps + warp) * n.logit_stride(), biases);
  }

  // a becomes m a, dl the gradient of the logits; returns <xh, dxh>. Writes what is wanted of one position.
  SFRS_DEVICE T softmax_backward(int i, int group, int64_t at, T inverse, T (&a)[kLanes],
                                 T (&dl)[kLanes]) const {
    int lane = lane_of_thread();
    T inner = 0, onto_x = 0;
    SFRS_EACH (j, kLanes) {
      int k = lane + 32 * j;
      a[j] = (T)-INFINITY;
      if (k < n.logits) a[j] = logit_of(i, at, inverse, k) + (f.bias ? ((const T*)f.bias)[k] : (T)0);
    }
    T scale = exponentials<M, kLanes>(a, n.logit_columns);
    T m = f.mask ? ((const T*)f.mask)[at] : (T)1;
    SFRS_EACH (j, kLanes) {
      int k = lane + 32 * j;
      a[j] = k < n.logits ? a[j] * scale : (T)0;
      dl[j] = 0;
      if (k >= n.clusters) continue;
      int64_t of = (int64_t)group * n.clusters + k;
      T along_gradient = part(n.at.products)[i * n.product_stride() + k] * inverse * p.gradient_scale[of];
      dl[j] = along_gradient - p.centroid_gradient[of];
      inner += a[j] * dl[j];
      onto_x += m * a[j] * along_gradient;
    }
    inner = warp_sum(inner);
    if (f.dmask && own == 0 && lane == 0) ((T*)f.dmask)[at] = inner;
    SFRS_EACH (j, kLanes) {
      a[j] *= m;
      dl[j] = a[j] * (dl[j] - inner);
      if (f.dlogits && own == 0 && lane + 32 * j < n.logits)
        ((T*)f.dlogits)[at * n.logits + lane + 32 * j] = dl[j];
    }
    if (!n.logits_given)  // read once more, not kept in registers
      SFRS_EACH (j, kLanes) {
        int k = lane_of_thread() + 32 * j;
        if (k < n.logits) onto_x += dl[j] * logit_of(i, at, inverse, k);
      }
    return warp_sum(onto_x);
  }
  SFRS_DEVICE T logit_of(int i, int64_t at, T inverse, int k) const {
    return n.logits_given ? ((const T*)f.logits_given)[at * n.logits + k]
                          : logits()[i * n.logit_stride() + k] * inverse;
  }

  // A warp makes 32 dimensions of all positions at a time, replaces x by dx and sends it off.
  SFRS_DEVICE void make_dx(const Step& now, const Panels<S>& x) const {
    for (int column = warp_of_thread() * kLogitTask; column < n.chunk; column += kWarps * kLogitTask) {
      for (int m = 0; m < n.positions; m += 16 * M::kTaskRows) {
        T sums[M::kTaskRows][4][4];
        SFRS_EACH (i, M::kTaskRows)
          SFRS_EACH (j, 4)
            SFRS_EACH (e, 4) sums[i][j][e] = 0;
        add_products(assignment_view(), gradient_cores(now.group.index), n.gradient_resident, n.clusters, m,
                     column, sums);
        if (!n.logits_given)
          add_products(logit_gradient_view(), weight_cores(), n.weight_resident, n.logits, m, column, sums);
        replace_x(x, m, column, sums);
      }
      __syncwarp();
      store_dx(now, x, column);
    }
  }
  SFRS_DEVICE void add_products(const Panels<S>& a, unsigned char* cores, bool resident, int clusters, int m,
                                int column, T (&sums)[M::kTaskRows][4][4]) const {
    if (resident)
      add_products_from(a, Cores<S, false>{cores, n.padded_dim()}, clusters, m, column, sums);
    else
      add_products_from(a, Cores<S, true>{cores, n.padded_dim()}, clusters, m, column, sums);
  }
  // sums[p][d] += sum_k a[p][k] cores[k][d].
  template <class View>
  SFRS_DEVICE void add_products_from(const Panels<S>& a, const View& cores, int clusters, int m, int column,
                                     T (&sums)[M::kTaskRows][4][4]) const {
    int lane = lane_of_thread();
    bool two = n.positions > 16;
    SFRS_ROLLED
    for (int k = 0; k < clusters; k += M::kStep) {
      typename M::Ready b[2];
      SFRS_EACH (pair, 2)
        b[pair] = M::ready(M::template load_b<true>(cores, own * n.chunk + column + 16 * pair, k, lane));
      SFRS_EACH (i, M::kTaskRows) {
        if (i == 1 && !two) continue;
        auto left = M::ready(M::template load_a<false>(a, m + 16 * i, k, lane));
        SFRS_EACH (pair, 2) M::multiply(sums[i][2 * pair], sums[i][2 * pair + 1], left, b[pair]);
      }
    }
  }
  SFRS_DEVICE void replace_x(const Panels<S>& x, int m, int column,
                             const T (&sums)[M::kTaskRows][4][4]) const {
    SFRS_EACH (i, M::kTaskRows)
      SFRS_EACH (half, 2) {
        int lane = lane_of_thread(), position = m + 16 * i + 8 * half + lane / 4;
        if (position >= n.positions) continue;
        T onto_x = part(n.at.along)[position], power = part(n.at.along)[n.positions + position];
        SFRS_EACH (j, 4)
          SFRS_EACH (e, 2) {
            int d = column + 8 * j + 2 * (lane % 4) + e;
            S* at = kPlanes ? x.at(d, position) : x.at(position, d);
            store_as(at, sums[i][j][2 * half + e] * power - to_float(*at) * onto_x);
          }
      }
  }

  SFRS_DEVICE void store_dx(const Step& now, const Panels<S>& x, int column) const {
    constexpr int narrow = narrow_copy(sizeof(S));
    int begin = now.begin(n), count = now.count(n);
    if (n.store_bytes == 16)
      store_dx_by<16>(now.group, begin, count, x, column);
    else if (n.store_bytes == narrow)
      store_dx_by<narrow>(now.group, begin, count, x, column);
    else if constexpr (narrow > sizeof(S))
      store_dx_by<(int)sizeof(S)>(now.group, begin, count, x, column);
  }
  template <int kBytes>
  SFRS_DEVICE void store_dx_by(const Group& g, int begin, int count, const Panels<S>& x, int column) const {
    constexpr int unit = kBytes / (int)sizeof(S);
    struct alignas(kBytes) Unit {
      S v[unit];
    };
    S* image = (S*)p.dx.data + g.image * p.dx.stride_b;
    int across = (kPlanes ? n.positions : kLogitTask) / unit, rows = kPlanes ? kLogitTask : n.positions;
    int left = n.dim - own * n.chunk;
    for (int i = lane_of_thread(); i < across * rows; i += 32) {
      int row = i / across, within = (i - row * across) * unit;
      int position = kPlanes ? within : row, d = column + (kPlanes ? row : within);
      if (position >= count || d >= left) continue;
      S* to = image + g.offset(p.dx, begin + position) + (own * n.chunk + d) * p.dx.stride_d;
      *(Unit*)to = *(const Unit*)(kPlanes ? x.at(d, position) : x.at(position, d));
    }
  }

  SFRS_DEVICE void finish(BlockSums& sums) const {
    if (f.dbias && own == 0)
      for (int k = (int)threadIdx.x; k < n.logits; k += kThreads)
        p.bias_sums[(int64_t)blockIdx.x * n.logits + k] = part(n.at.masses)[n.logit_columns + k];
    if (!f.dweight) return;
    T* out = p.weight_sums + (int64_t)blockIdx.x * n.logits * n.dim;
    sums.each_pair(WriteSums<T, T>{out, n.logits, n.dim, own * n.chunk, n.chunk, nullptr, (T)1});
  }

  const BackwardParameters<T>& p;
  const AggregationBackward& f;
  const Tiling& n;
  unsigned char* memory;
  int own;
};

template <class M, int kClusterTiles, int kLanes, bool kPlanes>
SFRS_KERNEL(256)
aggregate_backward_kernel(SFRS_CONSTANT BackwardParameters<typename M::Sum> p) {
  SFRS_SHARED_MEMORY(memory);
  BackwardBlock<M, kClusterTiles, kLanes, kPlanes>(p, memory).run();
}

}  // namespace sfrs::cuda
