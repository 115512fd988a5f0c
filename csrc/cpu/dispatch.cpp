// Picks the kernels for the processor at hand.

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

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
#ifdef SFRS_WIDE_KERNELS
namespace wide {
extern const Kernels table;
}
#endif
#ifdef SFRS_EMULATED_KERNELS
namespace emulated {
extern const Kernels table;
}
#endif

const Kernels* const* available() {
  static const Kernels* tables[6] = {};
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
#ifdef SFRS_WIDE_KERNELS
    if (__builtin_cpu_supports("avx2")) *next++ = &wide::table;
#endif
#ifdef SFRS_EMULATED_KERNELS
    *next++ = &emulated::table;
#endif
    return true;
  }();
  (void)filled;
  return tables;
}

const Kernels& kernels() {
  static const Kernels* chosen = [] {
    const char* wanted = std::getenv("SFRS_CPU");
    if (!wanted) return *available();
    std::string names;
    for (const Kernels* const* table = available(); *table; ++table) {
      if (!std::strcmp((*table)->name, wanted)) return *table;
      names += std::string(" ") + (*table)->name;
    }
    throw std::runtime_error("sfrs_ext: SFRS_CPU=" + std::string(wanted) +
                             ", but this build and processor have" + names);
  }();
  return *chosen;
}

}  // namespace sfrs::cpu
