// Picks the kernels for the processor at hand.

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(SFRS_X86_64) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
namespace avx512bf16 {
extern const Kernels table;
}
namespace amx {
extern const Kernels table;
}
#endif
#ifdef SFRS_WIDE_KERNELS
namespace wide {
extern const Kernels table;
}
namespace wide_bf16 {
extern const Kernels table;
}
namespace wide_amx {
extern const Kernels table;
}
#endif
#ifdef SFRS_EMULATED_KERNELS
namespace emulated {
extern const Kernels table;
}
#endif

#ifdef SFRS_X86_64
// AMX with bfloat16: by CPUID, as not every compiler knows its name, and by the system, which gives a process
// the tile registers only if it asks.
static bool has_tiles() {
#ifdef __linux__
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;  // leaf 7, EDX
  constexpr int kRequest = 0x1023, kTileData = 18;             // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBfloat16) && (d & kTiles) &&
         syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const Kernels* const* available() {
  static const Kernels* tables[10] = {};
  static const bool filled = [] {
    const Kernels** next = tables;
#ifdef SFRS_X86_64
    __builtin_cpu_init();
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512cd");
    bool bfloat16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (bfloat16 && has_tiles()) *next++ = &amx::table;
    // Intel's processors take twice as long for a vector of pairs as for one of float32.
    bool pairs_first = bfloat16 && !__builtin_cpu_is("intel");
    if (pairs_first) *next++ = &avx512bf16::table;
    if (avx512) *next++ = &avx512::table;
    if (bfloat16 && !pairs_first) *next++ = &avx512bf16::table;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
      *next++ = &avx2::table;
#endif
    *next++ = &portable::table;
#ifdef SFRS_WIDE_KERNELS
    if (__builtin_cpu_supports("avx2")) {
      *next++ = &wide::table;
      *next++ = &wide_bf16::table;
      *next++ = &wide_amx::table;
    }
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
