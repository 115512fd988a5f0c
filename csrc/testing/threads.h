// What emulated blocks are made of: threads, warps, barriers, the order in which they run, and what is asked
// of a launch.
#pragma once

#include <cstdlib>
#include <deque>
#include <stdexcept>
#include <string>

#include "fiber.h"

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx(0, 0, 0), blockIdx(0, 0, 0), blockDim, gridDim;

#ifdef __SANITIZE_THREAD__
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#endif

namespace sfrs::cuda::emulator {

constexpr int kLanes = 32, kWarpsAtMost = 32, kBarriers = 16;
constexpr unsigned kAll = 0xffffffffu;

enum class Order { forward, reversed, shuffled };

inline Order order_named(const std::string& name) {
  if (name == "forward") return Order::forward;
  if (name == "reversed") return Order::reversed;
  if (name == "shuffled") return Order::shuffled;
  throw std::runtime_error("emulator: the order is forward, reversed or shuffled, not " + name);
}
inline Order order = [] {
  const char* name = std::getenv("SFRS_EMULATOR_ORDER");
  return name ? order_named(name) : Order::forward;
}();

// Whether float sums of tensor cores are cut off, as those of devices are, or rounded to nearest after every
// product: SFRS_EMULATOR_SUMS=truncated|nearest.
inline bool truncates = [] {
  const char* name = std::getenv("SFRS_EMULATOR_SUMS");
  const std::string sums = name ? name : "nearest";
  if (sums != "nearest" && sums != "truncated")
    throw std::runtime_error("emulator: sums are nearest or truncated, not " + sums);
  return sums == "truncated";
}();

// What the launches since it was last cleared asked for.
struct Statistics {
  int64_t launches = 0, blocks = 0, most_shared_memory = 0;
};
inline Statistics statistics;

// A launch as it was asked for; with `watch` set, it is told instead of run.
struct Launch {
  const void* kernel;
  dim3 grid;
  int threads;
  int64_t shared;
  const void* parameters;
  size_t bytes;
};
inline void (*watch)(const Launch&) = nullptr;

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Thread {
  Fiber fiber;
  std::deque<Copy> copies;  // issued and not yet performed, oldest first
  std::deque<int> groups;   // how many of them each committed group holds
  int uncommitted = 0;
  bool fenced = false;   // since its last barrier
  bool counted = false;  // has added to a counter, and passed no fence since
};

// For ThreadSanitizer, which sees no barrier of the emulator: what a thread did before one happens before
// what any does behind it. Threads that are behind it may reach the next one before others have left.
struct Barrier {
  uint64_t places[2] = {}, passed = 0;

  void* arrive() {
    void* place = &places[passed & 1];
    before(place);
    return place;
  }
  static void before([[maybe_unused]] void* place) {
#ifdef __SANITIZE_THREAD__
    __tsan_release(place);
#endif
  }
  static void behind([[maybe_unused]] void* place) {
#ifdef __SANITIZE_THREAD__
    __tsan_acquire(place);
#endif
  }
};

struct Warp {
  const char* meeting;  // what the lanes in `waiting` wait for
  unsigned waiting, ready, ended;
  const void* offers[kLanes];  // what each waiting lane brought to the meeting
  Barrier barrier;
};

// A numbered barrier, and who waits at it.
struct Group {
  std::string name;
  int waiting = 0;
  unsigned warps = 0;
  Barrier barrier;
};

// For ThreadSanitizer: the emulator's own writes while this lives are not the kernel's.
class Unwatched {
 public:
#ifdef __SANITIZE_THREAD__
  Unwatched() { AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unwatched() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }
#else
  Unwatched() {}
#endif
};

}  // namespace sfrs::cuda::emulator
