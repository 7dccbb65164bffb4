// The CPU entry points that count distances: the first pass over all pairs, and finer ones.
#include "ops/cpu/verify_cpu.h"

#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "cpu/verify.h"
#include "ops/loss_op.h"
#include "ops/verify.h"

namespace siamcuda::ops::verify {
namespace {

// --- the first pass ------------------------------------------------------------------------------

template <class C>
struct HistogramState {
  static constexpr int64_t kStep = cpu::kTopKeys + 1;
  static constexpr int kTables = 1 + cpu::HistogramSink<C>::kCopies;
  Counters<uint32_t> counters{kTables * kStep};
  std::vector<cpu::HardPair<C>> hard[2];
  cpu::HistogramSink<C> sink{};

  explicit HistogramState(int64_t hardest) {
    sink.genuine = counters.counts.data();
    sink.impostor = sink.genuine + kStep;
    for (int kind = 0; kind < 2; ++kind) {
      hard[kind].resize(hardest);
      sink.hard[kind] = {hard[kind].data(), 0, hardest};
    }
  }
};

template <class C>
void histogram(Sweep<C>& sweep, const at::Tensor& row_index, const at::Tensor& column_index,
               int64_t hardest, at::Tensor& counts, at::Tensor& moments, at::Tensor& distances,
               at::Tensor& pairs) {
  using State = HistogramState<C>;
  const VerifyLevel<C> level = verify_level<C>();
  const at::Tensor rows = row_index.contiguous(), columns = column_index.contiguous();
  std::vector<double> sums(sweep.panels() * 4);
  std::vector<int64_t> total(State::kTables * State::kStep);
  std::mutex mutex;
  Pool<State> pool;
  sweep.each([&](const cpu::SweepTask<C>& task, int64_t begin, int64_t end, int64_t most) {
    pool.with(
        [&] {
          auto state = std::make_unique<State>(hardest);
          state->sink.sums = sums.data();
          state->sink.row_index = rows.const_data_ptr<int64_t>();
          state->sink.column_index = columns.const_data_ptr<int64_t>();
          return state;
        },
        [&](State& state) {
          state.counters.reserve(most, total.data(), mutex);
          level.histogram(task, state.sink, begin, end);
        });
  });
  for (const auto& state : pool.all()) state->counters.flush(total.data(), mutex);

  int64_t* const out = counts.mutable_data_ptr<int64_t>();
  for (int table = 0; table < State::kTables; ++table) {
    for (int64_t k = 0; k < State::kStep; ++k) {
      out[(table > 0) * State::kStep + k] += total[table * State::kStep + k];
    }
  }
  double* const moment = moments.mutable_data_ptr<double>();
  for (size_t at = 0; at < sums.size(); ++at) moment[at % 4] += sums[at];
  C* const value = distances.mutable_data_ptr<C>();
  int64_t* const index = pairs.mutable_data_ptr<int64_t>();
  for (int kind = 0; kind < 2; ++kind) {
    std::vector<cpu::HardPair<C>> found;
    for (const auto& state : pool.all()) {
      const cpu::HardPairs<C>& kept = state->sink.hard[kind];
      found.insert(found.end(), kept.heap, kept.heap + kept.count);
    }
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
      return std::tie(a.value, a.i, a.j) < std::tie(b.value, b.i, b.j);
    });
    for (int64_t k = 0; k < hardest; ++k) {
      const int64_t at = kind * hardest + k;
      const bool there = k < static_cast<int64_t>(found.size());
      value[at] = !there      ? std::numeric_limits<C>::quiet_NaN()
                  : kind == 0 ? -found[k].value
                              : found[k].value;
      index[2 * at] = there ? found[k].i : -1;
      index[2 * at + 1] = there ? found[k].j : -1;
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> verification_histogram(
    const at::Tensor& rows, const at::Tensor& columns, const at::Tensor& genuine,
    const at::Tensor& row_index, const at::Tensor& column_index, std::string_view metric,
    int64_t diagonal, bool triangle, int64_t hardest) {
  const SweepOperands operands{"verification_histogram", rows, columns, genuine, metric};
  check_sweep(operands);
  check_indices(operands, "row_index", row_index, {rows.size(0)});
  check_indices(operands, "column_index", column_index, {columns.size(0)});
  TORCH_CHECK_VALUE(hardest >= 0, operands.name, ": hardest must be at least 0, got ", hardest);
  at::Tensor counts = zeros({2, cpu::kTopKeys + 1});
  at::Tensor moments = at::zeros({2, 2}, at::kDouble);
  at::Tensor distances = at::empty({2, hardest}, rows.options());
  at::Tensor pairs = zeros({2, hardest, 2});
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "verification", [&] {
    Sweep<scalar_t> sweep(operands, diagonal, triangle);
    histogram(sweep, row_index, column_index, hardest, counts, moments, distances, pairs);
  });
  return {counts, moments, distances, pairs};
}

// --- finer counts --------------------------------------------------------------------------------

template <class Sink>
struct CountState {
  Counters<uint32_t> counters;
  Sink sink;

