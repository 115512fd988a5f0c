// Picks the kernels for the processor at hand.

#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace sfrs::cpu {

namespace portable {
extern const Kernels table;
}
#ifdef SFRS_X86_64
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

const Kernels* const* available() {
  static const Kernels* tables[4] = {};
  static const bool filled = [] {
    const Kernels** next = tables;
#ifdef SFRS_X86_64
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512cd"))
      *next++ = &avx512::table;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
      *next++ = &avx2::table;
#endif
    *next++ = &portable::table;
    return true;
  }();
  (void)filled;
  return tables;
}

const Kernels& kernels() {
  static const Kernels* chosen = [] {
    const char* wanted = std::getenv("SFRS_CPU");
    for (const Kernels* const* table = available(); wanted && *table; ++table)
      if (!std::strcmp((*table)->name, wanted)) return *table;
    return *available();
  }();
  return *chosen;
}

}  // namespace sfrs::cpu
