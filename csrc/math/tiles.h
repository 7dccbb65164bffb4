// Squared distances of all pairs: what every tile engine agrees on.
//
// A tile computes |x|² + |y|² − 2x·y, since a sum of products is what matrix units and register
// blocking are fast at. Where the two points are close that form loses everything it had, so pairs
// below a threshold are *rescued*: computed again as Σ(x−y)². The threshold comes from the error
// bound, not from data, so the decision for a pair depends on the pair alone.
#pragma once

#include <cstdint>

#include "math/numerics.h"

namespace siamcuda::math {

// Products are added in blocks of this many columns, each from zero: a bound on the chain of
// roundings at any D, and the depth for which packed operands stay in the first-level cache.
constexpr int kTileDepth = 128;

// Relative error that any squared distance may have: DESIGN promises 1e-3.
constexpr double kTileTolerance = 1e-3;

// The largest |error of d²| / (|x|² + |y|²) of the expanded form, for a unit roundoff u:
//   - a chain of n fused multiply-adds is within n·u·Σ|x_k·y_k| of the sum, and the blocks add
//     ⌈D/128⌉ roundings more; 2Σ|x_k·y_k| ≤ |x|² + |y|²;
//   - norms are summed in double and rounded once: u; their sum: u; the last fused multiply-add,
//     of a result no larger than 2(|x|² + |y|²): 2u.
SIAM_HOST_DEVICE double tile_error(int64_t columns, double roundoff) {
  const int64_t chain = columns < kTileDepth ? columns : kTileDepth;
  const int64_t blocks = (columns + kTileDepth - 1) / kTileDepth;
  return static_cast<double>(chain + blocks + 4) * roundoff;
}

// A pair with d² below this share of |x|² + |y|² is rescued. 5 % more than the bound asks for,
// since d² itself is the computed one.
SIAM_HOST_DEVICE double tile_rescue_threshold(int64_t columns, double roundoff) {
  return 1.05 * tile_error(columns, roundoff) / kTileTolerance;
}

}  // namespace siamcuda::math
