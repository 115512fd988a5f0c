// Scratch memory of one thread, kept between calls: page faults would cost more than the kernels.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace sfrs {

class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(int64_t bytes) {
    std::snprintf(text_, sizeof text_, "sfrs_ext: out of memory, %lld bytes of scratch were not to be had",
                  (long long)bytes);
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[96];
};

// A stack of buffers on a grow-only, thread-local block. A Scratch gives back what it took when it ends;
// one that is made while another lives on the same thread continues behind it.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : arena_(arena()), mark_(arena_.used) {
    if (arena_.used == 0 && arena_.size < bytes) {
      // First, as both at a time may not fit; allocate may throw, and leaves the arena empty then.
      std::free(std::exchange(arena_.data, nullptr));
      arena_.size = 0;
      arena_.data = allocate(bytes);
      arena_.size = bytes;
    }
    owned_ = arena_.size - arena_.used < bytes;
    begin_ = owned_ ? allocate(bytes) : arena_.data + arena_.used;
    if (!owned_) arena_.used += (bytes + kAlign - 1) / kAlign * kAlign;
    next_ = begin_;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    if (owned_) std::free(begin_);
    arena_.used = mark_;
  }

  template <class T>
  static constexpr int64_t bytes(int64_t count) {
    return (count * (int64_t)sizeof(T) + kAlign - 1) / kAlign * kAlign;
  }
  template <class T>
  T* take(int64_t count) {  // not initialised
    T* result = reinterpret_cast<T*>(next_);
    next_ += bytes<T>(count);
    return result;
  }
  template <class T>
  T* zeros(int64_t count) {
    T* result = take<T>(count);
    std::memset(static_cast<void*>(result), 0, count * sizeof(T));
    return result;
  }

 private:
  static constexpr int64_t kAlign = 64;
  struct Arena {
    char* data = nullptr;
    int64_t size = 0, used = 0;
    ~Arena() { std::free(data); }
  };
  static Arena& arena() {
    thread_local Arena instance;
    return instance;
  }
  static char* allocate(int64_t bytes) {
    void* p = std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign + kAlign);
    if (!p) throw OutOfMemory(bytes);
    return static_cast<char*>(p);
  }

  Arena& arena_;
  int64_t mark_;
  bool owned_;
  char *begin_, *next_;
};

}  // namespace sfrs
