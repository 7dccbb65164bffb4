// Screening on any CPU, by its products in float, against exact arithmetic.
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"

// The text that is tested comes before the tests, which are compiled like it.
#include "cpu/search_generic.cpp"
#define SIAM_TESTED_LEVEL generic
#include "search_bounds.h"

SIAM_TEST(bounds_of_tiles_hold) {
  siamcuda::cpu::generic::each_kind(siamcuda::cpu::generic::screen_by_tiles);
}

SIAM_TEST(nothing_beyond_the_rows_is_touched) { siamcuda::cpu::generic::touch_exact_memory(); }

SIAM_TEST_MAIN()
