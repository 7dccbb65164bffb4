// Exact search on CUDA, on the emulator: that screening never drops a pair that a list would take,
// at the very bound; the steps of sorting; and how searches are divided, as pure functions. The
// operators as a whole are tested in test_search_kernels.py.
#include "cuda/search.cuh"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda/screen.cuh"
#include "cuda/sort.cuh"

namespace siamcuda::cuda {
namespace {

using emulator::Access;
using emulator::Buffer;
using math::BFloat16;
using math::Half;

constexpr int64_t k31 = int64_t{1} << 31;

template <class T>
constexpr DType kDTypeOf = std::is_same_v<T, double>  ? DType::kFloat64
                           : std::is_same_v<T, float> ? DType::kFloat32
                           : std::is_same_v<T, Half>  ? DType::kFloat16
                                                      : DType::kBFloat16;

std::vector<double> normal(int64_t rows, int64_t dim, unsigned seed, double scale = 1,
                           double offset = 0) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> distribution;
  std::vector<double> values(static_cast<size_t>(rows * dim));
  for (double& v : values) v = scale * distribution(random) + offset;
  return values;
}

template <class T>
std::vector<T> narrowed(const std::vector<double>& values) {
  std::vector<T> result;
  for (const double v : values) result.push_back(math::narrow<T>(v));
  result.push_back(T{});  // never empty
  return result;
}

template <class C, class T>
C direct(const C* x, const T* y, int64_t dim) {
  std::vector<C> wide(static_cast<size_t>(dim) + 1);
  for (int64_t k = 0; k < dim; ++k) wide[static_cast<size_t>(k)] = math::widen(y[k]);
  return math::direct_squared_distance(x, wide.data(), dim);
}

// All engines: (type of rows, capability).
template <class Check>
void for_each_engine(Check check) {
  check(float{}, 75, "fma32");
  check(float{}, 80, "tf32x3");
  check(double{}, 80, "fma64");
  check(BFloat16{}, 80, "bf16");
  check(Half{}, 80, "fp16");
  check(Half{}, 75, "fp16 widened");
}

// --- screening -----------------------------------------------------------------------------------

// The words of the mask, with the distances that lists of one entry hold.
template <class T>
std::vector<unsigned> mask_of(const std::vector<typename math::Storage<T>::Compute>& queries,
                              const std::vector<T>& rows, int64_t q_count, int64_t count,
                              int64_t dim,
                              std::vector<typename math::Storage<T>::Compute>& accepted,
                              int capability) {
  using C = typename math::Storage<T>::Compute;
  const auto words = mask_words(count);
  std::vector<unsigned> mask(static_cast<size_t>(q_count * words));
  std::vector<int64_t> positions(static_cast<size_t>(q_count), 5);
  std::vector<C> norms1(static_cast<size_t>(q_count)), norms2(static_cast<size_t>(count));
  std::vector<T> rounded(queries.size());
  std::vector<float> residuals(static_cast<size_t>(q_count));
  std::vector<Buffer> buffers;
  const auto use = [&](auto& v, Access access, const char* name) {
    buffers.emplace_back(v.data(), v.size() * sizeof(v[0]), access, name);
  };
  use(queries, Access::read, "queries");
  use(rows, Access::read, "rows");
  use(accepted, Access::read, "accepted");
  use(positions, Access::read, "positions");
  use(norms1, Access::write, "norms1");
  use(norms2, Access::write, "norms2");
  use(rounded, Access::write, "rounded");
  use(residuals, Access::write, "residuals");
  Buffer out(mask.data(), mask.size() * sizeof(unsigned), Access::write, "mask");
  const TileDevice device{1, capability};
  ScreenArgs args{};
  args.dim = dim;
  args.rows = {rows.data(), count, dim, 0, norms2.data()};
  if constexpr (sizeof(T) == 2) {
    launch_round_typed<T>({queries.data(), q_count, dim, rounded.data(), residuals.data()}, device,
                          0);
    args.queries = {rounded.data(), q_count, dim, 0, norms1.data()};
    args.residuals = residuals.data();
  } else {
    args.queries = {queries.data(), q_count, dim, 0, norms1.data()};
  }
  launch_row_norms<T>(args.queries, 1, dim, 1, 0);
  launch_row_norms<T>(args.rows, 1, dim, 1, 0);
  args.lists = {accepted.data(), positions.data(), 1, 0};
  std::vector<C> bounds(static_cast<size_t>(q_count));
  use(bounds, Access::write, "bounds");
  args.bounds = bounds.data();
  args.mask = mask.data();
  args.words = words;
  launch_screen_typed<T>(args, kDTypeOf<T>, device, 0);
  SIAM_EQUAL(out.unwritten_bytes(), size_t{0});
  return mask;
}

// Whatever pair's own distance is the bound, the pair passes. And how many others do: `share` of
// them at most.
template <class T>
void check_screen(const std::vector<double>& q, const std::vector<double>& r, int64_t q_count,
                  int64_t count, int64_t dim, int capability, const std::string& name,
                  double share = 1) {
  using C = typename math::Storage<T>::Compute;
  const auto queries = narrowed<C>(q);
  const auto rows = narrowed<T>(r);
  for (const int64_t shift : {0, 1}) {
    // Query i may be as far as row i · 3 + shift.
    std::vector<C> accepted;
    for (int64_t i = 0; i < q_count; ++i) {
      accepted.push_back(
          direct(queries.data() + i * dim, rows.data() + (i * 3 + shift) % count * dim, dim));
    }
    const auto mask = mask_of<T>(queries, rows, q_count, count, dim, accepted, capability);
    int64_t passed = 0, beyond = 0;
    for (int64_t i = 0; i < q_count; ++i) {
      for (int64_t j = 0; j < mask_words(count) * 32; ++j) {
        const bool pass =
            (mask[static_cast<size_t>(i * mask_words(count) + j / 32)] >> (j % 32) & 1u) != 0;
        const std::string where = name + ", D = " + std::to_string(dim) + ", pair " +
                                  std::to_string(i) + ", " + std::to_string(j);
        if (j >= count) continue;  // nobody reads it
        const C d = direct(queries.data() + i * dim, rows.data() + j * dim, dim);
        const C bound = accepted[static_cast<size_t>(i)];
        if (d <= bound || bound != bound) SIAM_CHECK_AT(pass, where);
        beyond += !(d <= bound);
        passed += pass && !(d <= bound);
      }
    }
    SIAM_CHECK_AT(static_cast<double>(passed) <= share * static_cast<double>(beyond),
                  name + ": " + std::to_string(passed) + " of " + std::to_string(beyond) +
                      " pass that need not");
  }
}

SIAM_TEST(screening_keeps_whoever_reaches_the_bound) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    for (const int64_t dim : {0, 1, 15, 17, 33, 129}) {
      check_screen<T>(normal(7, dim, 1), normal(140, dim, 2), 7, 140, dim, capability, name,
                      dim >= 15 ? 0.05 : 1);
    }
  });
}

