// The CUDA tile engine on the emulator, against sums in double: every engine, dimensions around the
// sizes of chunks, stages and K-blocks, near-duplicates, extreme scales, non-finite rows, edges of
// tiles. And its launch shapes as pure functions. capability 75 chooses multiply-adds, 80 tensor
// cores (see math::tile_engine).
#include <sys/mman.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda/sinks.cuh"

namespace siamcuda::cuda {
namespace {

using emulator::Access;
using emulator::Buffer;
using math::BFloat16;
using math::Half;

constexpr int64_t k16 = int64_t{1} << 16, k31 = int64_t{1} << 31;

template <class T>
constexpr DType kDTypeOf = std::is_same_v<T, double>  ? DType::kFloat64
                           : std::is_same_v<T, float> ? DType::kFloat32
                           : std::is_same_v<T, Half>  ? DType::kFloat16
                                                      : DType::kBFloat16;

// Rows of one matrix, `pad` elements apart, the first `shift` elements behind a multiple of 32
// bytes. What lies between rows is NaN and outside the registered memory.
template <class T>
struct Rows {
  int64_t count, dim, step;
  std::vector<T> storage;
  T* data;

  Rows(const std::vector<double>& values, int64_t rows, int64_t columns, int64_t pad = 0,
       int64_t shift = 0)
      : count(rows), dim(columns), step(columns + pad) {
    const T nothing = math::narrow<T>(std::numeric_limits<double>::quiet_NaN());
    storage.assign(static_cast<size_t>(rows * step + shift + 32), nothing);
    data = storage.data();
    while (reinterpret_cast<uintptr_t>(data) % 32 != 0) ++data;
    data += shift;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < dim; ++k) {
        data[i * step + k] = math::narrow<T>(values[static_cast<size_t>(i * dim + k)]);
      }
    }
  }
  const T* row(int64_t i) const { return data + i * step; }
  TileMatrix matrix() const { return {data, count, step, 0, nullptr}; }
};

template <class T, class Out = T>
std::vector<Out> squared_cdist(TileArgs args, int capability, int multiprocessors = 1) {
  using C = typename math::Storage<T>::Compute;
  const auto count = [&](int64_t rows) { return static_cast<size_t>(args.batch * rows); };
  std::vector<C> norms1(count(args.x1.rows) + 1), norms2(count(args.x2.rows) + 1);
  std::vector<Out> out(count(args.x1.rows) * static_cast<size_t>(args.x2.rows) + 1);
  args.x1.norms = norms1.data();
  args.x2.norms = norms2.data();
  Buffer n1(norms1.data(), (norms1.size() - 1) * sizeof(C), Access::write, "norms1");
  Buffer n2(norms2.data(), (norms2.size() - 1) * sizeof(C), Access::write, "norms2");
  Buffer o(out.data(), (out.size() - 1) * sizeof(Out), Access::write, "out");
  launch_row_norms<T>(args.x1, args.batch, args.dim, multiprocessors, 0);
  launch_row_norms<T>(args.x2, args.batch, args.dim, multiprocessors, 0);
  launch_squared_cdist_typed<T>(args, kDTypeOf<T>, out.data(), kDTypeOf<Out>,
                                {multiprocessors, capability}, 0);
  SIAM_EQUAL(o.unwritten_bytes(), size_t{0});
  out.pop_back();
  return out;
}

template <class T, class Out = T>
std::vector<Out> squared_cdist(const Rows<T>& x, const Rows<T>& y, int capability,
                               int multiprocessors = 1) {
  std::vector<Buffer> rows;
  for (const Rows<T>* m : {&x, &y}) {
    for (int64_t i = 0; i < m->count; ++i) {
      rows.emplace_back(m->row(i), static_cast<size_t>(m->dim) * sizeof(T), Access::read, "x");
    }
  }
  TileArgs args{x.matrix(), y.matrix(), 1, x.dim};
  return squared_cdist<T, Out>(args, capability, multiprocessors);
}

template <class T>
double direct_in_double(const T* x, const T* y, int64_t dim) {
  double sum = 0;
  for (int64_t k = 0; k < dim; ++k) {
    const double delta =
        static_cast<double>(math::widen(x[k])) - static_cast<double>(math::widen(y[k]));
    sum += delta * delta;
  }
  return sum;
}

