// What `return_stats` counts, row by row.
#pragma once

#include "math/numerics.h"
#include "math/params.h"

namespace siamcuda::math {

// A pair is positive or negative by its label; a triplet holds one of each.
template <int kInputs>
SIAM_HOST_DEVICE void add_stats(RowStats& stats, Label label, double value, double distance,
                                double negative_distance, bool collapsed) {
  stats.active += value != 0 ? 1 : 0;  // NaN counts: it is a term that was not zero
  if (kInputs == 3) {
    stats.positives += 1;
    stats.positive_distance += distance;
    stats.negatives += 1;
    stats.negative_distance += negative_distance;
    stats.collapsed += collapsed ? 1 : 0;
  } else if (label == Label::kGenuine) {
    stats.positives += 1;
    stats.positive_distance += distance;
  } else {
    stats.negatives += 1;
    stats.negative_distance += distance;
    stats.collapsed += collapsed ? 1 : 0;
  }
}

}  // namespace siamcuda::math
