// The words of csrc/cuda/device.cuh, and those of CUDA that kernels use, on a processor without a GPU.
//
// Instructions of a warp wait until all 32 lanes are there and then compute what the PTX manual says, lane
// by lane and register by register. Asynchronous copies are as late as they may be: until the wait that
// demands them their destination is NaN. Shared memory starts as NaN. See block.h for the order of threads.
#pragma once

#include <math.h>

#include "block.h"
#include "numbers.h"

#define SFRS_DEVICE inline
#define SFRS_KERNEL(threads) inline void
#define SFRS_UNROLL
#define SFRS_SHARED_MEMORY(name) unsigned char* name = ::sfrs::cuda::emulator::block->shared_memory()

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace sfrs::cuda {

namespace emulator {

struct MatrixRow {
  const void* row;
  uint32_t* registers;
};
// Lane 8 i + r names row r of matrix i; lane 4 r + c receives elements 2 c and 2 c + 1 of row r, or of column
// r if transposed.
inline void load_matrices(uint32_t (&m)[4], const void* row, bool transposed) {
  const char* name = transposed ? "ldmatrix.trans" : "ldmatrix";
  block->check_shared(row, 16, name);
  const MatrixRow offer{row, m};
#ifdef __SANITIZE_THREAD__
  for (int i = 0; i < 2; ++i)  // the meeting's own reads come late and from one lane
    (void)static_cast<const volatile uint64_t*>(row)[i];
#endif
  block->meet(name, &offer, [transposed](const void* const* offers) {
    for (int i = 0; i < 4; ++i) {
      uint16_t matrix[8][8];
      for (int r = 0; r < 8; ++r)
        std::memcpy(matrix[r], static_cast<const MatrixRow*>(offers[8 * i + r])->row, 16);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int r = lane / 4, c = lane % 4 * 2;
        const uint32_t low = transposed ? matrix[c][r] : matrix[r][c];
        const uint32_t high = transposed ? matrix[c + 1][r] : matrix[r][c + 1];
        static_cast<const MatrixRow*>(offers[lane])->registers[i] = low | high << 16;
      }
    }
  });
}

template <class T, class Register>
struct Fragments {
  T* c;  // (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
  const Register *a, *b;
};

// Eight sums, of c and of products, as published for the tensor cores of an H100: products are exact; all
// terms are cut off two bits below the 24 of the largest, and so is the sum behind its 24 (Khattak and
// Mikaitis, Accurate Models of NVIDIA Tensor Cores, 2025).
inline void add_truncated(float (&c)[8], const double (*products)[8], int count) {
  typedef double Doubles [[gnu::vector_size(64)]];
  typedef int64_t Bits [[gnu::vector_size(64)]];
  typedef int32_t Integers [[gnu::vector_size(32)]];
  typedef uint32_t Wrapping [[gnu::vector_size(32)]];  // what is no number may overflow, and is not used
  typedef float Floats [[gnu::vector_size(32)]];
  const auto magnitude = [](Doubles v) { return (Doubles)((Bits)v & INT64_MAX); };
  Floats before;
  std::memcpy(&before, c, sizeof before);
  const Doubles first = __builtin_convertvector(before, Doubles);
  Doubles plain = first, largest = magnitude(first);
  for (int i = 0; i < count; ++i) {
    Doubles product;
    std::memcpy(&product, products[i], sizeof product);
    const Doubles size = magnitude(product);
    plain += product;
    largest = size > largest ? size : largest;
  }
  Bits exponent = (Bits)largest >> 52;  // biased; of nothing but zeros any will do
  exponent = exponent > 700 ? exponent : exponent - exponent + 700;
  const Doubles up = (Doubles)((1023 + 1022 + 26 - exponent) << 52), down = 1 / up;
  Wrapping sum = (Wrapping) __builtin_convertvector(first * up, Integers);
  for (int i = 0; i < count; ++i) {
    Doubles product;
    std::memcpy(&product, products[i], sizeof product);
    sum += (Wrapping) __builtin_convertvector(product * up, Integers);
  }
  const Doubles total = __builtin_convertvector((Integers)sum, Doubles);
  const Doubles kept = (Doubles)((Bits)total & ~(int64_t)0x1fffffff) * down;
  for (int i = 0; i < 8; ++i) c[i] = (float)(std::isfinite(plain[i]) ? kept[i] : plain[i]);
}

// c[16x8] += a[16xk] b[kx8], one product after the other. Row-wise vectors keep -O1 quick.
template <class T, int k>
void multiply(const void* const* offers, const T (&a)[16][k], const T (&b)[k][8], T* (*of)(const void*)) {
  typedef T Row [[gnu::vector_size(8 * sizeof(T)), gnu::may_alias, gnu::aligned(sizeof(T))]];
  for (int g = 0; g < 8; ++g)
    for (int half = 0; half < 2; ++half) {
      alignas(64) T c[8];
      for (int t = 0; t < 4; ++t) {
        const T* registers = of(offers[4 * g + t]) + 2 * half;
        c[2 * t] = registers[0], c[2 * t + 1] = registers[1];
      }
      if (sizeof(T) == 4 && truncates) {
        double products[k][8];
        for (int i = 0; i < k; ++i)
          for (int j = 0; j < 8; ++j) products[i][j] = (double)a[g + 8 * half][i] * (double)b[i][j];
        add_truncated(reinterpret_cast<float (&)[8]>(c), products, k);
      } else {
        Row sum = *reinterpret_cast<const Row*>(c);
        for (int i = 0; i < k; ++i) sum += a[g + 8 * half][i] * *reinterpret_cast<const Row*>(b[i]);
        *reinterpret_cast<Row*>(c) = sum;
      }
      for (int t = 0; t < 4; ++t) {
        T* registers = of(offers[4 * g + t]) + 2 * half;
        registers[0] = c[2 * t], registers[1] = c[2 * t + 1];
      }
    }
}
template <class T, class Register>
T* accumulators(const void* offer) {
  return static_cast<const Fragments<T, Register>*>(offer)->c;
}

template <class S>
void multiply_16bit(const char* name, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  using Offer = Fragments<float, uint32_t>;
  const uint32_t pair[2] = {b0, b1};
  const Offer offer{c, a, pair};
  block->meet(name, &offer, [](const void* const* offers) {
    float a[16][16], b[16][8];
    const auto unpack = [](uint32_t bits, float& low, float& high) {
      low = to_float(S{(uint16_t)bits}), high = to_float(S{(uint16_t)(bits >> 16)});
    };
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const auto* offer = static_cast<const Offer*>(offers[lane]);
      for (int i = 0; i < 4; ++i) {
        float* at = &a[g + i % 2 * 8][2 * t + i / 2 * 8];
        unpack(offer->a[i], at[0], at[1]);
      }
      for (int i = 0; i < 2; ++i) unpack(offer->b[i], b[2 * t + 8 * i][g], b[2 * t + 8 * i + 1][g]);
    }
    multiply(offers, a, b, accumulators<float, uint32_t>);
  });
}

