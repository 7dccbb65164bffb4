// The CPU entry point of squared_cdist.
#include <ATen/Functions.h>

#include <array>
#include <vector>

#include "ops/cdist.h"
#include "ops/cpu/tiles_cpu.h"
#include "ops/rows.h"

namespace siamcuda::ops {

namespace {

template <class C>
void cdist_forward(const at::Tensor& x1, const at::Tensor& x2, at::Tensor& out) {
  const Level<C> level = active_level<C>();
  at::Tensor kept[2];
  cpu::DistanceTask<C> task{};
  task.x = matrix_of(x1, kept[0]);
  task.ref = matrix_of(x2, kept[1]);
  task.distances = out.mutable_data_ptr();
  each_chunk(level, task, level.distances);
}

template <class C>
void cdist_backward(const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& weights,
                    const at::Tensor& distances, at::Tensor* gradients) {
  const Level<C> level = active_level<C>();
  at::Tensor kept[2];
  std::vector<double> weight_sum[2];
  cpu::DistanceMeetings<C> task{};
  for (int side = 0; side < 2; ++side) {
    const cpu::Matrix matrix = matrix_of(side == 0 ? x1 : x2, kept[side]);
    weight_sum[side].resize(matrix.rows);
    C* gradient = nullptr;
    if (gradients[side].defined()) {
      gradient = static_cast<C*>(gradients[side].zero_().mutable_data_ptr());
    }
    task.meetings.side[side] = {matrix, {}, gradient, weight_sum[side].data()};
  }
  task.meetings.squares = true;
  task.weights = weights.const_data_ptr();
  task.distances = distances.const_data_ptr();
  play(level, task.meetings, [&](const cpu::Meetings<C>&, int64_t begin, int64_t end) {
    level.distance_meetings(task, begin, end);
  });
}

}  // namespace

const CdistBackend& cpu_cdist_backend() {
  static const CdistBackend backend{
      cpu_backend().empty,
      [](const at::Tensor& x1, const at::Tensor& x2, at::Tensor& out) {
        for (int64_t n = 0; n < out.size(0); ++n) {
          at::Tensor one = out[n];
          x1.scalar_type() == at::kDouble ? cdist_forward<double>(x1[n], x2[n], one)
                                          : cdist_forward<float>(x1[n], x2[n], one);
        }
      },
      [](const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& weights,
         const at::Tensor& distances, std::array<at::Tensor, 2>& gradients) {
        for (int64_t n = 0; n < x1.size(0); ++n) {
          at::Tensor each[2];
          for (int side = 0; side < 2; ++side) {
            if (gradients[side].defined()) each[side] = gradients[side][n];
          }
          x1.scalar_type() == at::kDouble
              ? cdist_backward<double>(x1[n], x2[n], weights[n], distances[n], each)
              : cdist_backward<float>(x1[n], x2[n], weights[n], distances[n], each);
        }
      }};
  return backend;
}

}  // namespace siamcuda::ops