// Promise 6: every distance within the tolerance, those far below the norms direct to the bit.
template <class T>
void check_all(const Rows<T>& x, const Rows<T>& y, int capability, const std::string& name) {
  using C = typename math::Storage<T>::Compute;
  using Out = std::conditional_t<sizeof(T) == 2, float, T>;
  const auto got = squared_cdist<T, Out>(x, y, capability);
  const math::TileEngine engine = math::tile_engine(kDTypeOf<T>, x.dim, capability);
  const double tau = math::tile_rescue_threshold(engine, x.dim);
  const double tolerance = math::tile_tolerance(engine);
  const double largest = static_cast<double>(std::numeric_limits<C>::max());
  const std::vector<T> origin(static_cast<size_t>(x.dim) + 1, T{});
  for (int64_t i = 0; i < x.count; ++i) {
    for (int64_t j = 0; j < y.count; ++j) {
      const std::string where = name + ", D = " + std::to_string(x.dim) + ", pair " +
                                std::to_string(i) + ", " + std::to_string(j);
      const double want = direct_in_double(x.row(i), y.row(j), x.dim);
      const double norms = direct_in_double(x.row(i), origin.data(), x.dim) +
                           direct_in_double(y.row(j), origin.data(), x.dim);
      const Out value = got[static_cast<size_t>(i * y.count + j)];
      if (!(want >= tau / 2 * norms) || norms < math::tile_smallest_sum(engine, x.dim) / 2 ||
          norms > math::tile_largest_sum(engine) * 2) {
        const Out direct = math::direct_squared_distance(x.row(i), y.row(j), x.dim);
        if (direct == direct) {
          SIAM_EQUAL_AT(value, direct, where);
        } else {
          SIAM_CHECK_AT(value != value, where);
        }
      }
      if (std::isnan(want) || std::isinf(want)) {
        SIAM_CHECK_AT(std::isnan(want) ? value != value : static_cast<double>(value) == want,
                      where);
      } else if (want > 1e-38 && want < 0.9 * largest) {
        SIAM_CHECK_AT(std::fabs(static_cast<double>(value) - want) <= tolerance * want,
                      where + ": got " + std::to_string(value) + ", want " + std::to_string(want));
      }
    }
  }
}

std::vector<double> normal(int64_t rows, int64_t dim, unsigned seed, double scale = 1,
                           double offset = 0) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> distribution;
  std::vector<double> values(static_cast<size_t>(rows * dim));
  for (double& v : values) v = scale * distribution(random) + offset;
  return values;
}

// All engines: (type, capability).
template <class Check>
void for_each_engine(Check check) {
  check(float{}, 75, "fma32");
  check(float{}, 80, "tf32x3");
  check(double{}, 80, "fma64");
  check(BFloat16{}, 80, "bf16");
  check(Half{}, 80, "fp16");
  check(Half{}, 75, "fp16 widened");
}

// --- values --------------------------------------------------------------------------------------

SIAM_TEST(distances_at_every_dimension) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    for (const int64_t dim : {0, 1, 2, 15, 16, 17, 31, 32, 33, 127, 128, 129, 257}) {
      check_all(Rows<T>(normal(5, dim, 1), 5, dim), Rows<T>(normal(9, dim, 2), 9, dim), capability,
                name);
    }
  });
}

SIAM_TEST(edges_of_tiles) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    for (const auto& [p, r] :
         {std::pair<int64_t, int64_t>{65, 129}, {64, 128}, {63, 1}, {1, 127}}) {
      check_all(Rows<T>(normal(p, 33, 3), p, 33), Rows<T>(normal(r, 33, 4), r, 33), capability,
                name);
    }
  });
}

SIAM_TEST(empty_inputs_launch_nothing) {
  for (const auto& [batch, p, r] : {std::array<int64_t, 3>{1, 0, 4}, {1, 4, 0}, {0, 4, 4}}) {
    TileArgs args{{nullptr, p, 3, 0, nullptr}, {nullptr, r, 3, 0, nullptr}, batch, 3};
    SIAM_EQUAL(tile_launch(batch, p, r, 1).tiles, int64_t{0});
    if (batch == 0) SIAM_EQUAL((squared_cdist<float>(args, 80).size()), size_t{0});
  }
}

