// Arrays of the kernel checks: any storage type, read and written as doubles, NaN until written, and with
// guards on both sides.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "../cuda/device.cuh"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace sfrs::testing {

inline int64_t bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
inline DType accumulation_type(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }
inline const char* name_of(DType dtype, bool tf32) {
  switch (dtype) {
    case DType::f32: return tf32 ? "tf32" : "f32";
    case DType::f64: return "f64";
    case DType::bf16: return "bf16";
    case DType::f16: return "f16";
  }
  return "";
}

class Array {
 public:
  Array() = default;  // absent: a null pointer
  // `odd` arrays begin one element behind a multiple of 256 bytes.
  Array(DType dtype, int64_t count, bool odd = false) : dtype_(dtype), count_(count) {
    const int64_t bytes = count * bytes_of(dtype), begin = kGuard + (odd ? bytes_of(dtype) : 0);
    block_.reset(static_cast<char*>(std::aligned_alloc(256, (begin + bytes + kGuard + 255) / 256 * 256)));
    if (!block_) throw std::bad_alloc();
    data_ = block_.get() + begin;
    std::memset(block_.get(), kGuardByte, begin);
    std::memset(data_, 0xFF, bytes);
    std::memset(data_ + bytes, kGuardByte, kGuard);
    guard(true);
  }
  Array(Array&&) = default;
  Array& operator=(Array&&) = default;
  ~Array() {
    if (block_) guard(false);
  }

  void* data() const { return data_; }
  int64_t count() const { return count_; }
  DType dtype() const { return dtype_; }
  explicit operator bool() const { return data_; }

  double get(int64_t i) const {
    switch (dtype_) {
      case DType::f64: return at<double>(i);
      case DType::f32: return at<float>(i);
      case DType::bf16: return cuda::to_float(at<bf16>(i));
      case DType::f16: return cuda::to_float(at<f16>(i));
    }
    return 0;
  }
  void set(int64_t i, double v) {
    switch (dtype_) {
      case DType::f64: at<double>(i) = v; break;
      case DType::f32: at<float>(i) = (float)v; break;
      case DType::bf16: cuda::store_as(&at<bf16>(i), (float)v); break;
      case DType::f16: cuda::store_as(&at<f16>(i), (float)v); break;
    }
  }
  std::string bits() const { return std::string(data_, data_ + count_ * bytes_of(dtype_)); }

  bool guards_intact() const {
    if (!data_) return true;
    guard(false);
    bool intact = true;
    for (const char* p = block_.get(); p < data_; ++p) intact = intact && *p == kGuardByte;
    const char* end = data_ + count_ * bytes_of(dtype_);
    for (int i = 0; i < kGuard; ++i) intact = intact && end[i] == kGuardByte;
    guard(true);
    return intact;
  }

 private:
  static constexpr int kGuard = 512;
  static constexpr char kGuardByte = 0x5A;

  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  template <class T>
  T& at(int64_t i) const {
    return reinterpret_cast<T*>(data_)[i];
  }
  void guard([[maybe_unused]] bool on) const {
#ifdef __SANITIZE_ADDRESS__
    char* end = data_ + count_ * bytes_of(dtype_);
    if (on) {
      __asan_poison_memory_region(block_.get(), data_ - block_.get());
      __asan_poison_memory_region(end, kGuard);
    } else {
      __asan_unpoison_memory_region(block_.get(), end + kGuard - block_.get());
    }
#endif
  }

  DType dtype_ = DType::f32;
  int64_t count_ = 0;
  std::unique_ptr<char, Free> block_;
  char* data_ = nullptr;
};

// Scratch of one launch: a Machine's allocate.
class Scratch {
 public:
  static void* allocate(void* context, int64_t bytes) {
    auto& held = static_cast<Scratch*>(context)->held_;
    held.emplace_back(DType::f32, (bytes + 3) / 4);
    return held.back().data();
  }
  bool guards_intact() const {
    for (const Array& a : held_)
      if (!a.guards_intact()) return false;
    return true;
  }

 private:
  std::vector<Array> held_;
};

}  // namespace sfrs::testing
