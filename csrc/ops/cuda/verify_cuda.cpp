// The CUDA entry points of verification. Compiled a second time against the emulator, where they
// run on CPU tensors.
//
// They wait for the device: to check what they are given, and for the hardest pairs.
#include "ops/cuda/verify_cuda.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <tuple>

#include "ops/loss_op.h"

namespace siamcuda::ops::verify {
namespace {

// Far before every column: no row meets itself.
constexpr int64_t kNobody = std::numeric_limits<int64_t>::min() / 2;

Tensor zeros(at::IntArrayRef sizes, const Tensor& like) {
  return at::zeros(sizes, like.options().dtype(at::kLong));
}

// A key of no pair for each of so many rows, as integers.
Tensor no_keys(int64_t count, const Tensor& like) {
  const bool wide = like.scalar_type() == at::kDouble;
  const int64_t none =
      wide ? static_cast<int64_t>(math::kNoKey<double>) : static_cast<int64_t>(math::kNoKey<float>);
  return at::full({count}, none, like.options().dtype(wide ? at::kLong : at::kInt));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> verification_histogram(
    const Tensor& rows, const Tensor& columns, const Tensor& genuine, const Tensor& row_index,
    const Tensor& column_index, std::string_view metric, int64_t diagonal, bool triangle,
    int64_t hardest) {
  const SweepOperands operands{"verification_histogram", rows, columns, genuine, metric};
  check_sweep(operands);
  check_indices(operands, "row_index", row_index, {rows.size(0)});
  check_indices(operands, "column_index", column_index, {columns.size(0)});
  TORCH_CHECK_VALUE(hardest >= 0, operands.name, ": hardest must be at least 0, got ", hardest);
  const DeviceGuard guard(rows);
  const CudaSweep sweep(operands, diagonal, triangle);
  const Tensor counts = zeros({2, math::kTopKeys + 1}, rows);
  const Tensor moments = at::zeros({2, 2}, rows.options().dtype(at::kDouble));
  const Tensor distances =
      at::full({2, hardest}, std::numeric_limits<double>::quiet_NaN(), rows.options());
  const Tensor pairs = at::full({2, hardest, 2}, -1, counts.options());
  const int64_t kept = hardest > 0 ? rows.size(0) : 0;
  const Tensor nearest = no_keys(kept, rows), farthest = no_keys(kept, rows);
  {
    const cuda::SweepPlan plan = sweep.plan();
    const int64_t tiles = cuda::tile_launch(1, plan.rows, plan.columns, 1).tiles;
    const Tensor partials = at::empty({tiles, 4}, moments.options());
    LaunchMemory memory;
    memory.changes(counts, "counts");
    memory.changes(moments, "moments");
    memory.changes(partials, "sums of tiles");
    memory.changes(nearest, "nearest impostors");
    memory.changes(farthest, "farthest mates");
    cuda::HistogramArgs args{};
    args.counts = counters_of(counts);
    args.partials = partials.mutable_data_ptr<double>();
    args.moments = moments.mutable_data_ptr<double>();
    if (kept > 0) {
      args.nearest = nearest.mutable_data_ptr();
      args.farthest = farthest.mutable_data_ptr();
    }
    sweep.each([&](const cuda::SweepArgs& part) {
      partials.zero_();
      cuda::launch_histogram(part, args, sweep.dtype, sweep.device, sweep.stream);
    });
  }
  if (kept > 0) {
    find_hardest(sweep, true, farthest, row_index, column_index, distances[0], pairs[0]);
    find_hardest(sweep, false, nearest, row_index, column_index, distances[1], pairs[1]);
  }
  return {counts, moments, distances, pairs};
}

Tensor verification_refine(const Tensor& rows, const Tensor& columns, const Tensor& genuine,
                           const Tensor& given, std::string_view metric, int64_t diagonal,
                           bool triangle, int64_t size) {
  const SweepOperands operands{"verification_refine", rows, columns, genuine, metric};
  check_sweep(operands);
  check_table(operands, given, size);
  const DeviceGuard guard(rows);
  const CudaSweep sweep(operands, diagonal, triangle);
  const Tensor table = given.contiguous(), counts = zeros({2, size}, rows);
  LaunchMemory memory;
  memory.reads(table, "table");
  memory.changes(counts, "counts");
  const cuda::TableArgs args{table.const_data_ptr<int64_t>(), counters_of(counts), size};
  sweep.each([&](const cuda::SweepArgs& part) {
    cuda::launch_table(part, args, sweep.dtype, sweep.device, sweep.stream);
  });
  return counts;
}

Tensor verification_select(const Tensor& rows, const Tensor& columns, const Tensor& genuine,
                           const Tensor& given_low, const Tensor& given_shift,
                           std::string_view metric, int64_t diagonal, bool triangle) {
  const SweepOperands operands{"verification_select", rows, columns, genuine, metric};
  check_sweep(operands);
  check_intervals(operands, given_low, given_shift);
  const DeviceGuard guard(rows);
  const CudaSweep sweep(operands, diagonal, triangle);
  const Tensor low = given_low.contiguous(), shift = given_shift.contiguous();
  const Tensor counts = zeros({2, low.numel(), math::kSelectBins}, rows);
  LaunchMemory memory;
  memory.reads(low, "low");
  memory.reads(shift, "shift");
  memory.changes(counts, "counts");
  const cuda::IntervalArgs args{low.const_data_ptr<int64_t>(), shift.const_data_ptr<int64_t>(),
                                low.numel(), counters_of(counts)};
  sweep.each([&](const cuda::SweepArgs& part) {
    cuda::launch_intervals(part, args, sweep.dtype, sweep.device, sweep.stream);
  });
  return counts;
}

std::tuple<Tensor, Tensor, Tensor> verification_ranks(const Tensor& rows, const Tensor& columns,
                                                      const Tensor& genuine,
                                                      std::string_view metric,
                                                      std::optional<int64_t> diagonal) {
  const SweepOperands operands{"verification_ranks", rows, columns, genuine, metric};
  check_sweep(operands);
  const DeviceGuard guard(rows);
  CudaSweep sweep(operands, 0, false);
  const Tensor mate = no_keys(rows.size(0), rows), impostor = no_keys(rows.size(0), rows);
  const Tensor within = zeros({rows.size(0)}, rows);
  LaunchMemory memory;
  memory.changes(mate, "mates");
  memory.changes(impostor, "impostors");
  memory.changes(within, "counts");
  cuda::RankArgs args{};
  args.mate = mate.mutable_data_ptr();
  args.impostor = impostor.mutable_data_ptr();
  args.within = counters_of(within);
  args.self = diagonal.value_or(kNobody);
  for (const bool mates : {true, false}) {
    sweep.args.genuine_only = args.mates = mates;
    sweep.each([&](const cuda::SweepArgs& part) {
      cuda::launch_ranks(part, args, sweep.dtype, sweep.device, sweep.stream);
    });
  }
  return {mate.view(rows.scalar_type()), impostor.view(rows.scalar_type()), within};
}

Tensor verification_bootstrap(const Tensor& rows, const Tensor& columns, const Tensor& genuine,
                              const Tensor& given_table, const Tensor& row_identity,
                              const Tensor& column_identity, const Tensor& given_drawn,
                              std::string_view metric, int64_t diagonal, bool triangle,
                              int64_t size) {
  const SweepOperands operands{"verification_bootstrap", rows, columns, genuine, metric};
  check_sweep(operands);
  check_drawn(operands, given_drawn);
  check_table(operands, given_table, size);
  TORCH_CHECK_VALUE(size <= 1 << 30, operands.name, ": size must be at most 2^30, got ", size);
  const DeviceGuard guard(rows);
  const CudaSweep sweep(operands, diagonal, triangle);
  const Tensor table = given_table.contiguous(), drawn = given_drawn.contiguous();
  const Tensor own = as_identities(operands, "row_identity", row_identity, rows, drawn);
  const Tensor others = as_identities(operands, "column_identity", column_identity, columns, drawn);
  const Tensor counts = zeros({2, size, math::kReplicates}, rows);
  LaunchMemory memory;
  memory.reads(table, "table");
  memory.reads(own, "identities of rows");
  memory.reads(others, "identities of columns");
  memory.reads(drawn, "drawn");
  memory.changes(counts, "counts");
  const cuda::BootstrapArgs args{table.const_data_ptr<int64_t>(),
                                 own.const_data_ptr<int32_t>(),
                                 others.const_data_ptr<int32_t>(),
                                 drawn.const_data_ptr<uint8_t>(),
                                 counters_of(counts),
                                 size};
  sweep.each([&](const cuda::SweepArgs& part) {
    cuda::launch_bootstrap(part, args, sweep.dtype, sweep.device, sweep.stream);
  });
  return counts;
}

SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, SIAM_CUDA_KEY, m) {
  m.impl("verification_histogram", verification_histogram);
  m.impl("verification_refine", verification_refine);
  m.impl("verification_select", verification_select);
  m.impl("verification_ranks", verification_ranks);
  m.impl("verification_bootstrap", verification_bootstrap);
}

}  // namespace
}  // namespace siamcuda::ops::verify