// Rows of both sides in pairs that differ by 1e-6 of their length and more, up to where the
// expanded form is kept.
SIAM_TEST(near_duplicates) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    for (const int64_t dim : {17, 128, 200}) {
      const std::vector<double> x = normal(24, dim, 5);
      std::vector<double> y = x;
      const std::vector<double> noise = normal(24, dim, 6);
      for (size_t i = 0; i < y.size(); ++i) {
        const double distance = std::pow(10.0, -6 + static_cast<double>(i / dim) / 4);
        y[i] += distance * noise[i];
      }
      check_all(Rows<T>(x, 24, dim), Rows<T>(y, 24, dim), capability, name);
    }
  });
}

// Just above tau is where the bound is tight: same signs, so that nothing cancels in x·y.
SIAM_TEST(distances_just_above_the_threshold) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    for (const int64_t dim : {64, 129}) {
      const math::TileEngine engine = math::tile_engine(kDTypeOf<T>, dim, capability);
      const double tau = math::tile_rescue_threshold(engine, dim);
      std::vector<double> x = normal(16, dim, 7, 0.01, 1);
      std::vector<double> y = x;
      const std::vector<double> noise = normal(16, dim, 8);
      for (size_t i = 0; i < y.size(); ++i) {
        const double share = 0.9 + 0.02 * static_cast<double>(i / dim);
        y[i] += std::sqrt(2 * tau * share) * noise[i];
      }
      check_all(Rows<T>(x, 16, dim), Rows<T>(y, 16, dim), capability, name);
    }
  });
}

SIAM_TEST(large_offsets_make_a_whole_tile_direct) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    check_all(Rows<T>(normal(40, 19, 9, 1, 1e4), 40, 19),
              Rows<T>(normal(70, 19, 10, 1, 1e4), 70, 19), capability, name);
  });
}

SIAM_TEST(extreme_scales) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    for (const double scale : {1e18, 1e-18, 1e-22, 1e19, 1e150, 1e-150}) {
      const bool fits =
          sizeof(T) == 8 ? true : !std::is_same_v<T, Half> && std::fabs(std::log10(scale)) < 30;
      if (!fits) continue;
      check_all(Rows<T>(normal(6, 40, 11, scale), 6, 40), Rows<T>(normal(7, 40, 12, scale), 7, 40),
                capability, name);
      // And against rows of ordinary length.
      check_all(Rows<T>(normal(6, 40, 11, scale), 6, 40), Rows<T>(normal(7, 40, 12), 7, 40),
                capability, name);
    }
  });
}

SIAM_TEST(non_finite_rows_stay_alone) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    constexpr int64_t kDim = 50;
    const std::vector<double> clean_x = normal(20, kDim, 13), clean_y = normal(30, kDim, 14);
    std::vector<double> x = clean_x, y = clean_y;
    x[3 * kDim + 49] = NAN;
    x[7 * kDim] = INFINITY;
    y[11 * kDim + 17] = -INFINITY;
    y[12 * kDim + 1] = NAN;
    const Rows<T> rx(x, 20, kDim), ry(y, 30, kDim);
    check_all(rx, ry, capability, name);
    const auto got = squared_cdist<T, T>(rx, ry, capability);
    const auto clean =
        squared_cdist<T, T>(Rows<T>(clean_x, 20, kDim), Rows<T>(clean_y, 30, kDim), capability);
    for (int64_t i = 0; i < 20; ++i) {
      for (int64_t j = 0; j < 30; ++j) {
        if (i == 3 || i == 7 || j == 11 || j == 12) continue;
        const auto at = static_cast<size_t>(i * 30 + j);
        SIAM_EQUAL_AT(math::widen(got[at]), math::widen(clean[at]), name);
      }
    }
  });
}

