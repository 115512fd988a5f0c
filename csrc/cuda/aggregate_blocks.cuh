// What the threads of a block make together, and the blocks of a launch.
#pragma once

#include "aggregate_tiling.h"
#include "matrix.cuh"

namespace sfrs::cuda {

// Warps that work side by side and wait for each other: all of a block, or some of them under the number of a
// barrier.
struct WholeBlock {
  static constexpr int kCount = kWarps;
  SFRS_DEVICE static int warp() { return warp_of_thread(); }
  SFRS_DEVICE static int thread() { return this_thread(); }
  SFRS_DEVICE static void sync() { __syncthreads(); }
};
template <int kFirst, int kWarpCount, int kBarrier>
struct Crew {
  static constexpr int kCount = kWarpCount;
  SFRS_DEVICE static int warp() { return warp_of_thread() - kFirst; }
  SFRS_DEVICE static int thread() { return this_thread() - 32 * kFirst; }
  SFRS_DEVICE static void sync() { sync_some<kBarrier, 32 * kWarpCount>(); }
  SFRS_DEVICE static void arrive() { arrive_some<kBarrier, 32 * kWarpCount>(); }
};

// Sums of all threads of a block, the same for every thread; `shares` holds one value per warp.
template <class T>
SFRS_DEVICE T block_sum(T v, T* shares) {
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) shares[threadIdx.x / 32] = v;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shares[w];
  __syncthreads();
  return sum;
}

// True for the threads of the block that comes last of `count`: there everything may be read that they wrote
// to global memory, each before a barrier of its block. `arrivals` is zero before the first comes.
SFRS_DEVICE bool last_of(int* arrivals, int count, int* shared) {
  if (threadIdx.x == 0) {
    __threadfence();  // for the whole block, whose barrier this thread has passed
    *shared = atomicAdd(arrivals, 1) == count - 1;
    __threadfence();  // also for what this block has in L1
  }
  __syncthreads();
  bool last = *shared;
  __syncthreads();  // the word may be used again
  return last;
}

}  // namespace sfrs::cuda
