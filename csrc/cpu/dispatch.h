// Which instruction set runs: the best that this CPU has, or the one that SIAMCUDA_SIMD names.
#pragma once

#include <string>
#include <vector>

namespace siamcuda::cpu {

enum class Level { kGeneric, kAvx2, kAvx512 };

const char* level_name(Level level);
std::vector<Level> compiled_levels();
bool supported(Level level);

// Read at each call, so that a test can change the variable between two calls. Throws
// std::invalid_argument if it names no level, or one that this CPU or build lacks.
Level active_level();

// Whether `level` multiplies bfloat16 by VDPBF16PS on this CPU.
bool multiplies_bfloat16(Level level);
// Likewise bytes, four to a lane, by VPDPBUSD.
bool multiplies_int8(Level level);

}  // namespace siamcuda::cpu