// Near-duplicates of one another: what screening can't tell apart, it must keep.
SIAM_TEST(screening_keeps_near_ties) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    for (const double apart : {0.0, 1e-7, 1e-4, 1e-2}) {
      for (const double offset : {0.0, 1e3}) {
        constexpr int64_t kDim = 40;
        std::vector<double> rows = normal(60, kDim, 3, apart, 0);
        const std::vector<double> middle = normal(1, kDim, 4, 1, offset);
        for (size_t i = 0; i < rows.size(); ++i) rows[i] += middle[i % kDim];
        std::vector<double> queries(rows.begin(), rows.begin() + 9 * kDim);
        for (double& v : queries) v += 0.3 * apart;
        check_screen<T>(queries, rows, 9, 60, kDim, capability, name);
      }
    }
  });
}

SIAM_TEST(screening_at_extreme_scales) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    for (const double scale : {1e18, 1e-18, 1e-22, 1e-30, 1e19, 1e-150, 1e150}) {
      if (sizeof(T) < 8 && std::fabs(std::log10(scale)) > 31) continue;
      if (std::is_same_v<T, Half>) continue;
      check_screen<T>(normal(5, 24, 5, scale), normal(30, 24, 6, scale), 5, 30, 24, capability,
                      name);
      check_screen<T>(normal(5, 24, 5, scale), normal(30, 24, 6), 5, 30, 24, capability, name);
    }
  });
}

SIAM_TEST(screening_keeps_what_is_not_finite) {
  for_each_engine([](auto type, int capability, const char* name) {
    using T = decltype(type);
    std::vector<double> rows = normal(40, 20, 7), queries = normal(6, 20, 8);
    rows[3 * 20 + 4] = NAN;
    rows[5 * 20] = INFINITY;
    queries[20 + 1] = NAN;
    queries[2 * 20 + 19] = -INFINITY;
    if (sizeof(T) == 2) queries[3 * 20] = 1e39;  // finite in float alone
    check_screen<T>(queries, rows, 6, 40, 20, capability, name);
  });
}

