// The tensor-core instructions: ldmatrix and mma.sync, which all 32 lanes of a warp carry out
// together. Layouts come from cuda/mma_layout.h; what is here is who waits for whom, and
// arithmetic.
//
// Note [Tensor-core arithmetic]: hardware multiplies exactly, but documents neither the order nor
// the rounding of the sum. Measurements (Fasi, Higham, Mikaitis, Pranesh 2021, and others since)
// found addends aligned to the largest of them, with what falls off the end cut off, and a sum that
// is rounded towards zero. The twin keeps 24 bits at the largest addend's exponent, as few as any
// hardware has shown: an error bound that holds here (math/tiles.h derives it) is not met by luck.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "collectives.h"
#include "cuda/mma_layout.h"
#include "shared.h"

namespace siamcuda::emulator {

inline void run_warp_operation(Collective collective, WarpOperand* operand, Site site) {
  warp_collective(collective, site, 0xFFFFFFFFu, reinterpret_cast<std::uint64_t>(operand), -1);
}

// --- ldmatrix
// -------------------------------------------------------------------------------------

struct LdmatrixOperand : WarpOperand {
  std::uint32_t row[4];  // 16 bytes, read when the lane arrives
  std::uint32_t* registers;
};

inline void complete_ldmatrix(WarpOperand* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    auto& mine = *static_cast<LdmatrixOperand*>(lanes[lane]);
    for (int m = 0; m < 4; ++m) {
      const cuda::LdmatrixSource source = cuda::ldmatrix_source(lane, m);
      mine.registers[m] = static_cast<LdmatrixOperand*>(lanes[source.lane])->row[source.byte / 4];
    }
  }
}

template <class T>
void load_matrices(const SharedPointer<T>& row, std::uint32_t (&registers)[4], Site site) {
  LdmatrixOperand operand;
  operand.complete = complete_ldmatrix;
  operand.registers = registers;
  check_shared(*row.segment(), row.offset(), 16, 16, Touch::load, true, site);
  std::memcpy(operand.row, row.segment()->data() + row.offset(), 16);
  run_warp_operation(Collective::ldmatrix, &operand, site);
}

// --- mma
// ------------------------------------------------------------------------------------------

// Operand formats: how many elements a register holds, and the value of one.
struct Tf32Format {
  static constexpr int kElements = 1;
  // The low 13 bits of a 32-bit operand are not looked at.
  static double value(std::uint32_t bits, int) {
    return static_cast<double>(math::bit_cast<float>(bits & 0xFFFFE000u));
  }
};
struct BFloat16Format {
  static constexpr int kElements = 2;
  static double value(std::uint32_t bits, int e) {
    return static_cast<double>(math::bfloat16_to_float(static_cast<std::uint16_t>(bits >> 16 * e)));
  }
};
struct HalfFormat {
  static constexpr int kElements = 2;
  static double value(std::uint32_t bits, int e) {
    return static_cast<double>(math::half_to_float(static_cast<std::uint16_t>(bits >> 16 * e)));
  }
};

inline float truncated(double value) {
  const float nearest = static_cast<float>(value);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(value) && std::isfinite(nearest)
             ? std::nextafterf(nearest, 0.0f)
             : nearest;
}

// See Note [Tensor-core arithmetic]. Products of 11-bit significands are exact in double.
template <int kCount>
float tensor_core_sum(const double (&addends)[kCount]) {
  double largest = 0, plain = 0;
  for (const double addend : addends) {
    largest = std::fmax(largest, std::fabs(addend));
    plain += addend;
  }
  if (largest == 0 || !std::isfinite(plain)) return static_cast<float>(plain);
  int exponent = 0;
  std::frexp(largest, &exponent);  // largest < 2^exponent
  const double unit = std::ldexp(1.0, exponent - 24), per_unit = std::ldexp(1.0, 24 - exponent);
  std::int64_t units = 0;
  for (const double addend : addends) units += static_cast<std::int64_t>(addend * per_unit);
  return truncated(static_cast<double>(units) * unit);
}

struct MmaOperand : WarpOperand {
  const std::uint32_t* a;
  const std::uint32_t* b;
  float* c;
};

template <class Format>
void complete_mma(WarpOperand* const* lanes) {
  constexpr int kElements = Format::kElements, kDepth = 8 * kElements;
  double a[cuda::kMmaRows][kDepth], b[kDepth][cuda::kMmaColumns];
  const auto operand = [&](int lane) -> MmaOperand& {
    return *static_cast<MmaOperand*>(lanes[lane]);
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < kElements; ++e) {
      for (int r = 0; r < 4; ++r) {
        const cuda::MatrixPlace place = cuda::mma_a_place(kElements, lane, r, e);
        a[place.row][place.column] = Format::value(operand(lane).a[r], e);
      }
      for (int r = 0; r < 2; ++r) {
        const cuda::MatrixPlace place = cuda::mma_b_place(kElements, lane, r, e);
        b[place.row][place.column] = Format::value(operand(lane).b[r], e);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < 4; ++r) {
      const cuda::MatrixPlace place = cuda::mma_c_place(lane, r);
      double addends[kDepth + 1];
      for (int k = 0; k < kDepth; ++k) addends[k] = a[place.row][k] * b[k][place.column];
      addends[kDepth] = static_cast<double>(operand(lane).c[r]);
      operand(lane).c[r] = tensor_core_sum(addends);
    }
  }
}

template <class Format>
void multiply_matrices(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                       Site site) {
  MmaOperand operand;
  operand.complete = complete_mma<Format>;
  operand.a = a;
  operand.b = b;
  operand.c = c;
  run_warp_operation(Collective::mma, &operand, site);
}

}  // namespace siamcuda::emulator
