// Screening with AVX-512, by products in float and by 8-bit codes, against exact arithmetic. On a
// CPU without it there is nothing to run, and the tests say so.
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"

// The text that is tested comes before the tests, which are compiled like it.
#include "cpu/search_avx512.cpp"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define SIAM_TESTED_LEVEL avx512
#include "search_bounds.h"
#pragma GCC pop_options

namespace {
bool here(bool supported, const char* what) {
  if (!supported) std::printf("not run: this CPU lacks %s\n", what);
  return supported;
}
}  // namespace

SIAM_TEST(bounds_of_tiles_hold) {
  if (!here(__builtin_cpu_supports("avx512bw"), "AVX-512")) return;
  siamcuda::cpu::avx512::each_kind(siamcuda::cpu::avx512::screen_by_tiles);
}

SIAM_TEST(bounds_of_codes_hold) {
  if (!here(__builtin_cpu_supports("avx512vnni"), "AVX-512 VNNI")) return;
  siamcuda::cpu::avx512::each_kind(siamcuda::cpu::avx512::screen_by_codes);
}

SIAM_TEST(nothing_beyond_the_rows_is_touched) {
  if (!here(__builtin_cpu_supports("avx512bw"), "AVX-512")) return;
  siamcuda::cpu::avx512::touch_exact_memory();
}

SIAM_TEST_MAIN()
