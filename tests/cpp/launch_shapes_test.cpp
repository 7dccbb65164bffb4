// Launch shapes as pure functions (cuda/launch.h) at the sizes where 16, 31 and 32 bits end, and
// the row kernel itself, on the emulator, where rows or offsets cross them.
#include <sys/mman.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/rows.cuh"

namespace siamcuda::cuda {
namespace {

using emulator::Access;
using emulator::Buffer;

constexpr int64_t k16 = int64_t{1} << 16, k31 = int64_t{1} << 31, k32 = int64_t{1} << 32;

const std::vector<int64_t>& row_counts() {
  static const std::vector<int64_t> rows = {0,
                                            1,
                                            2,
                                            63,
                                            64,
                                            65,
                                            127,
                                            128,
                                            129,
                                            k16 - 2,
                                            k16 - 1,
                                            k16,
                                            k31 - 1,
                                            k31,
                                            k31 + 1,
                                            k32 - 1,
                                            k32,
                                            k32 + 1,
                                            (int64_t{1} << 37) + 1,
                                            int64_t{1} << 46};
  return rows;
}

const std::vector<int64_t>& column_counts() {
  static const std::vector<int64_t> columns = {
      0,  1,  2,  3,   4,   5,   7,   8,   9,   15,   16,   17,      31,  32,      33,
      63, 64, 65, 127, 128, 129, 255, 256, 512, 1021, 4096, k31 - 1, k31, k31 + 1, k32 + 1};
  return columns;
}

constexpr DType kDTypes[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64};
constexpr int kMultiprocessors[] = {-1, 0, 1, 2, 46, 108, 132, 192, 100000};

std::string show_case(int64_t rows, int64_t columns, DType dtype, int multiprocessors) {
  return " at rows " + std::to_string(rows) + ", columns " + std::to_string(columns) + ", dtype " +
         std::to_string(static_cast<int>(dtype)) + ", SMs " + std::to_string(multiprocessors);
}

template <class Check>
void for_each_shape(Check check) {
  for (const int64_t rows : row_counts()) {
    for (const int64_t columns : column_counts()) {
      for (const DType dtype : kDTypes) {
        for (const int sms : kMultiprocessors) {
          check(rows, columns, dtype, sms, row_launch(rows, columns, dtype, sms),
                show_case(rows, columns, dtype, sms));
        }
      }
    }
  }
}

// The first row of tile t is t · tile_rows, so this says that tiles neither overlap nor leave a
// gap.
SIAM_TEST(tiles_hold_every_row_once) {
  for_each_shape([](int64_t rows, int64_t, DType, int, const RowLaunch& launch,
                    const std::string& where) {
    SIAM_CHECK_AT(launch.tile_rows > 0 && launch.tiles >= 0, where);
    SIAM_CHECK_AT(launch.tiles <= (std::numeric_limits<int64_t>::max)() / launch.tile_rows, where);
    SIAM_CHECK_AT(launch.tiles * launch.tile_rows >= rows, where);
    SIAM_CHECK_AT(rows == 0 ? launch.tiles == 0 : (launch.tiles - 1) * launch.tile_rows < rows,
                  where);
  });
}

SIAM_TEST(grid_is_within_cuda_limits) {
  for_each_shape(
      [](int64_t rows, int64_t, DType, int sms, const RowLaunch& launch, const std::string& where) {
        SIAM_CHECK_AT(launch.grid <= 0x7fffffffu, where);
        SIAM_CHECK_AT(static_cast<int64_t>(launch.grid) <= launch.tiles, where);
        SIAM_CHECK_AT((launch.grid > 0) == (rows > 0), where);
        // Persistent: as many blocks as are resident at once, and no more.
        const int64_t resident = int64_t{sms > 0 ? sms : 1} * kRowBlocksPerSm;
        SIAM_CHECK_AT(launch.grid == std::min(launch.tiles, resident), where);
      });
  SIAM_CHECK(kRowThreads <= 1024 && kRowThreads % 32 == 0);
}

SIAM_TEST(lanes_are_a_fraction_of_a_warp) {
  for_each_shape(
      [](int64_t, int64_t, DType, int, const RowLaunch& launch, const std::string& where) {
        SIAM_CHECK_AT(launch.lanes >= 1 && launch.lanes <= 32, where);
        SIAM_CHECK_AT((launch.lanes & (launch.lanes - 1)) == 0, where);
        // Every group of a block makes as many steps over a tile: shuffles need all of them.
        SIAM_CHECK_AT(launch.tile_rows % (kRowThreads / launch.lanes) == 0, where);
      });
}

// Promise 4: neither the order of a row's sum nor which rows are summed together may depend on how
// many rows there are, or on the GPU.
SIAM_TEST(lanes_and_tiles_depend_on_columns_and_dtype_alone) {
  for (const int64_t columns : column_counts()) {
    for (const DType dtype : kDTypes) {
      const RowLaunch first = row_launch(1, columns, dtype, 1);
      for (const int64_t rows : row_counts()) {
        for (const int sms : kMultiprocessors) {
          const RowLaunch launch = row_launch(rows, columns, dtype, sms);
          const std::string where = show_case(rows, columns, dtype, sms);
          SIAM_EQUAL_AT(launch.lanes, first.lanes, where);
          SIAM_EQUAL_AT(launch.tile_rows, first.tile_rows, where);
        }
      }
    }
  }
}

SIAM_TEST(rows_are_as_wide_as_their_lanes) {
  for (const int64_t columns : column_counts()) {
    for (const DType dtype : kDTypes) {
      const int64_t per_access = kAccessBytes / dtype_bytes(dtype);
      const int64_t accesses = (columns + per_access - 1) / per_access;
      const RowLaunch launch = row_launch(1, columns, dtype, 1);
      const std::string where = show_case(1, columns, dtype, 1);
      // Enough lanes that each holds its part in registers, up to a warp; never more than twice
      // as many as have something to do.
      SIAM_CHECK_AT(launch.lanes == 32 || launch.lanes * kHeldAccesses >= accesses, where);
      SIAM_CHECK_AT(launch.lanes == 1 || launch.lanes < 2 * accesses, where);
      // The walk of RowTask: lane, lane + lanes, ... meets every access once.
      if (accesses > 4096) continue;
      std::vector<int> owners(accesses, 0);
      for (int lane = 0; lane < launch.lanes; ++lane) {
        for (int64_t a = lane; a < accesses; a += launch.lanes) ++owners[a];
      }
      for (const int owner : owners) SIAM_EQUAL_AT(owner, 1, where);
    }
  }
}

RowArgs aligned_args(DType dtype, int64_t columns) {
  RowArgs args{};
  args.dtype = dtype;
  args.rows = 8;
  args.columns = columns;
  args.shape.ndim = 1;
  args.shape.size[0] = 8;
  for (int j = 0; j < 2; ++j) {
    args.input[j].data = reinterpret_cast<const void*>(0x1000 * (j + 1));
    args.input[j].strides.step[0] = columns;
  }
  return args;
}

SIAM_TEST(alignment_is_asked_of_every_access) {
  for (const DType dtype : kDTypes) {
    const int64_t per_access = kAccessBytes / dtype_bytes(dtype);
    const RowArgs whole = aligned_args(dtype, 4 * per_access);
    SIAM_CHECK(rows_aligned(whole, 2));
    RowArgs args = whole;
    args.columns += 1;
    SIAM_CHECK(!rows_aligned(args, 2));
    for (int j = 0; j < 2; ++j) {
      args = whole;
      args.input[j].data = static_cast<const char*>(args.input[j].data) + dtype_bytes(dtype);
      SIAM_CHECK(!rows_aligned(args, 2));
      args = whole;
      args.input[j].strides.step[0] += 1;
      SIAM_CHECK(!rows_aligned(args, 2));
      args = whole;
      args.input[j].strides.step[0] = 0;  // expanded
      SIAM_CHECK(rows_aligned(args, 2));
      args = whole;
      args.gradient[j] = reinterpret_cast<void*>(uintptr_t{0x2008});
      SIAM_CHECK(!rows_aligned(args, 2));
    }
    args = whole;
    args.shape.ndim = 2;
    args.input[1].strides.step[1] = per_access + 1;
    SIAM_CHECK(!rows_aligned(args, 2));
    // An input that the row does not have is not asked.
    args = whole;
    args.input[2].data = reinterpret_cast<const void*>(uintptr_t{0x1001});
    SIAM_CHECK(rows_aligned(args, 2));
    SIAM_CHECK(!rows_aligned(args, 3));
  }
}

SIAM_TEST(row_offsets_are_64_bit) {
  RowShape line{};
  line.ndim = 1;
  line.size[0] = k32 + 2;
  RowStrides dense{};
  dense.step[0] = 3;
  for (const int64_t row : {k16 - 1, k16, k31 - 1, k31, k31 + 1, k32 - 1, k32, k32 + 1}) {
    SIAM_EQUAL(row_offset(line, dense, row), 3 * row);
    RowShape grid{};
    grid.ndim = 3;
    grid.size[0] = 5;
    grid.size[1] = k16 + 1;
    grid.size[2] = k16 - 1;
    RowStrides steps{};
    steps.step[0] = k32 + 7;
    steps.step[1] = 0;
    steps.step[2] = k31 + 1;
    const int64_t inner = row % grid.size[2], outer = row / grid.size[2] / grid.size[1];
    SIAM_EQUAL(row_offset(grid, steps, row), outer * steps.step[0] + inner * steps.step[2]);
  }
}

// --- the kernel itself ---------------------------------------------------------------------------

using Squared = math::Pair<math::SquaredDifference>;

void run_squared_l2(const RowArgs& args) {
  launch_typed<math::SquaredL2, Squared, float>(args, math::SquaredL2::make(), 3, 0);
}

RowArgs squared_l2_args(int64_t rows, int64_t columns, const float* x1, const float* x2,
                        int64_t row_step) {
  RowArgs args{};
  args.rows = rows;
  args.columns = columns;
  args.shape.ndim = 1;
  args.shape.size[0] = rows;
  args.dtype = args.value_dtype = DType::kFloat32;
  args.upstream_scale = 1;
  args.input[0] = {x1, {{row_step}}};
  args.input[1] = {x2, {{row_step}}};
  return args;
}

// Aligned (D = 4) and element by element (D = 3); every value is written, by its own row.
SIAM_TEST(kernel_reaches_every_row_around_65536) {
  for (const int64_t rows : {k16 - 2, k16 - 1, k16, k16 + 1}) {
    for (const int64_t columns : {int64_t{3}, int64_t{4}}) {
      std::vector<float> x1(rows * columns), x2(rows * columns, 0.0f), values(rows, -1.0f);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t d = 0; d < columns; ++d) x1[i * columns + d] = static_cast<float>(i % 1000);
      }
      Buffer in1(x1.data(), x1.size() * 4, Access::read, "x1");
      Buffer in2(x2.data(), x2.size() * 4, Access::read, "x2");
      Buffer out(values.data(), values.size() * 4, Access::write, "values");
      RowArgs args = squared_l2_args(rows, columns, x1.data(), x2.data(), columns);
      args.values = values.data();
      run_squared_l2(args);
      SIAM_EQUAL(out.unwritten_bytes(), size_t{0});
      for (int64_t i = 0; i < rows; ++i) {
        const float size = static_cast<float>(i % 1000);
        SIAM_EQUAL_AT(values[i], static_cast<float>(columns) * size * size,
                      " at row " + std::to_string(i) + " of " + std::to_string(rows));
      }
    }
  }
}

