// The CPU entry point of identification: each row's nearest mate and who is as near.
#include <torch/library.h>

#include <limits>
#include <optional>
#include <tuple>

#include "cpu/verify.h"
#include "ops/cpu/verify_cpu.h"
#include "ops/loss_op.h"
#include "ops/verify.h"

namespace siamcuda::ops::verify {
namespace {

template <class C>
void ranks(Sweep<C>& sweep, std::optional<int64_t> diagonal, at::Tensor& mate, at::Tensor& impostor,
           at::Tensor& within) {
  const VerifyLevel<C> level = verify_level<C>();
  cpu::RankSink<C> sink{mate.mutable_data_ptr<C>(), impostor.mutable_data_ptr<C>(),
                        within.mutable_data_ptr<int64_t>(),
                        diagonal ? *diagonal : std::numeric_limits<int64_t>::min() / 2};
  // A row belongs to one thread at a time, and its least distance to no order.
  const auto pass = [&](bool genuine_only, auto kernel) {
    sweep.task.genuine_only = genuine_only;
    sweep.each([&](const cpu::SweepTask<C>& task, int64_t begin, int64_t end, int64_t) {
      kernel(task, sink, begin, end);
    });
  };
  pass(true, level.mates);
  pass(false, level.ranks);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> verification_ranks(const at::Tensor& rows,
                                                                  const at::Tensor& columns,
                                                                  const at::Tensor& genuine,
                                                                  std::string_view metric,
                                                                  std::optional<int64_t> diagonal) {
  const SweepOperands operands{"verification_ranks", rows, columns, genuine, metric};
  check_sweep(operands);
  const double none = std::numeric_limits<double>::quiet_NaN();
  at::Tensor mate = at::full({rows.size(0)}, none, rows.options());
  at::Tensor impostor = at::full({rows.size(0)}, none, rows.options());
  at::Tensor within = zeros({rows.size(0)});
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "verification", [&] {
    Sweep<scalar_t> sweep(operands, 0, false);
    ranks(sweep, diagonal, mate, impostor, within);
  });
  return {mate, impostor, within};
}

SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, CPU, m) { m.impl("verification_ranks", verification_ranks); }

}  // namespace
}  // namespace siamcuda::ops::verify
