// cp.async, ldmatrix and mma.sync on the emulator, where nothing is wrong; planted/ holds what is.
// The layouts themselves are compared with CuTe's in tests/emulation/test_mma_layouts.py.
#include "cuda/tensor_core.cuh"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "cuda/async_copy.cuh"

namespace siamcuda::cuda {
namespace {

using emulator::Access;
using emulator::Buffer;

constexpr const char* kSchedules[] = {"forward", "reverse", "random:3"};

// --- cp.async ------------------------------------------------------------------------------------

// Two groups: the first lands at the first wait, the second at the second.
SIAM_KERNEL(32, 1) void copy_kernel(const float* x, float* y) {  // x: [256], y: [2, 32, 4]
  SIAM_SHARED(float, stage, 2 * 128);
  const int lane = static_cast<int>(threadIdx.x);
  cp_async_16(stage + 4 * lane, x + 4 * lane, 16);
  cp_async_commit();
  cp_async_16(stage + 128 + 4 * lane, x + 128 + 4 * lane, lane % 3 == 0 ? 0 : 16);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  store(load_shared<float4>(stage, 4 * (31 - lane)), y + 4 * lane);
  cp_async_wait<0>();
  __syncthreads();
  store(load_shared<float4>(stage, 128 + 4 * (31 - lane)), y + 128 + 4 * lane);
}

SIAM_TEST(copies_land_at_their_wait_and_fill_with_zeros) {
  alignas(16) float x[256], y[256];
  for (int i = 0; i < 256; ++i) x[i] = static_cast<float>(i + 1);
  for (const char* schedule : kSchedules) {
    emulator::set_schedule(emulator::Schedule::parse(schedule));
    Buffer in(x, sizeof x, Access::read, "x"), out(y, sizeof y, Access::write, "y");
    SIAM_LAUNCH((copy_kernel), 1, 32, 0, 0, x, y);
    for (int i = 0; i < 128; ++i) {
      const int lane = 31 - i / 4, from = 4 * lane + i % 4;
      SIAM_EQUAL(y[i], x[from]);
      SIAM_EQUAL(y[128 + i], lane % 3 == 0 ? 0.0f : x[128 + from]);
    }
  }
}

// --- ldmatrix and mma ----------------------------------------------------------------------------

struct Tf32 {
  using Stored = float;
  static constexpr int kDepth = 8;
  static Stored make(double x) { return static_cast<float>(x); }
  static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k8_tf32(c, a, b);
  }
};
struct Bf16 {
  using Stored = uint16_t;
  static constexpr int kDepth = 16;
  static Stored make(double x) { return math::float_to_bfloat16(static_cast<float>(x)); }
  static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k16_bf16(c, a, b);
  }
};
struct Fp16 {
  using Stored = uint16_t;
  static constexpr int kDepth = 16;
  static Stored make(double x) { return math::float_to_half(static_cast<float>(x)); }
  static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k16_fp16(c, a, b);
  }
};

// c += a b^T with both operands row-major, as the tile engine reads them: 32 bytes a row.
template <class F>
SIAM_KERNEL(32, 1)
void product_kernel(const typename F::Stored* a, const typename F::Stored* b, float* c) {
  SIAM_SHARED(unsigned char, rows, 32 * 32);
  const int lane = static_cast<int>(threadIdx.x);
  for (int part = 0; part < 2; ++part) {  // rows 0-15: a; 16-23: b; the others are not needed
    const auto* from = lane < 16 ? a + lane * F::kDepth : b + (lane % 8) * F::kDepth;
    store_shared(load<uint4>(reinterpret_cast<const unsigned char*>(from) + 16 * part), rows,
                 32 * lane + 16 * part);
  }
  __syncthreads();
  uint32_t fa[4], fb[4];
  const int matrix = lane / 8, row = lane % 8;
  ldmatrix_x4(rows + (32 * (row + 8 * (matrix % 2)) + 16 * (matrix / 2)), fa);
  ldmatrix_x4(rows + (32 * (16 + row) + 16 * (matrix % 2)), fb);
  const uint32_t b_registers[2] = {fb[0], fb[1]};
  float sums[4];
  for (int r = 0; r < 4; ++r) {
    const MatrixPlace place = mma_c_place(lane, r);
    sums[r] = load<float>(c + place.row * 8 + place.column);
  }
  F::multiply(sums, fa, b_registers);
  for (int r = 0; r < 4; ++r) {
    const MatrixPlace place = mma_c_place(lane, r);
    store(sums[r], c + place.row * 8 + place.column);
  }
}

