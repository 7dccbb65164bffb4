// Tensor cores through ldmatrix and mma.sync (sm_80): one instruction a function. All 32 lanes of a
// warp call it together; whose register is which element of the matrices is in mma_layout.h.
//
//   ldmatrix_x4(row, r)             r[m] = this lane's word of the m-th of four 8 x 16-byte
//   matrices;
//                                   lane 8 m + i gives row i of matrix m, a multiple of 16 bytes
//   mma_m16n8k8_tf32(c, a, b)       c += a b; operands are floats of which the first 19 bits count
//   mma_m16n8k16_bf16(c, a, b)      c += a b, two elements a register
//   mma_m16n8k16_fp16(c, a, b)
//   to_tf32(x)                      the nearest operand, ties away from zero
//
// Matrices of 32-bit elements go through ldmatrix as well: a row of 16 bytes is 4 of them, and the
// word that a lane receives is the one that the layout of m16n8k8 wants.
#pragma once

#include "cuda/mma_layout.h"
#include "cuda/platform.cuh"

namespace siamcuda::cuda {

// Whether this pass of the compiler may use them. Kernels for others are compiled without a body;
// math::tile_engine does not choose them there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kTensorCores = false;
#else
constexpr bool kTensorCores = true;
#endif
// And whether it must do without them, where they would be chosen. The emulator does both.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
constexpr bool kWidenedTiles = false;
#else
constexpr bool kWidenedTiles = true;
#endif

#if defined(SIAM_EMULATED)

template <class T>
void ldmatrix_x4(const Shared<T>& row, std::uint32_t (&registers)[4], SIAM_EMULATOR_SITE) {
  emulator::load_matrices(row, registers, SIAM_EMULATOR_HERE);
}

#define SIAM_MMA(name, format, shape_and_types)                                             \
  inline void name(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], \
                   SIAM_EMULATOR_SITE) {                                                    \
    emulator::multiply_matrices<emulator::format>(c, a, b, SIAM_EMULATOR_HERE);             \
  }

inline std::uint32_t to_tf32(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7F800000u) == 0x7F800000u) return (bits & 0x007FFFFFu) != 0 ? 0x7FFFFFFFu : bits;
  return (bits + 0x1000u) & 0xFFFFE000u;
}

#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800

template <class T>
SIAM_DEVICE void ldmatrix_x4(T*, std::uint32_t (&)[4]) {
  __trap();
}
#define SIAM_MMA(name, format, shape_and_types)                                                 \
  SIAM_DEVICE void name(float (&)[4], const std::uint32_t (&)[4], const std::uint32_t (&)[2]) { \
    __trap();                                                                                   \
  }
SIAM_DEVICE std::uint32_t to_tf32(float x) { return __float_as_uint(x); }

#else

template <class T>
SIAM_DEVICE void ldmatrix_x4(T* row, std::uint32_t (&registers)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}

#define SIAM_MMA(name, format, shape_and_types)                                                    \
  SIAM_DEVICE void name(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) { \
    asm volatile("mma.sync.aligned." shape_and_types                                               \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));              \
  }

SIAM_DEVICE std::uint32_t to_tf32(float x) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

#endif

SIAM_MMA(mma_m16n8k8_tf32, Tf32Format, "m16n8k8.row.col.f32.tf32.tf32.f32")
SIAM_MMA(mma_m16n8k16_bf16, BFloat16Format, "m16n8k16.row.col.f32.bf16.bf16.f32")
SIAM_MMA(mma_m16n8k16_fp16, HalfFormat, "m16n8k16.row.col.f32.f16.f16.f32")
#undef SIAM_MMA

}  // namespace siamcuda::cuda