SIAM_TEST(output_is_cast_once) {
  const Rows<BFloat16> x(normal(3, 20, 15), 3, 20), y(normal(5, 20, 16), 5, 20);
  const auto wide = squared_cdist<BFloat16, float>(x, y, 80);
  const auto narrow = squared_cdist<BFloat16, BFloat16>(x, y, 80);
  for (size_t i = 0; i < wide.size(); ++i) {
    SIAM_EQUAL(narrow[i].bits, math::float_to_bfloat16(wide[i]));
  }
}

// --- bits ----------------------------------------------------------------------------------------

template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

SIAM_TEST(both_directions_have_the_same_bits) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    for (const int64_t dim : {40, 130}) {
      std::vector<double> values = normal(70, dim, 17);
      for (int64_t k = 0; k < dim; ++k) values[5 * dim + k] = values[60 * dim + k] * 1.001;
      const Rows<T> x(values, 70, dim);
      const auto d = squared_cdist<T, T>(x, x, capability);
      for (size_t i = 0; i < 70; ++i) {
        SIAM_EQUAL_AT(math::widen(d[i * 70 + i]), 0, name);
        for (size_t j = 0; j < i; ++j) {
          SIAM_CHECK_AT(same_bits(d[i * 70 + j], d[j * 70 + i]), name);
        }
      }
    }
  });
}

// Promise 4: neither what else is in the batch, nor where a row stands, nor its alignment.
SIAM_TEST(bits_depend_on_the_pair_alone) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    constexpr int64_t kDim = 37;
    const std::vector<double> vx = normal(70, kDim, 18), vy = normal(140, kDim, 19);
    const auto all = squared_cdist<T, T>(Rows<T>(vx, 70, kDim), Rows<T>(vy, 140, kDim), capability);
    // Rows 66.. of x and 130.. of y by themselves, in unaligned memory, and on another grid.
    const std::vector<double> px(vx.begin() + 66 * kDim, vx.end());
    const std::vector<double> py(vy.begin() + 130 * kDim, vy.end());
    for (const int64_t pad : {0, 1, 3, 11}) {
      for (const int64_t shift : {0, 1}) {
        const auto part = squared_cdist<T, T>(Rows<T>(px, 4, kDim, pad, shift),
                                              Rows<T>(py, 10, kDim, pad, 0), capability, 7);
        for (size_t i = 0; i < 4; ++i) {
          for (size_t j = 0; j < 10; ++j) {
            SIAM_CHECK_AT(same_bits(part[i * 10 + j], all[(66 + i) * 140 + 130 + j]), name);
          }
        }
      }
    }
  });
}

SIAM_TEST(schedules_agree) {
  const Rows<float> x(normal(66, 40, 20), 66, 40), y(normal(130, 40, 21), 130, 40);
  const Rows<BFloat16> bx(normal(66, 40, 20), 66, 40), by(normal(130, 40, 21), 130, 40);
  for (const int capability : {75, 80}) {
    emulator::set_schedule(emulator::Schedule::forward());
    const auto want = squared_cdist<float>(x, y, capability);
    const auto want16 = squared_cdist<BFloat16, float>(bx, by, capability);
    for (const char* schedule : {"reverse", "random:1", "random:2"}) {
      emulator::set_schedule(emulator::Schedule::parse(schedule));
      SIAM_CHECK_AT(squared_cdist<float>(x, y, capability) == want, schedule);
      SIAM_CHECK_AT((squared_cdist<BFloat16, float>(bx, by, capability) == want16), schedule);
    }
  }
  emulator::set_schedule(emulator::Schedule::forward());
}

// --- batches, steps, grids -----------------------------------------------------------------------

SIAM_TEST(batches_and_steps) {
  constexpr int64_t kBatch = 3, kP = 5, kR = 6, kDim = 20, kRowStep = 24, kBatchStep = 160;
  std::vector<float> x(static_cast<size_t>(kBatch * kBatchStep) + 4), y(kR * kDim + 4);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7 % 31);
  for (size_t i = 0; i < y.size(); ++i) y[i] = static_cast<float>(i * 11 % 29);
  Buffer bx(x.data(), x.size() * 4, Access::read, "x"),
      by(y.data(), y.size() * 4, Access::read, "y");
  // y is one matrix for the whole batch.
  const TileArgs args{{x.data(), kP, kRowStep, kBatchStep, nullptr},
                      {y.data(), kR, kDim, 0, nullptr},
                      kBatch,
                      kDim};
  const auto got = squared_cdist<float>(args, 80);
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t i = 0; i < kP; ++i) {
      for (int64_t j = 0; j < kR; ++j) {
        const double want = direct_in_double(&x[static_cast<size_t>(b * kBatchStep + i * kRowStep)],
                                             &y[static_cast<size_t>(j * kDim)], kDim);
        SIAM_NEAR(static_cast<double>(got[static_cast<size_t>((b * kP + i) * kR + j)]), want, 1e-3);
      }
    }
  }
}