// Rows so far apart that the last one starts behind element 2^31 and 2^32, in memory that is only
// reserved: the pages between are never touched.
SIAM_TEST(kernel_reads_rows_behind_32_bit_offsets) {
  for (const int64_t step : {k31 + 4, k31 + 1}) {  // aligned, and not
    constexpr int64_t kRows = 4, kColumns = 8;
    const size_t bytes = static_cast<size_t>((kRows - 1) * step + kColumns) * sizeof(float);
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    SIAM_CHECK(memory != MAP_FAILED);
    float* const x1 = static_cast<float*>(memory);
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t d = 0; d < kColumns; ++d) x1[i * step + d] = static_cast<float>(i + 1);
    }
    const std::vector<float> x2(kColumns, 0.0f);
    std::vector<float> values(kRows), gradient(kRows * kColumns);
    {
      Buffer in1(x1, bytes, Access::read, "x1");
      Buffer in2(x2.data(), x2.size() * 4, Access::read, "x2");
      Buffer out(values.data(), values.size() * 4, Access::write, "values");
      Buffer slope(gradient.data(), gradient.size() * 4, Access::write, "gradient");
      RowArgs args = squared_l2_args(kRows, kColumns, x1, x2.data(), step);
      args.input[1].strides.step[0] = 0;
      args.values = values.data();
      args.gradient[0] = gradient.data();
      run_squared_l2(args);
      SIAM_EQUAL(out.unwritten_bytes() + slope.unwritten_bytes(), size_t{0});
    }
    munmap(memory, bytes);
    for (int64_t i = 0; i < kRows; ++i) {
      SIAM_EQUAL(values[i], static_cast<float>(kColumns * (i + 1) * (i + 1)));
      SIAM_EQUAL(gradient[i * kColumns], static_cast<float>(2 * (i + 1)));
    }
  }
}

}  // namespace
}  // namespace siamcuda::cuda

SIAM_TEST_MAIN()
