// Checks of the emulator: orders of threads and blocks, barriers of blocks and crews, fences around counters.
#include <algorithm>
#include <vector>

#include "emulator_check.h"

namespace sfrs::cuda {

// Every thread writes a word and reads that of the thread `distance` further.
bool neighbours(int distance, bool barrier) {
  bool right = true;
  const std::string fault = fault_of(64, 64 * 4, [&] {
    SFRS_SHARED_MEMORY(memory);
    int* words = (int*)memory;
    words[threadIdx.x] = threadIdx.x;
    if (barrier) __syncthreads();
    const int from = (threadIdx.x + distance) % 64;
    right = right && words[from] == from;
  });
  return right && fault.empty();
}

namespace {

// Two crews of two warps each pass words on, `turns` times, at barriers of their own; then to each other.
std::string pass_words(int turns, bool meets, bool* right) {
  *right = true;
  return fault_of(128, 128 * 4, [&] {
    SFRS_SHARED_MEMORY(memory);
    int* words = (int*)memory;
    const int t = threadIdx.x, crew = t / 64 * 64, next = crew + (t + 33) % 64;
    for (int turn = 0; turn < turns + (crew ? 0 : 3); ++turn) {
      words[t] = turn;
      const auto meet = [&] { crew ? sync_some<1, 64>() : sync_some<2, 64>(); };
      if (meets) meet();
      *right = *right && words[next] == turn;
      if (meets) meet();
    }
    sync_some<3, 128>();
    *right = *right && words[t ^ 64] == turns - 1 + (crew ? 3 : 0);
  });
}

}  // namespace

void check_orders() {
  using emulator::Order;
  const emulator::Order before = emulator::order;
  for (Order order : {Order::forward, Order::reversed, Order::shuffled}) {
    emulator::order = order;
    expect(neighbours(1, true) && neighbours(33, true), "a barrier makes what others wrote visible");
  }
  emulator::order = Order::forward;
  expect(!neighbours(1, false), "the forward order shows a missing barrier before what comes later");
  emulator::order = Order::reversed;
  expect(!neighbours(63, false), "the reversed order shows a missing barrier before what came earlier");
  emulator::order = before;

  std::vector<unsigned> blocks;
  fault_of(
      32, 0,
      [&] {
        if (threadIdx.x == 0) blocks.push_back(blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z);
      },
      dim3(2, 3, 2));
  std::vector<unsigned> sorted = blocks;
  std::sort(sorted.begin(), sorted.end());
  expect(blocks.size() == 12 && sorted.front() == 0 && sorted.back() == 121 &&
             std::unique(sorted.begin(), sorted.end()) == sorted.end(),
         "every block of the grid runs once");
}

void check_crews() {
  for (const char* name : {"forward", "reversed", "shuffled"})
    in_order(emulator::order_named(name), [] {
      bool right;
      const std::string fault = pass_words(5, true, &right);
      expect(right && fault.empty(), "crews wait for each other at barriers of their own");
      pass_words(5, false, &right);
      expect(!right, "a crew's missing barrier shows");
      return fault;
    });
  int before = 0, after = 0;
  const std::string fault = fault_of(64, 4, [&] {
    SFRS_SHARED_MEMORY(memory);
    if (threadIdx.x < 32) {
      arrive_some<4, 64>();
      if (threadIdx.x == 0) before = *(int*)memory;  // nobody has waited for anybody
      __syncwarp();
      *(int*)memory = 1;
      sync_some<5, 64>();
    } else {
      sync_some<4, 64>();
      sync_some<5, 64>();
      after = *(int*)memory;
    }
  });
  expect(fault.empty() && before == -1 && after == 1, "who arrives at a barrier goes on");
  expect_fault("a numbered barrier that too few come to is a fault",
               fault_of(64, 0, [] { sync_some<1, 96>(); }), {"last to wait"});
  expect_fault("threads that come to a numbered barrier for nothing are a fault",
               fault_of(32, 0, [] { arrive_some<1, 64>(); }), {"last to end", "barrier 1"});
  expect_fault("lanes at barriers of different numbers are a fault",
               fault_of(32, 0, [] { threadIdx.x ? sync_some<1, 32>() : sync_some<2, 32>(); }),
               {"barrier 1", "barrier 2"});
}

void check_fences() {
  int arrivals = 0;
  const auto fault = [&](bool before, bool behind) {
    return fault_of(64, 0, [&] {
      __syncthreads();
      if (threadIdx.x == 0) {
        if (before) __threadfence();
        atomicAdd(&arrivals, 1);
        if (behind) __threadfence();
      }
      __syncthreads();
    });
  };
  expect(fault(true, true).empty() && arrivals == 1, "a block counts itself in between two fences");
  expect_fault("a missing fence before that is a fault", fault(false, true),
               {"without a __threadfence before"});
  expect_fault("a missing fence behind it is a fault", fault(true, false),
               {"without a __threadfence behind"});
  expect(fault(true, true).empty(), "the emulator works after such a fault");

  // The last block adds up what all threads of all blocks have left.
  int words[3 * 64], sum = 0;
  const auto add_up = [&](bool barrier) {
    std::fill(std::begin(words), std::end(words), 0);
    arrivals = sum = 0;
    return fault_of(
        64, 4,
        [&] {
          SFRS_SHARED_MEMORY(memory);
          if (threadIdx.x % 32) words[64 * blockIdx.x + threadIdx.x] = 1;
          if (barrier) __syncthreads();
          if (threadIdx.x == 0) {
            __threadfence();
            *(int*)memory = atomicAdd(&arrivals, 1);
            __threadfence();
          }
          __syncthreads();
          if (threadIdx.x == 0 && *(int*)memory == 2)
            for (int word : words) sum += word;
        },
        dim3(3));
  };
  for (const char* name : {"forward", "reversed", "shuffled"})
    in_order(emulator::order_named(name), [&] {
      const std::string fault = add_up(true);
      expect(fault.empty() && sum == 3 * 62, "the last block finds what all others wrote");
      return fault;
    });
  in_order(emulator::Order::forward, [&] {
    const std::string fault = add_up(false);
    expect(fault.empty() && sum < 3 * 62, "what threads write after their block was counted in is missed");
    return fault;
  });
}

}  // namespace sfrs::cuda
