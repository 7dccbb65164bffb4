// The tile engine's share of the FMA peak: the product of the distances and that of the gradient,
// each alone, with the engine's own text, geometry and packing. Prints one JSON object.
//
//   engine THREADS [rounds, default 15] [rows, default 4096] [wall or cpu, default wall]
//
// In every round each product of each depth runs right after the peak, so that a slow moment of the
// machine meets all three; figures are medians over the rounds, in GFLOP/s. 2·rows·4096·D
// operations count, those on padding don't. Not timed: packing columns and loading panels of rows,
// work for each row where the products are work for each pair. A thread's time is its own (cpu:
// while it ran, for a busy machine), and the slowest one's counts.
//
// The instruction set is the best of this CPU, or SIAMCUDA_SIMD's; the peak is always the CPU's.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.cpp"  // the one list of what each level needs; this program is one file
#include "cpu/tiles.h"
#include "fma_peak.h"
#include "math/tiles.h"
#include "threads.h"

namespace siamcuda::cpu {

enum class Product { kDistances, kGradient };

// The products of one instruction set over one matrix.
struct Products {
  virtual ~Products() = default;
  virtual int64_t panels() const = 0;
  // Seconds in a product, for panels [begin, end) of rows against all columns.
  virtual double seconds(Product product, int64_t begin, int64_t end, double (*now)()) const = 0;
  // Whether both give what a plain loop in double gives.
  virtual bool right() const = 0;
};

// As in csrc/cpu/batch_*.cpp. The includes are in the order of use.
// clang-format off
#define SIAM_LEVEL_GENERIC 1
#define SIAM_VECTOR_BYTES 16
namespace generic {
#include "cpu/simd.inl"
#include "cpu/tiles.inl"
#include "engine.inl"
}  // namespace generic
#undef SIAM_LEVEL_GENERIC
#undef SIAM_VECTOR_BYTES

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define SIAM_LEVEL_AVX2 1
#define SIAM_VECTOR_BYTES 32
namespace avx2 {
#include "cpu/simd.inl"
#include "cpu/tiles.inl"
#include "engine.inl"
}  // namespace avx2
#undef SIAM_LEVEL_AVX2
#undef SIAM_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define SIAM_LEVEL_AVX512 1
#define SIAM_VECTOR_BYTES 64
namespace avx512 {
#include "cpu/simd.inl"
#include "cpu/tiles.inl"
#include "engine.inl"
}  // namespace avx512
#undef SIAM_LEVEL_AVX512
#undef SIAM_VECTOR_BYTES
#pragma GCC pop_options
#endif
// clang-format on

namespace {

constexpr int64_t kColumns = 4096;
constexpr int64_t kDepths[] = {64, 128, 256, 512, 768, 1024};
// Runs of the peak's loop in a row: together about as long as a product.
constexpr int kPeakRuns = 4;

std::unique_ptr<Products> products_of(Level level, const float* data, int64_t rows, int64_t depth) {
#if defined(__x86_64__)
  if (level == Level::kAvx512) {
    return std::make_unique<avx512::Engine>(data, kColumns, rows, depth);
  }
  if (level == Level::kAvx2) return std::make_unique<avx2::Engine>(data, kColumns, rows, depth);
#endif
  return std::make_unique<generic::Engine>(data, kColumns, rows, depth);
}

double wall_clock() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

double cpu_clock() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// The longest of the seconds that `work` returns on each thread.
double slowest(int threads, const std::function<double(int)>& work) {
  std::vector<double> seconds(threads);
  bench::seconds_of(threads, [&](int t) { seconds[t] = work(t); });
  return *std::max_element(seconds.begin(), seconds.end());
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

double peak_gflops(int threads, double (*now)()) {
  std::vector<double> done(threads);
  const double seconds = slowest(threads, [&](int t) {
    const double start = now();
    for (int i = 0; i < kPeakRuns; ++i) done[t] += bench::fma_work();
    return now() - start;
  });
  double all = 0;
  for (const double d : done) all += d;
  return 1e-9 * all / seconds;
}

struct Series {
  const char* name;
  Product product;
  int64_t depth;
  const Products* products;
  std::vector<double> gflops, share;
};

int run(int threads, int rounds, int64_t rows, double (*now)()) {
  const Level level = active_level();
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<std::vector<float>> data;
  std::vector<std::unique_ptr<Products>> products;
  std::vector<Series> series;
  for (const int64_t depth : kDepths) {
    data.emplace_back(kColumns * depth);
    for (float& x : data.back()) x = uniform(random);
    products.push_back(products_of(level, data.back().data(), rows, depth));
    if (!products.back()->right()) {
      std::fprintf(stderr, "wrong product at D = %lld\n", static_cast<long long>(depth));
      return 1;
    }
    series.push_back({"distances", Product::kDistances, depth, products.back().get(), {}, {}});
    series.push_back({"gradient", Product::kGradient, depth, products.back().get(), {}, {}});
  }

  std::vector<double> peaks;
  for (int i = 0; i < rounds; ++i) {
    for (Series& s : series) {
      const double peak = peak_gflops(threads, now);
      const int64_t panels = s.products->panels();
      const double seconds = slowest(threads, [&](int t) {
        return s.products->seconds(s.product, panels * t / threads, panels * (t + 1) / threads,
                                   now);
      });
      peaks.push_back(peak);
      s.gflops.push_back(2e-9 * static_cast<double>(rows * kColumns * s.depth) / seconds);
      s.share.push_back(s.gflops.back() / peak);
    }
  }

  std::printf("{\"simd\": \"%s\", \"compiler\": \"%s\", \"peak_gflops\": %.1f, \"products\": [",
              level_name(level), __VERSION__, median(peaks));
  const char* separator = "";
  for (const Series& s : series) {
    std::printf(
        "%s\n  {\"product\": \"%s\", \"columns\": %lld, \"gflops\": %.1f, \"share_rounds\": %.4f}",
        separator, s.name, static_cast<long long>(s.depth), median(s.gflops), median(s.share));
    separator = ",";
  }
  std::printf("\n]}\n");
  return 0;
}

}  // namespace

}  // namespace siamcuda::cpu

int main(int argc, char** argv) {
  using namespace siamcuda::cpu;
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 15;
  const int64_t rows = argc > 3 ? std::atoll(argv[3]) : kColumns;
  const std::string clock = argc > 4 ? argv[4] : "wall";
  // 96 rows are whole panels on every level, and two of them at least.
  if (threads < 1 || rounds < 1 || rows < 96 || rows > kColumns ||
      (clock != "wall" && clock != "cpu")) {
    std::fprintf(stderr, "usage: %s THREADS [ROUNDS] [ROWS, 96 to %lld] [wall|cpu]\n", argv[0],
                 static_cast<long long>(kColumns));
    return 2;
  }
  try {
    return run(threads, rounds, rows, clock == "cpu" ? cpu_clock : wall_clock);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