// More tiles than blocks: a block takes several, and its stages are used again. With an odd number
// of stages a tile ends in the one that the next begins with.
SIAM_TEST(blocks_take_several_tiles) {
  for (const int64_t dim : {20, 40}) {
    constexpr int64_t kP = 64 * 9 + 3, kR = 200;
    const Rows<float> x(normal(kP, dim, 22), kP, dim), y(normal(kR, dim, 23), kR, dim);
    const TileLaunch launch = tile_launch(1, kP, kR, 1);
    SIAM_CHECK(launch.tiles > 3 * launch.grid);
    for (const int capability : {75, 80}) check_all(x, y, capability, "several tiles");
  }
}

// Rows behind element 2^31 and 2^32, in memory that is only reserved.
SIAM_TEST(rows_behind_32_bit_offsets) {
  for (const int64_t step : {k31 + 4, k31 + 1}) {  // aligned, and not
    constexpr int64_t kRows = 3, kDim = 8;
    const auto bytes = static_cast<size_t>((kRows - 1) * step + kDim) * sizeof(float);
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    SIAM_CHECK(memory != MAP_FAILED);
    float* const x = static_cast<float*>(memory);
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t k = 0; k < kDim; ++k) x[i * step + k] = static_cast<float>(i * i);
    }
    {
      Buffer in(x, bytes, Access::read, "x");
      const TileMatrix m{x, kRows, step, 0, nullptr};
      const auto got = squared_cdist<float>(TileArgs{m, m, 1, kDim}, 80);
      for (int64_t i = 0; i < kRows; ++i) {
        for (int64_t j = 0; j < kRows; ++j) {
          const auto delta = static_cast<float>(i * i - j * j);
          SIAM_EQUAL(got[static_cast<size_t>(i * kRows + j)], 8 * delta * delta);
        }
      }
    }
    munmap(memory, bytes);
  }
}

SIAM_TEST(launch_shapes) {
  const std::vector<int64_t> tiles = {1,       2,       63,  k16 - 2, k16 - 1,     k16,
                                      k16 + 1, k31 - 1, k31, k31 + 1, 2 * k31 - 1, 2 * k31 + 1};
  for (const int64_t n : tiles) {
    for (const int sms : {-1, 0, 1, 108, 132, 100000}) {
      // As many tiles down, across, and in the batch.
      for (const auto& [batch, rows, columns] : {std::array<int64_t, 3>{1, n * kTileRows, 1},
                                                 {1, (n - 1) * kTileRows + 1, kTileColumns},
                                                 {1, 1, n * kTileColumns},
                                                 {1, kTileRows, (n - 1) * kTileColumns + 1},
                                                 {n, 1, 1}}) {
        const TileLaunch launch = tile_launch(batch, rows, columns, sms);
        const std::string where =
            " at " + std::to_string(n) + " tiles, " + std::to_string(sms) + " SMs";
        SIAM_EQUAL_AT(launch.tiles, n, where);
        SIAM_CHECK_AT(launch.grid >= 1 && launch.grid <= 0x7fffffffu, where);
        const int64_t resident = int64_t{sms > 0 ? sms : 1} * kTileBlocksPerSm;
        SIAM_EQUAL_AT(int64_t{launch.grid}, std::min(n, resident), where);
      }
    }
  }
  const TileLaunch square = tile_launch(3, 65 * kTileRows + 1, 7 * kTileColumns - 1, 4);
  SIAM_EQUAL(square.row_tiles, int64_t{66});
  SIAM_EQUAL(square.column_tiles, int64_t{7});
  SIAM_EQUAL(square.tiles, int64_t{3 * 66 * 7});
}

