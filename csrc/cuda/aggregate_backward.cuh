// NetVLAD aggregation, backward. Idea: a tile of positions is copied into shared memory once and everything
// is made of it there, in five products on the tensor cores (da and dl in registers and shared memory only):
//
//   l = xh W^T,  da = xh dV^T - <c, dV>,  dl = a (m da - <a, m da>),  dW += dl^T xh,  dxh = (m a) dV + dl W
//
// dW stays in the registers of a block over all its tiles. The gradient through |x| needs <xh, dxh>, which
// follows from numbers at hand, sum_k (m a)_k <xh, dV_k> + dl_k l_k, so dx leaves from registers. Softmax and
// assignments are repeated, only norms are read. In 16 bits half of a block's warps make logits and softmax
// of a tile while the other half makes dx of the one before; both then add to dW.
//
// Floor: x read, dx written, 4 D bytes against 4 (2 K + G) D flops per position in 16 bits: at K = 64 an
// H200 needs 0.6 us per 30 x 40 x 512 map for the bytes and about as long for mma.sync.
#pragma once

#include "aggregate_dx.cuh"
#include "aggregate_softmax.cuh"
#include "aggregate_sums.cuh"
#include "aggregate_walks.cuh"

namespace sfrs::cuda {

template <class M, class Shape, bool kPlanes>
class BackwardBlock {
  using S = typename M::Storage;
  using T = typename M::Sum;
  using Cut = typename Shape::Cut;
  static constexpr int kClusterTiles = Shape::kClusterTiles;
  static constexpr bool kOneWindow = Shape::kOneWindow;
  using Makers = std::conditional_t<Cut::kAlternates, Half, WholeBlock>;
  using BlockSums = Sums<M, kClusterTiles>;
  using TileSoftmax = Softmax<M, Cut, kOneWindow, Cut::kAlternates ? 4 : sizeof(S) == 2 ? 8 : 16>;
  using Values = typename TileSoftmax::Values;

 public:
  SFRS_DEVICE BackwardBlock(const BackwardParameters<T>& p, unsigned char* memory)
      : p(p), f(p.f), n(Shape::of(p.n)), memory(memory), own((int)blockIdx.y) {}

  SFRS_DEVICE void run() {
    BlockSums sums;
    sums.clear();
    if constexpr (Cut::kAlternates)
      walk_in_turns<S, kPlanes>(p.x, (int)f.parts, n, memory, *this, sums);
    else
      walk<S, kPlanes>(p.x, (int)f.parts, n, memory, *this, sums);
    finish(sums);
  }
  SFRS_DEVICE void prepare() const {
    keep_weights<S, T>(n, f.weight, memory);
    keep_bias<T>(n, f.bias, memory);
    if constexpr (Cut::kAlternates) clear(bias_shares());
  }

  // A step of the whole block.
  template <class BlockSteps>
  SFRS_DEVICE void work(const BlockSteps& steps, int i, const Panels<S>& x, BlockSums& sums) const {
    const Step& now = steps.at(i);
    if (now.first_tile() && now.chunk_step == 0) enter(now);
    T inverse = saved_norm(now, first_position());
    make_products(now, x);
    if (n.stages == 2) steps.send(i + 1);
    if (!now.last_chunk(n)) return steps.plan(i + 1);
    differentiate(now, x, inverse);
    __syncthreads();
    steps.plan(i + 1);
    add_rows(now);
    add_up(now, x, sums);
    if (now.last_tile()) __syncthreads();
    end_step(now, x);
  }
  // The parts of a step when halves take turns.
  SFRS_DEVICE void enter(const Step& now) const {
    if constexpr (Cut::kAlternates) clear(mass_shares());
    load_gradient(now.group.index);
  }
  SFRS_DEVICE void assign(const Step& now, const Panels<S>& x) const {
    if (!now.valid()) return OperandsRead::sync();
    T inverse = saved_norm(now, first_position());
    make_products(now, x);
    differentiate(now, x, inverse);
  }
  SFRS_DEVICE void add_up(const Step&, const Panels<S>& x, BlockSums& sums) const {
    if (f.dweight) sum_up<M, kClusterTiles, kPlanes>(n, logit_gradient_view(), x, sums);
  }
  SFRS_DEVICE void end_step(const Step& now, const Panels<S>& x) const {
    if (now.last_tile() && own == 0 && p.masses)
      for (int k = Makers::thread(); k < n.clusters; k += 32 * Makers::kCount)
        p.masses[(int64_t)now.unit * n.clusters + k] = total(mass_shares(), k);
    if (f.dx.data) DxMaker<M, Cut, kPlanes, Makers>{p, n, memory, own}.run(now, x);
  }