// --- sorting -------------------------------------------------------------------------------------

template <class C>
std::vector<std::pair<C, int64_t>> random_entries(int64_t count, unsigned seed) {
  std::mt19937_64 random(seed);
  std::vector<std::pair<C, int64_t>> entries;
  for (int64_t i = 0; i < count; ++i) {
    const auto number = random();
    C distance = static_cast<C>(number % 50);
    if constexpr (!std::is_integral_v<C>) {
      if (number % 97 == 0) distance = std::numeric_limits<C>::quiet_NaN();
      if (number % 89 == 0) distance = std::numeric_limits<C>::infinity();
    }
    entries.emplace_back(distance, number % 83 == 0 ? -1 : i);
  }
  std::shuffle(entries.begin(), entries.end(), random);
  return entries;
}

template <class C>
void check_sorted(const std::vector<int64_t>& lengths, bool equal) {
  int64_t total = 0, blocks = 0, longest = 0;
  std::vector<int64_t> starts{0}, block_starts{0};
  for (const int64_t n : lengths) {
    starts.push_back(total += n);
    block_starts.push_back(blocks += sort_blocks(n));
    longest = std::max(longest, n);
  }
  auto entries = random_entries<C>(total, 11);
  std::vector<C> distances;
  std::vector<int64_t> positions;
  for (const auto& [d, p] : entries) {
    distances.push_back(d);
    positions.push_back(p);
  }
  Buffer d(distances.data(), distances.size() * sizeof(C), Access::read_write, "distances");
  Buffer p(positions.data(), positions.size() * 8, Access::read_write, "positions");
  Buffer s(starts.data(), starts.size() * 8, Access::read, "starts");
  Buffer b(block_starts.data(), block_starts.size() * 8, Access::read, "blocks");
  SortArgs args = equal ? sort_equal(distances.data(), positions.data(),
                                     static_cast<int64_t>(lengths.size()), longest)
                        : SortArgs{distances.data(),
                                   positions.data(),
                                   starts.data(),
                                   block_starts.data(),
                                   static_cast<int64_t>(lengths.size()),
                                   0,
                                   blocks};
  SIAM_EQUAL(args.total_blocks, blocks);
  launch_sort_typed<C>(args, longest, {1, 80}, 0);
  for (size_t i = 0; i < lengths.size(); ++i) {
    const auto first = entries.begin() + starts[i], last = entries.begin() + starts[i + 1];
    const auto key = [](const std::pair<C, int64_t>& e) {
      const int rank = e.second < 0 ? 2 : e.first != e.first ? 1 : 0;
      return std::make_tuple(rank, rank > 0 ? C(0) : e.first, e.second);
    };
    std::sort(first, last, [&](const auto& x, const auto& y) { return key(x) < key(y); });
    for (auto e = first; e != last; ++e) {
      const auto at = static_cast<size_t>(e - entries.begin());
      const std::string where = " at entry " + std::to_string(at);
      SIAM_EQUAL_AT(positions[at], e->second, where);
      if (e->second < 0) {
        SIAM_CHECK_AT(distances[at] == distance_of<C>(kPaddingKey<C>), where);
      } else {
        SIAM_CHECK_AT(distances[at] == e->first || e->first != e->first, where);
      }
    }
  }
}

SIAM_TEST(segments_are_sorted_where_they_lie) {
  check_sorted<float>({0, 1, 2, 0, 3, 31, 100, 0}, false);
  check_sorted<float>({2047, 2048, 2049, 5}, false);
  check_sorted<double>({0, 9000, 4097}, false);
  check_sorted<int32_t>({4500, 10}, false);
  check_sorted<float>({700, 700, 700}, true);
  check_sorted<double>({2500, 2500}, true);
}

// --- how a search is divided ---------------------------------------------------------------------

