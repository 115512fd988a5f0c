// How the warps of a block go from tile to tile.
#pragma once

#include "aggregate_tiles.cuh"

namespace sfrs::cuda {

// Steps of a block, by their numbers: four lie in shared memory, and as many tiles as there are stages.
template <class S, bool kPlanes, class N>
struct Steps {
  const FeatureMap& x;
  int parts;
  const N& n;
  unsigned char* memory;

  SFRS_DEVICE Step& at(int i) const { return ((Step*)(memory + n.at.steps))[i & 3]; }
  SFRS_DEVICE Panels<S> tile(int i) const {
    return tile_view<S, kPlanes>(n, memory + (i & (n.stages - 1)) * n.stage_bytes);
  }
  // What a block does on the side while it works on step i - 1: it sends for the tile of step i, and one
  // thread finds out which step comes then.
  template <class Loaders = WholeBlock>
  SFRS_DEVICE void send(int i) const {
    const Step& step = at(i);
    if (step.valid())
      with_copy_bytes<S>(n.load_bytes, [&](auto bytes) {
        load_tile<S, kPlanes, decltype(bytes)::value, Loaders>(x, n, step.group, step.begin, step.count,
                                                               step.d0, tile(i));
      });
    copy_async_commit();
  }
  SFRS_DEVICE void plan(int i) const {
    if (threadIdx.x == 0) follow(i);
  }
  // One thread makes the first step, and that after step i.
  SFRS_DEVICE void begin() const { at(0) = Step(n, x, parts, (int)blockIdx.x); }
  SFRS_DEVICE void follow(int i) const {
    at(i + 1) = at(i);
    at(i + 1).advance(n, x, parts);
  }
};

// Runs block.prepare() while the first tile travels, and block.work(steps, i, its tile, sums) for all steps
// of a block, whose shared memory begins with the stages. work() plans step i + 1, and with two stages sends
// for it.
template <class S, bool kPlanes, class N, class Block, class BlockSums>
SFRS_DEVICE void walk(const FeatureMap& x, int parts, const N& n, unsigned char* memory, const Block& block,
                      BlockSums& sums) {
  Steps<S, kPlanes, N> steps{x, parts, n, memory};
  if (threadIdx.x == 0) steps.begin();
  __syncthreads();
  steps.send(0);
  block.prepare();
  steps.plan(0);
  for (int i = 0;; ++i) {
    copy_async_wait<0>();  // the tile is here, and nobody uses the other stage, nor what was made of it, any
                           // more
    __syncthreads();
    if (!steps.at(i).valid()) break;
    block.work(steps, i, steps.tile(i), sums);
    if (n.stages == 2) continue;
    __syncthreads();
    steps.send(i + 1);
  }
}

// The crews of a block whose steps overlap, and both; at the last barrier assigners wait until the
// assignments of the tile before have been read.
using Assigners = Crew<0, kAssigners, 1>;
using Summers = Crew<kAssigners, kWarps, 2>;
using BothCrews = Crew<0, kAssigners + kWarps, 3>;
using AssignmentsRead = Crew<0, kAssigners + kWarps, 4>;

// The same with two crews: while one is in block.assign(step i, its tile, masses), the other sums up step i -
// 1 in block.add_up(step, its tile, sums), sends for the tile of step i + 1, whose place is now free, and
// finishes a unit in block.end_step(step, sums).
template <class S, bool kPlanes, class BlockSums, class Masses, class N, class Block>
SFRS_DEVICE void walk_overlapping(const FeatureMap& x, int parts, const N& n, unsigned char* memory,
                                  const Block& block) {
  Steps<S, kPlanes, N> steps{x, parts, n, memory};
  // Two loops with the same barriers: the sums need registers in one of them only.
  auto goes_on = [&](int i) { return i == 0 || steps.at(i - 1).valid(); };
  if (warp_of_thread() >= kAssigners) {
    block.prepare();
    BlockSums sums;
    sums.clear();
    for (int i = 0; goes_on(i); ++i) {
      i = here(i);  // nothing else goes round the loop: registers are few
      copy_async_wait<0>();
      BothCrews::sync();
      if (i > 0) block.add_up(steps.at(i - 1), steps.tile(i - 1), sums);
      i = here(i);
      AssignmentsRead::arrive();
      Summers::sync();  // the tile may be replaced
      steps.template send<Summers>(i + 1);
      if (Summers::thread() == 0) steps.follow(i + 1);
      i = here(i);
      if (i > 0) block.end_step(steps.at(i - 1), sums);
    }
  } else {
    if (Assigners::thread() == 0) {
      steps.begin();
      steps.follow(0);
    }
    Assigners::sync();
    steps.template send<Assigners>(0);
    Masses masses = {};
    for (int i = 0; goes_on(i); ++i) {
      copy_async_wait<0>();
      BothCrews::sync();
      block.assign(steps.at(i), steps.tile(i), masses);
    }
  }
}

// Of halves in turns: the one that assigns a tile, and the other one, which is at the tile before. At
// SummedUp the latter waits until all have summed up that tile, so that it may be replaced; at OperandsRead
// the former waits until what was made of that tile has been read.
struct Half {
  static constexpr int kCount = kAssigners;
  SFRS_DEVICE static int warp() { return warp_of_thread() % kCount; }
  SFRS_DEVICE static int thread() { return this_thread() % (32 * kCount); }
  SFRS_DEVICE static bool second() { return warp_of_thread() >= kCount; }
  SFRS_DEVICE static void sync() { sync_some<1, 32 * kCount>(); }  // of the one that assigns
};
using SummedUp = Crew<0, kWarps, 2>;
using OperandsRead = Crew<0, kWarps, 3>;
static_assert(kWarps == 2 * Half::kCount);

// The same with two halves that change places at every step: while one is in block.assign(step i, its tile),
// the other is in block.end_step(step i - 1, its tile) and sends for the tile of step i + 1, whose place is
// then free. Both sum up step i in block.add_up(step, its tile, sums). Before the first step of a unit all
// are in block.enter(step).
template <class S, bool kPlanes, class N, class Block, class BlockSums>
SFRS_DEVICE void walk_in_turns(const FeatureMap& x, int parts, const N& n, unsigned char* memory,
                               const Block& block, BlockSums& sums) {
  Steps<S, kPlanes, N> steps{x, parts, n, memory};
  if (threadIdx.x == 0) {
    steps.begin();
    steps.follow(0);
  }
  __syncthreads();
  if (!Half::second()) steps.template send<Half>(0);
  block.prepare();
  for (int i = 0;; ++i) {
    auto assigns = [&] { return Half::second() == (i & 1); };  // found out anew each time
    if (assigns()) {
      SummedUp::arrive();
    } else {
      if (i > 0) block.end_step(steps.at(i - 1), steps.tile(i - 1));
      OperandsRead::arrive();
      SummedUp::sync();
      steps.template send<Half>(i + 1);
      if (Half::thread() == 0) steps.follow(i + 1);
    }
    if (steps.at(i).valid() && steps.at(i).first_tile()) {
      __syncthreads();
      block.enter(steps.at(i));
    }
    if (assigns()) {
      copy_async_wait<0>();
      Half::sync();
      block.assign(steps.at(i), steps.tile(i));
    }
    __syncthreads();
    if (!steps.at(i).valid()) break;
    block.add_up(steps.at(i), steps.tile(i), sums);
  }
}

}  // namespace sfrs::cuda
