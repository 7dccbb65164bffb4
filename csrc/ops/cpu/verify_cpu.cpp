// The CPU entry points of the verification operators.
//
// Threads take groups of panels of rows; each counts into memory of its own, as integers, so no
// result depends on who counted what. Sums of doubles belong to a panel and are added in its order.
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/verify.h"
#include "ops/cpu/tiles_cpu.h"
#include "ops/loss_op.h"
#include "ops/verify.h"

namespace siamcuda::ops {
namespace {

template <class C>
struct VerifyLevel {
  decltype(&cpu::generic::sweep_histogram<C>) histogram;
  decltype(&cpu::generic::sweep_table<C>) table;
  decltype(&cpu::generic::sweep_select<C>) select;
  decltype(&cpu::generic::sweep_mates<C>) mates;
  decltype(&cpu::generic::sweep_ranks<C>) ranks;
  decltype(&cpu::generic::sweep_bootstrap<C>) bootstrap;
};

#define SIAM_LEVEL_FUNCTIONS(level)                                                         \
  {cpu::level::sweep_histogram<C>, cpu::level::sweep_table<C>, cpu::level::sweep_select<C>, \
   cpu::level::sweep_mates<C>,     cpu::level::sweep_ranks<C>, cpu::level::sweep_bootstrap<C>}
template <class C>
VerifyLevel<C> verify_level() {
#if defined(__x86_64__)
  const cpu::Level level = checked_level();
  if (level == cpu::Level::kAvx512) return SIAM_LEVEL_FUNCTIONS(avx512);
  if (level == cpu::Level::kAvx2) return SIAM_LEVEL_FUNCTIONS(avx2);
#endif
  return SIAM_LEVEL_FUNCTIONS(generic);
}
#undef SIAM_LEVEL_FUNCTIONS

// What threads count into, each piece by one thread at a time.
template <class State>
class Pool {
 public:
  template <class Make, class Use>
  void with(const Make& make, const Use& use) {
    std::unique_ptr<State> state;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!idle_.empty()) {
        state = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    if (!state) state = make();
    use(*state);
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(state));
  }
  std::vector<std::unique_ptr<State>>& all() { return idle_; }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<State>> idle_;
};

// The most pairs that a counter of 32 bits may have seen.
constexpr int64_t kMostPending = int64_t{1} << 31;

// 32-bit counters of one thread, added to 64-bit ones before they can be full.
template <class Count>
struct Counters {
  std::vector<Count> counts;
  int64_t pending = 0;

  explicit Counters(int64_t size) : counts(size) {}
  // Before what may add this much to one counter.
  void reserve(int64_t most, int64_t* total, std::mutex& mutex) {
    if (pending + most >= kMostPending) flush(total, mutex);
    pending += most;
  }
  void flush(int64_t* total, std::mutex& mutex) {
    const std::lock_guard<std::mutex> lock(mutex);
    for (size_t k = 0; k < counts.size(); ++k) total[k] += counts[k];
    std::fill(counts.begin(), counts.end(), Count(0));
    pending = 0;
  }
};

// Operands as the kernels read them, and the loop over chunks of columns and groups of panels.
template <class C>
class Sweep {
 public:
  Sweep(const SweepOperands& o, int64_t diagonal, bool triangle)
      : level_(active_level<C>()), genuine_(o.genuine.contiguous()) {
    task.x = matrix_of(o.rows, kept_[0]);
    task.ref = matrix_of(o.columns, kept_[1]);
    task.metric = parse_metric(o.name, o.metric);
    task.genuine = genuine_.template const_data_ptr<int64_t>();
    task.diagonal = diagonal;
    task.triangle = triangle;
    for (int64_t i = 0; i < task.x.rows; ++i) {
      const int64_t low = task.genuine[2 * i], high = task.genuine[2 * i + 1];
      TORCH_CHECK_VALUE(0 <= low && low <= high && high <= task.ref.rows, o.name,
                        ": genuine must hold ranges within the ", task.ref.rows, " columns, got [",
                        low, ", ", high, ") for row ", i);
    }
  }

  int64_t panels() const {
    const int64_t unit = level_.tile_geometry(task.x.columns).panel_rows;
    return round_up(task.x.rows, unit) / unit;
  }

