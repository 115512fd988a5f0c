// One block of emulated threads: who runs next, where threads wait for each other, shared memory, and the
// faults that a device would answer with a hang, a wrong result or nothing at all. Those end the launch with
// an exception that says which thread of which block did what.
//
// Between two barriers the threads run one after the other, in an order that the environment variable
// SFRS_EMULATOR_ORDER chooses: a barrier that is missing shows in one order or the other. `forward` runs
// the lowest warp as far as it comes and its lanes from the lowest, `reversed` the other way round,
// `shuffled` a pseudo-random thread each time. Blocks run in their order, the other way round, or from both
// ends in turn.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

#include "threads.h"

namespace sfrs::cuda::emulator {

class Block {
 public:
  Block() {
    for (int i = 0; i < kBarriers; ++i) groups_[i].name = "barrier " + std::to_string(i);
  }

  // Runs one block after the other; `body` is what each thread does.
  void run(dim3 grid, int threads, int64_t shared, const char* what, void (*body)(const void*),
           const void* context) {
    std::lock_guard<std::mutex> alone(mutex_);
    what_ = what, body_ = body, context_ = context;
    configure(grid, threads, shared);
    const int64_t blocks = (int64_t)grid.x * grid.y * grid.z;
    begun_ = 0, blocks_ = blocks;
    run_rest(*this);
    ++statistics.launches, statistics.blocks += blocks;
    if (statistics.most_shared_memory < shared) statistics.most_shared_memory = shared;
  }

  // Runs all blocks that have not begun while this one stands where it is, its other threads too: what they
  // have not written yet nobody may need. Once in a launch.
  void let_others_run();

  unsigned char* shared_memory() { return shared_; }
  int lane() const { return current_ % kLanes; }
  Thread& thread() { return threads_[current_]; }

  // A barrier of the block.
  void meet_all(const char* meeting) {
    const Unwatched unwatched;
    void* place = barrier_.arrive();
    check_fence(meeting);
    if (ended_) fail("is at %s, but other threads of the block have ended", meeting);
    wait(meeting, nullptr);
    if (++waiting_ == count_) {
      waiting_ = 0;
      ++barrier_.passed;
      for (int w = 0; w < count_ / kLanes; ++w) release(w);
    }
    go_on();
    Barrier::behind(place);
  }

  // A numbered barrier that `threads` threads come to, at which this one waits for the others or does not.
  void meet_some(int number, int threads, bool waits = true) {
    const Unwatched unwatched;
    Group& group = groups_[number];
    void* place = group.barrier.arrive();
    check_fence(group.name.c_str());
    if (waits) {
      wait(group.name.c_str(), nullptr);
      group.warps |= 1u << current_ / kLanes;
    }
    if (++group.waiting == threads) {
      const unsigned warps = group.warps;
      group.waiting = 0, group.warps = 0;
      ++group.barrier.passed;
      for (int w = 0; w < count_ / kLanes; ++w)
        if (warps >> w & 1) release(w);
    }
    if (!waits) return;
    go_on();
    Barrier::behind(place);
  }

  // A barrier of the warp. The last lane to come calls compute(offers), which may write through the
  // addresses that the lanes have brought. Only some meetings order memory.
  template <class F>
  void meet(const char* meeting, const void* offer, const F& compute, bool orders_memory = false) {
    const Unwatched unwatched;
    Warp& warp = wait(meeting, offer);
    void* place = orders_memory ? warp.barrier.arrive() : nullptr;
    if (warp.waiting == kAll) {
      compute(warp.offers);
      if (orders_memory) ++warp.barrier.passed;
      release(current_ / kLanes);
    }
    go_on();
    if (orders_memory) Barrier::behind(place);
  }

  // Ends the launch: run() throws. Nothing on the threads' stacks is destroyed.
  [[noreturn, gnu::format(printf, 2, 3)]] void fail(const char* format, ...) {
    char what[256];
    va_list values;
    va_start(values, format);
    std::vsnprintf(what, sizeof what, format, values);
    va_end(values);
    std::snprintf(fault_, sizeof fault_, "emulator: thread %d (warp %d, lane %d) of block (%u, %u, %u) %s",
                  current_, current_ / kLanes, lane(), blockIdx.x, blockIdx.y, blockIdx.z, what);
    leave();
  }

  void check_shared(const void* p, int bytes, const char* who) {
    const auto* address = static_cast<const unsigned char*>(p);
    if (address < shared_ || address + bytes > shared_ + size_)
      fail("gives %s an address outside of the block's shared memory: byte %td of %td", who,
           address - shared_, (ptrdiff_t)size_);
    check_alignment(p, bytes, who);
  }
  void check_alignment(const void* p, int bytes, const char* who) {
    if (reinterpret_cast<uintptr_t>(p) % (unsigned)bytes)
      fail("gives %s an address that is not a multiple of %d", who, bytes);
  }

