// The machine's own limits: memory bandwidth and fused multiply-adds, printed as one JSON object.
//
//   bandwidth THREADS [MIB per array, default 128] [repetitions, default 9]
//
// Every figure is the best of the repetitions, in GB/s or GFLOP/s. Bytes are those that the program
// asks for: a copy counts what it reads and what it writes, not the line that a plain store reads
// before it is overwritten. A read is the faster of two loops, one of which fetches ahead. *_stream
// stores past the cache; *_4k runs on 4 KiB pages, the others on 2 MiB pages where the system gives
// them; first_touch writes memory just mapped, page faults included.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "fma_peak.h"
#include "threads.h"

namespace {

using bench::seconds_of;
using bench::sink;

typedef float Four __attribute__((vector_size(16)));

void store_streaming(float* p, Four v) {
#if defined(__x86_64__)
  _mm_stream_ps(p, (__m128)v);
#else
  std::memcpy(p, &v, sizeof(v));
#endif
}

void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

Four load(const float* p) {
  Four v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// With kAhead floats fetched ahead: hardware that fetches ahead by itself stops at a page's end.
template <int64_t kAhead>
void read_array(const float* p, int64_t n) {
  Four sum[8] = {};
  for (int64_t i = 0; i + 32 <= n; i += 32) {
    if (kAhead > 0) {
      __builtin_prefetch(p + i + kAhead);
      __builtin_prefetch(p + i + kAhead + 16);
    }
    for (int u = 0; u < 8; ++u) sum[u] += load(p + i + 4 * u);
  }
  Four all{};
  for (const Four& s : sum) all += s;
  sink = all[0] + all[1] + all[2] + all[3];
}

void copy_array(float* to, const float* from, int64_t n) {
  for (int64_t i = 0; i + 16 <= n; i += 16) {
    for (int u = 0; u < 4; ++u) {
      const Four v = load(from + i + 4 * u);
      std::memcpy(to + i + 4 * u, &v, sizeof(v));
    }
    __asm__ volatile("" ::: "memory");  // or the compiler calls memcpy, which may stream
  }
}

void copy_array_streaming(float* to, const float* from, int64_t n) {
  for (int64_t i = 0; i + 16 <= n; i += 16) {
    for (int u = 0; u < 4; ++u) store_streaming(to + i + 4 * u, load(from + i + 4 * u));
  }
  fence();
}

void write_array_streaming(float* to, int64_t n) {
  const Four one = {1, 1, 1, 1};
  for (int64_t i = 0; i + 16 <= n; i += 16) {
    for (int u = 0; u < 4; ++u) store_streaming(to + i + 4 * u, one);
  }
  fence();
}

// --- measuring -----------------------------------------------------------------------------------

double best_of(int repetitions, int threads, const std::function<void(int)>& work) {
  double best = 1e30;
  for (int i = 0; i < repetitions; ++i) best = std::min(best, seconds_of(threads, work));
  return best;
}

float* allocate(size_t bytes, bool huge) {
  void* p = nullptr;
#if defined(__linux__)
  const size_t page = size_t{2} << 20;
  p = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  p = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(p) + page - 1) / page * page);
  madvise(p, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
  (void)huge;
  p = std::aligned_alloc(64, bytes);
#endif
  return static_cast<float*>(p);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const int64_t mib = argc > 2 ? std::atoll(argv[2]) : 128;
  const int repetitions = argc > 3 ? std::atoi(argv[3]) : 9;
  if (threads < 1 || mib < 1 || repetitions < 1) {
    std::fprintf(stderr, "usage: %s THREADS [MIB] [REPETITIONS]\n", argv[0]);
    return 2;
  }
  const size_t bytes = static_cast<size_t>(mib) << 20;
  const int64_t share = static_cast<int64_t>(bytes / sizeof(float)) / threads / 32 * 32;
  const double moved = 1e-9 * static_cast<double>(share * threads) * sizeof(float);

  std::printf("{");
  for (const bool huge : {true, false}) {
    const char* suffix = huge ? "" : "_4k";
    float* from = allocate(bytes, huge);
    float* to = allocate(bytes, huge);
    if (!from || !to) {
      std::fprintf(stderr, "cannot allocate 2 x %lld MiB\n", static_cast<long long>(mib));
      return 1;
    }
    std::memset(from, 0, bytes);
    std::memset(to, 0, bytes);
    const auto print = [&](const char* name, double factor, const std::function<void(int)>& work) {
      const double seconds = best_of(repetitions, threads, work);
      std::printf("\"%s%s\": %.2f, ", name, suffix, factor * moved / seconds);
    };
    const auto read = [&](int t) { read_array<0>(from + t * share, share); };
    const auto read_ahead = [&](int t) { read_array<2048>(from + t * share, share); };
    const double seconds =
        std::min(best_of(repetitions, threads, read), best_of(repetitions, threads, read_ahead));
    std::printf("\"read%s\": %.2f, ", suffix, moved / seconds);
    print("copy", 2, [&](int t) { copy_array(to + t * share, from + t * share, share); });
    print("copy_stream", 2,
          [&](int t) { copy_array_streaming(to + t * share, from + t * share, share); });
    print("write_stream", 1, [&](int t) { write_array_streaming(to + t * share, share); });
#if defined(__linux__)
    print("first_touch", 1, [&](int) {
      float* own = allocate(share * sizeof(float), huge);
      write_array_streaming(own, share);
      munmap(own, share * sizeof(float));  // the page of slack stays: a leak of address space
    });
    munmap(from, bytes);
    munmap(to, bytes);
#endif
  }
  std::vector<double> done(threads);
  const double seconds = best_of(repetitions, threads, [&](int t) { done[t] = bench::fma_work(); });
  double flops = 0;
  for (const double d : done) flops += d;
  std::printf("\"fma_gflops\": %.1f}\n", 1e-9 * flops / seconds);
  return 0;
}