 private:
  SFRS_DEVICE T* part(int offset) const { return (T*)(memory + offset); }
  SFRS_DEVICE TileSoftmax softmax() const { return {n, memory, f.logits_given}; }

  SFRS_DEVICE Panels<S> assignment_view() const { return backward_assignments<S>(n, memory); }
  SFRS_DEVICE Panels<S> logit_gradient_view() const { return logit_gradients<S>(n, memory); }

  // 1 / |x| of a position of the tile, and which one a lane takes first.
  SFRS_DEVICE T saved_norm(const Step& now, int i) const {
    if (!f.normalize_input || i >= now.count) return 1;
    return ((const T*)f.saved_inv_norm)[now.group.index_of(p.x, now.begin + i)];
  }
  SFRS_DEVICE static int first_position() {
    return Makers::warp() * TileSoftmax::kAtOnce + lane_of_thread() / TileSoftmax::kSharers;
  }
  SFRS_DEVICE void make_products(const Step& now, const Panels<S>& x) const {
    LogitOperand weights{n.logits_given ? 0 : n.logit_columns, n.weight_resident, n.at.weight, p.weight_cores,
                         n.at.logits};
    LogitOperand gradients{n.cluster_columns, n.gradient_resident, n.at.gradient,
                           p.gradient_cores + now.group.index * p.gradient_bytes(), n.at.products};
    LogitMaker<M, Cut, kPlanes, false, kClusterTiles == 4, Makers>{n, memory, now, x, weights, gradients}
        .run();
  }

