// More dynamic shared memory than any multiprocessor has.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

SIAM_KERNEL(32, 1) void too_much_shared_kernel(float* y) {  // y: [32]
  SIAM_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = 1.0f;
  store<float>(values[threadIdx.x], y + threadIdx.x);
}

SIAM_PLANTED(too_much_shared, "launch limit", "227 KB") {
  SIAM_LAUNCH((too_much_shared_kernel), 1, 32, (bug ? 228 : 227) * 1024, bench.stream,
              bench.output(32));
}

}  // namespace siamcuda::planted
