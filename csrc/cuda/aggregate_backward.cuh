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

#include "aggregate_dx.cuh"
#include "aggregate_softmax.cuh"
#include "aggregate_sums.cuh"

namespace sfrs::cuda {

template <class M, class Shape, bool kPlanes>
class BackwardBlock {
  using S = typename M::Storage;
  using T = typename M::Sum;
  using Cut = typename Shape::Cut;
  static constexpr int kClusterTiles = Shape::kClusterTiles;
  static constexpr bool kOneWindow = Shape::kOneWindow;
  using BlockSums = Sums<M, kClusterTiles>;
  using TileSoftmax = Softmax<M, Cut, kOneWindow, sizeof(S) == 2 ? 8 : 16>;
  using Values = typename TileSoftmax::Values;

 public:
  SFRS_DEVICE BackwardBlock(const BackwardParameters<T>& p, unsigned char* memory)
      : p(p), f(p.f), n(Shape::of(p.n)), memory(memory), own((int)blockIdx.y) {}

  SFRS_DEVICE void run() {
    BlockSums sums;
    sums.clear();
    walk<S, kPlanes>(p.x, (int)f.parts, n, memory, *this, sums);
    finish(sums);
  }
  SFRS_DEVICE void prepare() const {
    keep_weights<S, T>(n, f.weight, memory);
    keep_bias<T>(n, f.bias, memory);
  }

  template <class BlockSteps>
  SFRS_DEVICE void work(const BlockSteps& steps, int i, const Panels<S>& x, BlockSums& sums) const {
    const Step& now = steps.at(i);
    if (now.first_tile() && now.chunk_step == 0) load_gradient(now.group.index);
    LogitOperand weights{n.logits_given ? 0 : n.logit_columns, n.weight_resident, n.at.weight, p.weight_cores,
                         n.at.logits};
    LogitOperand gradients{n.cluster_columns, n.gradient_resident, n.at.gradient,
                           p.gradient_cores + now.group.index * p.gradient_bytes(), n.at.products};
    LogitMaker<M, Cut, kPlanes, kClusterTiles == 4>{n, memory, now, x, f.normalize_input, weights, gradients}
        .run();
    if (n.stages == 2) steps.send(i + 1);
    if (!now.last_chunk(n)) return steps.plan(i + 1);
    differentiate(now, x);
    __syncthreads();
    steps.plan(i + 1);
    add_rows(now);
    if (f.dweight) sum_up<M, kClusterTiles, kPlanes>(n, logit_gradient_view(), x, sums);
    if (!f.dx.data && !now.last_tile()) return;
    __syncthreads();  // x has been summed up and may be replaced
    if (now.last_tile() && own == 0 && p.masses)
      for (int k = this_thread(); k < n.clusters; k += kThreads)
        p.masses[(int64_t)now.unit * n.clusters + k] = part(n.at.masses)[k];
    if (f.dx.data) DxMaker<M, Cut, kPlanes>{p, n, memory, own}.run(now, x);
  }

 private:
  SFRS_DEVICE T* part(int offset) const { return (T*)(memory + offset); }
  SFRS_DEVICE TileSoftmax softmax() const { return {n, memory, f.logits_given}; }

  SFRS_DEVICE Panels<S> assignment_view() const { return backward_assignments<S>(n, memory); }
  SFRS_DEVICE Panels<S> logit_gradient_view() const { return logit_gradients<S>(n, memory); }

  // Sums over the positions: of the weights of the sums, and of the logits' gradients.
  SFRS_DEVICE void add_rows(const Step& now) const {
    if (p.masses) softmax().template add_rows<false>(n.cluster_columns, now.first_tile(), part(n.at.masses));
    if (f.dbias)
      softmax().template add_rows<true>(n.logit_columns, now.first_of_block(),
                                        part(n.at.masses) + n.cluster_columns);
  }

  // dV of a group, if it is kept, and for every cluster what it is to be multiplied by and <c, dV>.
  SFRS_DEVICE void load_gradient(int group) const {
    if (n.gradient_resident) {
      const unsigned char* from = p.gradient_cores + group * p.gradient_bytes();
      SFRS_UNROLL_BY(4)
      for (int i = this_thread() * 16; i < (int)p.gradient_bytes(); i += kThreads * 16)
        copy_async<16>(memory + n.at.gradient + i, from + i, true);
      copy_async_commit();
    }
    T* facts = part(n.at.gradient_facts);
    for (int k = this_thread(); k < n.cluster_columns; k += kThreads) {
      int64_t of = (int64_t)group * n.clusters + k;
      facts[k] = k < n.clusters ? p.gradient_scale[of] : (T)0;
      facts[n.cluster_columns + k] = k < n.clusters ? p.centroid_gradient[of] : (T)0;
    }
    copy_async_wait<0>();
    __syncthreads();
  }

