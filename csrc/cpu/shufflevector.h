// __builtin_shufflevector for GCC 11, which has only __builtin_shuffle: as many lanes out as in.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#include <cstdint>
#include <type_traits>

namespace sfrs::cpu {
template <int... I, class V>
inline __attribute__((always_inline)) auto shufflevector(V a, V b) {
  using Lane = std::decay_t<decltype(a[0])>;
  constexpr int lanes = sizeof(V) / sizeof(Lane);
  if constexpr (sizeof...(I) == lanes) {
    using Index = std::conditional_t<sizeof(Lane) == 8, int64_t, int32_t>;
    typedef Index Indices __attribute__((vector_size(sizeof(V))));
    return __builtin_shuffle(a, b, Indices{I...});
  } else {
    typedef Lane Part __attribute__((vector_size(sizeof...(I) * sizeof(Lane))));
    return Part{(I < lanes ? a[I % lanes] : b[I % lanes])...};
  }
}
}  // namespace sfrs::cpu

#if __GNUC__ < 12
#define __builtin_shufflevector(a, b, ...) sfrs::cpu::shufflevector<__VA_ARGS__>(a, b)
#endif
#endif