// The copies of the oldest group.
inline void perform_group(Thread& thread) {
  for (int i = 0; i < thread.groups.front(); ++i) {
    const Copy& copy = thread.copies.front();
    if (copy.from)
      std::memcpy(copy.to, copy.from, copy.bytes);
    else
      std::memset(copy.to, 0, copy.bytes);
    thread.copies.pop_front();
  }
  thread.groups.pop_front();
}

inline void check_mask(unsigned lanes, const char* name) {
  if (lanes != kAllLanes) block->fail("is at %s with a mask that is not all lanes", name);
}

template <class T>
struct Shuffle {
  T value;
  T* result;
  int source;
};
template <class T>
T shuffle(const char* name, unsigned lanes, T value, int source) {
  check_mask(lanes, name);
  T result;
  const Shuffle<T> offer{value, &result, source};
  block->meet(name, &offer, [](const void* const* offers) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto* to = static_cast<const Shuffle<T>*>(offers[lane]);
      *to->result = static_cast<const Shuffle<T>*>(offers[to->source])->value;
    }
  });
  return result;
}

}  // namespace emulator

inline void load_matrices(uint32_t (&m)[4], const void* row) { emulator::load_matrices(m, row, false); }
inline void load_matrices_transposed(uint32_t (&m)[4], const void* row) {
  emulator::load_matrices(m, row, true);
}

inline void multiply_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply_16bit<bf16>("mma.bf16", c, a, b0, b1);
}
inline void multiply_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply_16bit<f16>("mma.f16", c, a, b0, b1);
}
inline void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  using Offer = emulator::Fragments<float, uint32_t>;
  const uint32_t pair[2] = {b0, b1};
  const Offer offer{c, a, pair};
  emulator::block->meet("mma.tf32", &offer, [](const void* const* offers) {
    float a[16][8], b[8][8];
    const auto read = [](uint32_t bits) { return bits_float(bits & ~0x1fffu); };  // the rest is ignored
    for (int lane = 0; lane < emulator::kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const auto* offer = static_cast<const Offer*>(offers[lane]);
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = read(offer->a[i]);
      for (int i = 0; i < 2; ++i) b[t + 4 * i][g] = read(offer->b[i]);
    }
    emulator::multiply(offers, a, b, emulator::accumulators<float, uint32_t>);
  });
}
inline void multiply_f64(double (&c)[4], double a0, double a1, double b) {
  using Offer = emulator::Fragments<double, double>;
  const double pair[2] = {a0, a1};
  const Offer offer{c, pair, &b};
  emulator::block->meet("mma.f64", &offer, [](const void* const* offers) {
    double a[16][4], b[4][8];
    for (int lane = 0; lane < emulator::kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const auto* offer = static_cast<const Offer*>(offers[lane]);
      a[g][t] = offer->a[0], a[g + 8][t] = offer->a[1], b[t][g] = *offer->b;
    }
    emulator::multiply(offers, a, b, emulator::accumulators<double, double>);
  });
}

