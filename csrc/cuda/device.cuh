// The words kernels are written in: what one thread, warp or block can ask of the device beyond plain C++.
// Compiled by nvcc they are instructions of sm_80 and newer; compiled by a C++ compiler with SFRS_EMULATE
// they come from csrc/testing/emulator.h, which runs the same kernels without a GPU.
#pragma once

#include <type_traits>

#include "../tensors.h"

// An unrolled loop: its counter may index registers.
#define SFRS_EACH(i, count) SFRS_UNROLL for (int i = 0; i < (count); ++i)

#ifdef SFRS_EMULATE
#include "../testing/emulator.h"
#define SFRS_HOST_DEVICE
#define SFRS_CONSTANT
#define SFRS_ROLLED
#define SFRS_UNROLL_BY(n)
#else

#include <cuda_runtime.h>

#define SFRS_DEVICE __device__ __forceinline__
#define SFRS_HOST_DEVICE __host__ __device__
#define SFRS_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
// A kernel's parameters are read where they lie; a copy would be a stack frame.
#define SFRS_CONSTANT const __grid_constant__
#define SFRS_UNROLL _Pragma("unroll")
#define SFRS_ROLLED _Pragma("unroll 1")
#define SFRS_PRAGMA(text) _Pragma(#text)
#define SFRS_UNROLL_BY(n) SFRS_PRAGMA(unroll n)
// All shared memory of a block; the launch says how much. 1024 bytes is the period of the swizzle.
#define SFRS_SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]

namespace sfrs::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// The same value, but what depends on it is computed here and not carried through a loop in registers.
SFRS_DEVICE int here(int v) {
  asm volatile("" : "+r"(v)::"memory");
  return v;
}

SFRS_DEVICE uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Four 8x8 matrices of 16-bit elements. Lane 8 i + r gives the address of row r of matrix i, 16 bytes in
// shared memory; lane 4 r + c receives elements 2 c and 2 c + 1 of row r (of column r if transposed).
SFRS_DEVICE void load_matrices(uint32_t (&m)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}
SFRS_DEVICE void load_matrices_transposed(uint32_t (&m)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}

// c[16x8] += a[16xk] b[kx8]. With g = lane / 4 and t = lane % 4, c holds (g, 2t), (g, 2t + 1), (g + 8, 2t),
// (g + 8, 2t + 1) for every type. 16-bit, k = 16: a holds the pairs (g, 2t), (g + 8, 2t), (g, 2t + 8),
// (g + 8, 2t + 8), b the pairs (2t, g), (2t + 8, g), the pair running along k.
SFRS_DEVICE void multiply_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
SFRS_DEVICE void multiply_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// TF32, k = 8: a holds (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4), b holds (t, g), (t + 4, g), as bits of
// floats that to_tf32 has rounded.
SFRS_DEVICE void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Double, k = 4: a holds (g, t), (g + 8, t), b holds (t, g). Two m8n8k4 instructions, the only ones of sm_80.
SFRS_DEVICE void multiply_f64(double (&c)[4], double a0, double a1, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c[0]), "+d"(c[1])
      : "d"(a0), "d"(b));
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c[2]), "+d"(c[3])
      : "d"(a1), "d"(b));
}
SFRS_DEVICE uint32_t to_tf32(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
}

// Copies kBytes (4, 8 or 16, both addresses aligned to it) from global to shared memory behind the thread's
// back, or writes zeros if not `valid`. What lies in shared memory may be read after the copy's group was
// waited for, and by other threads after a barrier on top of that.
template <int kBytes>
SFRS_DEVICE void copy_async(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "n"(kBytes), "r"(valid ? kBytes : 0)
                 : "memory");
}
SFRS_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kGroups of the thread's latest groups are still on their way.
template <int kGroups>
SFRS_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Waits until so many threads of the block, whole warps, have come to the barrier of this number; arrive_some
// comes and does not wait. Barrier 0 is that of __syncthreads.
template <int kNumber, int kThreads>
SFRS_DEVICE void sync_some() {
  asm volatile("bar.sync %0, %1;" ::"n"(kNumber), "n"(kThreads) : "memory");
}
template <int kNumber, int kThreads>
SFRS_DEVICE void arrive_some() {
  asm volatile("bar.arrive %0, %1;" ::"n"(kNumber), "n"(kThreads) : "memory");
}

SFRS_DEVICE float to_float(float v) { return v; }
SFRS_DEVICE float to_float(bf16 v) { return __uint_as_float((uint32_t)v.bits << 16); }
SFRS_DEVICE float to_float(f16 v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
}
SFRS_DEVICE double to_float(double v) { return v; }

// Rounds to nearest even; f16 overflows to infinity.
SFRS_DEVICE void store_as(float* p, float v) { *p = v; }
SFRS_DEVICE void store_as(double* p, double v) { *p = v; }
SFRS_DEVICE void store_as(bf16* p, float v) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(p->bits) : "f"(v)); }
SFRS_DEVICE void store_as(f16* p, float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(v)); }

// Two values as one register of 16-bit halves, rounded like store_as.
SFRS_DEVICE uint32_t packed(bf16*, float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
SFRS_DEVICE uint32_t packed(f16*, float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// exp(v) for v <= 0, and 1 / v. The 16-bit types are served by the quick ones, which make zero of what is not
// normal and are wrong in the last bit or two.
SFRS_DEVICE float exp_quick(float v) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v * 1.4426950408889634f));
  return power;
}
SFRS_DEVICE float inverse_quick(float v) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(v));
  return inverse;
}
SFRS_DEVICE float exp_exact(float v) { return expf(v); }
SFRS_DEVICE double exp_exact(double v) { return exp(v); }

SFRS_DEVICE uint32_t float_bits(float v) { return __float_as_uint(v); }
SFRS_DEVICE float bits_float(uint32_t v) { return __uint_as_float(v); }

}  // namespace sfrs::cuda

#endif

namespace sfrs::cuda {

SFRS_DEVICE int this_thread() { return here((int)threadIdx.x); }
SFRS_DEVICE int lane_of_thread() { return here((int)threadIdx.x % 32); }
SFRS_DEVICE int warp_of_thread() { return here((int)threadIdx.x / 32); }

// kCount neighbours of storage type S, moved at once as far as 16 bytes reach.
template <class S, int kCount>
struct alignas(kCount * sizeof(S) < 16 ? kCount * sizeof(S) : 16) Packed {
  static constexpr bool kHalves = sizeof(S) == 2 && kCount > 1;
  std::conditional_t<kHalves, uint32_t, S> v[kHalves ? kCount / 2 : kCount];

  template <class T>
  SFRS_DEVICE void set(int pair, T first, T second) {
    if constexpr (kHalves)
      v[pair] = packed((S*)nullptr, first, second);
    else
      v[2 * pair] = first, v[2 * pair + 1] = second;
  }
  // Element i as a float or a double.
  SFRS_DEVICE auto get(int i) const {
    if constexpr (!kHalves)
      return to_float(v[i]);
    else if constexpr (__is_same(S, bf16))
      return bits_float(i & 1 ? v[i / 2] & 0xffff0000u : v[i / 2] << 16);
    else
      return to_float(S{(uint16_t)(i & 1 ? v[i / 2] >> 16 : v[i / 2])});
  }
};
template <class T>
using Four = Packed<T, 4>;

}  // namespace sfrs::cuda
