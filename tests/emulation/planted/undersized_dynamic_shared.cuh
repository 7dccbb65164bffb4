// The launch asks for fewer bytes of dynamic shared memory than the kernel cuts out of it.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

SIAM_KERNEL(64, 1) void undersized_dynamic_shared_kernel(const float* x, float* y) {  // x, y: [64]
  SIAM_DYNAMIC_SHARED(float, values);
  auto flags = shared_cast<unsigned char>(values + 64);
  values[threadIdx.x] = load<float>(x + threadIdx.x);
  flags[threadIdx.x] = 1;
  __syncthreads();
  const unsigned other = 63 - threadIdx.x;
  store(flags[other] != 0 ? static_cast<float>(values[other]) : 0.0f, y + threadIdx.x);
}

SIAM_PLANTED(undersized_dynamic_shared, "out-of-bounds shared write", "(256 bytes)") {
  const std::size_t bytes = bug ? 64 * sizeof(float) : 64 * (sizeof(float) + 1);
  SIAM_LAUNCH((undersized_dynamic_shared_kernel), 1, 64, bytes, bench.stream, bench.input(64),
              bench.output(64));
}

}  // namespace siamcuda::planted
