// A thread of execution that gives up the processor only where it says so: one per emulated CUDA thread.
// Switching costs a few nanoseconds on x86-64 and a system call elsewhere. AddressSanitizer and
// ThreadSanitizer are told of every switch.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace sfrs::cuda::emulator {

#ifdef __x86_64__
// Leaves the registers that a call preserves on the stack, the stack pointer in *leave, and takes both up
// again where `enter` was left.
[[gnu::naked, gnu::noipa]] inline void switch_stacks([[maybe_unused]] void** leave,
                                                     [[maybe_unused]] void* enter) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
#endif

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (mapping_) munmap(mapping_, kGuard + kStack);
#ifdef __SANITIZE_THREAD__
    if (mapping_ && tsan_) __tsan_destroy_fiber(tsan_);
#endif
  }

  // Makes the fiber run `entry` from its beginning when it is next switched to. `number` staggers the
  // stacks: all at the same offset, their hot lines would share a few sets of the caches.
  void prepare(void (*entry)(), int number) {
    if (!mapping_) allocate();
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(bottom_, kStack);
#endif
#ifdef __SANITIZE_THREAD__
    if (tsan_) __tsan_destroy_fiber(tsan_);  // its call stack never came back from `entry`
    tsan_ = __tsan_create_fiber(0);
#endif
    [[maybe_unused]] char* top = static_cast<char*>(mapping_) + kGuard + kStack - number * 576 % 16384;
#ifdef __x86_64__
    void** stack = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15});
    *--stack = nullptr;  // where `entry` would return to; it never does
    *--stack = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--stack = nullptr;
    pointer_ = stack;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = static_cast<char*>(mapping_) + kGuard;
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // Goes on with `to`; returns when another fiber goes on with `from`, never if it `ends`.
  [[gnu::noinline, gnu::no_sanitize("thread")]] static void exchange(Fiber& from, Fiber& to,
                                                                     [[maybe_unused]] bool ends = false) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack_, to.bottom_, to.size_);
#endif
#ifdef __SANITIZE_THREAD__
    if (!from.tsan_) from.tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to.tsan_, __tsan_switch_to_fiber_no_sync);
#endif
    previous_ = &from;
#ifdef __x86_64__
    switch_stacks(&from.pointer_, to.pointer_);
#else
    swapcontext(&from.context_, &to.context_);
#endif
    arrived(from);
  }

  // What was left here last was another thread.
  void forget() {
#ifdef __SANITIZE_THREAD__
    tsan_ = nullptr;
#endif
  }

  // The first thing a fiber's entry calls.
  static void arrived([[maybe_unused]] Fiber& self) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(self.fake_stack_, &previous_->bottom_, &previous_->size_);
#endif
  }

 private:
  static constexpr size_t kGuard = 4096, kStack = 256 * 1024;

  void allocate() {
    mapping_ = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping_ == MAP_FAILED) {
      mapping_ = nullptr;
      throw std::bad_alloc();
    }
    mprotect(mapping_, kGuard, PROT_NONE);  // a stack overflow is a fault, not a surprise
    bottom_ = static_cast<char*>(mapping_) + kGuard;
    size_ = kStack;
  }

  void* mapping_ = nullptr;
  const void* bottom_ = nullptr;  // of a thread's own stack: told by AddressSanitizer at the first switch
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
  void* tsan_ = nullptr;
#ifdef __x86_64__
  void* pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  static inline Fiber* previous_ = nullptr;
};

}  // namespace sfrs::cuda::emulator
