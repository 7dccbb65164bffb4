// row * columns in 32 bits: negative from 2^31 on.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void index_overflow_kernel(const unsigned char* x, float* y, int rows, int columns) {
  const int row = rows - 32 + static_cast<int>(threadIdx.x);
  // Through unsigned, since signed overflow would let the compiler do anything.
  const auto narrow = static_cast<int>(static_cast<unsigned>(row) * static_cast<unsigned>(columns));
  const auto wide = static_cast<std::int64_t>(row) * columns;
  store(static_cast<float>(load<unsigned char>(x + (bug ? narrow : wide))), y + threadIdx.x);
}

SIAM_PLANTED(index_overflow, "out-of-bounds read", "before the start of 'huge'|past the end of") {
  SIAM_LAUNCH((index_overflow_kernel<bug>), 1, 32, 0, bench.stream,
              bench.huge(50000ull * 50000ull, true), bench.output(32), 50000, 50000);
}

}  // namespace siamcuda::planted
