// What the CPU's verification operators share: threads that count all pairs of rows and columns.
//
// Threads take groups of panels of rows; each counts into memory of its own, as integers, so no
// result depends on who counted what. Sums of doubles belong to a panel and are added in its order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/verify.h"
#include "ops/cpu/tiles_cpu.h"
#include "ops/verify.h"

namespace siamcuda::ops::verify {

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
  SIAM_RETURN_AT_LEVEL(SIAM_LEVEL_FUNCTIONS)
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
    check_ranges(o);
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

inline at::Tensor zeros(at::IntArrayRef sizes) { return at::zeros(sizes, at::kLong); }

}  // namespace siamcuda::ops::verify
