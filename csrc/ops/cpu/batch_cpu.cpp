// The CPU entry point of the batch losses: classes, which kernels a batch takes, sums.
#include <ATen/Functions.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "ops/batch.h"
#include "ops/cpu/tiles_cpu.h"
#include "ops/rows.h"

namespace siamcuda::ops {

namespace {

// From so many rows on, computing every pair once pays for its rounds.
constexpr int64_t kMeetingRows = 1024;
// Distances of a group of anchors that are in memory together.
constexpr int64_t kGroupBytes = int64_t{24} << 20;
// Panels of anchors whose weights stay in the cache.
constexpr int64_t kGroupPanels = 32;
// Far below every column: no row meets itself.
constexpr int64_t kNobody = std::numeric_limits<int64_t>::min() / 2;
constexpr int64_t kWholeVectors = 16;

// --- classes -----------------------------------------------------------------------------------

struct Classes {
  std::vector<int32_t> row_class;     // [rows]; -1 where no column has the class
  std::vector<int32_t> column_class;  // [columns rounded up], -2 behind
  std::vector<int64_t> start;         // [classes + 1]
  std::vector<int64_t> members;       // [columns] by class, ascending
};

Classes classes_of(const at::Tensor& labels, const at::Tensor& ref_labels) {
  const at::Tensor own = labels.to(at::kLong).contiguous();
  const at::Tensor refs = ref_labels.defined() ? ref_labels.to(at::kLong).contiguous() : own;
  const int64_t rows = own.numel(), columns = refs.numel();
  const int64_t* const column_label = refs.const_data_ptr<int64_t>();
  const int64_t* const row_label = own.const_data_ptr<int64_t>();
  Classes result;
  result.column_class.assign(round_up(columns, kWholeVectors), -2);
  result.row_class.assign(rows, -1);
  std::vector<int64_t> distinct(column_label, column_label + columns);
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  const auto find = [&](int64_t label) -> int32_t {
    const auto at = std::lower_bound(distinct.begin(), distinct.end(), label);
    return at != distinct.end() && *at == label ? static_cast<int32_t>(at - distinct.begin()) : -1;
  };
  result.start.assign(distinct.size() + 1, 0);
  for (int64_t c = 0; c < columns; ++c) {
    result.column_class[c] = find(column_label[c]);
    ++result.start[result.column_class[c] + 1];
  }
  std::partial_sum(result.start.begin(), result.start.end(), result.start.begin());
  result.members.resize(columns);
  std::vector<int64_t> next(result.start.begin(), result.start.end());
  for (int64_t c = 0; c < columns; ++c) result.members[next[result.column_class[c]]++] = c;
  for (int64_t i = 0; i < rows; ++i) {
    result.row_class[i] = ref_labels.defined() ? find(row_label[i]) : result.column_class[i];
  }
  return result;
}

template <class C>
const C* upstream_of(const BatchPass& pass) {
  return pass.upstream.defined() ? pass.upstream.const_data_ptr<C>() : nullptr;
}

cpu::BatchStats add_up(const std::vector<cpu::BatchStats>& all) {
  cpu::BatchStats sum{};
  for (const cpu::BatchStats& one : all) {
    sum.valid += one.valid;
    sum.active += one.active;
    sum.collapsed += one.collapsed;
    sum.positives += one.positives;
    sum.negatives += one.negatives;
    sum.positive_distance += one.positive_distance;
    sum.negative_distance += one.negative_distance;
  }
  return sum;
}

double divisor_of(const BatchPass& pass, double terms, double active) {
  if (pass.divide_by < 0) return 1;
  return std::max(1.0, pass.divide_by == 0 ? terms : active);
}

// `done`: what the gradients have been divided by on the way.
void finish(BatchPass& pass, const cpu::BatchStats& sum, double share, double terms, double done) {
  const double active = share * static_cast<double>(sum.active);
  const double divisor = divisor_of(pass, terms, active);
  double total = 0;
  const double* values = pass.values.const_data_ptr<double>();
  for (int64_t i = 0; i < pass.values.numel(); ++i) total += values[i];
  pass.total = at::scalar_tensor(total / divisor, pass.values.options());
  pass.divided = pass.divide_by >= 0;
  if (done != divisor) pass.scale = at::scalar_tensor(done / divisor, pass.values.options());
  pass.counts = at::empty({5}, pass.values.options());
  double* counts = pass.counts.mutable_data_ptr<double>();
  counts[0] = terms;
  counts[1] = active;
  counts[2] = share * static_cast<double>(sum.collapsed);
  counts[3] = sum.positive_distance / std::max<double>(1, static_cast<double>(sum.positives));
  counts[4] = sum.negative_distance / std::max<double>(1, static_cast<double>(sum.negatives));
}

// --- pairs -------------------------------------------------------------------------------------

template <class C>
void run_pairs(const BatchLoss& loss, const BatchOptions& options, const BatchOperands& operands,
               BatchPass& pass) {
  const Level<C> level = active_level<C>();
  const bool joined = !operands.ref_embeddings.defined();
  // Pairs within a batch (or within the joined batch of all ranks) belong to both ends.
  const bool halved = joined || operands.self >= 0;
  at::Tensor kept[2];
  const cpu::Matrix x = matrix_of(operands.embeddings, kept[0]);
  const cpu::Matrix ref = joined ? x : matrix_of(operands.ref_embeddings, kept[1]);
  const Classes classes = classes_of(operands.labels, operands.ref_labels);
  const cpu::TileGeometry g = level.tile_geometry(x.columns);
  PairLevel<C> kernels;
  if constexpr (sizeof(C) == 4) {
    kernels = loss.pairs_float();
  } else {
    kernels = loss.pairs_double();
  }

  std::vector<cpu::BatchStats> stats(pass.want_stats ? round_up(x.rows, g.panel_rows) / g.panel_rows
                                                     : 0);
  std::vector<double> weight_sum(x.rows), other_weight_sum(joined ? 0 : ref.rows);
  cpu::PairTask<C> task{};
  task.x = x;
  task.ref = ref;
  task.row_class = classes.row_class.data();
  task.column_class = classes.column_class.data();
  task.self = joined ? 0 : operands.self >= 0 ? operands.self : kNobody;
  const int64_t met = std::max<int64_t>(halved ? ref.rows - 1 : ref.rows, 0);
  task.share = halved ? 0.5 : 1.0;
  const double terms = task.share * static_cast<double>(x.rows * met);
  const double divisor = pass.divide_by == 0 ? divisor_of(pass, terms, 0) : 1.0;
  task.weight_share = task.share / divisor;
  task.row_factor = 1;
  task.column_factor = joined ? 1 : 0;
  task.row_upstream = upstream_of<C>(pass);
  task.column_upstream = joined ? upstream_of<C>(pass) : nullptr;
  task.values = pass.values.mutable_data_ptr<double>();
  task.weight_sum = weight_sum.data();
  task.want_stats = pass.want_stats;
  task.stats = pass.want_stats ? stats.data() : nullptr;
  const auto gradient = [&](int side) -> C* {
    if (!pass.gradients[side]) return nullptr;
    return static_cast<C*>(pass.gradient[side].mutable_data_ptr());
  };
  task.gradient = gradient(0);

  // A row at a time where every anchor's own value is wanted, or where rounds don't pay; but the
  // other end's gradient takes meetings.
  const bool rows = pass.each_value || (joined ? x.rows < kMeetingRows : !pass.gradients[1]);
  if (rows) {
    each_chunk(level, task, [&](const cpu::PairTask<C>& part, int64_t begin, int64_t end) {
      kernels.rows(part, options.params, begin, end);
    });
  }
  if (!rows || pass.gradients[1]) {
    std::vector<double> ignored(rows ? x.rows : 0);
    cpu::PairMeetings<C> meetings{};
    meetings.pairs = task;
    if (rows) {  // all but the other end's gradient is there
      meetings.pairs.values = ignored.data();
      meetings.pairs.gradient = nullptr;
      meetings.pairs.stats = nullptr;
      meetings.pairs.want_stats = false;
    }
    cpu::Meetings<C>& all = meetings.meetings;
    all.side[0] = {x, {}, meetings.pairs.gradient, weight_sum.data()};
    all.side[1] =
        joined ? all.side[0] : cpu::MeetingSide<C>{ref, {}, gradient(1), other_weight_sum.data()};
    all.joined = joined;
    all.squares = loss.formula(options.params).squares;
    all.isolated = true;
    std::fill_n(meetings.pairs.values, x.rows, 0.0);
    for (int side = 0; side < 2; ++side) {
      if (pass.gradients[side] && !(rows && side == 0)) pass.gradient[side].zero_();
    }
    play(level, all, [&](const cpu::Meetings<C>& now, int64_t begin, int64_t end) {
      kernels.meetings({now, meetings.pairs}, options.params, begin, end);
    });
    at::parallel_for(0, x.rows, 256, [&](int64_t begin, int64_t end) {
      level.spoil_anchors(meetings.pairs, begin, end);
    });
  }
  finish(pass, add_up(stats), task.share, terms, divisor);
}

// --- triplets ------------------------------------------------------------------------------------

// What mined pairs give to their anchors, to their columns, or to both ends, which are rows of one
// batch then.
template <class C>
void scatter_picks(const Level<C>& level, const cpu::TripletTask<C>& task, bool anchors,
                   bool columns, C* gradient) {
  const int64_t rows = task.x.rows, owners = anchors ? rows : task.ref.rows;
  std::vector<int64_t> start(owners + 2, 0);
  const auto each = [&](const auto& visit) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int end = 0; end < 2; ++end) {
        const int64_t column = task.picked[2 * i + end];
        if (column < 0) continue;
        const C weight = task.picked_weight[2 * i + end];
        if (anchors) visit(i, column, weight);
        if (columns) visit(column, i, weight);
      }
    }
  };
  each([&](int64_t owner, int64_t, C) { ++start[owner + 1]; });
  std::partial_sum(start.begin(), start.end(), start.begin());
  std::vector<cpu::Pick<C>> entries(start.back());
  std::vector<int64_t> next(start.begin(), start.end());
  each([&](int64_t owner, int64_t other, C weight) { entries[next[owner]++] = {other, weight}; });
  at::parallel_for(0, owners, 64, [&](int64_t begin, int64_t end) {
    level.add_picks(task, start.data(), entries.data(), anchors, gradient, begin, end);
  });
}

