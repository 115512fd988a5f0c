// Picks the kernels for the processor at hand.

#include <atomic>
#include <cstdlib>
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

const std::vector<const Kernels*>& available() {
  static const std::vector<const Kernels*> tables = [] {
    std::vector<const Kernels*> found;
#ifdef SFRS_X86_64
    __builtin_cpu_init();
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512cd");
    bool bfloat16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (bfloat16 && has_tiles()) found.push_back(&amx::table);
    // Intel's processors take twice as long for a vector of pairs as for one of float32.
    bool pairs_first = bfloat16 && !__builtin_cpu_is("intel");
    if (pairs_first) found.push_back(&avx512bf16::table);
    if (avx512) found.push_back(&avx512::table);
    if (bfloat16 && !pairs_first) found.push_back(&avx512bf16::table);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
      found.push_back(&avx2::table);
#endif
    found.push_back(&portable::table);
#ifdef SFRS_WIDE_KERNELS
    if (__builtin_cpu_supports("avx2"))
      found.insert(found.end(), {&wide::table, &wide_bf16::table, &wide_amx::table});
#endif
#ifdef SFRS_EMULATED_KERNELS
    found.push_back(&emulated::table);
#endif
    return found;
  }();
  return tables;
}

static const Kernels& find(const std::string& name, const std::string& asked) {
  std::string names;
  for (const Kernels* table : available()) {
    if (table->name == name) return *table;
    names += std::string(" ") + table->name;
  }
  throw std::invalid_argument(asked + name + ", but this build and processor have" + names);
}

static std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
  if (const Kernels* table = chosen.load(std::memory_order_relaxed)) return *table;
  const char* wanted = std::getenv("SFRS_CPU");
  static const Kernels& first = wanted ? find(wanted, "sfrs_ext: SFRS_CPU=") : *available().front();
  return first;
}

void use_kernels(const std::string& name) {
  chosen.store(&find(name, "use_kernels: name is "), std::memory_order_relaxed);
}

}  // namespace sfrs::cpu