template <int kBytes>
void copy_async(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::block->check_shared(shared, kBytes, "copy_async");
  emulator::block->check_alignment(global, kBytes, "copy_async");
  std::memset(shared, 0xFF, kBytes);
  emulator::Thread& thread = emulator::block->thread();
  thread.copies.push_back({shared, valid ? global : nullptr, kBytes});
  ++thread.uncommitted;
}
inline void copy_async_commit() {
  emulator::Thread& thread = emulator::block->thread();
  thread.groups.push_back(thread.uncommitted);
  thread.uncommitted = 0;
}
template <int kGroups>
void copy_async_wait() {
  emulator::Thread& thread = emulator::block->thread();
  while (thread.groups.size() > (size_t)kGroups) emulator::perform_group(thread);
}

template <int kNumber, int kThreads>
void sync_some() {
  static_assert(kNumber >= 0 && kNumber < emulator::kBarriers && kThreads > 0 && kThreads % 32 == 0);
  emulator::block->meet_some(kNumber, kThreads);
}
template <int kNumber, int kThreads>
void arrive_some() {
  static_assert(kNumber >= 0 && kNumber < emulator::kBarriers && kThreads > 0 && kThreads % 32 == 0);
  emulator::block->meet_some(kNumber, kThreads, false);
}

}  // namespace sfrs::cuda

inline void __syncthreads() { sfrs::cuda::emulator::block->meet_all("__syncthreads"); }
inline void __syncwarp(unsigned lanes = sfrs::cuda::kAllLanes) {
  sfrs::cuda::emulator::check_mask(lanes, "__syncwarp");
  sfrs::cuda::emulator::block->meet("__syncwarp", nullptr, [](const void* const*) {}, true);
}

// A segment of `width` lanes, a power of two, is a warp of its own.
template <class T>
T __shfl_sync(unsigned lanes, T value, int source, int width = 32) {
  const int lane = sfrs::cuda::emulator::block->lane();
  return sfrs::cuda::emulator::shuffle("__shfl_sync", lanes, value,
                                       (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int mask, int width = 32) {
  const int lane = sfrs::cuda::emulator::block->lane(), source = lane ^ mask;
  return sfrs::cuda::emulator::shuffle("__shfl_xor_sync", lanes, value,
                                       source < (lane & ~(width - 1)) + width ? source : lane);
}
inline bool __any_sync(unsigned lanes, bool value) {
  for (int mask = 1; mask < 32; mask *= 2) value |= __shfl_xor_sync(lanes, (int)value, mask) != 0;
  return value;
}
template <class T>
T __shfl_down_sync(unsigned lanes, T value, unsigned delta, int width = 32) {
  const int lane = sfrs::cuda::emulator::block->lane(), source = lane + (int)delta;
  return sfrs::cuda::emulator::shuffle("__shfl_down_sync", lanes, value,
                                       source < (lane & ~(width - 1)) + width ? source : lane);
}
template <class T>
T __shfl_up_sync(unsigned lanes, T value, unsigned delta, int width = 32) {
  const int lane = sfrs::cuda::emulator::block->lane(), source = lane - (int)delta;
  return sfrs::cuda::emulator::shuffle("__shfl_up_sync", lanes, value,
                                       source >= (lane & ~(width - 1)) ? source : lane);
}

// What a block wrote before it counts itself in is there for the others only if the thread that counts has
// passed a fence behind the block's last barrier, and what others wrote only behind another fence.
inline void __threadfence() {
  auto& thread = sfrs::cuda::emulator::block->thread();
  thread.fenced = true, thread.counted = false;
}
template <class T>
T atomicAdd(T* p, T v) {
  auto& thread = sfrs::cuda::emulator::block->thread();
  if (!thread.fenced) sfrs::cuda::emulator::block->fail("is at atomicAdd without a __threadfence before it");
  thread.counted = true;
  const T before = *p;
  *p = before + v;
  sfrs::cuda::emulator::block->let_others_run();
  return before;
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline uint32_t __float_as_uint(float v) { return sfrs::cuda::float_bits(v); }
inline float __uint_as_float(uint32_t v) { return sfrs::cuda::bits_float(v); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __expf(float v) { return expf(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float v) { return 1 / sqrtf(v); }
inline double rsqrt(double v) { return 1 / sqrt(v); }