  CountState(const Sink& model, int64_t size) : counters(2 * size), sink(model) {
    for (int kind = 0; kind < 2; ++kind) sink.counts[kind] = counters.counts.data() + kind * size;
  }
};

// counts [2, size] of both kinds by a sink that counts them.
template <class C, class Sink, class Kernel>
void count(Sweep<C>& sweep, const Sink& model, const Kernel& kernel, int64_t size, int64_t* total) {
  using State = CountState<Sink>;
  std::mutex mutex;
  Pool<State> pool;
  sweep.each([&](const cpu::SweepTask<C>& task, int64_t begin, int64_t end, int64_t most) {
    pool.with([&] { return std::make_unique<State>(model, size); },
              [&](State& state) {
                state.counters.reserve(most, total, mutex);
                kernel(task, state.sink, begin, end);
              });
  });
  for (const auto& state : pool.all()) state->counters.flush(total, mutex);
}

at::Tensor verification_refine(const at::Tensor& rows, const at::Tensor& columns,
                               const at::Tensor& genuine, const at::Tensor& given,
                               std::string_view metric, int64_t diagonal, bool triangle,
                               int64_t size) {
  const SweepOperands operands{"verification_refine", rows, columns, genuine, metric};
  check_sweep(operands);
  const at::Tensor table = given.contiguous();
  at::Tensor counts = zeros({2, size});
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "verification", [&] {
    check_table(operands, table, size);
    Sweep<scalar_t> sweep(operands, diagonal, triangle);
    const cpu::TableSink sink{table.const_data_ptr<int64_t>(), {}};
    count(sweep, sink, verify_level<scalar_t>().table, size, counts.mutable_data_ptr<int64_t>());
  });
  return counts;
}

at::Tensor verification_select(const at::Tensor& rows, const at::Tensor& columns,
                               const at::Tensor& genuine, const at::Tensor& given_low,
                               const at::Tensor& given_shift, std::string_view metric,
                               int64_t diagonal, bool triangle) {
  const SweepOperands operands{"verification_select", rows, columns, genuine, metric};
  check_sweep(operands);
  const int64_t intervals = given_low.numel();
  check_intervals(operands, given_low, given_shift);
  const at::Tensor low = given_low.contiguous(), shift = given_shift.contiguous();
  at::Tensor counts = zeros({2, intervals, cpu::kSelectBins});
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "verification", [&] {
    Sweep<scalar_t> sweep(operands, diagonal, triangle);
    const auto* const lowest = reinterpret_cast<const uint64_t*>(low.const_data_ptr<int64_t>());
    const cpu::SelectSink sink{lowest, shift.const_data_ptr<int64_t>(), intervals, {}};
    count(sweep, sink, verify_level<scalar_t>().select, intervals * cpu::kSelectBins,
          counts.mutable_data_ptr<int64_t>());
  });
  return counts;
}

SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, CPU, m) {
  m.impl("verification_histogram", verification_histogram);
  m.impl("verification_refine", verification_refine);
  m.impl("verification_select", verification_select);
}

}  // namespace
}  // namespace siamcuda::ops::verify
