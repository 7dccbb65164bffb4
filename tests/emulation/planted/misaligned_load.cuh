// A 16-byte load from a row whose length is no multiple of four floats.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(8, 1)
void misaligned_load_kernel(const float* x, float* y) {  // x: [8, row], y: [8]
  const unsigned row = bug ? 6 : 8;
  const auto four = load<float4>(x + row * threadIdx.x);
  store(four.x + four.y + four.z + four.w, y + threadIdx.x);
}

SIAM_PLANTED(misaligned_load, "misaligned access", "not aligned to 16 bytes") {
  SIAM_LAUNCH((misaligned_load_kernel<bug>), 1, 8, 0, bench.stream, bench.input(64),
              bench.output(8));
}

}  // namespace siamcuda::planted
