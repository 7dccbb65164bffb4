// The CPU entry point of the batch losses: classes, packing, threads over panels, sums.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <vector>

#include "cpu/dispatch.h"
#include "ops/batch.h"
#include "ops/cdist.h"
#include "ops/cpu/level.h"
#include "ops/rows.h"
#include "ops/tensors.h"

namespace siamcuda::ops {

namespace {

// Columns packed at a time by a loss over pairs: what a batch of any size may take.
constexpr int64_t kChunkBytes = int64_t{24} << 20;
// Weights of meetings that are in memory together.
constexpr int64_t kMeetingBytes = int64_t{8} << 20;
// From so many rows on, computing every pair once pays for its rounds.
constexpr int64_t kMeetingRows = 1024;
// Distances of a group of anchors that are in memory together.
constexpr int64_t kGroupBytes = int64_t{24} << 20;
// Panels of anchors whose weights stay in the cache.
constexpr int64_t kGroupPanels = 32;
// Far below every column: no row meets itself.
constexpr int64_t kNobody = std::numeric_limits<int64_t>::min() / 2;
constexpr int64_t kWholeVectors = 16;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(
            ::operator new(std::max<int64_t>(count, 1) * sizeof(T), std::align_val_t{64}))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

// A tensor [rows, columns] as the kernels read it; `kept` holds the copy, if one was needed.
cpu::Matrix matrix_of(const at::Tensor& t, at::Tensor& kept) {
  kept = t.size(1) > 1 && t.stride(1) != 1 ? t.contiguous() : t;
  return {kept.const_data_ptr(), t.size(0), t.size(1), kept.stride(0), dtype_of(t.scalar_type())};
}

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

// --- packing -----------------------------------------------------------------------------------

template <class C>
struct PackedColumns {
  Buffer<C> panels, norms;
  // A copy of the rows, unless the tensor's own have the right type and step and are all finite.
  std::optional<Buffer<C>> rows;
  int64_t rows_size;
  Buffer<uint8_t> finite;
  Buffer<uint32_t> pairs;
  const bool paired;
  cpu::Packed<C> packed;

  PackedColumns(const cpu::TileGeometry& g, int64_t columns, int64_t capacity, DType dtype)
      : panels(round_up(capacity, g.panel_columns) * columns),
        norms(round_up(capacity, g.panel_columns)),
        rows_size(round_up(capacity, g.panel_columns) * g.padded),
        finite(round_up(capacity, g.panel_columns)),
        pairs(makes_pairs(dtype) ? round_up(capacity, g.panel_columns) * ((columns + 1) / 2) : 0),
        paired(makes_pairs(dtype)) {}

  static bool makes_pairs(DType dtype) {
    return sizeof(C) == 4 && dtype == DType::kBFloat16 && cpu::multiplies_bfloat16(checked_level());
  }

  void fill(const Level<C>& level, const cpu::TileGeometry& g, const cpu::Matrix& m, int64_t first,
            int64_t count) {
    const bool same = m.dtype == (sizeof(C) == 8 ? DType::kFloat64 : DType::kFloat32) &&
                      m.columns == g.padded && (m.step == m.columns || count == 1);
    pack(level, g, m, first, count, same);
    if (same && std::find(packed.finite, packed.finite + count, 0) != packed.finite + count) {
      pack(level, g, m, first, count, false);
    }
  }

