// A kernel scales its input in place.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void write_to_input_kernel(const float* x, float* y) {  // x, y: [32]
  const float value = 2.0f * load<float>(x + threadIdx.x);
  store(value, (bug ? const_cast<float*>(x) : y) + threadIdx.x);
}

SIAM_PLANTED(write_to_input, "write to read-only buffer", "'input'") {
  SIAM_LAUNCH((write_to_input_kernel<bug>), 1, 32, 0, bench.stream, bench.input(32),
              bench.output(32));
}

}  // namespace siamcuda::planted