 private:
  static constexpr int64_t kZone = 4096;
  static constexpr unsigned char kZoneByte = 0xA5, kPoison = 0xFF;  // poison is NaN in every type

  void configure(dim3 grid, int threads, int64_t shared) {
    if (threads < kLanes || threads > kLanes * kWarpsAtMost || threads % kLanes)
      throw std::runtime_error("emulator: a block of " + std::to_string(threads) + " threads");
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
      throw std::runtime_error("emulator: a grid that no device accepts");
    count_ = threads;
    if (!threads_) threads_ = new Thread[kLanes * kWarpsAtMost];
    unpoison_zones();
    if (!memory_ || capacity_ < shared) {
      std::free(memory_);
      capacity_ = (shared + 1023) / 1024 * 1024;
      memory_ = static_cast<unsigned char*>(std::aligned_alloc(1024, (size_t)(capacity_ + 2 * kZone)));
      if (!memory_) throw std::bad_alloc();
    }
    shared_ = memory_ + kZone;
    size_ = shared;
    std::memset(memory_, kZoneByte, kZone);
    std::memset(shared_ + size_, kZoneByte, kZone);
    gridDim = grid;
    blockDim = dim3(threads);
  }

  // The launch's blocks that have not begun; `first` counts them.
  void run_rest(Block& first) {
    while (first.begun_ < first.blocks_) {
      const int64_t i = first.begun_++, last = first.blocks_ - 1;
      if (order == Order::forward)
        run_block(i);
      else if (order == Order::reversed)
        run_block(last - i);
      else
        run_block(i % 2 ? i / 2 : last - i / 2);
    }
  }
  void run_block(int64_t index) {
    blockIdx = dim3(index % gridDim.x, index / gridDim.x % gridDim.y, index / gridDim.x / gridDim.y);
    std::memset(shared_, kPoison, size_);
    poison_zones();
    start_threads();
    Barrier::before(&opened_);
    Fiber::exchange(main_, threads_[current_].fiber);
    Barrier::behind(&finished_);
    unpoison_zones();
    if (*fault_) {
      const std::string fault = std::string(fault_) + ", in " + what_;
      *fault_ = 0;
      living_ = 0;  // all begin anew: the threads stand wherever the fault left them
      throw std::runtime_error(fault);
    }
    check_zones();
  }
  void start_threads() {
    const Unwatched unwatched;
    ended_ = waiting_ = 0;
    for (Group& group : groups_) group.waiting = 0, group.warps = 0;
    ready_ = 0;
    for (int i = 0; i < count_; ++i) {
      Thread& thread = threads_[i];
      if (i >= living_) thread.fiber.prepare(&Block::entry, i);
      thread.copies.clear(), thread.groups.clear(), thread.uncommitted = 0;
      thread.fenced = thread.counted = false;
    }
    if (living_ < count_) living_ = count_;
    for (int w = 0; w < count_ / kLanes; ++w) warps_[w].ended = 0, release(w);
    choose();
  }

  static void entry();
  // A fiber is the same thread in one block after the other.
  void live() {
    Fiber::arrived(threads_[current_].fiber);
    for (;;) {
      Barrier::behind(&opened_);
      body_(context_);
      if (!thread().copies.empty()) fail("ends without waiting for its copy_async");
      Barrier::before(&finished_);
      Fiber *from = &thread().fiber, *to = end_thread();
      Fiber::exchange(*from, *to);
    }
  }

  // Notes that the current thread ends, and says who is next.
  Fiber* end_thread() {
    const Unwatched unwatched;
    Warp& warp = warps_[current_ / kLanes];
    if (waiting_ || warp.waiting) fail("ends while other threads wait for it at a barrier");
    warp.ended |= 1u << lane();
    set_ready(current_ / kLanes, warp.ready & ~(1u << lane()));
    if (++ended_ == count_) {
      for (const Group& group : groups_)
        if (group.waiting) fail("is the last to end, but threads came to %s for nothing", group.name.c_str());
      return &main_;
    }
    choose();
    return &thread().fiber;
  }