 private:
  void pack(const Level<C>& level, const cpu::TileGeometry& g, const cpu::Matrix& m, int64_t first,
            int64_t count, bool borrow) {
    if (!borrow && !rows) rows.emplace(rows_size);
    packed = {first,
              count,
              panels.data(),
              borrow ? nullptr : rows->data(),
              borrow ? static_cast<const C*>(m.data) + first * m.step : rows->data(),
              norms.data(),
              finite.data(),
              paired ? pairs.data() : nullptr};
    const int64_t panels_of = round_up(count, g.panel_columns) / g.panel_columns;
    at::parallel_for(0, panels_of, 16, [&](int64_t begin, int64_t end) {
      level.pack_columns(m, g, packed, begin, end);
    });
  }
};

// Panels for each thread to be worth starting, by the work of one.
int64_t grain_of(const cpu::TileGeometry& g, int64_t columns, int64_t others) {
  const int64_t work = g.panel_rows * std::max<int64_t>(columns, 1) * std::max<int64_t>(others, 1);
  return std::max<int64_t>(1, (int64_t{1} << 20) / work);
}

// Units of work in shares, one a thread, `grain` units at a time; who is done early helps the next.
// The same share of two lists goes to the same thread, which has in its cache what it wrote. For
// units of uneven size, whose results don't depend on who does them.
template <class Run>
void share_out(int64_t count, int64_t grain, const Run& run) {
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const int64_t workers =
      std::clamp<int64_t>((count + grain - 1) / grain, 1, at::get_num_threads());
  std::vector<Share> shares(workers);
  for (int64_t w = 0; w < workers; ++w) {
    shares[w].next = count * w / workers;
    shares[w].end = count * (w + 1) / workers;
  }
  at::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t w = first; w < last; ++w) {
      for (int64_t k = 0; k < workers; ++k) {
        Share& share = shares[(w + k) % workers];
        for (int64_t begin; (begin = share.next.fetch_add(grain)) < share.end;) {
          run(begin, std::min(begin + grain, share.end));
        }
      }
    }
  });
}

// Rows of a chunk of at most `bytes`, in whole `unit`s.
template <class C>
int64_t chunk_rows(const cpu::TileGeometry& g, const cpu::Matrix& m, int64_t bytes, int64_t unit) {
  const int64_t row = sizeof(C) * (g.padded + m.columns + 1);
  return std::min<int64_t>(std::max<int64_t>(bytes / row / unit, 1) * unit,
                           std::max<int64_t>(m.rows, 1));
}

// Runs a task for every chunk of its columns, each over all panels of its rows.
template <class C, class Task, class Run>
void each_chunk(const Level<C>& level, const Task& whole, const Run& run) {
  const cpu::Matrix &x = whole.x, &ref = whole.ref;
  const cpu::TileGeometry g = level.tile_geometry(x.columns);
  const int64_t capacity = chunk_rows<C>(g, ref, kChunkBytes, g.block);
  PackedColumns<C> chunk(g, x.columns, capacity, ref.dtype);
  const int64_t panels = round_up(x.rows, g.panel_rows) / g.panel_rows;
  for (int64_t first = 0; first < std::max<int64_t>(ref.rows, 1); first += capacity) {
    const int64_t count = std::min(capacity, ref.rows - first);
    chunk.fill(level, g, ref, first, count);
    Task task = whole;
    task.chunk = chunk.packed;
    task.first_chunk = first == 0;
    task.last_chunk = first + capacity >= ref.rows;
    at::parallel_for(0, panels, grain_of(g, x.columns, count),
                     [&](int64_t begin, int64_t end) { run(task, begin, end); });
  }
}

template <class C>
const C* upstream_of(const BatchPass& pass) {
  return pass.upstream.defined() ? pass.upstream.const_data_ptr<C>() : nullptr;
}

void finish(BatchPass& pass, const std::vector<cpu::BatchStats>& all, double share, double valid) {
  double total = 0;
  const double* values = pass.values.const_data_ptr<double>();
  for (int64_t i = 0; i < pass.values.numel(); ++i) total += values[i];
  pass.total = at::scalar_tensor(total, pass.values.options());
  cpu::BatchStats sum{};
  for (const cpu::BatchStats& one : all) {
    sum.active += one.active;
    sum.collapsed += one.collapsed;
    sum.positives += one.positives;
    sum.negatives += one.negatives;
    sum.positive_distance += one.positive_distance;
    sum.negative_distance += one.negative_distance;
  }
  pass.counts = at::empty({5}, pass.values.options());
  double* counts = pass.counts.mutable_data_ptr<double>();
  counts[0] = valid;
  counts[1] = share * static_cast<double>(sum.active);
  counts[2] = share * static_cast<double>(sum.collapsed);
  counts[3] = sum.positive_distance / std::max<double>(1, static_cast<double>(sum.positives));
  counts[4] = sum.negative_distance / std::max<double>(1, static_cast<double>(sum.negatives));
}

// --- meetings ------------------------------------------------------------------------------------

