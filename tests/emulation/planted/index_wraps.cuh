// An unsigned 32-bit index wraps at 2^32 and stays in bounds: two rows land in one place.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(2, 1)
void index_wraps_kernel(unsigned char* y) {  // y: [2, 2^32]
  const std::uint64_t wide = static_cast<std::uint64_t>(threadIdx.x) << 32;
  store(static_cast<unsigned char>(1), y + (bug ? static_cast<unsigned>(wide) : wide));
}

SIAM_PLANTED(index_wraps, "global race", "'huge'") {
  SIAM_LAUNCH((index_wraps_kernel<bug>), 1, 2, 0, bench.stream, bench.huge(2ull << 32, false));
}

}  // namespace siamcuda::planted