SIAM_TEST(every_tile_is_somewhere_else) {
  for (const auto& [rows, columns] :
       {std::pair<int64_t, int64_t>{1, 1}, {7, 3}, {8, 2}, {9, 4}, {24, 1}, {3, 11}}) {
    TileArgs args{};
    args.x1.rows = rows * kTileRows - 3;
    args.x2.rows = columns * kTileColumns - 3;
    args.batch = 3;
    const TileLaunch launch = tile_launch(args.batch, args.x1.rows, args.x2.rows, 1);
    std::vector<int> seen(static_cast<size_t>(launch.tiles), 0);
    for (int64_t t = 0; t < launch.tiles; ++t) {
      const TilePlace place = tile_place(args, launch, t);
      SIAM_EQUAL(place.first_row % kTileRows, int64_t{0});
      SIAM_EQUAL(place.first_column % kTileColumns, int64_t{0});
      const int64_t row = place.first_row / kTileRows, column = place.first_column / kTileColumns;
      SIAM_CHECK(row < rows && column < columns && place.batch < 3);
      SIAM_EQUAL(place.rows_here, row == rows - 1 ? kTileRows - 3 : kTileRows);
      SIAM_EQUAL(place.columns_here, column == columns - 1 ? kTileColumns - 3 : kTileColumns);
      ++seen[static_cast<size_t>((place.batch * rows + row) * columns + column)];
    }
    for (const int count : seen) SIAM_EQUAL(count, 1);
  }
}

// The last tiles of a launch of 2^31 + 1: where they are in the matrix.
SIAM_TEST(places_of_tiles_are_64_bit) {
  TileArgs args{};
  args.x1.rows = (k31 + 1) * kTileRows - 5;
  args.x2.rows = 3 * kTileColumns + 1;
  args.batch = 2;
  const TileLaunch launch = tile_launch(args.batch, args.x1.rows, args.x2.rows, 1);
  SIAM_EQUAL(launch.tiles, 2 * 4 * (k31 + 1));
  const TilePlace last = tile_place(args, launch, launch.tiles - 1);
  SIAM_EQUAL(last.batch, int64_t{1});
  SIAM_EQUAL(last.first_row, k31 * kTileRows);
  SIAM_EQUAL(last.first_column, int64_t{3 * kTileColumns});
  SIAM_EQUAL(last.rows_here, kTileRows - 5);
  SIAM_EQUAL(last.columns_here, 1);
}

// --- layouts and traffic -------------------------------------------------------------------------

template <class Layout>
void check_every_pair_has_one_owner() {
  std::vector<int> owners(kTileRows * kTileColumns, 0);
  for (int thread = 0; thread < Layout::kThreads; ++thread) {
    for (int i = 0; i < Layout::kRows; ++i) {
      SIAM_EQUAL(Layout::row(thread, i), Layout::row(thread, 0) + i * Layout::kRowStep);
      for (int j = 0; j < Layout::kColumns; ++j) {
        ++owners[static_cast<size_t>(Layout::row(thread, i) * kTileColumns +
                                     Layout::column(thread, j))];
        const int run = j - j % Layout::kRun;
        SIAM_EQUAL(Layout::column(thread, j), Layout::column(thread, run) + j - run);
      }
    }
  }
  for (const int count : owners) SIAM_EQUAL(count, 1);
}
SIAM_TEST(every_pair_has_one_owner) {
  check_every_pair_has_one_owner<FmaLayout>();
  check_every_pair_has_one_owner<MmaLayout>();
}