template <class F>
std::vector<float> product(const std::vector<double>& a, const std::vector<double>& b,
                           std::vector<float> c) {
  std::vector<typename F::Stored> sa, sb;
  for (const double x : a) sa.push_back(F::make(x));
  for (const double x : b) sb.push_back(F::make(x));
  Buffer ba(sa.data(), sa.size() * sizeof(sa[0]), Access::read, "a"),
      bb(sb.data(), sb.size() * sizeof(sb[0]), Access::read, "b"),
      bc(c.data(), c.size() * 4, Access::read_write, "c");
  SIAM_LAUNCH((product_kernel<F>), 1, 32, 0, 0, sa.data(), sb.data(), c.data());
  return c;
}

template <class F>
void check_products() {
  for (const char* schedule : kSchedules) {
    emulator::set_schedule(emulator::Schedule::parse(schedule));
    std::vector<double> a(16 * F::kDepth), b(8 * F::kDepth);
    std::vector<float> c(128);
    for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<double>(i * 37 % 101) - 50;
    for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<double>(i * 53 % 97) - 48;
    for (size_t i = 0; i < c.size(); ++i) c[i] = static_cast<float>(i);
    const std::vector<float> got = product<F>(a, b, c);
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        double sum = c[row * 8 + column];
        for (int k = 0; k < F::kDepth; ++k)
          sum += a[row * F::kDepth + k] * b[column * F::kDepth + k];
        SIAM_EQUAL(got[row * 8 + column], static_cast<float>(sum));  // integers below 2^24
      }
    }
  }
}
SIAM_TEST(product_of_tf32) { check_products<Tf32>(); }
SIAM_TEST(product_of_bf16) { check_products<Bf16>(); }
SIAM_TEST(product_of_fp16) { check_products<Fp16>(); }

SIAM_TEST(not_a_number_stays_in_its_row_and_column) {
  std::vector<double> a(16 * 16, 1), b(8 * 16, 1);
  a[3 * 16 + 5] = NAN;
  b[2 * 16 + 9] = std::numeric_limits<double>::infinity();
  const std::vector<float> got = product<Bf16>(a, b, std::vector<float>(128, 0));
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      const float value = got[row * 8 + column];
      SIAM_EQUAL(std::isnan(value), row == 3);
      if (row != 3) SIAM_EQUAL(value, column == 2 ? INFINITY : 16.0f);
    }
  }
}

SIAM_TEST(operands_are_cut_to_tf32) {
  const float fine = 1.0f + 0x1p-11f + 0x1p-23f;
  std::vector<double> a(16 * 8, 0), b(8 * 8, 0);
  a[0] = static_cast<double>(fine);
  b[0] = 1;
  SIAM_EQUAL(product<Tf32>(a, b, std::vector<float>(128, 0))[0], 1.0f);  // cut, not rounded
  SIAM_EQUAL(__uint_as_float(to_tf32(fine)), 1.0f + 0x1p-10f);
  SIAM_EQUAL(__uint_as_float(to_tf32(1.0f + 0x1p-11f)), 1.0f + 0x1p-10f);  // ties away from zero
  SIAM_EQUAL(__uint_as_float(to_tf32(-1.0f - 0x1p-11f)), -1.0f - 0x1p-10f);
  SIAM_EQUAL(__uint_as_float(to_tf32(1.0f + 0x1p-11f - 0x1p-23f)), 1.0f);
  SIAM_EQUAL(__uint_as_float(to_tf32(INFINITY)), INFINITY);
  SIAM_EQUAL(__uint_as_float(to_tf32(3.4028234e38f)), INFINITY);
  SIAM_CHECK(std::isnan(__uint_as_float(to_tf32(NAN))));
}

// Note [Tensor-core arithmetic] in emulator/matrix.h: cut off at the largest addend's last place.
SIAM_TEST(sums_are_cut_off) {
  std::vector<double> a(16 * 8, 0), b(8 * 8, 0);
  for (int k = 0; k < 8; ++k) a[k] = b[k] = k == 0 ? 1 : 0x1p-12;  // 1 and seven times 2^-24
  SIAM_EQUAL(product<Tf32>(a, b, std::vector<float>(128, 0))[0], 1.0f);
  std::vector<float> c(128, 0);
  c[0] = -1.0f;
  SIAM_EQUAL(product<Tf32>(a, b, c)[0], 0.0f);
  // Without the 1 nothing is lost.
  a[0] = 0;
  SIAM_EQUAL(product<Tf32>(a, b, std::vector<float>(128, 0))[0], 7 * 0x1p-24f);
}

}  // namespace
}  // namespace siamcuda::cuda

SIAM_TEST_MAIN()
