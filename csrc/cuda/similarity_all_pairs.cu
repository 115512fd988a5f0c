// Launches region similarity of all pairs.
#include "arithmetic.h"
#include "launch.h"
#include "similarity.h"
#include "similarity_norms.cuh"
#include "similarity_pairs.cuh"
#include "similarity_pairs_backward.cuh"

namespace sfrs::cuda {

namespace {

template <class M>
constexpr bool kIsTf32 = __is_same(M, Matmul<float, true>);

// The kernels of one arithmetic M.
template <class M>
class AllPairs {
  using S = typename M::Storage;
  using T = typename M::Sum;
  static constexpr bool kTf32 = kIsTf32<M>;
  using Tile = PairTile<S>;

 public:
  AllPairs(const RegionSimilarity& f, const Machine& machine)
      : f_(f),
        machine_(machine),
        row_bytes_(f.dim * (int64_t)sizeof(S)),
        aligned_(aligned_rows(f.query, row_bytes_) && aligned_rows(f.quarters, row_bytes_)),
        inverse_(machine.scratch<T>(f.gallery * f.clusters * kRegions)),
        inverse_total_(machine.scratch<T>(f.gallery * kRegions)) {
    auto* squares = machine.scratch<double>(f.gallery * f.clusters * kRegions);
    NormsParameters p{f.quarters, squares, inverse_, inverse_total_,
                      f.clusters, f.dim,   aligned_, cancelled_below(f.dtype)};
    launch(machine, similarity_norms<S>, grid_of(f.gallery), kRegionThreads, 0, p);
  }

  void forward(void* similarity) const {
    PairParameters p = pairs();
    const int64_t splits = split(&p), count = f_.queries * f_.gallery * kRegions;
    p.inverse = inverse_;
    p.inverse_total = splits == 1 ? inverse_total_ : nullptr;
    p.out = splits == 1 ? similarity : machine_.scratch<T>(splits * count);
    launch(machine_, similarity_pairs_forward<S, kTf32>, blocks(p, splits), kPairThreads, Tile::kShared, p);
    if (splits == 1) return;
    AddSplitsParameters add{p.out, inverse_total_, similarity, count, f_.gallery * kRegions, splits};
    launch(machine_, similarity_add_splits<T>, grid_of(divide_up(count, kPairThreads)), kPairThreads, 0, add);
  }

  void backward(const RegionSimilarityBackward& f) const {
    T* scaled = machine_.scratch<T>(scaled_size(f.queries, f.gallery));
    T* clamped = machine_.scratch<T>(f.gallery * kRegions);
    ScaleParameters scale{f.grad, f.similarity, inverse_total_, scaled, clamped, f.queries, f.gallery};
    launch(machine_, similarity_scale<T>, grid_of(divide_up(f.gallery * kRegions, 32)), kPairThreads,
           kPairThreads * (int64_t)sizeof(T), scale);
    if (f.dquery && f.queries > 0) weigh<true>(f, scaled, nullptr);
    if (f.dquarters) weigh<false>(f, scaled, coefficients(scaled, clamped));
  }

 private:
  PairParameters pairs() const {
    PairParameters p{};
    p.query = f_.query, p.quarters = f_.quarters;
    p.queries = f_.queries, p.gallery = f_.gallery, p.clusters = f_.clusters, p.dim = f_.dim;
    p.query_tiles = divide_up(f_.queries, Tile::kQueries);
    p.image_tiles = divide_up(f_.gallery, Tile::kImages);
    p.aligned = aligned_;
    return p;
  }
  // Parts the clusters of a tile among blocks where there are few tiles, or a few more than the machine
  // takes at a time. Returns the number of parts.
  int64_t split(PairParameters* p) const {
    const int64_t tiles = p->query_tiles * p->image_tiles, machine = machine_.multiprocessors;
    int64_t best = 1;
    double least = 0;
    for (int64_t splits = 1; splits <= p->clusters && (splits == 1 || splits * tiles <= 8 * machine);
         ++splits) {
      const double share = (double)divide_up(p->clusters, splits) / p->clusters;
      const double time = divide_up(tiles * splits, machine) * share * (1 + 0.02 * splits);
      if (splits == 1 || time < least) best = splits, least = time;
    }
    p->clusters_per_split = divide_up(p->clusters, best);
    return divide_up(p->clusters, p->clusters_per_split);
  }
  static dim3 blocks(const PairParameters& p, int64_t splits) {
    return grid_of(p.query_tiles * p.image_tiles * splits);
  }

