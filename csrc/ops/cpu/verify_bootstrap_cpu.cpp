// The CPU entry point of the bootstrap over identities.
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <mutex>

#include "cpu/verify.h"
#include "ops/cpu/verify_cpu.h"
#include "ops/loss_op.h"
#include "ops/verify.h"

namespace siamcuda::ops::verify {
namespace {

struct BootstrapState {
  Counters<int32_t> counters;
  cpu::BootstrapSink sink;

  BootstrapState(const cpu::BootstrapSink& model, int64_t size)
      : counters(2 * size * cpu::BootstrapSink::kReplicates), sink(model) {
    sink.counts[0] = counters.counts.data();
    sink.counts[1] = sink.counts[0] + size * cpu::BootstrapSink::kReplicates;
  }
};

at::Tensor verification_bootstrap(const at::Tensor& rows, const at::Tensor& columns,
                                  const at::Tensor& genuine, const at::Tensor& given_table,
                                  const at::Tensor& row_identity, const at::Tensor& column_identity,
                                  const at::Tensor& given_drawn, std::string_view metric,
                                  int64_t diagonal, bool triangle, int64_t size) {
  const SweepOperands operands{"verification_bootstrap", rows, columns, genuine, metric};
  check_sweep(operands);
  check_drawn(operands, given_drawn);
  const at::Tensor table = given_table.contiguous(), drawn = given_drawn.contiguous();
  const int64_t identities = drawn.size(0);
  const at::Tensor own = as_identities(operands, "row_identity", row_identity, rows, drawn);
  const at::Tensor others =
      as_identities(operands, "column_identity", column_identity, columns, drawn);
  const int64_t often = identities > 0 ? drawn.max().item<int64_t>() : 0;
  at::Tensor counts = zeros({2, size, cpu::BootstrapSink::kReplicates});
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "verification", [&] {
    check_table(operands, table, size);
    Sweep<scalar_t> sweep(operands, diagonal, triangle);
    const auto kernel = verify_level<scalar_t>().bootstrap;
    const cpu::BootstrapSink model{table.const_data_ptr<int64_t>(),
                                   own.const_data_ptr<int32_t>(),
                                   others.const_data_ptr<int32_t>(),
                                   drawn.const_data_ptr<uint8_t>(),
                                   {}};
    int64_t* const total = counts.mutable_data_ptr<int64_t>();
    const int64_t heaviest = std::max<int64_t>(often * often, 1);
    std::mutex mutex;
    Pool<BootstrapState> pool;
    sweep.each([&](const cpu::SweepTask<scalar_t>& task, int64_t begin, int64_t end, int64_t most) {
      TORCH_CHECK_VALUE(most * heaviest < kMostPending, operands.name, ": an identity drawn ",
                        often, " times is too much for ", columns.size(0), " columns");
      pool.with([&] { return std::make_unique<BootstrapState>(model, size); },
                [&](BootstrapState& state) {
                  state.counters.reserve(most * heaviest, total, mutex);
                  kernel(task, state.sink, begin, end);
                });
    });
    for (const auto& state : pool.all()) state->counters.flush(total, mutex);
  });
  return counts;
}

SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, CPU, m) {
  m.impl("verification_bootstrap", verification_bootstrap);
}

}  // namespace
}  // namespace siamcuda::ops::verify