  // run(task, begin, end, pairs): groups [begin, end), which hold at most `pairs`.
  template <class Run>
  void each(const Run& run) {
    const cpu::TileGeometry g = level_.tile_geometry(task.x.columns);
    const int64_t capacity = chunk_rows<C>(g, task.ref, kChunkBytes, g.block);
    PackedColumns<C> chunk(g, task.x.columns, capacity, task.ref.dtype);
    // Panels that share a block of columns while it is in the cache; fewer where there would not be
    // enough groups for all threads.
    task.group = std::clamp<int64_t>(panels() / (4 * at::get_num_threads()), 1, 8);
    const int64_t groups = round_up(panels(), task.group) / task.group;
    for (int64_t first = 0; first < task.ref.rows; first += capacity) {
      const int64_t count = std::min(capacity, task.ref.rows - first);
      chunk.fill(level_, g, task.ref, first, count);
      task.chunk = chunk.packed;
      const uint8_t* const finite = task.chunk.finite;
      task.all_finite = std::find(finite, finite + count, 0) == finite + count;
      share_out(groups, 1, [&](int64_t begin, int64_t end) {
        run(task, begin, end, (end - begin) * task.group * g.panel_rows * count);
      });
    }
  }

  cpu::SweepTask<C> task{};

 private:
  Level<C> level_;
  at::Tensor kept_[2], genuine_;
};

at::Tensor zeros(at::IntArrayRef sizes) { return at::zeros(sizes, at::kLong); }

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
  check_indices(operands.name, "row_index", row_index, {rows.size(0)});
  check_indices(operands.name, "column_index", column_index, {columns.size(0)});
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

// Every part of a table must be one of `size` bins.
template <class C>
void check_table(const char* name, const at::Tensor& table, int64_t size) {
  check_indices(name, "table", table, {cpu::kTopKeys});
  const int64_t* const entry = table.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < cpu::kTopKeys; ++k) {
    const int64_t base = entry[k] >> 6, drop = entry[k] & 63;
    const int64_t parts = drop < cpu::kTableBits<C> ? int64_t{1} << (cpu::kTableBits<C> - drop) : 1;
    TORCH_CHECK_VALUE(base >= 0 && base <= size - parts, name, ": table must hold bins below ",
                      size, ", got ", base, " and ", parts - 1, " more for key ", k);
  }
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
    check_table<scalar_t>(operands.name, table, size);
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
  check_indices(operands.name, "low", given_low, {intervals});
  check_indices(operands.name, "shift", given_shift, {intervals});
  const at::Tensor low = given_low.contiguous(), shift = given_shift.contiguous();
  for (int64_t p = 0; p < intervals; ++p) {
    const int64_t by = shift.const_data_ptr<int64_t>()[p];
    const int64_t most = rows.scalar_type() == at::kDouble ? 47 : 15;
    TORCH_CHECK_VALUE(0 <= by && by < most, operands.name, ": shift must lie in [0, ", most,
                      "), got ", by);
  }
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

// --- identification ------------------------------------------------------------------------------

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

// --- bootstrap -----------------------------------------------------------------------------------

at::Tensor as_identities(const char* name, const char* what, const at::Tensor& t, int64_t rows,
                         int64_t identities) {
  check_indices(name, what, t, {rows});
  TORCH_CHECK_VALUE(
      rows == 0 || (t.min().item<int64_t>() >= 0 && t.max().item<int64_t>() < identities), name,
      ": ", what, " must lie in [0, ", identities, ")");
  return t.to(at::kInt).contiguous();
}

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
  TORCH_CHECK_TYPE(given_drawn.scalar_type() == at::kByte, operands.name,
                   ": drawn must be uint8, got ", describe(given_drawn));
  TORCH_CHECK_VALUE(
      given_drawn.dim() == 2 && given_drawn.size(1) == cpu::BootstrapSink::kReplicates,
      operands.name, ": drawn must have shape (identities, ", cpu::BootstrapSink::kReplicates,
      "), got ", describe(given_drawn));
  const at::Tensor table = given_table.contiguous(), drawn = given_drawn.contiguous();
  const int64_t identities = drawn.size(0);
  const at::Tensor own =
      as_identities(operands.name, "row_identity", row_identity, rows.size(0), identities);
  const at::Tensor others =
      as_identities(operands.name, "column_identity", column_identity, columns.size(0), identities);
  const int64_t often = identities > 0 ? drawn.max().item<int64_t>() : 0;
  at::Tensor counts = zeros({2, size, cpu::BootstrapSink::kReplicates});
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "verification", [&] {
    check_table<scalar_t>(operands.name, table, size);
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
  m.impl("verification_histogram", verification_histogram);
  m.impl("verification_refine", verification_refine);
  m.impl("verification_select", verification_select);
  m.impl("verification_ranks", verification_ranks);
  m.impl("verification_bootstrap", verification_bootstrap);
}

}  // namespace
}  // namespace siamcuda::ops