  // c_r of every image and cluster, and their unit.
  const T* coefficients(const T* scaled, const T* clamped) const {
    PairParameters p = pairs();
    const int64_t count = f_.gallery * f_.clusters;
    T* along = machine_.scratch<T>(p.query_tiles * count * kRegions);
    T* coefficients = machine_.scratch<T>(count * kRegionCoefficients);
    if (p.query_tiles > 0) {
      const int64_t splits = split(&p);
      p.scaled = scaled, p.out = along;
      launch(machine_, similarity_pairs_backward<S, kTf32>, blocks(p, splits), kPairThreads,
             Tile::kBackwardShared, p);
    }
    RegionCoefficientParameters c{along, inverse_, clamped, coefficients, count, f_.clusters, p.query_tiles};
    launch(machine_, similarity_region_coefficients<T>, grid_of(divide_up(count, kPairThreads)), kPairThreads,
           0, c);
    return coefficients;
  }

  template <bool kOfQuery>
  void weigh(const RegionSimilarityBackward& f, const T* scaled, const T* coefficients) const {
    using Weights = WeightTile<S, kTf32>;
    void* out = kOfQuery ? f.dquery : f.dquarters;
    WeightParameters p{kOfQuery ? f.quarters : f.query,
                       scaled,
                       inverse_,
                       f.quarters,
                       coefficients,
                       out,
                       f.queries,
                       f.gallery,
                       f.clusters,
                       f.dim,
                       divide_up(f.dim, Weights::kDims),
                       aligned_ && aligned_rows(out, row_bytes_)};
    const int64_t rows = kOfQuery ? f.queries : f.gallery * kQuarters;
    const int64_t tiles = divide_up(rows, Weights::kRows) * p.dim_tiles * f.clusters;
    auto* kernel = kOfQuery ? similarity_pairs_dquery<S, kTf32> : similarity_pairs_dquarters<S, kTf32>;
    launch(machine_, kernel, grid_of(tiles), kPairThreads, Weights::kShared, p);
  }

  const RegionSimilarity& f_;
  const Machine& machine_;
  int64_t row_bytes_;
  bool aligned_;
  T *inverse_, *inverse_total_;
};

}  // namespace

template <class M>
void similarity_all_pairs_forward_with(const RegionSimilarityForward& f, const Machine& machine) {
  AllPairs<M>(f, machine).forward(f.similarity);
}
template <class M>
void similarity_all_pairs_backward_with(const RegionSimilarityBackward& f, const Machine& machine) {
  AllPairs<M>(f, machine).backward(f);
}

#ifdef SFRS_MATMUL
template void similarity_all_pairs_forward_with<SFRS_MATMUL>(const RegionSimilarityForward&, const Machine&);
template void similarity_all_pairs_backward_with<SFRS_MATMUL>(const RegionSimilarityBackward&,
                                                              const Machine&);
#else
#define SFRS_ELSEWHERE(...)                                                     \
  extern template void similarity_all_pairs_forward_with<Matmul<__VA_ARGS__>>(  \
      const RegionSimilarityForward&, const Machine&);                          \
  extern template void similarity_all_pairs_backward_with<Matmul<__VA_ARGS__>>( \
      const RegionSimilarityBackward&, const Machine&);
SFRS_ARITHMETICS(SFRS_ELSEWHERE)

void similarity_all_pairs_forward(const RegionSimilarityForward& f, const Machine& machine) {
  if (f.queries == 0 || f.gallery == 0) return;
  with_arithmetic(f.dtype, f.tf32,
                  [&](auto matmul) { similarity_all_pairs_forward_with<decltype(matmul)>(f, machine); });
}
void similarity_all_pairs_backward(const RegionSimilarityBackward& f, const Machine& machine) {
  if (!f.dquery && !f.dquarters) return;
  // Nothing to sum over: the list of no images writes zeros.
  if (f.gallery == 0) return similarity_lists_backward(f, machine);
  with_arithmetic(f.dtype, f.tf32,
                  [&](auto matmul) { similarity_all_pairs_backward_with<decltype(matmul)>(f, machine); });
}
#endif

}  // namespace sfrs::cuda
