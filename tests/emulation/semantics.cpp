// The other half of planted/: what the emulator must compute, where nothing is wrong. Each check
// runs under all three schedules; the first failure ends the program with its line.
#include <cstdio>
#include <cstdlib>
#include <set>
#include <thread>
#include <vector>

#include "platform.cuh"

#define REQUIRE(condition)                                                           \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                  \
    }                                                                                \
  } while (false)

namespace siamcuda::cuda {

using emulator::Access;
using emulator::Buffer;

// Each expectation is CUDA's own rule for lanes whose source lies outside their segment.
SIAM_KERNEL(64, 1) void shuffle_kernel(int* y) {  // y: [4, 64]
  const int lane = static_cast<int>(threadIdx.x);
  store(__shfl_sync(0xFFFFFFFFu, lane, 3, 8), y + lane);
  store(__shfl_up_sync(0xFFFFFFFFu, lane, 3u, 16), y + 64 + lane);
  store(__shfl_down_sync(0xFFFFFFFFu, lane, 3u, 16), y + 128 + lane);
  store(__shfl_xor_sync(0xFFFFFFFFu, lane, 16, 16), y + 192 + lane);
}

void shuffles_follow_their_width() {
  std::vector<int> y(256, -1);
  Buffer buffer(y.data(), 1024, Access::write, "y");
  SIAM_LAUNCH((shuffle_kernel), 1, 64, 0, 0, y.data());
  REQUIRE(buffer.unwritten_bytes() == 0);
  for (int t = 0; t < 64; ++t) {
    const int in_segment = t % 16;
    REQUIRE(y[t] == t / 8 * 8 + 3);
    REQUIRE(y[64 + t] == (in_segment < 3 ? t : t - 3));
    REQUIRE(y[128 + t] == (in_segment > 12 ? t : t + 3));
    // Across segments xor reads downwards only.
    REQUIRE(y[192 + t] == (t % 32 < 16 ? t : t - 16));
  }
}

SIAM_KERNEL(32, 1) void wide_shuffle_kernel(double* d, long long* l, float* f) {  // [32] each
  const unsigned t = threadIdx.x;
  store(__shfl_xor_sync(0xFFFFFFFFu, 1.0 / (t + 1), 1), d + t);
  store(__shfl_xor_sync(0xFFFFFFFFu, (1LL << 40) + t, 1), l + t);
  store(__shfl_xor_sync(0xFFFFFFFFu, 0.5f * static_cast<float>(t), 1), f + t);
}

void shuffles_carry_every_type() {
  std::vector<double> d(32);
  std::vector<long long> l(32);
  std::vector<float> f(32);
  Buffer bd(d.data(), 256, Access::write), bl(l.data(), 256, Access::write),
      bf(f.data(), 128, Access::write);
  SIAM_LAUNCH((wide_shuffle_kernel), 1, 32, 0, 0, d.data(), l.data(), f.data());
  for (int t = 0; t < 32; ++t) {
    REQUIRE(d[t] == 1.0 / ((t ^ 1) + 1));
    REQUIRE(l[t] == (1LL << 40) + (t ^ 1));
    REQUIRE(f[t] == 0.5f * static_cast<float>(t ^ 1));
  }
}

SIAM_KERNEL(32, 1) void vote_kernel(unsigned* y) {  // y: [3, 32]
  const unsigned t = threadIdx.x;
  const unsigned mask = t < 8 ? 0x000000FFu : 0xFFFFFF00u;
  store(__ballot_sync(mask, t % 2), y + t);
  store(static_cast<unsigned>(__any_sync(mask, t == 5)), y + 32 + t);
  store(static_cast<unsigned>(__all_sync(mask, t >= 8)), y + 64 + t);
}

void votes_count_their_mask_only() {
  std::vector<unsigned> y(96);
  Buffer buffer(y.data(), 384, Access::write);
  SIAM_LAUNCH((vote_kernel), 1, 32, 0, 0, y.data());
  for (unsigned t = 0; t < 32; ++t) {
    REQUIRE(y[t] == (t < 8 ? 0xAAu : 0xAAAAAA00u));
    REQUIRE(y[32 + t] == (t < 8 ? 1u : 0u));
    REQUIRE(y[64 + t] == (t < 8 ? 0u : 1u));
  }
}

SIAM_KERNEL(64, 1) void atomic_kernel(int* i, unsigned long long* u, float* f) {
  SIAM_SHARED(int, least, 1);
  SIAM_SHARED(unsigned, seen, 2);
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) least[0] = 1000;
  if (t < 2) seen[t] = 0;
  __syncthreads();
  atomicMin(least + 0, 70 - t);
  atomicOr(&seen[t / 32], 1u << (t % 32));
  atomicAdd(i, 1);
  atomicMax(i + 1, t);
  atomicAdd(u, 1ull << 33);
  atomicAdd(f, 0.25f);
  if (t == 7 && blockIdx.x == 0) REQUIRE(atomicExch(i + 2, 9) == -5);
  if (t == 8) {
    const int before = atomicCAS(i + 3, -5, 11);
    REQUIRE(before == -5 || before == 11);
  }
  __syncthreads();
  REQUIRE(least[0] == 7);
  REQUIRE(seen[0] == 0xFFFFFFFFu && seen[1] == 0xFFFFFFFFu);
}

