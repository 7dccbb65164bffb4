// Which instruction set runs; see dispatch.h.
#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace siamcuda::cpu {

const char* level_name(Level level) {
  switch (level) {
    case Level::kGeneric: return "generic";
    case Level::kAvx2: return "avx2";
    case Level::kAvx512: return "avx512";
  }
  return "generic";
}

std::vector<Level> compiled_levels() {
#if defined(__x86_64__)
  return {Level::kGeneric, Level::kAvx2, Level::kAvx512};
#else
  return {Level::kGeneric};
#endif
}

bool supported(Level level) {
#if defined(__x86_64__)
  if (level == Level::kAvx2 || level == Level::kAvx512) {
    static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                             __builtin_cpu_supports("f16c");
    static const bool avx512 =
        avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return level == Level::kAvx2 ? avx2 : avx512;
  }
#endif
  return level == Level::kGeneric;
}

Level active_level() {
  static const Level best = supported(Level::kAvx512) ? Level::kAvx512
                            : supported(Level::kAvx2) ? Level::kAvx2
                                                      : Level::kGeneric;
  const char* forced = std::getenv("SIAMCUDA_SIMD");
  if (forced == nullptr || *forced == '\0') return best;
  for (const Level level : compiled_levels()) {
    if (std::strcmp(forced, level_name(level)) != 0) continue;
    if (!supported(level)) {
      throw std::invalid_argument(std::string("SIAMCUDA_SIMD=") + forced +
                                  ", but this CPU does not have it");
    }
    return level;
  }
  throw std::invalid_argument(std::string("SIAMCUDA_SIMD must be generic, avx2 or avx512, got '") +
                              forced + "'");
}

bool multiplies_bfloat16(Level level) {
#if defined(__x86_64__)
  static const bool found = supported(Level::kAvx512) && __builtin_cpu_supports("avx512bf16");
  return level == Level::kAvx512 && found;
#else
  return false;
#endif
}

bool multiplies_int8(Level level) {
#if defined(__x86_64__)
  static const bool found = supported(Level::kAvx512) && __builtin_cpu_supports("avx512vnni");
  return level == Level::kAvx512 && found;
#else
  return false;
#endif
}

}  // namespace siamcuda::cpu