// Rows of a group that mines with others, or 0 where anchors are better mined one by one: in small
// batches, and in those so large that the results of many groups would take too much memory.
template <class C>
int64_t mined_group(int64_t rows) {
  constexpr int64_t kUnit = 96, kMostGroups = 16, kBytes = int64_t{32} << 20;
  const int64_t row_bytes = 2 * sizeof(cpu::Best<C>) * std::max<int64_t>(rows, 1);
  const int64_t groups = std::min(kMostGroups, kBytes / row_bytes);
  if (rows < 4 * kUnit || groups < kMostGroups / 2) return 0;
  return round_up((rows + groups - 1) / groups, kUnit);
}

template <class C>
void run_triplets(const BatchOptions& options, const BatchOperands& operands, BatchPass& pass) {
  const Level<C> level = active_level<C>();
  const bool joined = !operands.ref_embeddings.defined();
  at::Tensor kept[2];
  const cpu::Matrix x = matrix_of(operands.embeddings, kept[0]);
  const cpu::Matrix ref = joined ? x : matrix_of(operands.ref_embeddings, kept[1]);
  const Classes classes = classes_of(operands.labels, operands.ref_labels);
  const cpu::TileGeometry g = level.tile_geometry(x.columns);
  PackedColumns<C> columns(g, x.columns, ref.rows, ref.dtype);
  columns.fill(level, g, ref, 0, ref.rows);

  std::vector<cpu::BatchStats> stats(x.rows);
  std::vector<uint8_t> finite(x.rows);
  cpu::TripletTask<C> task{};
  task.x = x;
  task.ref = ref;
  task.refs = columns.packed;
  task.self = joined ? 0 : operands.self >= 0 ? operands.self : kNobody;
  task.row_class = classes.row_class.data();
  task.row_group = classes.row_class.data();
  task.column_class = classes.column_class.data();
  task.group_start = classes.start.data();
  task.members = classes.members.data();
  task.mining = options.mining;
  task.params = *static_cast<const math::TripletLoss::Params*>(options.params);
  task.upstream = upstream_of<C>(pass);
  task.values = pass.values.mutable_data_ptr<double>();
  task.stats = stats.data();
  task.finite_rows = finite.data();
  task.row_step = round_up(ref.rows, kWholeVectors);
  const bool backward = pass.gradients[0] || pass.gradients[1];
  task.weights_wanted = backward;
  for (int side = 0; side < 2; ++side) {
    if (!pass.gradients[side]) continue;
    pass.gradient[side].zero_();
    (side == 0 ? task.anchor_gradient : task.column_gradient) =
        static_cast<C*>(pass.gradient[side].mutable_data_ptr());
  }
  if (joined) task.column_gradient = task.anchor_gradient;

  const bool dense = options.mining == Mining::kAll || options.mining == Mining::kSemihard;
  std::vector<int64_t> picked(dense ? 0 : 2 * x.rows);
  std::vector<C> picked_weight(dense ? 0 : 2 * x.rows);
  task.picked = dense ? nullptr : picked.data();
  task.picked_weight = dense ? nullptr : picked_weight.data();
  const int64_t panels = round_up(x.rows, g.panel_rows) / g.panel_rows;
  // Once every anchor is mined, before there are gradients, what they are divided by is known.
  double divisor = 1;
  const auto divide_by = [&](const std::vector<cpu::BatchStats>& mined) {
    const cpu::BatchStats sum = add_up(mined);
    return divisor_of(pass, static_cast<double>(sum.valid), static_cast<double>(sum.active));
  };
  task.factor = 2;

  if (!dense || !backward) {
    task.group_count = x.rows;
    const int64_t group = joined && !dense ? mined_group<C>(x.rows) : 0;
    if (group != 0) {
      cpu::MinedTask<C> mined{task, group, round_up(x.rows, group) / group, nullptr};
      Buffer<cpu::Best<C>> best(2 * mined.groups * x.rows);
      mined.best = best.data();
      share_out(mined.groups * (mined.groups + 1) / 2, 1,
                [&](int64_t begin, int64_t end) { level.mine_groups(mined, begin, end); });
      at::parallel_for(0, x.rows, 256,
                       [&](int64_t begin, int64_t end) { level.finish_mined(mined, begin, end); });
    } else {
      at::parallel_for(0, panels, grain_of(g, x.columns, ref.rows),
                       [&](int64_t begin, int64_t end) { level.anchor_rows(task, begin, end); });
    }
    if (backward && !dense) {
      divisor = divide_by(stats);
      for (C& weight : picked_weight) weight *= static_cast<C>(1 / divisor);
    }
    if (backward && task.anchor_gradient) {
      scatter_picks(level, task, true, joined, task.anchor_gradient);
    }
    if (backward && task.column_gradient && !joined) {
      scatter_picks(level, task, false, true, task.column_gradient);
    }
  } else {
    const int64_t per_row = task.row_step * (sizeof(C) + 1);
    const int64_t fit = kGroupBytes / std::max<int64_t>(per_row, 1) / g.panel_rows * g.panel_rows;
    const int64_t rows = round_up(x.rows, g.panel_rows);
    task.whole = joined && rows <= fit;
    const int64_t group =
        task.whole
            ? rows
            : std::min(rows, std::clamp<int64_t>(fit, g.panel_rows, kGroupPanels * g.panel_rows));
    Buffer<C> weights(group * task.row_step + kWholeVectors);
    Buffer<C> group_rows(task.whole ? 0 : group * g.padded);
    Buffer<uint8_t> flags(group * task.row_step);
    task.weights = weights.data();
    task.flags = flags.data();
    task.group_rows = task.whole ? nullptr : group_rows.data();
    const int64_t column_panels = round_up(ref.rows, g.panel_rows) / g.panel_rows;
    for (int64_t first = 0; first < x.rows; first += group) {
      task.group_first = first;
      task.group_count = std::min(group, x.rows - first);
      at::parallel_for(0, round_up(task.group_count, g.panel_rows) / g.panel_rows,
                       grain_of(g, x.columns, ref.rows),
                       [&](int64_t begin, int64_t end) { level.anchor_rows(task, begin, end); });
      if (task.whole) {
        divisor = divide_by(stats);
        task.factor = 2 / divisor;
      }
      if (task.anchor_gradient) {
        at::parallel_for(0, round_up(task.group_count, g.panel_rows) / g.panel_rows,
                         grain_of(g, x.columns, ref.rows), [&](int64_t begin, int64_t end) {
                           level.anchor_gradients(task, begin, end);
                         });
      }
      if (!task.column_gradient || task.whole) continue;
      at::parallel_for(0, column_panels, grain_of(g, x.columns, task.group_count),
                       [&](int64_t begin, int64_t end) { level.column_rows(task, begin, end); });
    }
  }
  const cpu::BatchStats sum = add_up(stats);
  finish(pass, sum, 1.0, static_cast<double>(sum.valid), divisor);
}

void run_cpu(const BatchLoss& loss, const BatchOptions& options, const BatchOperands& operands,
             BatchPass& pass) {
  const at::Tensor& x = operands.embeddings;
  const at::ScalarType type = compute_type(x.scalar_type());
  pass.values = at::empty({x.size(0)}, x.options().dtype(at::kDouble));
  for (int side = 0; side < 2; ++side) {
    if (!pass.gradients[side]) continue;
    const at::Tensor& of = side == 0 ? x : operands.ref_embeddings;
    pass.gradient[side] = at::empty(of.sizes(), of.options().dtype(type));
  }
  if (loss.pairs_float) {
    type == at::kDouble ? run_pairs<double>(loss, options, operands, pass)
                        : run_pairs<float>(loss, options, operands, pass);
  } else {
    type == at::kDouble ? run_triplets<double>(options, operands, pass)
                        : run_triplets<float>(options, operands, pass);
  }
}

}  // namespace

const BatchBackend& cpu_batch_backend() {
  static const BatchBackend backend{run_cpu};
  return backend;
}

}  // namespace siamcuda::ops