void atomics_add_up() {
  int i[4] = {0, -1, -5, -5};
  unsigned long long u = 0;
  float f = 0.0f;
  Buffer bi(i, sizeof i, Access::read_write), bu(&u, 8, Access::read_write),
      bf(&f, 4, Access::read_write);
  SIAM_LAUNCH((atomic_kernel), 4, 64, 0, 0, i, &u, &f);
  REQUIRE(i[0] == 256 && i[1] == 63 && i[2] == 9 && i[3] == 11);
  REQUIRE(u == 256ull << 33);
  REQUIRE(f == 64.0f);
}

SIAM_KERNEL(8, 1) void index_kernel(unsigned* y) {  // y: [4, 3, 2] blocks of [2, 2, 2] threads
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  store(8 * block + thread, y + 8 * block + thread);
}

void every_thread_of_every_block_runs_once() {
  std::vector<unsigned> y(192);
  Buffer buffer(y.data(), 768, Access::write);
  SIAM_LAUNCH((index_kernel), Dim3(4, 3, 2), Dim3(2, 2, 2), 0, 0, y.data());
  REQUIRE(buffer.unwritten_bytes() == 0);
  for (unsigned i = 0; i < 192; ++i) REQUIRE(y[i] == i);
}

SIAM_KERNEL(32, 1) void copy_kernel(const float* x, float* y) {  // x, y: [32]
  store(load<float>(x + threadIdx.x), y + threadIdx.x);
}

void overlapping_buffers_each_allow_their_own() {
  std::vector<float> x(64, 3.0f);
  Buffer input(x.data(), 256, Access::read, "all of it");
  Buffer output(x.data() + 32, 128, Access::write, "the second half");
  SIAM_LAUNCH((copy_kernel), 1, 32, 0, 0, x.data(), x.data() + 32);
  REQUIRE(output.unwritten_bytes() == 0);
}

void launches_may_come_from_several_threads() {
  std::vector<std::thread> threads;
  for (int k = 0; k < 4; ++k) {
    threads.emplace_back([k] {
      std::vector<float> x(32, static_cast<float>(k)), y(32);
      Buffer input(x.data(), 128, Access::read), output(y.data(), 128, Access::write);
      for (int repeat = 0; repeat < 50; ++repeat)
        SIAM_LAUNCH((copy_kernel), 1, 32, 0, 0, x.data(), y.data());
      for (float value : y) REQUIRE(value == static_cast<float>(k));
    });
  }
  for (auto& thread : threads) thread.join();
}

template <class T>
SIAM_KERNEL(32, 1)
void typed_shared_kernel(T* y) {  // y: [32]
  SIAM_SHARED(T, tile, 32);
  SIAM_DYNAMIC_SHARED(unsigned char, bytes);
  Shared<double> doubles = shared_cast<double>(bytes);
  Shared<unsigned short> halves = shared_cast<unsigned short>(doubles + 32);
  const unsigned t = threadIdx.x;
  tile[t] = static_cast<T>(t);
  tile[t] *= 2;
  doubles[t] = 0.5;
  halves[t] = static_cast<unsigned short>(t);
  __syncthreads();
  const unsigned other = 31 - t;
  store(static_cast<T>(tile[other] + doubles[other] + halves[other]), y + t);
}

