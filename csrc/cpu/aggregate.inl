// NetVLAD aggregation: tasks share the positions of all images, tile by tile; what they share of an image is
// added up in their order, so that as many threads give the same bits.
#pragma once

#include "aggregate_backward.inl"
#ifdef SFRS_PAIRS
#include "paired_backward.inl"
#endif

namespace sfrs::cpu::SFRS_ISA {
namespace {

// How maps of a storage type are aggregated.
template <class S>
struct Aggregated {
  using Sizes = sfrs::cpu::SFRS_ISA::Sizes<Acc<S>>;
  using Assignment = sfrs::cpu::SFRS_ISA::Assignment<Acc<S>>;
  using ForwardTile = sfrs::cpu::SFRS_ISA::ForwardTile<S>;
  using Weights = BackwardWeights<Acc<S>>;
  using BackwardTile = sfrs::cpu::SFRS_ISA::BackwardTile<S>;
};
#ifdef SFRS_PAIRS
template <>
struct Aggregated<bf16> {
  using Sizes = PairedSizes;
  using Assignment = PairedAssignment;
  using ForwardTile = PairedForwardTile;
  using Weights = PairedAssignment;
  using BackwardTile = PairedBackwardTile;
};
#endif

template <class S>
void aggregate_forward(const AggregationForward& f, const Parallel& parallel) {
  using T = Acc<S>;
  using Form = Aggregated<S>;
  if (f.x.batch == 0) return;
  typename Form::Sizes n(f);
  Geometry geometry(f.x, f.parts, n.tile);
  int64_t units = geometry.units(f.x.batch), tasks = geometry.tasks(f.x.batch, parallel.threads);
  auto first_of = [&](int64_t task) { return units * task / tasks; };

  // A group that crosses a boundary between tasks is left in slots: slot 2 i + 1 holds what task i began,
  // slot 2 i what it went on with; they are added in that order.
  int64_t row_bytes = Scratch::bytes<T>(n.clusters * n.dim) + Scratch::bytes<double>(n.clusters);
  Scratch shared(Form::Assignment::bytes(n) + 2 * tasks * Accumulator<T>::bytes(n) + (tasks - 1) * row_bytes);
  typename Form::Assignment assignment(f, n, shared);
  Accumulator<T>* slots = (Accumulator<T>*)__builtin_alloca(2 * tasks * sizeof(Accumulator<T>));
  for (int64_t i = 0; i < 2 * tasks; ++i) slots[i] = Accumulator<T>(n, shared);

  parallel.each(tasks, [&](int64_t task) {
    Scratch scratch(Form::ForwardTile::bytes(n) + Accumulator<T>::bytes(n) + row_bytes);
    typename Form::ForwardTile work(f, n, assignment, scratch);
    Accumulator<T> complete(n, scratch);
    T* rows = scratch.take<T>(n.clusters * n.dim);
    double* squares = scratch.take<double>(n.clusters);
    int64_t begin = first_of(task), end = first_of(task + 1);
    for (int64_t unit = begin; unit < end;) {
      Tile t = geometry.at(unit, begin, end);
      const Accumulator<T>& sum = t.whole ? complete : slots[2 * task + t.from_start];
      work.run(t, sum, ahead_of(f.x, sizeof(S), geometry, t, begin, end));
      unit = t.next;
      if (!t.whole || !t.closes) continue;
      Finish<S> finish(f, n, t.group, rows, squares);
      finish.clusters(sum, 0, n.clusters);
      finish.write(0, n.clusters);
    }
  });

  // The groups in slots: all threads share the vectors of their clusters.
  struct Split {
    Finish<S> finish;
    int64_t first, behind;  // the tasks that have a part
  };
  std::vector<Split> splits;
  for (int64_t task = 0; task + 1 < tasks; ++task) {
    int64_t boundary = first_of(task + 1);
    Tile t = geometry.at(boundary, 0, units);
    int64_t first = boundary - t.begin / kTileRows, behind = task + 2;
    // Nothing is split here, or an earlier task began it.
    if (first == boundary || first < first_of(task)) continue;
    while (first_of(behind) < first + geometry.units_of(t.group)) ++behind;
    T* rows = shared.take<T>(n.clusters * n.dim);
    double* squares = shared.take<double>(n.clusters);
    splits.push_back({Finish<S>(f, n, t.group, rows, squares), task, behind});
  }
  int64_t vectors = (n.clusters + kLanes<T> - 1) / kLanes<T>;
  auto share_out = [&](auto body) {
    parallel.each(splits.size() * vectors, [&](int64_t i) {
      int64_t k = i % vectors * kLanes<T>;
      body(splits[i / vectors], k, smaller<int64_t>(k + kLanes<T>, n.clusters));
    });
  };
  share_out([&](const Split& s, int64_t begin, int64_t end) {
    const Accumulator<T>& sum = slots[2 * s.first + 1];
    for (int64_t task = s.first + 1; task < s.behind; ++task) sum.add(n, slots[2 * task], begin);
    s.finish.clusters(sum, begin, end);
  });
  share_out([](const Split& s, int64_t begin, int64_t end) { s.finish.write(begin, end); });
}

template <class S>
void aggregate_backward(const AggregationBackward& f, const Parallel& parallel) {
  using T = Acc<S>;
  using Form = Aggregated<S>;
  typename Form::Sizes n(f);
  Geometry geometry(f.x, f.parts, n.tile);
  int64_t units = geometry.units(f.x.batch), tasks = geometry.tasks(f.x.batch, parallel.threads);

  Scratch shared(Form::Weights::bytes(n) + tasks * ParameterSums<T>::bytes(n));
  typename Form::Weights weights(f, n, shared);
  ParameterSums<T>* sums = (ParameterSums<T>*)__builtin_alloca(tasks * sizeof(ParameterSums<T>));
  for (int64_t i = 0; i < tasks; ++i) sums[i] = ParameterSums<T>(n, shared);

  parallel.each(tasks, [&](int64_t task) {
    Scratch scratch(Form::BackwardTile::bytes(n));
    typename Form::BackwardTile work(f, n, weights, sums[task], scratch);
    sums[task].clear(n);
    int64_t begin = units * task / tasks, end = units * (task + 1) / tasks;
    for (int64_t unit = begin; unit < end;) {
      Tile t = geometry.at(unit, begin, end);
      if (t.opens) work.begin_group(t.group);
      work.run(t, ahead_of(f.x, sizeof(S), geometry, t, begin, end));
      if (t.closes) work.end_group();
      unit = t.next;
    }
  });

  // Sums over tasks in task order: the same bits in every run with this number of threads.
  parallel.each((n.logits + kLanes<T> - 1) / kLanes<T>, [&](int64_t i) {
    int64_t begin = i * kLanes<T>, end = smaller<int64_t>(begin + kLanes<T>, n.logits);
    int64_t kept = larger<int64_t>(smaller(end, n.clusters) - begin, 0);
    const ParameterSums<T>& sum = sums[0];
    for (int64_t task = 1; task < tasks; ++task) sum.add(n, sums[task], begin, end);
    if (f.dweight)
      panels_to_rows(sum.dweight + panel_offset<T>(begin, n.rows), n.rows, end - begin, n.dim,
                     (T*)f.dweight + begin * n.dim, n.dim);
    if (f.dcentroids)
      __builtin_memcpy((T*)f.dcentroids + begin * n.dim, sum.dcentroids + begin * n.dim,
                       kept * n.dim * sizeof(T));
    if (f.dbias) __builtin_memcpy((T*)f.dbias + begin, sum.dbias + begin, (end - begin) * sizeof(T));
  });
}

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
