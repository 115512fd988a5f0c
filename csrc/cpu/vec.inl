// Vectors of the compiled instruction set, in GCC/Clang vector extensions: one source for SSE2, AVX2,
// AVX-512 and NEON. SFRS_VECTOR_BYTES is set per translation unit.
#pragma once

#include "isa.h"

namespace sfrs::cpu::SFRS_ISA {
namespace {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(SFRS_VECTOR_BYTES)));
  typedef int32_t mask __attribute__((vector_size(SFRS_VECTOR_BYTES)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(SFRS_VECTOR_BYTES)));
  typedef int64_t mask __attribute__((vector_size(SFRS_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = SFRS_VECTOR_BYTES / sizeof(T);

typedef uint32_t U32 __attribute__((vector_size(SFRS_VECTOR_BYTES)));
typedef uint16_t U16 __attribute__((vector_size(SFRS_VECTOR_BYTES / 2)));
typedef Vec<float> F32;

template <class T>
SFRS_INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}
template <class T>
SFRS_INLINE T larger(T a, T b) {
  return a > b ? a : b;
}
SFRS_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

template <class T>
SFRS_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};
}
template <class V, class P>
SFRS_INLINE V load_bits(const P* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class P>
SFRS_INLINE void store_bits(P* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// ---- storage <-> accumulation type

template <class S>
struct AccOf {
  typedef float type;
};
template <>
struct AccOf<double> {
  typedef double type;
};
template <class S>
using Acc = typename AccOf<S>::type;

SFRS_INLINE Vec<float> load(const float* p) { return load_bits<Vec<float>>(p); }
SFRS_INLINE Vec<double> load(const double* p) { return load_bits<Vec<double>>(p); }
SFRS_INLINE void store(float* p, Vec<float> v) { store_bits(p, v); }
SFRS_INLINE void store(double* p, Vec<double> v) { store_bits(p, v); }

#ifdef SFRS_AVX512  // GCC takes the halves apart
SFRS_INLINE U32 widened(U16 v) { return (U32)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)v); }
SFRS_INLINE U16 narrowed(U32 v) { return (U16)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v); }
#else
SFRS_INLINE U32 widened(U16 v) { return __builtin_convertvector(v, U32); }
SFRS_INLINE U16 narrowed(U32 v) { return __builtin_convertvector(v, U16); }
#endif

SFRS_INLINE F32 load(const bf16* p) { return (F32)(widened(load_bits<U16>(p)) << 16); }
SFRS_INLINE U32 bf16_bits(F32 v) {
  U32 u = (U32)v;
  U32 nearest = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // ties to even
  return v == v ? nearest : (u >> 16) | 0x40u;           // NaN stays NaN
}
SFRS_INLINE void store(bf16* p, F32 v) { store_bits(p, narrowed(bf16_bits(v))); }

SFRS_INLINE F32 load(const f16* p) {
  U32 h = widened(load_bits<U16>(p));
  U32 magnitude = (h & 0x7fffu) << 13;
  U32 normal = magnitude + (112u << 23);
  F32 subnormal = (F32)(magnitude + (113u << 23)) - (F32)(U32{} + (113u << 23));
  U32 finite = magnitude < (1u << 23) ? (U32)subnormal : normal;
  U32 bits = magnitude >= (0x7c00u << 13) ? magnitude | 0x7f800000u : finite;
  return (F32)(bits | (h & 0x8000u) << 16);
}
SFRS_INLINE void store(f16* p, F32 v) {
  U32 u = (U32)v, magnitude = u & 0x7fffffffu;
  U32 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  U32 subnormal = (U32)((F32)magnitude + 0.5f) - (U32)(F32{} + 0.5f);
  U32 special = magnitude > 0x7f800000u ? U32{} + 0x7e00u : U32{} + 0x7c00u;
  U32 finite = magnitude < 0x38800000u ? subnormal : normal;
  U32 bits = magnitude >= 0x47800000u ? special : finite;
  store_bits(p, narrowed(bits | (u >> 16 & 0x8000u)));
}

