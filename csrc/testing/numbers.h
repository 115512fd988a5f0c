// CUDA's vectors, and numbers of fewer bits: what they are worth and how they round.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../tensors.h"

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace sfrs::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

// A hint to the compiler of the device.
inline int here(int v) { return v; }

inline uint32_t float_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

inline float to_float(float v) { return v; }
inline float to_float(bf16 v) { return bits_float((uint32_t)v.bits << 16); }
inline float to_float(f16 v) {
  // Moves the exponent by a multiplication, which also makes a subnormal normal.
  const float magnitude = bits_float((uint32_t)(v.bits & 0x7fff) << 13) * 0x1p112f;
  const uint32_t infinite = (v.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
  return bits_float(float_bits(magnitude) | infinite | (uint32_t)(v.bits & 0x8000) << 16);
}
inline double to_float(double v) { return v; }

inline void store_as(float* p, float v) { *p = v; }
inline void store_as(double* p, double v) { *p = v; }
inline void store_as(bf16* p, float v) {
  const uint32_t bits = float_bits(v);
  p->bits = v != v ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void store_as(f16* p, float v) {
  const uint32_t bits = float_bits(v), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000;
  uint32_t half;
  if (v != v)
    half = 0x7fff;
  else if (magnitude >= 0x477ff000u)  // rounds to 2^16
    half = 0x7c00;
  else if (magnitude < 0x38800000u)  // subnormal: the adder of float rounds at 2^-24
    half = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  else
    half = (magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13;
  p->bits = (uint16_t)(sign | half);
}

template <class S>
uint32_t packed(S*, float low, float high) {
  S halves[2];
  store_as(halves, low), store_as(halves + 1, high);
  return (uint32_t)halves[0].bits | (uint32_t)halves[1].bits << 16;
}

// Rounds to nearest, ties away from zero.
inline uint32_t to_tf32(float v) { return v != v ? 0x7fffffffu : (float_bits(v) + 0x1000u) & ~0x1fffu; }

inline float exp_quick(float v) { return expf(v); }
inline float inverse_quick(float v) { return 1 / v; }
inline float exp_exact(float v) { return expf(v); }
inline double exp_exact(double v) { return exp(v); }

}  // namespace sfrs::cuda
