// Neighbouring lanes read neighbouring rows instead of neighbouring columns.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void uncoalesced_access_kernel(const float* x, float* y) {  // x, y: [32, 32]
  for (unsigned k = 0; k < 32; ++k) {
    const unsigned i = bug ? 32 * threadIdx.x + k : 32 * k + threadIdx.x;
    store(load<float>(x + i), y + i);
  }
}

SIAM_PLANTED(uncoalesced_access, "uncoalesced access", "1024 sectors where 128 would do") {
  SIAM_LAUNCH((uncoalesced_access_kernel<bug>), 1, 32, 0, bench.stream, bench.input(1024),
              bench.output(1024));
  bench.require_coalesced();
}

}  // namespace siamcuda::planted
