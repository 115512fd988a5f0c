// What a launcher knows about the machine it launches on. Plain C++, for the torch glue too.
#pragma once

#include <cstdint>

namespace sfrs::cuda {

struct Machine {
  int multiprocessors;
  int64_t shared_memory;  // the most a block may have, in bytes
  void* stream;           // cudaStream_t
  // Scratch in device memory, 256-byte aligned, alive until everything launched so far on the stream has run.
  void* (*allocate)(void* context, int64_t bytes);
  void* context;
  int device = 0;  // its number

  template <class T>
  T* scratch(int64_t count) const {
    return static_cast<T*>(allocate(context, count * (int64_t)sizeof(T)));
  }
};

}  // namespace sfrs::cuda