SIAM_TEST(workspace_is_bounded) {
  const int64_t kMost = int64_t{64} << 20;
  for (const RowType type : {RowType::kFloat16, RowType::kBFloat16, RowType::kFloat32,
                             RowType::kFloat64, RowType::kBits}) {
    for (const int64_t queries : {int64_t{1}, int64_t{4}, int64_t{5}, int64_t{1000}, int64_t{65535},
                                  int64_t{65537}, k31 - 1, k31 + 1}) {
      for (const int64_t dim : {int64_t{0}, int64_t{1}, int64_t{128}, int64_t{65536}}) {
        for (const int64_t k : {int64_t{0}, int64_t{1}, int64_t{10}, int64_t{1024}, int64_t{1025},
                                int64_t{10000}, int64_t{100000}, k31}) {
          const std::string where = " at queries " + std::to_string(queries) + ", D " +
                                    std::to_string(dim) + ", k " + std::to_string(k);
          const SearchPlan plan = search_plan(queries, dim, k, type);
          SIAM_CHECK_AT(plan.queries >= 1 && plan.queries <= kMaxQueries, where);
          SIAM_CHECK_AT(plan.first_rows >= 1 && plan.first_rows <= plan.rows, where);
          SIAM_EQUAL_AT(plan.rows % kTileColumns, int64_t{0}, where);
          const int64_t q = std::min(queries, plan.queries), wide = distance_bytes(type);
          int64_t bytes = q * mask_words(plan.rows) * 4 + plan.rows * wide + 4 * q * wide;
          if (is_half(type)) bytes += q * dim * 2;
          for (const int sms : {1, 132}) {
            const SelectLaunch launch = select_launch(q, plan.rows, k, sms);
            const int64_t runs =
                launch.in_place ? 0 : q * (k + launch.splits * launch.run) * (wide + 8);
            const int64_t lists = q * k * (wide + 8);
            SIAM_CHECK_AT(bytes + runs <= kMost || (q == 1 && runs <= lists + kMost / 4), where);
          }
        }
      }
    }
  }
}

SIAM_TEST(rows_are_taken_once_and_more_each_time) {
  for (const int64_t queries : {1, 5, 4000}) {
    for (const int64_t k : {int64_t{1}, int64_t{1024}, int64_t{5000}}) {
      for (const int64_t rows : {int64_t{1}, int64_t{3000001}, k31 + 1}) {
        const SearchPlan plan = search_plan(queries, 64, k, RowType::kFloat32);
        int64_t begin = 0, chunks = 0, last = 0;
        while (begin < rows) {
          const int64_t n = rows_to_take(plan, begin, rows - begin);
          SIAM_CHECK(n > 0 && n <= plan.rows);
          SIAM_CHECK(n >= last || begin + n == rows);
          last = n;
          begin += n;
          ++chunks;
        }
        SIAM_EQUAL(begin, rows);
        SIAM_CHECK(chunks <= 10 + rows / plan.rows);
      }
    }
  }
}

SIAM_TEST(splits_hold_every_row_once) {
  for (const int64_t queries : {int64_t{1}, int64_t{5}, int64_t{4096}}) {
    for (const int64_t rows : {int64_t{1}, int64_t{1023}, int64_t{1024}, int64_t{1025},
                               int64_t{65535}, int64_t{65537}, kMaxRows}) {
      for (const int64_t k :
           {int64_t{0}, int64_t{1}, int64_t{1024}, int64_t{1025}, int64_t{70000}}) {
        for (const int sms : {-1, 1, 132, 100000}) {
          const SelectLaunch launch = select_launch(queries, rows, k, sms);
          const std::string where = " at queries " + std::to_string(queries) + ", rows " +
                                    std::to_string(rows) + ", k " + std::to_string(k);
          SIAM_CHECK_AT(launch.split_rows % 32 == 0 && launch.splits >= 1, where);
          SIAM_CHECK_AT((launch.splits - 1) * launch.split_rows < rows, where);
          SIAM_CHECK_AT(launch.splits * launch.split_rows >= rows, where);
          SIAM_EQUAL_AT(launch.items, queries * launch.splits, where);
          SIAM_CHECK_AT(launch.grid >= 1 && int64_t{launch.grid} <= launch.items, where);
          SIAM_CHECK_AT(int64_t{launch.grid} <= int64_t{std::max(sms, 1)} * kSearchBlocks, where);
          // A queue takes all of a split, or what is kept and a round more.
          SIAM_CHECK_AT(k <= kListEntries || launch.split_rows <= kQueueEntries - kRoundPairs,
                        where);
          SIAM_CHECK_AT(k <= kListEntries || !launch.in_place, where);
          SIAM_CHECK_AT(launch.in_place || k == 0 || launch.run == std::min(k, launch.split_rows),
                        where);
        }
      }
    }
  }
}

}  // namespace
}  // namespace siamcuda::cuda

SIAM_TEST_MAIN()