// One element, through the vector code above for the 16-bit types: one rounding rule, written once.
template <class S>
SFRS_INLINE Acc<S> load_one(const S* p) {
  if constexpr (sizeof(S) == 2) {
    S lanes[kLanes<float>] = {*p};
    return load(lanes)[0];
  } else {
    return *p;
  }
}
template <class S>
SFRS_INLINE void store_one(S* p, Acc<S> value) {
  if constexpr (sizeof(S) == 2) {
    S lanes[kLanes<float>];
    store(lanes, splat(value));
    *p = lanes[0];
  } else {
    *p = value;
  }
}

// The first n < kLanes elements; the missing ones are zero, and memory behind them is not touched.
template <class S>
SFRS_INLINE Vec<Acc<S>> load_part(const S* p, int64_t n) {
#ifdef SFRS_AVX512
  unsigned mask = (1u << n) - 1;
  if constexpr (std::is_same_v<S, float>) return (F32)_mm512_maskz_loadu_ps((__mmask16)mask, p);
  if constexpr (std::is_same_v<S, bf16>)
    return (F32)(widened((U16)_mm256_maskz_loadu_epi16((__mmask16)mask, p)) << 16);
#endif
  S lanes[kLanes<Acc<S>>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class S>
SFRS_INLINE void store_part(S* p, Vec<Acc<S>> v, int64_t n) {
#ifdef SFRS_AVX512
  if constexpr (std::is_same_v<S, float>)
    return _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#endif
  S lanes[kLanes<Acc<S>>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// Elements at the start of a row of which n are left.
template <class S>
SFRS_INLINE Vec<Acc<S>> load_n(const S* p, int64_t n) {
  return n >= kLanes<Acc<S>> ? load(p) : load_part(p, n);
}
template <class S>
SFRS_INLINE void store_n(S* p, Vec<Acc<S>> v, int64_t n) {
  n >= kLanes<Acc<S>> ? store(p, v) : store_part(p, v, n);
}

// Where the vector at i of [0, n) begins: the last one overlaps the one before instead of being partial.
template <class T>
SFRS_INLINE int64_t overlapped(int64_t i, int64_t n) {
  return i + kLanes<T> <= n || n < kLanes<T> ? i : n - kLanes<T>;
}

// ---- arithmetic

template <class V>
SFRS_INLINE V max_or_nan(V a, V b) {  // NaN in either wins
  V m = a > b ? a : b;
  return a == a ? m : a;
}

template <int N>
using Count = std::integral_constant<int, N>;
template <int... I>
struct Ints {};
template <int N, int... I>
struct CountTo : CountTo<N - 1, N - 1, I...> {};
template <int... I>
struct CountTo<0, I...> {
  typedef Ints<I...> type;
};
template <class V, class Op, int... I>
SFRS_INLINE auto fold(V v, const Op& op, Ints<I...>) {  // the lower half combined with the upper one
  constexpr int half = sizeof...(I);
  return op(__builtin_shufflevector(v, v, I...), __builtin_shufflevector(v, v, (I + half)...));
}
template <class T, class V, class Op>
SFRS_INLINE T reduce(V v, const Op& op) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  if constexpr (lanes == 2)
    return op(v[0], v[1]);
  else
    return reduce<T>(fold(v, op, typename CountTo<lanes / 2>::type()), op);
}
template <class T>
SFRS_INLINE T sum_lanes(Vec<T> v) {
  return reduce<T>(v, [](auto a, auto b) { return a + b; });
}
template <class T>
SFRS_INLINE T max_lanes(Vec<T> v) {
  return reduce<T>(v, [](auto a, auto b) { return max_or_nan(a, b); });
}

// Whether a comparison holds in any lane.
template <class M>
SFRS_INLINE bool any(M mask) {
  typedef uint64_t Words __attribute__((vector_size(sizeof(M))));
  return reduce<uint64_t>((Words)mask, [](auto a, auto b) { return a | b; }) != 0;
}

// Exchanges what lies outside the diagonal of every 2 x 2 of blocks of H lanes.
template <int H, class V, int... I>
SFRS_INLINE void exchange(V& a, V& b, Ints<I...>) {
  constexpr int n = sizeof...(I);
  V low = __builtin_shufflevector(a, b, (I & H ? I - H + n : I)...);
  b = __builtin_shufflevector(a, b, (I & H ? I + n : I + H)...);
  a = low;
}
// Turns a square of lanes by lanes.
template <class T, int H = kLanes<T> / 2>
SFRS_INLINE void transpose(Vec<T>* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (!(i & H)) exchange<H>(rows[i], rows[i + H], typename CountTo<kLanes<T>>::type());
  if constexpr (H > 1) transpose<T, H / 2>(rows);
}

// The two halves of a vector in double: dot products of long vectors keep their digits that way.
SFRS_INLINE void widen(Vec<double> v, Vec<double>* wide) { *wide = v; }
template <int... I>
SFRS_INLINE void widen(Vec<float> v, Vec<double>* wide, Ints<I...>) {
  wide[0] = __builtin_convertvector(__builtin_shufflevector(v, v, I...), Vec<double>);
  wide[1] = __builtin_convertvector(__builtin_shufflevector(v, v, (I + kLanes<double>)...), Vec<double>);
}
SFRS_INLINE void widen(Vec<float> v, Vec<double>* wide) { widen(v, wide, CountTo<kLanes<double>>::type()); }
template <class T>
constexpr int kWide = sizeof(double) / sizeof(T);  // vectors of double per vector of T

template <class A, class B>
SFRS_INLINE double accurate_dot(const A* a, const B* b, int64_t n) {
  using T = Acc<A>;
  Vec<double> sums[kWide<T>] = {};
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    Vec<double> left[kWide<T>], right[kWide<T>];
    widen(load_n(a + i, n - i), left);
    widen(load_n(b + i, n - i), right);
    for (int w = 0; w < kWide<T>; ++w) sums[w] += left[w] * right[w];
  }
  if constexpr (kWide<T> == 2) sums[0] += sums[1];
  return sum_lanes<double>(sums[0]);
}

// 1 / max(|v|, eps) from the square of |v|; NaN stays NaN.
template <class T>
SFRS_INLINE T inverse_norm(T square) {
  T norm = (T)__builtin_sqrt(square);
  return 1 / (norm < (T)kEps ? (T)kEps : norm);
}
// False where the bound eps was the larger one, which ends the norm's own gradient.
template <class T>
SFRS_INLINE bool norm_counts(T inverse) {
  return inverse < 1 / (T)kEps;
}

// exp(x) for x <= 0, relative error below 2e-7 (degree-6 polynomial on [-ln2/2, ln2/2]); what would be
// subnormal is 0, NaN stays NaN.
SFRS_INLINE Vec<float> exp_nonpositive(Vec<float> x) {
  Vec<float> t = x > -87.33f ? x : splat(-87.33f);
  Vec<float> n = t * 1.44269504f + 12582912.0f;  // round to integer: 1.5 * 2^23
  n -= 12582912.0f;
  Vec<float> r = t - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec<float> e = r * 1.9875691500e-4f + 1.3981999507e-3f;
  e = e * r + 8.3334519073e-3f;
  e = e * r + 4.1665795894e-2f;
  e = e * r + 1.6666665459e-1f;
  e = e * r + 5.0000001201e-1f;
  e = e * (r * r) + r + 1.0f;
  VecOf<float>::mask exponent = (__builtin_convertvector(n, VecOf<float>::mask) + 127) << 23;
  e = e * (Vec<float>)exponent;
  e = x > -87.33f ? e : splat(0.0f);
  return x == x ? e : x;
}
SFRS_INLINE Vec<double> exp_nonpositive(Vec<double> x) {
  Vec<double> e = {};
  for (int i = 0; i < kLanes<double>; ++i) e[i] = __builtin_exp(x[i]);
  return e;
}

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