void shared_memory_holds_several_types() {
  std::vector<float> f(32);
  std::vector<double> d(32);
  Buffer bf(f.data(), 128, Access::write), bd(d.data(), 256, Access::write);
  SIAM_LAUNCH((typed_shared_kernel<float>), 1, 32, 32 * 10, 0, f.data());
  SIAM_LAUNCH((typed_shared_kernel<double>), 1, 32, 32 * 10, 0, d.data());
  for (int t = 0; t < 32; ++t) {
    REQUIRE(f[t] == 3.0f * static_cast<float>(31 - t) + 0.5f);
    REQUIRE(d[t] == 3.0 * (31 - t) + 0.5);
  }
}

void block_orders_are_permutations() {
  for (const char* text : {"forward", "reverse", "random:1", "random:2"}) {
    const auto schedule = emulator::Schedule::parse(text);
    for (std::uint64_t blocks : {1, 2, 3, 7, 64, 1000}) {
      emulator::Random random(schedule.seed);
      emulator::BlockOrder order(schedule, blocks, random);
      std::set<std::uint64_t> seen;
      for (std::uint64_t i = 0; i < blocks; ++i) seen.insert(order[i]);
      REQUIRE(seen.size() == blocks && *seen.rbegin() == blocks - 1);
    }
  }
}

SIAM_KERNEL(32, 1) void strided_kernel(const float* x, float* y, unsigned stride) {
  SIAM_SHARED(float, tile, 32);
  tile[threadIdx.x] = load<float>(x + stride * threadIdx.x);  // x: [32 * stride]
  __syncthreads();
  store(tile[0] + tile[threadIdx.x], y + threadIdx.x);  // y: [32]
}

void statistics_count_sectors_and_banks() {
  alignas(32) static float aligned_x[32 * 8];
  alignas(32) static float aligned_y[32];
  Buffer input(aligned_x, sizeof aligned_x, Access::read),
      output(aligned_y, sizeof aligned_y, Access::write);
  for (unsigned stride : {1u, 2u, 8u}) {
    emulator::reset_statistics();
    emulator::enable_statistics(true);
    SIAM_LAUNCH((strided_kernel), 1, 32, 0, 0, aligned_x, aligned_y, stride);
    emulator::enable_statistics(false);
    unsigned seen = 0;
    for (const auto& s : emulator::statistics()) {
      REQUIRE(s.bytes == 4);
      if (s.kind == emulator::Kind::global_load) {
        REQUIRE(s.requests == 1 && s.ideal_sectors == 4 && s.sectors == 4 * stride);
        ++seen;
      }
      // The broadcast of tile[0] costs nothing.
      if (s.kind == emulator::Kind::shared_load) REQUIRE(s.max_conflict == 1);
    }
    REQUIRE(seen == 1);
  }
}

void vector_types_have_cuda_layout() {
  static_assert(sizeof(float2) == 8 && alignof(float2) == 8);
  static_assert(sizeof(float3) == 12 && alignof(float3) == 4);
  static_assert(sizeof(float4) == 16 && alignof(float4) == 16);
  static_assert(sizeof(double2) == 16 && alignof(double2) == 16);
  static_assert(sizeof(double4) == 32 && alignof(double4) == 16);
  static_assert(sizeof(uchar4) == 4 && alignof(uchar4) == 4);
  static_assert(sizeof(ushort4) == 8 && alignof(ushort4) == 8);
}

}  // namespace siamcuda::cuda

int main() {
  using namespace siamcuda::cuda;
  for (const char* schedule : {"forward", "reverse", "random:5"}) {
    siamcuda::emulator::set_schedule(siamcuda::emulator::Schedule::parse(schedule));
    shuffles_follow_their_width();
    shuffles_carry_every_type();
    votes_count_their_mask_only();
    atomics_add_up();
    every_thread_of_every_block_runs_once();
    overlapping_buffers_each_allow_their_own();
    launches_may_come_from_several_threads();
    shared_memory_holds_several_types();
    statistics_count_sectors_and_banks();
  }
  block_orders_are_permutations();
  vector_types_have_cuda_layout();
}