  // From logits and <x, dV> to the left operands of dW and dx. The weights of the sums take the place of the
  // products, the logits' gradients that of the logits.
  SFRS_DEVICE void differentiate(const Step& now, const Panels<S>& x) const {
    TileSoftmax soft = softmax();
    int lane = lane_of_thread(), begin = now.begin, count = now.count;
    for (int first = warp_of_thread() * soft.kAtOnce; first < n.positions; first += kWarps * soft.kAtOnce) {
      int i = first + lane / soft.kSharers;
      bool valid = i < count, leads = lane % soft.kSharers == 0;
      int64_t at = 0;  // among all positions
      if (n.by_position && valid) at = now.group.index_of(p.x, begin + i);
      T inverse = 1, top;
      if (f.normalize_input) {
        inverse = inverse_norm(square_of(n, part(n.at.squares), i));
        if (!valid) inverse = 1;
      }
      Values l, a, da;
      auto load = [&](int window) {
        soft.load_logits(window, i, at, valid, inverse, l);
        soft.add_bias(window, l, a);
      };
      T scale = soft.normalize(load, top, a);
      if (!valid) scale = 0;
      T m = f.mask && valid ? ((const T*)f.mask)[at] : (T)1, inner = 0, onto_x = 0;
      for (int window = 0; window < soft.windows(); window += kWindow) {
        soft.restore(load, window, top, a);
        load_gradients(window, i, inverse, scale, a, da, inner, onto_x);
      }
      inner = soft.share_sum(inner);
      onto_x *= m;
      if (f.dmask && own == 0 && leads && valid) ((T*)f.dmask)[at] = inner;
      T power = rescale_vectors<S, kPlanes, soft.kSharers>(n, x, first, inverse);
      for (int window = 0; window < soft.windows(); window += kWindow) {
        if (!kOneWindow) {
          T ignored[2] = {};
          load(window);
          soft.exponentiate(top, a);
          load_gradients(window, i, inverse, scale, a, da, ignored[0], ignored[1]);
        }
        finish_position(window, i, at, valid, m, inner, inverse / power, l, a, da, onto_x);
      }
      for (int k = round_up(n.logit_columns, kWindow) + soft.cluster(0, 0); k < n.cluster_rows;
           k += 4 * soft.kSharers)
        logit_gradient_view().put(i, k, Four<S>{});
      onto_x = soft.share_sum(onto_x);
      bool counts = f.normalize_input && norm_counts(inverse);
      if (leads) {
        part(n.at.along)[i] = counts && valid ? onto_x * inverse * inverse / power : (T)0;
        part(n.at.along)[n.positions + i] = power;
      }
    }
  }

  // a becomes the softmax, da its gradient; adds <a, da> and <a, <xh, dV>>.
  SFRS_DEVICE void load_gradients(int window, int i, T inverse, T scale, Values& a, Values& da, T& inner,
                                  T& onto_x) const {
    const T* facts = part(n.at.gradient_facts);
    SFRS_EACH (j, TileSoftmax::kFours) {
      int k = TileSoftmax::cluster(window, j);
      SFRS_EACH (e, 4) da[j][e] = 0, a[j][e] *= scale;
      if (k >= n.cluster_columns) continue;
      Four<T> product = softmax().products(i, k), of = *(const Four<T>*)(facts + k);
      Four<T> centroid = *(const Four<T>*)(facts + n.cluster_columns + k);
      SFRS_EACH (e, 4) {
        T along_gradient = product.v[e] * inverse * of.v[e];
        da[j][e] = k + e < n.clusters ? along_gradient - centroid.v[e] : (T)0;
        inner += a[j][e] * da[j][e];
        onto_x += k + e < n.clusters ? a[j][e] * along_gradient : (T)0;
      }
    }
  }
  // Writes what is wanted of a position; adds <dl, l>.
  SFRS_DEVICE void finish_position(int window, int i, int64_t at, bool valid, T m, T inner, T factor,
                                   const Values& l, const Values& a, const Values& da, T& onto_x) const {
    const T* facts = part(n.at.gradient_facts);
    SFRS_EACH (j, TileSoftmax::kFours) {
      int k = TileSoftmax::cluster(window, j);
      Four<T> weight, dl;
      SFRS_EACH (e, 4) {
        weight.v[e] = a[j][e] * m;
        dl.v[e] = weight.v[e] * (da[j][e] - inner);
        if (!n.logits_given) onto_x += dl.v[e] * l[j][e];
      }
      if (k < n.cluster_columns) {
        Four<T> of = *(const Four<T>*)(facts + k);
        Four<S> left;
        SFRS_EACH (e, 4) weight.v[e] = k + e < n.clusters ? weight.v[e] : (T)0;
        SFRS_EACH (e, 2)
          left.set(e, weight.v[2 * e] * factor * of.v[2 * e], weight.v[2 * e + 1] * factor * of.v[2 * e + 1]);
        softmax().products(i, k) = weight;
        assignment_view().put(i, k, left);
      }
      if (k < n.cluster_rows) {
        Four<S> left;
        SFRS_EACH (e, 2) left.set(e, dl.v[2 * e] * factor, dl.v[2 * e + 1] * factor);
        logit_gradient_view().put(i, k, left);
      }
      if (k < n.logit_columns) softmax().logits(i, k) = dl;
      if (f.dlogits && own == 0 && valid)
        SFRS_EACH (e, 4)
          if (k + e < n.logits) ((T*)f.dlogits)[at * n.logits + k + e] = dl.v[e];
    }
  }

  SFRS_DEVICE void finish(BlockSums& sums) const {
    if (f.dbias && own == 0)
      for (int k = this_thread(); k < n.logits; k += kThreads)
        p.bias_sums[(int64_t)blockIdx.x * n.logits + k] = part(n.at.masses)[n.cluster_columns + k];
    if (!f.dweight) return;
    T* out = p.weight_sums + (int64_t)blockIdx.x * n.logits * n.sums_dim();
    sums.each_four(n, WriteSums<T, T>{out, n.logits, n.sums_dim(), own * n.chunk, n.chunk});
  }

  const BackwardParameters<T>& p;
  const AggregationBackward& f;
  const Cut& n;
  unsigned char* memory;
  int own;
};

template <class M, class Shape, bool kPlanes>
SFRS_KERNEL(256)
aggregate_backward_kernel(SFRS_CONSTANT BackwardParameters<typename M::Sum> p) {
  SFRS_SHARED_MEMORY(memory);
  BackwardBlock<M, Shape, kPlanes>(p, memory).run();
}

}  // namespace sfrs::cuda