// Plays all rounds of two lists of rows, a chunk of each at a time. `make_weights` takes the
// meetings and a range of units; the sides' matrices, gradients and weight sums are given.
template <class C, class MakeWeights>
void play(const Level<C>& level, cpu::Meetings<C>& all, const MakeWeights& make_weights) {
  cpu::MeetingSide<C>&own = all.side[0], &other = all.side[1];
  const cpu::Matrix &x = own.matrix, &y = other.matrix;
  const cpu::TileGeometry g = level.tile_geometry(x.columns);
  const int64_t panels = g.meeting / g.panel_rows, tile = g.meeting * g.scratch_step;
  // One chunk for a batch that meets itself and fits; else one for each side.
  const bool one = all.joined && chunk_rows<C>(g, x, kChunkBytes, g.meeting) >= x.rows;
  const int64_t bytes = one ? kChunkBytes : kChunkBytes / 2;
  const int64_t capacity[2] = {chunk_rows<C>(g, x, bytes, g.meeting),
                               chunk_rows<C>(g, y, bytes, g.meeting)};
  const auto blocks = [&](int64_t rows) { return round_up(rows, g.meeting) / g.meeting; };
  PackedColumns<C> first(g, x.columns, capacity[0], x.dtype);
  PackedColumns<C> second(g, x.columns, one ? 0 : capacity[1], y.dtype);
  const bool backward = own.gradient || other.gradient;
  const int64_t most = std::max<int64_t>(std::min(blocks(capacity[0]), blocks(capacity[1])), 1);
  const int64_t fit = std::clamp<int64_t>(kMeetingBytes / (tile * int64_t{sizeof(C)}), 1, most);
  Buffer<C> weights(backward ? fit * tile : 0);
  Buffer<double> near(backward ? fit * tile : 0);  // memory that most batches never touch
  Buffer<uint8_t> have_near(fit * panels);
  all.weights = backward ? weights.data() : nullptr;
  all.near = near.data();
  all.have_near = have_near.data();

  const auto rounds = [&](const std::vector<std::vector<cpu::Meeting>>& list) {
    const int64_t grain = std::max<int64_t>(grain_of(g, x.columns, g.meeting), 4);
    for (const std::vector<cpu::Meeting>& round : list) {
      for (size_t at = 0; at < round.size(); at += fit) {
        all.list = round.data() + at;
        all.count = std::min<int64_t>(fit, round.size() - at);
        share_out(all.count * panels, grain,
                  [&](int64_t begin, int64_t end) { make_weights(all, begin, end); });
        if (!backward) continue;
        share_out(2 * all.count * panels, grain,
                  [&](int64_t begin, int64_t end) { level.meeting_gradients(all, begin, end); });
      }
    }
  };
  for (int64_t p = 0; p < x.rows; p += capacity[0]) {
    first.fill(level, g, x, p, std::min(capacity[0], x.rows - p));
    own.chunk = first.packed;
    if (all.joined) {
      other.chunk = first.packed;
      rounds(cpu::rounds_within(blocks(own.chunk.count)));
    }
    for (int64_t q = all.joined ? p + capacity[0] : 0; q < y.rows; q += capacity[1]) {
      second.fill(level, g, y, q, std::min(capacity[1], y.rows - q));
      other.chunk = second.packed;
      rounds(cpu::rounds_between(blocks(own.chunk.count), blocks(other.chunk.count)));
    }
  }
  for (int which = 0; which < (all.joined ? 1 : 2); ++which) {
    if (!all.side[which].gradient) continue;
    at::parallel_for(0, all.side[which].matrix.rows, 256, [&](int64_t begin, int64_t end) {
      level.finish_meetings(all, which, begin, end);
    });
  }
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
  task.share = task.weight_share = halved ? 0.5 : 1.0;
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
  const int64_t met = halved ? ref.rows - 1 : ref.rows;
  finish(pass, stats, task.share,
         task.share * static_cast<double>(x.rows * std::max<int64_t>(met, 0)));
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
  int64_t valid = 0;
  for (const cpu::BatchStats& one : stats) valid += one.valid;
  finish(pass, stats, 1.0, static_cast<double>(valid));
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

// --- squared_cdist -------------------------------------------------------------------------------

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

const BatchBackend& cpu_batch_backend() {
  static const BatchBackend backend{run_cpu};
  return backend;
}

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