// Copies and stores in whole sectors, no bank conflict anywhere, and no more bytes than the header
// says: each row of a tile once.
SIAM_TEST(full_sectors_and_no_conflicts) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    constexpr int64_t kDim = 64, kP = 64, kR = 256;
    // Well apart: what direct pairs read is not counted here.
    std::vector<double> vx = normal(kP, kDim, 24), vy = normal(kR, kDim, 25, 1, 2);
    const Rows<T> x(vx, kP, kDim), y(vy, kR, kDim);
    alignas(32) static T out[kP * kR];
    std::vector<double> norms(kP + kR);
    Buffer bx(x.data, kP * kDim * sizeof(T), Access::read, "x");
    Buffer by(y.data, kR * kDim * sizeof(T), Access::read, "y");
    Buffer bn(norms.data(), norms.size() * 8, Access::read_write, "norms");
    Buffer bo(out, sizeof out, Access::write, "out");
    TileArgs args{x.matrix(), y.matrix(), 1, kDim};
    args.x1.norms = norms.data();
    args.x2.norms = norms.data() + kP;
    launch_row_norms<T>(args.x1, 1, kDim, 1, 0);
    launch_row_norms<T>(args.x2, 1, kDim, 1, 0);
    emulator::reset_statistics();
    emulator::enable_statistics(true);
    launch_tiles<T>(args, StoreSink<T>{out, true}, kDTypeOf<T>, {1, capability}, 0);
    emulator::enable_statistics(false);
    uint64_t copied = 0, stored = 0;
    for (const auto& s : emulator::statistics()) {
      const std::string where = std::string(name) + ", line " + std::to_string(s.line);
      SIAM_CHECK_AT(s.max_conflict <= 1, where + ": " + std::to_string(s.max_conflict) + "-way");
      if (s.kind == emulator::Kind::global_load && s.bytes == 16) {
        copied += s.sectors;
        SIAM_EQUAL_AT(s.sectors, s.ideal_sectors, where);
      }
      if (s.kind == emulator::Kind::global_store) {
        stored += s.sectors;
        // A fragment's rows are 8 columns wide: in 16 bits, half a sector.
        if (sizeof(T) > 2) SIAM_EQUAL_AT(s.sectors, s.ideal_sectors, where);
      }
    }
    const uint64_t tiles = kR / kTileColumns;
    SIAM_EQUAL_AT(copied, tiles * (kTileRows + kTileColumns) * kDim * sizeof(T) / 32, name);
    if (sizeof(T) > 2) SIAM_EQUAL_AT(stored, kP * kR * sizeof(T) / 32, name);
  });
}

// --- thresholds ----------------------------------------------------------------------------------

SIAM_TEST(thresholds_follow_their_derivation) {
  using math::TileEngine;
  SIAM_NEAR(math::tile_rescue_threshold(TileEngine::kFma32, 128), 1050 * 133 * 0x1p-24, 1e-12);
  SIAM_NEAR(math::tile_rescue_threshold(TileEngine::kFma32, 1024), 1050 * 140 * 0x1p-24, 1e-12);
  SIAM_NEAR(math::tile_rescue_threshold(TileEngine::kFma32, 0), 1050 * 4 * 0x1p-24, 1e-12);
  for (const int64_t dim : {int64_t{0}, int64_t{1}, int64_t{100}, k16, k31 + 1}) {
    for (const auto engine :
         {TileEngine::kFma32, TileEngine::kFma64, TileEngine::kMma16, TileEngine::kTf32x3}) {
      const double eps = math::tile_error_bound(engine, dim);
      const double tau = math::tile_rescue_threshold(engine, dim);
      SIAM_CHECK(eps > 0 && eps / (tau - eps) <= math::tile_tolerance(engine));
    }
  }
}

