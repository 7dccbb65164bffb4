// How verification on CUDA divides its work, as pure functions, at sizes that no test can run.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "check.h"
#include "cuda/verify_launch.h"

namespace siamcuda::cuda {
namespace {

constexpr int64_t k31 = int64_t{1} << 31;
constexpr int64_t kSizes[] = {0, 1, 64, 65, 128, 129, 65535, 65536, 65537, k31 - 1, k31, k31 + 1};

SIAM_TEST(launches_of_a_sweep_are_bounded) {
  const SweepLimits limits;
  for (const int64_t rows : kSizes) {
    for (const int64_t columns : kSizes) {
      const SweepPlan plan = sweep_plan(rows, columns);
      SIAM_CHECK(plan.rows <= rows && plan.rows <= limits.rows);
      SIAM_CHECK(plan.columns <= columns && plan.columns <= limits.rows);
      SIAM_CHECK((plan.rows > 0) == (rows > 0));
      SIAM_CHECK((plan.columns > 0) == (columns > 0));
      // Launches but the last have whole tiles: none is begun twice.
      SIAM_CHECK(plan.rows == rows || plan.rows % kTileRows == 0);
      SIAM_CHECK(plan.columns == columns || plan.columns % kTileColumns == 0);
      const TileLaunch launch = tile_launch(1, plan.rows, plan.columns, 132);
      SIAM_CHECK(launch.tiles <= limits.tiles);
      SIAM_CHECK(launch.grid <= 132 * kTileBlocksPerSm);
    }
  }
}

SIAM_TEST(keys_in_memory_are_bounded) {
  const SweepLimits limits;
  for (const int64_t rows : kSizes) {
    for (const int64_t columns : kSizes) {
      for (const int64_t dim : {int64_t{0}, int64_t{1}, int64_t{512}, k31}) {
        const SweepPlan plan = keys_plan(rows, columns, dim);
        SIAM_CHECK(plan.rows <= rows && plan.columns <= columns);
        SIAM_CHECK((plan.rows > 0) == (rows > 0));
        SIAM_CHECK(plan.rows * plan.columns <= limits.keys);
        SIAM_CHECK(plan.rows <= 1 || plan.rows * dim <= limits.copied);
      }
    }
  }
}

// The order of the sums of d′ follows from the plan: it must not know the GPU.
SIAM_TEST(a_plan_is_of_the_shape_alone) {
  const SweepPlan plan = sweep_plan(1'000'000, 2'000'000);
  SIAM_EQUAL(plan.columns, int64_t{1} << 20);
  SIAM_EQUAL(plan.rows, int64_t{2048});
  for (const int multiprocessors : {1, 132}) {
    SIAM_EQUAL(tile_launch(1, plan.rows, plan.columns, multiprocessors).tiles, int64_t{1} << 18);
  }
}

// --- keys ----------------------------------------------------------------------------------------

template <class C>
void check_keys() {
  using math::key_of;
  const C infinity = std::numeric_limits<C>::infinity();
  SIAM_CHECK(key_of(infinity) == math::kInfinityKey<C>);
  SIAM_CHECK(math::kNoKey<C> > math::kInfinityKey<C>);
  SIAM_CHECK(math::bit_cast<C>(math::kNoKey<C>) != math::bit_cast<C>(math::kNoKey<C>));
  SIAM_CHECK(key_of(C(0)) == 0 && key_of(C(1)) < key_of(C(2)));
  // Every bit of the table's depth tells bins apart where none is dropped; all fall together.
  const math::Key<C> top = key_of(C(1)) >> math::kLowBits<C> << math::kLowBits<C>;
  const math::Key<C> last = top | ((math::Key<C>(1) << math::kLowBits<C>)-1);
  const int64_t parts = int64_t{1} << math::kTableBits<C>;
  SIAM_EQUAL(math::table_bin<C>(7 * 64, top), int64_t{7});
  SIAM_EQUAL(math::table_bin<C>(7 * 64, last), 7 + parts - 1);
  SIAM_EQUAL(math::table_bin<C>(7 * 64 + math::kTableBits<C>, last), int64_t{7});
  const math::Interval<C> interval{top, 2};
  SIAM_CHECK(interval.at(top) == 0 && interval.at(top - 1) >= interval.width());
  SIAM_CHECK(interval.at(top + interval.width()) >= interval.width());
  SIAM_CHECK(math::cosine_distance(C(3), false) == C(1.5));
  SIAM_CHECK(math::cosine_distance(C(3), true) == 1);
  const C nan = math::cosine_distance(std::numeric_limits<C>::quiet_NaN(), true);
  SIAM_CHECK(nan != nan);
}
SIAM_TEST(keys_order_as_numbers) {
  check_keys<float>();
  check_keys<double>();
}

}  // namespace
}  // namespace siamcuda::cuda

SIAM_TEST_MAIN()