  void check_fence(const char* meeting) {
    if (thread().counted) fail("is at %s without a __threadfence behind its atomicAdd", meeting);
    thread().fenced = false;
  }
  // Notes that the current thread waits.
  Warp& wait(const char* meeting, const void* offer) {
    Warp& warp = warps_[current_ / kLanes];
    if (warp.ended) fail("is at %s, but lane %d of its warp has ended", meeting, __builtin_ctz(warp.ended));
    if (warp.waiting && warp.meeting != meeting && std::strcmp(warp.meeting, meeting))
      fail("is at %s, but lane %d of its warp waits at %s", meeting, __builtin_ctz(warp.waiting),
           warp.meeting);
    warp.meeting = meeting;
    warp.waiting |= 1u << lane();
    warp.offers[lane()] = offer;
    set_ready(current_ / kLanes, warp.ready & ~(1u << lane()));
    return warp;
  }
  void release(int w) {
    warps_[w].waiting = 0;
    set_ready(w, kAll);
  }
  void set_ready(int w, unsigned lanes) {
    warps_[w].ready = lanes;
    ready_ = lanes ? ready_ | 1u << w : ready_ & ~(1u << w);
  }

  int pick(unsigned set) {
    if (order == Order::forward) return __builtin_ctz(set);
    if (order == Order::reversed) return 31 - __builtin_clz(set);
    random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
    const int turn = (int)(random_ >> 40) & 31;
    const unsigned turned = turn ? set >> turn | set << (32 - turn) : set;
    return (__builtin_ctz(turned) + turn) & 31;
  }
  void choose() {
    if (!ready_) fail("is the last to wait: nobody is left to wake the others");
    const int w = pick(ready_);
    threadIdx.x = current_ = w * kLanes + pick(warps_[w].ready);
  }

  // Lets the next thread run; returns when it is the current one's turn again.
  void go_on() {
    const int from = current_;
    choose();
    if (from != current_) Fiber::exchange(threads_[from].fiber, threads_[current_].fiber);
  }
  [[noreturn]] void leave() {
    Fiber::exchange(threads_[current_].fiber, main_, true);
    std::abort();  // not reached
  }

  void check_zones() const {
    for (int64_t i = 0; i < kZone; ++i)
      if (memory_[i] != kZoneByte || shared_[size_ + i] != kZoneByte)
        throw std::runtime_error("emulator: block " + std::to_string(blockIdx.x) + " wrote " +
                                 (memory_[i] != kZoneByte ? "before" : "behind") + " its shared memory, in " +
                                 what_);
  }
  void poison_zones() {
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(memory_, kZone);
    __asan_poison_memory_region(shared_ + size_, kZone);
#endif
  }
  void unpoison_zones() {
#ifdef __SANITIZE_ADDRESS__
    if (memory_) __asan_unpoison_memory_region(memory_, capacity_ + 2 * kZone);
#endif
  }

  std::mutex mutex_;
  const char* what_ = "";
  void (*body_)(const void*) = nullptr;
  const void* context_ = nullptr;
  int64_t begun_ = 0, blocks_ = 0;  // of the launch
  Fiber main_;
  Thread* threads_ = nullptr;  // never freed: the stacks serve every launch
  Warp warps_[kWarpsAtMost] = {};
  Barrier barrier_;
  // Threads begin after the block has, and it ends after them; one place for both would put a thread that
  // ended before one that begins.
  char opened_ = 0, finished_ = 0;
  Group groups_[kBarriers];
  int count_ = 0, current_ = 0, living_ = 0;
  int ended_ = 0, waiting_ = 0;
  unsigned ready_ = 0;  // warps with a lane that can run
  uint64_t random_ = 0x9E3779B97F4A7C15u;
  unsigned char *memory_ = nullptr, *shared_ = nullptr;
  int64_t capacity_ = 0, size_ = 0;
  char fault_[512] = "";
};

// The second runs what others let run.
inline Block blocks[2];
inline Block* block = blocks;

inline void Block::entry() { block->live(); }

inline void Block::let_others_run() {
  if (this != blocks || begun_ == blocks_) return;
  Block& other = blocks[1];
  const dim3 thread = threadIdx, mine = blockIdx;
  {
    const Unwatched unwatched;
    other.what_ = what_, other.body_ = body_, other.context_ = context_;
    other.configure(gridDim, count_, size_);
    other.main_.forget();
    block = &other;
  }
  std::string fault;
  try {
    other.run_rest(*this);
  } catch (const std::exception& e) {
    fault = e.what();
  }
  const Unwatched unwatched;
  block = this, threadIdx = thread, blockIdx = mine;
  if (fault.empty()) return;
  std::snprintf(fault_, sizeof fault_, "%s", fault.c_str());
  leave();
}

// What launch() calls: body() is what every thread of every block does.
template <class F>
void run(dim3 grid, int threads, int64_t shared_bytes, const F& body) {
  blocks[0].run(
      grid, threads, shared_bytes, __PRETTY_FUNCTION__, [](const void* f) { (*static_cast<const F*>(f))(); },
      &body);
}

}  // namespace sfrs::cuda::emulator