  // Sums over the positions: of the weights of the sums, and of the logits' gradients. When halves take
  // turns, a share of every warp.
  static constexpr int kShares = Cut::kAlternates ? kWarps : 1;
  SFRS_DEVICE T* mass_shares() const { return part(n.at.masses); }
  SFRS_DEVICE T* bias_shares() const { return mass_shares() + kShares * n.cluster_columns; }
  SFRS_DEVICE void add_rows(const Step& now) const {
    if (p.masses) softmax().template add_rows<false>(n.cluster_columns, now.first_tile(), mass_shares());
    if (f.dbias) softmax().template add_rows<true>(n.logit_columns, now.first_of_block(), bias_shares());
  }
  SFRS_DEVICE void clear(T* shares) const {
    for (int k = this_thread(); k < kShares * n.logit_columns; k += kThreads) shares[k] = 0;
  }
  SFRS_DEVICE T total(const T* shares, int k) const {
    T sum = shares[k];
    for (int i = 1; i < kShares; ++i) sum += shares[i * n.logit_columns + k];
    return sum;
  }
  // Adds up the values of a warp's positions, and adds that to its share: lanes exchange halves of what they
  // have until each is left with two clusters.
  SFRS_DEVICE void add_positions(const Values& values, T* shares) const {
    static_assert(!Cut::kAlternates || (TileSoftmax::kFours == 4 && TileSoftmax::kAtOnce == 8));
    T eight[8], four[4], two[2];
    int lane = lane_of_thread(), upper = lane >> 4;
    SFRS_EACH (i, 8) eight[i] = exchanged(values[i / 4][i % 4], values[2 + i / 4][i % 4], upper, 16);
    upper = lane >> 3 & 1;
    SFRS_EACH (i, 4) four[i] = exchanged(eight[i], eight[4 + i], upper, 8);
    upper = lane >> 2 & 1;
    SFRS_EACH (i, 2) two[i] = exchanged(four[i], four[2 + i], upper, 4);
    int k = TileSoftmax::cluster(0, lane >> 4 << 1 | (lane >> 3 & 1)) + 2 * upper;
    auto* share = (Packed<T, 2>*)(shares + warp_of_thread() * n.logit_columns + k);
    share->set(0, share->v[0] + two[0], share->v[1] + two[1]);
  }
  SFRS_DEVICE static T exchanged(T low, T high, bool upper, int step) {
    return (upper ? high : low) + __shfl_xor_sync(kAllLanes, upper ? low : high, step);
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
  // `inverse` is that of the lane's first position.
  SFRS_DEVICE void differentiate(const Step& now, const Panels<S>& x, T inverse) const {
    TileSoftmax soft = softmax();
    int lane = lane_of_thread(), begin = now.begin, count = now.count;
    for (int first = Makers::warp() * soft.kAtOnce; first < n.positions;
         first += Makers::kCount * soft.kAtOnce) {
      int i = first + lane / soft.kSharers;
      if (first >= Makers::kCount * soft.kAtOnce) inverse = saved_norm(now, i);
      bool valid = i < count, leads = lane % soft.kSharers == 0;
      int64_t at = 0;  // among all positions
      if (n.by_position && valid) at = now.group.index_of(p.x, begin + i);
      T top;
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
        finish_position(window, at, valid, m, inner, l, a, da, onto_x);
        if constexpr (!Cut::kAlternates) write(window, i, inverse / power, a, da);
      }
      onto_x = soft.share_sum(onto_x);
      if constexpr (Cut::kAlternates) {
        if (p.masses) add_positions(a, mass_shares());
        if (f.dbias) add_positions(da, bias_shares());
        if (first < Makers::kCount * soft.kAtOnce) OperandsRead::sync();
        write(0, i, inverse / power, a, da);
      }
      for (int k = round_up(n.logit_columns, kWindow) + soft.cluster(0, 0); k < n.cluster_rows;
           k += 4 * soft.kSharers)
        logit_gradient_view().put(i, k, Four<S>{});
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
  // a becomes the weight in the sums, da the gradient of the logits; adds <dl, l>.
  SFRS_DEVICE void finish_position(int window, int64_t at, bool valid, T m, T inner, const Values& l,
                                   Values& a, Values& da, T& onto_x) const {
    SFRS_EACH (j, TileSoftmax::kFours) {
      int k = TileSoftmax::cluster(window, j);
      SFRS_EACH (e, 4) {
        T weight = a[j][e] * m;
        da[j][e] = weight * (da[j][e] - inner);
        a[j][e] = k + e < n.clusters ? weight : (T)0;
        if (!n.logits_given) onto_x += da[j][e] * l[j][e];
      }
      if (f.dlogits && own == 0 && valid)
        SFRS_EACH (e, 4)
          if (k + e < n.logits) ((T*)f.dlogits)[at * n.logits + k + e] = da[j][e];
    }
  }
  // Writes the left operands and, where rows are to be added up, what they are made of.
  SFRS_DEVICE void write(int window, int i, T factor, const Values& weights, const Values& dl) const {
    const T* facts = part(n.at.gradient_facts);
    SFRS_EACH (j, TileSoftmax::kFours) {
      int k = TileSoftmax::cluster(window, j);
      Four<T> weight, gradient;
      SFRS_EACH (e, 4) weight.v[e] = weights[j][e], gradient.v[e] = dl[j][e];
      if (k < n.cluster_columns) {
        Four<T> of = *(const Four<T>*)(facts + k);
        Four<S> left;
        SFRS_EACH (e, 2)
          left.set(e, weight.v[2 * e] * factor * of.v[2 * e], weight.v[2 * e + 1] * factor * of.v[2 * e + 1]);
        if constexpr (!Cut::kAlternates) softmax().products(i, k) = weight;
        assignment_view().put(i, k, left);
      }
      if (k < n.cluster_rows) {
        Four<S> left;
        SFRS_EACH (e, 2) left.set(e, gradient.v[2 * e] * factor, gradient.v[2 * e + 1] * factor);
        logit_gradient_view().put(i, k, left);
      }
      if constexpr (!Cut::kAlternates) {
        if (k < n.logit_columns) softmax().logits(i, k) = gradient;
      }
    }
  }

  SFRS_DEVICE void finish(BlockSums& sums) const {
    if (f.dbias && own == 0)
      for (int k = this_thread(); k < n.logits; k += kThreads)
        p.bias_sums[(int64_t)blockIdx.x * n.logits + k] = total(bias_shares(), k);
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