// Note [Error bounds] itself: no pair is direct here, so what comes out is the expanded form.
// Values that make errors add up: one sign, significands of ones only, exponents far apart.
template <TileEngine kEngine, bool kLong, class T>
void check_bound(const Rows<T>& x, const Rows<T>& y, const std::string& name) {
  using C = typename math::Storage<T>::Compute;
  const auto p = static_cast<size_t>(x.count), r = static_cast<size_t>(y.count);
  std::vector<C> norms1(p), norms2(r), out(p * r);
  TileArgs args{x.matrix(), y.matrix(), 1, x.dim};
  args.x1.norms = norms1.data();
  args.x2.norms = norms2.data();
  {
    Buffer bx(x.data, p * static_cast<size_t>(x.step) * sizeof(T), Access::read, "x");
    Buffer by(y.data, r * static_cast<size_t>(y.step) * sizeof(T), Access::read, "y");
    Buffer n1(norms1.data(), p * sizeof(C), Access::write, "norms1");
    Buffer n2(norms2.data(), r * sizeof(C), Access::write, "norms2");
    Buffer bo(out.data(), out.size() * sizeof(C), Access::write, "out");
    launch_row_norms<T>(args.x1, 1, x.dim, 1, 0);
    launch_row_norms<T>(args.x2, 1, x.dim, 1, 0);
    const C none = -std::numeric_limits<C>::infinity();
    const DirectRule<C> rule{none, none, -none};
    const StoreSink<C> sink{out.data(), false};
    SIAM_LAUNCH((tile_kernel<kEngine, T, kLong, StoreSink<C>>), Dim3(1),
                Dim3(kEngineThreads<kEngine>), 0, 0, args, rule, false,
                tile_launch(1, x.count, y.count, 1), sink);
  }
  const std::vector<T> origin(static_cast<size_t>(x.dim) + 1, T{});
  const double eps = math::tile_error_bound(kEngine, x.dim);
  for (int64_t i = 0; i < x.count; ++i) {
    for (int64_t j = 0; j < y.count; ++j) {
      const double norms = direct_in_double(x.row(i), origin.data(), x.dim) +
                           direct_in_double(y.row(j), origin.data(), x.dim);
      const double want = direct_in_double(x.row(i), y.row(j), x.dim);
      const double error =
          std::fabs(static_cast<double>(out[static_cast<size_t>(i * y.count + j)]) - want);
      SIAM_CHECK_AT(error <= eps * norms, name + ", D = " + std::to_string(x.dim) + ": " +
                                              std::to_string(error / (eps * norms)) +
                                              " of the bound");
    }
  }
}

std::vector<double> ones_only(int64_t rows, int64_t dim, unsigned seed, bool far_apart) {
  std::mt19937_64 random(seed);
  std::vector<double> values(static_cast<size_t>(rows * dim));
  for (double& v : values) {
    // All bits of a float set, and after narrowing all of bf16 or fp16, where they are not rounded.
    v = std::ldexp(1 - 0x1p-24, far_apart ? -static_cast<int>(random() % 14) : 0);
    if (random() % 4 == 0) v = std::ldexp(1 - std::ldexp(1.0, -static_cast<int>(random() % 24)), 0);
  }
  return values;
}

template <TileEngine kEngine, class T>
void check_bounds(const char* name) {
  for (const int64_t dim : {1, 16, 100, 128, 129, 700}) {
    for (const bool far_apart : {false, true}) {
      const Rows<T> x(ones_only(12, dim, 30, far_apart), 12, dim);
      const Rows<T> y(ones_only(12, dim, 31, far_apart), 12, dim);
      if (dim > math::kTileDepth && kEngine == TileEngine::kFma32) {
        check_bound<kEngine, true>(x, y, name);
      } else {
        check_bound<kEngine, false>(x, y, name);
      }
    }
  }
}
SIAM_TEST(errors_stay_below_their_bound) {
  check_bounds<TileEngine::kFma32, float>("fma32");
  check_bounds<TileEngine::kTf32x3, float>("tf32x3");
  check_bounds<TileEngine::kMma16, BFloat16>("bf16");
  check_bounds<TileEngine::kMma16, Half>("fp16");
  check_bounds<TileEngine::kFma32, Half>("fp16 widened");
}

SIAM_TEST(engine_follows_dtype_dimension_and_architecture) {
  using math::TileEngine;
  const auto is = [](DType dtype, int64_t dim, int capability, TileEngine engine) {
    SIAM_CHECK(math::tile_engine(dtype, dim, capability) == engine);
  };
  for (const int capability : {0, 75, 80, 86, 90, 100, 120}) {
    is(DType::kFloat64, 128, capability, TileEngine::kFma64);
    is(DType::kFloat32, 16, capability, TileEngine::kFma32);
    const bool tf32 = capability == 80 || capability == 90;
    is(DType::kFloat32, 128, capability, tf32 ? TileEngine::kTf32x3 : TileEngine::kFma32);
    const auto half = capability >= 80 ? TileEngine::kMma16 : TileEngine::kFma32;
    is(DType::kFloat16, 128, capability, half);
    is(DType::kBFloat16, 1, capability, half);
  }
}

}  // namespace
}  // namespace siamcuda::cuda

SIAM_TEST_MAIN()
