// The CPU entry points of the gallery's operators: who screens, and how work is divided.
//
// The k smallest by (distance, position) are one set, so queries and rows are divided as suits the
// machine: many queries by queries, few by rows, whose lists are merged.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/search.h"
#include "ops/cpu/level.h"
#include "ops/cpu/tiles_cpu.h"
#include "ops/search.h"
#include "ops/tensors.h"

namespace siamcuda::ops {

namespace {

using at::Tensor;

// --- the functions of cpu/search.h at the instruction set in use
// -------------------------------------

struct SearchLevel {
  decltype(&cpu::generic::begin_tiles) begin_tiles;
  decltype(&cpu::generic::prepare_norms) prepare_norms;
  decltype(&cpu::generic::search_tiles) search_tiles;
  decltype(&cpu::generic::pack_codes) pack_codes;
  decltype(&cpu::generic::begin_codes) begin_codes;
  decltype(&cpu::generic::search_codes) search_codes;
  decltype(&cpu::generic::search_bits) search_bits;
  decltype(&cpu::generic::hamming_rows) hamming_rows;
};
template <class C>
struct TypedSearchLevel {
  decltype(&cpu::generic::search_directly<C>) search_directly;
  decltype(&cpu::generic::finish_search<C>) finish_search;
  decltype(&cpu::generic::normalize_rows<C>) normalize_rows;
};

#define SIAM_SEARCH_LEVEL(level)                                                 \
  {cpu::level::begin_tiles, cpu::level::prepare_norms, cpu::level::search_tiles, \
   cpu::level::pack_codes,  cpu::level::begin_codes,   cpu::level::search_codes, \
   cpu::level::search_bits, cpu::level::hamming_rows}
#define SIAM_TYPED_SEARCH_LEVEL(level) \
  {cpu::level::search_directly<C>, cpu::level::finish_search<C>, cpu::level::normalize_rows<C>}
SearchLevel search_level() { SIAM_RETURN_AT_LEVEL(SIAM_SEARCH_LEVEL) }
template <class C>
TypedSearchLevel<C> typed_search_level() {
  SIAM_RETURN_AT_LEVEL(SIAM_TYPED_SEARCH_LEVEL)
}
#undef SIAM_TYPED_SEARCH_LEVEL
#undef SIAM_SEARCH_LEVEL

// --- division of work
// ------------------------------------------------------------------------------

// Queries of a task, at most, so that what they keep stays near; candidates for each.
constexpr int64_t kMostQueries = 504;
constexpr int64_t kListBytes = int64_t{16} << 20;  // of all threads
constexpr int64_t kPanel = 12;                     // queries that no level divides

struct Division {
  int64_t group;  // queries of a task
  int64_t groups;
  int64_t spans;  // into which rows are divided
};

int64_t capacity_of(int64_t k) { return round_up(std::max<int64_t>(4 * k, 192), 16); }
constexpr int64_t kCandidateBytes = 12;

Division divide(int64_t queries, int64_t rows, int64_t columns, int64_t query_bytes) {
  const int64_t threads = at::get_num_threads();
  Division d{};
  const int64_t fit = std::max<int64_t>(kListBytes / threads / query_bytes / kPanel, 1) * kPanel;
  d.group = std::min({kMostQueries, fit, round_up((queries + threads - 1) / threads, kPanel)});
  d.groups = (queries + d.group - 1) / d.group;
  if (d.groups % threads != 0 && d.groups > 1) {  // as many for each thread
    const int64_t rounds = (d.groups + threads - 1) / threads * threads;
    d.group = round_up((queries + rounds - 1) / rounds, kPanel);
    d.groups = (queries + d.group - 1) / d.group;
  }
  // Rows for a thread to be worth starting.
  const int64_t least =
      std::max<int64_t>((int64_t{1} << 18) / (std::min(queries, d.group) * (columns + 1)), 256);
  d.spans = d.groups >= threads
                ? 1
                : std::clamp<int64_t>(rows / least, 1, (threads + d.groups - 1) / d.groups);
  // 32 bits number the rows of a task.
  constexpr int64_t kMostRows = int64_t{1} << 30;
  d.spans = std::max<int64_t>(d.spans, (rows + kMostRows - 1) / kMostRows);
  return d;
}

template <class D>
struct Keeping {
  int64_t k;       // 0: all within the bounds
  const D* bound;  // [queries] or null: one for all
  D radius;
};

// The lists of all tasks, which are [groups][spans].
template <class D>
struct Lists {
  Division division;
  int64_t k, queries;
  Buffer<cpu::Found<D>> nearest;
  std::vector<int64_t> count;
  std::vector<D> bound;
  std::vector<std::vector<cpu::Found<D>>> within;

  Lists(const Division& d, int64_t queries, int64_t k)
      : division(d),
        k(k),
        queries(queries),
        nearest(d.groups * d.spans * d.group * k),
        count(d.groups * d.spans * d.group),
        bound(d.groups * d.spans * d.group),
        within(k == 0 ? d.groups * d.spans * d.group : 0) {}

  int64_t tasks() const { return division.groups * division.spans; }
  int64_t slot(int64_t task, int64_t q) const { return task * division.group + q; }
  int64_t first_query(int64_t task) const { return task / division.spans * division.group; }
  int64_t query_count(int64_t task) const {
    return std::min(division.group, queries - first_query(task));
  }
  int64_t first_row(int64_t task, int64_t rows, int64_t unit) const {
    const int64_t units = (rows + unit - 1) / unit;
    return std::min(rows, units * (task % division.spans) / division.spans * unit);
  }
  int64_t end_row(int64_t task, int64_t rows, int64_t unit) const {
    const int64_t units = (rows + unit - 1) / unit;
    return std::min(rows, units * (task % division.spans + 1) / division.spans * unit);
  }
};

// Fills bounds: what a query's list holds already rules out what is farther than its last entry.
template <class D>
void begin_lists(Lists<D>& lists, const D* distances, const int64_t* positions, D none, D radius) {
  for (int64_t task = 0; task < lists.tasks(); ++task) {
    for (int64_t q = 0; q < lists.query_count(task); ++q) {
      D bound = radius;
      if (lists.k > 0) {
        const int64_t last = (lists.first_query(task) + q) * lists.k + lists.k - 1;
        bound = positions[last] >= 0 && distances[last] < none ? distances[last] : none;
      }
      lists.bound[lists.slot(task, q)] = bound;
    }
  }
}

// The k first of a query's old list and those of its spans.
template <class D>
void merge_lists(const Lists<D>& lists, D* distances, int64_t* positions, D none) {
  const int64_t spans = lists.division.spans, k = lists.k;
  at::parallel_for(0, lists.queries, 64, [&](int64_t begin, int64_t end) {
    std::vector<cpu::Found<D>> merged(k);
    std::vector<int64_t> next(spans + 1);
    for (int64_t q = begin; q < end; ++q) {
      const int64_t group = q / lists.division.group;
      D* const own_distances = distances + q * k;
      int64_t* const own_positions = positions + q * k;
      std::fill(next.begin(), next.end(), 0);
      int64_t size = 0;
      for (; size < k; ++size) {
        int64_t best = -1;
        cpu::Found<D> found{};
        for (int64_t from = 0; from <= spans; ++from) {
          cpu::Found<D> one{};
          if (from == spans) {
            if (next[from] == k || own_positions[next[from]] < 0) continue;
            one = {own_distances[next[from]], own_positions[next[from]]};
          } else {
            const int64_t slot = lists.slot(group * spans + from, q - group * lists.division.group);
            if (next[from] == lists.count[slot]) continue;
            one = lists.nearest.data()[slot * k + next[from]];
          }
          if (best < 0 || cpu::comes_before(one, found)) {
            best = from;
            found = one;
          }
        }
        if (best < 0) break;
        ++next[best];
        merged[size] = found;
      }
      for (int64_t at = 0; at < k; ++at) {
        own_distances[at] = at < size ? merged[at].distance : none;
        own_positions[at] = at < size ? merged[at].position : -1;
      }
    }
  });
}

// Counts, distances and positions of what lies within a radius, each query's spans put in order.
template <class D>
std::tuple<Tensor, Tensor, Tensor> gather_within(Lists<D>& lists, const Tensor& like,
                                                 at::ScalarType type) {
  const int64_t spans = lists.division.spans;
  Tensor counts = at::zeros({lists.queries}, like.options().dtype(at::kLong));
  int64_t* const count = counts.mutable_data_ptr<int64_t>();
  std::vector<int64_t> start(lists.queries + 1);
  const auto slot = [&](int64_t q, int64_t span) {
    const int64_t group = q / lists.division.group;
    return lists.slot(group * spans + span, q - group * lists.division.group);
  };
  for (int64_t q = 0; q < lists.queries; ++q) {
    for (int64_t span = 0; span < spans; ++span) {
      count[q] += static_cast<int64_t>(lists.within[slot(q, span)].size());
    }
    start[q + 1] = start[q] + count[q];
  }
  Tensor distances = at::empty({start.back()}, like.options().dtype(type));
  Tensor positions = at::empty({start.back()}, like.options().dtype(at::kLong));
  D* const d = static_cast<D*>(distances.mutable_data_ptr());
  int64_t* const p = positions.mutable_data_ptr<int64_t>();
  at::parallel_for(0, lists.queries, 16, [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q) {
      std::vector<cpu::Found<D>>& all = lists.within[slot(q, 0)];
      for (int64_t span = 1; span < spans; ++span) {
        std::vector<cpu::Found<D>>& more = lists.within[slot(q, span)];
        const auto middle = static_cast<int64_t>(all.size());
        all.insert(all.end(), more.begin(), more.end());
        std::inplace_merge(all.begin(), all.begin() + middle, all.end(),
                           [](const auto& a, const auto& b) { return cpu::comes_before(a, b); });
        std::vector<cpu::Found<D>>().swap(more);
      }
      for (int64_t at = 0; at < count[q]; ++at) {
        d[start[q] + at] = all[at].distance;
        p[start[q] + at] = all[at].position;
      }
      std::vector<cpu::Found<D>>().swap(all);
    }
  });
  return {counts, distances, positions};
}

// --- distances of vectors
// --------------------------------------------------------------------------

// Whether to screen by codes; raises if what is there are no codes of these rows.
bool has_codes(const SearchPart& part) {
  if (part.screen.empty()) return false;
  const int64_t columns = part.rows.size(1);
  const int64_t panels = round_up(part.rows.size(0), cpu::kCodeColumns) / cpu::kCodeColumns;
  const std::vector<int64_t> sizes[] = {{panels, (columns + 3) / 4, cpu::kCodeColumns, 4},
                                        {panels, 2, cpu::kCodeColumns},
                                        {panels, cpu::kCodeBounds},
                                        {columns}};
  bool fits = part.screen.size() == 4;
  for (size_t at = 0; fits && at < 4; ++at) {
    const Tensor& t = part.screen[at];
    fits = t.sizes() == at::IntArrayRef(sizes[at]) && t.is_contiguous() && t.is_cpu() &&
           t.scalar_type() == (at == 0 ? at::kByte : at::kFloat);
  }
  TORCH_CHECK_VALUE(fits, "gallery: screen must be what gallery_screen made of the rows, and the ",
                    "center it was given");
  return cpu::multiplies_int8(checked_level());
}

// Pairs below which packing rows for tiles costs more than it saves.
constexpr int64_t kFewQueries = 11, kFewRows = 64;

// Rows that are packed at a time: they are read once for each group of queries and should be in a
// cache that threads share, with what else lives there; more threads share more, and want more
// between two meetings.
int64_t search_chunk_bytes() {
  return std::clamp<int64_t>(at::get_num_threads() * (int64_t{4} << 20), int64_t{8} << 20,
                             kChunkBytes);
}

template <class C>
class VectorSearch {
 public:
  VectorSearch(const SearchPart& part, int64_t k)
      : part_(part),
        k_(k),
        coded_(sizeof(C) == 4 && has_codes(part)),
        direct_(sizeof(C) == 8 ||
                (!coded_ && (part.queries.size(0) < kFewQueries || part.rows.size(0) < kFewRows))),
        columns_(part.rows.size(1)),
        padded_(round_up(std::max<int64_t>(columns_, 1), 16)),
        count_(part.queries.size(0)),
        lists_(divide(count_, part.rows.size(0), columns_, query_bytes()), count_, k),
        queries_(count_ * padded_),
        zeros_(new bool[count_]) {
    rows_ = {part.rows.const_data_ptr(), part.rows.size(0), columns_, part.rows.stride(0),
             dtype_of(part.rows.scalar_type())};
    const C* const from = static_cast<const C*>(part.queries.const_data_ptr());
    for (int64_t q = 0; q < count_; ++q) {
      C* const to = queries_.data() + q * padded_;
      std::fill_n(to, padded_, C(0));
      std::copy_n(from + q * columns_, columns_, to);
      zeros_[q] = std::all_of(to, to + columns_, [](C x) { return x == 0; });
    }
  }

  void knn(Tensor& distances, Tensor& positions) {
    constexpr C kNone = std::numeric_limits<C>::infinity();
    C* const d = static_cast<C*>(distances.mutable_data_ptr());
    int64_t* const p = positions.mutable_data_ptr<int64_t>();
    begin_lists(lists_, d, p, kNone, kNone);
    run();
    merge_lists(lists_, d, p, kNone);
  }

  std::tuple<Tensor, Tensor, Tensor> range(double radius) {
    begin_lists<C>(lists_, nullptr, nullptr, 0, largest_within<C>(part_.metric, radius));
    run();
    return gather_within(lists_, part_.rows, sizeof(C) == 8 ? at::kDouble : at::kFloat);
  }

 private:
  int64_t query_bytes() const {
    const int64_t candidates = direct_ ? 0 : capacity_of(k_) * kCandidateBytes;
    return k_ * static_cast<int64_t>(sizeof(cpu::Found<C>)) + candidates + 64;
  }

  // A task's rows begin at whole panels of codes.
  cpu::SearchTask<C> task_of(int64_t at) {
    cpu::SearchTask<C> task{};
    const int64_t begin = lists_.first_row(at, rows_.rows, cpu::kCodeColumns);
    task.rows = rows_;
    task.rows.data = static_cast<const char*>(rows_.data) + begin * rows_.step * row_element();
    task.rows.rows = lists_.end_row(at, rows_.rows, cpu::kCodeColumns) - begin;
    task.first = part_.first + begin;
    task.cosine = part_.metric == Metric::kCosine;
    task.count = lists_.query_count(at);
    task.queries = queries_.data() + lists_.first_query(at) * padded_;
    task.padded = padded_;
    task.zeros = zeros_.get() + lists_.first_query(at);
    task.k = k_;
    const int64_t slot = lists_.slot(at, 0);
    task.bound = lists_.bound.data() + slot;
    task.nearest = lists_.nearest.data() + slot * k_;
    task.nearest_count = lists_.count.data() + slot;
    task.within = k_ == 0 ? lists_.within.data() + slot : nullptr;
    return task;
  }
  int64_t row_element() const { return static_cast<int64_t>(part_.rows.element_size()); }

  // What screening keeps of a task's queries.
  struct Screening {
    int64_t capacity;
    Buffer<float> bounds;
    Buffer<int32_t> row;
    std::vector<int32_t> count;
    std::vector<double> frame;
    std::unique_ptr<bool[]> wild;
    std::vector<float> base;
    Screening(int64_t queries, int64_t k)
        : capacity(capacity_of(k)),
          bounds(2 * queries * capacity),
          row(queries * capacity),
          count(queries),
          frame(queries),
          wild(new bool[queries]()),
          base(round_up(queries, kPanel)) {}
    void give(cpu::SearchTask<float>& task) {
      const auto queries = static_cast<int64_t>(count.size());
      task.candidates = {capacity, bounds.data(), bounds.data() + queries * capacity, row.data(),
                         count.data()};
      task.frame = frame.data();
      task.wild = wild.get();
      task.base = base.data();
    }
  };

  void run() {
    const TypedSearchLevel<C> typed = typed_search_level<C>();
    if constexpr (sizeof(C) == 4) {
      if (coded_) return run_coded(typed);
      if (!direct_) return run_tiles(typed);
    }
    at::parallel_for(0, lists_.tasks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const cpu::SearchTask<C> task = task_of(at);
        typed.search_directly(task, 0, task.rows.rows);
        typed.finish_search(task);
      }
    });
  }

  void run_coded(const TypedSearchLevel<float>& typed) {
    const SearchLevel level = search_level();
    const int64_t depth = (columns_ + 3) / 4;
    const cpu::CodedRows all{
        part_.screen[0].const_data_ptr<uint8_t>(), part_.screen[1].const_data_ptr<float>(),
        part_.screen[2].const_data_ptr<float>(), part_.screen[3].const_data_ptr<float>()};
    at::parallel_for(0, lists_.tasks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        cpu::SearchTask<float> task = task_of(at);
        Screening screening(task.count, k_);
        screening.give(task);
        const int64_t panels = round_up(task.count, kPanel) / kPanel;
        Buffer<int32_t> codes(panels * depth * kPanel), start(panels * kPanel);
        Buffer<float> scalars(3 * panels * kPanel);
        const cpu::CodedQueries queries{codes.data(), start.data(), scalars.data(),
                                        scalars.data() + panels * kPanel,
                                        scalars.data() + 2 * panels * kPanel};
        level.begin_codes(task, all.center, queries);
        const int64_t first = (task.first - part_.first) / cpu::kCodeColumns;
        const cpu::CodedRows rows{all.codes + first * depth * cpu::kCodeColumns * 4,
                                  all.rows + first * 2 * cpu::kCodeColumns,
                                  all.bounds + first * cpu::kCodeBounds, all.center};
        level.search_codes(task, rows, queries, 0,
                           round_up(task.rows.rows, cpu::kCodeColumns) / cpu::kCodeColumns);
        typed.finish_search(task);
      }
    });
  }

  // Rows are packed a chunk at a time, for all tasks that want them.
  void run_tiles(const TypedSearchLevel<float>& typed) {
    const SearchLevel level = search_level();
    const Level<float> tiles = active_level<float>();
    const cpu::TileGeometry g = tiles.tile_geometry(columns_);
    std::vector<std::unique_ptr<Screening>> screening(lists_.tasks());
    std::vector<cpu::SearchTask<float>> tasks(lists_.tasks());
    for (int64_t at = 0; at < lists_.tasks(); ++at) {
      tasks[at] = task_of(at);
      screening[at] = std::make_unique<Screening>(tasks[at].count, k_);
      screening[at]->give(tasks[at]);
      level.begin_tiles(tasks[at]);
    }
    const int64_t spans = lists_.division.spans;
    const int64_t capacity = chunk_rows<float>(g, rows_, search_chunk_bytes() / spans, g.block);
    std::vector<std::unique_ptr<PackedColumns<float>>> chunks(spans);
    for (auto& chunk : chunks) {
      chunk = std::make_unique<PackedColumns<float>>(g, columns_, capacity, DType::kFloat32);
    }
    for (int64_t first = 0;; first += capacity) {
      bool any = false;
      for (int64_t span = 0; span < spans; ++span) {
        const cpu::Matrix& rows = tasks[span].rows;
        const int64_t count = std::clamp<int64_t>(rows.rows - first, 0, capacity);
        any = any || count > 0;
        chunks[span]->fill(tiles, g, rows, std::min(first, rows.rows), count);
        level.prepare_norms(tasks[span], chunks[span]->packed);
      }
      if (!any) break;
      at::parallel_for(0, lists_.tasks(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
          level.search_tiles(tasks[at], chunks[at % spans]->packed);
        }
      });
    }
    at::parallel_for(0, lists_.tasks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) typed.finish_search(tasks[at]);
    });
  }

  const SearchPart& part_;
  int64_t k_;
  bool coded_, direct_;
  int64_t columns_, padded_, count_;
  Lists<C> lists_;
  Buffer<C> queries_;
  std::unique_ptr<bool[]> zeros_;
  cpu::Matrix rows_;
};

// --- packed bits
// -----------------------------------------------------------------------------------

void run_bits(const SearchPart& part, Lists<int32_t>& lists) {
  const SearchLevel level = search_level();
  const int64_t bytes = part.rows.size(1), rows = part.rows.size(0);
  constexpr int64_t kUnit = 64;
  at::parallel_for(0, lists.tasks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t slot = lists.slot(at, 0);
      const cpu::HammingTask task{
          part.rows.const_data_ptr<uint8_t>(),
          part.rows.stride(0),
          bytes,
          part.first,
          lists.query_count(at),
          part.queries.const_data_ptr<uint8_t>() + lists.first_query(at) * bytes,
          lists.k,
          lists.bound.data() + slot,
          lists.nearest.data() + slot * lists.k,
          lists.count.data() + slot,
          lists.k == 0 ? lists.within.data() + slot : nullptr};
      level.search_bits(task, lists.first_row(at, rows, kUnit), lists.end_row(at, rows, kUnit));
    }
  });
}

Division divide_bits(const SearchPart& part, int64_t k) {
  return divide(part.queries.size(0), part.rows.size(0), part.rows.size(1) / 8,
                k * static_cast<int64_t>(sizeof(cpu::Found<int32_t>)) + 64);
}

// --- the backend
// -----------------------------------------------------------------------------------

void knn(const SearchPart& part, Tensor& distances, Tensor& positions) {
  const int64_t k = distances.size(1);
  if (part.metric == Metric::kHamming) {
    constexpr int32_t kNone = std::numeric_limits<int32_t>::max();
    Lists<int32_t> lists(divide_bits(part, k), part.queries.size(0), k);
    int32_t* const d = distances.mutable_data_ptr<int32_t>();
    int64_t* const p = positions.mutable_data_ptr<int64_t>();
    begin_lists(lists, d, p, kNone, kNone);
    run_bits(part, lists);
    return merge_lists(lists, d, p, kNone);
  }
  if (part.rows.scalar_type() == at::kDouble) {
    VectorSearch<double>(part, k).knn(distances, positions);
  } else {
    VectorSearch<float>(part, k).knn(distances, positions);
  }
}

std::tuple<Tensor, Tensor, Tensor> range(const SearchPart& part, double radius) {
  if (part.metric == Metric::kHamming) {
    Lists<int32_t> lists(divide_bits(part, 0), part.queries.size(0), 0);
    begin_lists<int32_t>(lists, nullptr, nullptr, 0, largest_within<int32_t>(part.metric, radius));
    run_bits(part, lists);
    return gather_within(lists, part.rows, at::kInt);
  }
  return part.rows.scalar_type() == at::kDouble ? VectorSearch<double>(part, 0).range(radius)
                                                : VectorSearch<float>(part, 0).range(radius);
}

template <class C>
Tensor normalize_typed(const Tensor& rows) {
  Tensor out =
      at::empty(rows.sizes(), rows.options().dtype(sizeof(C) == 8 ? at::kDouble : at::kFloat));
  const cpu::Matrix m{rows.const_data_ptr(), rows.size(0), rows.size(1), rows.stride(0),
                      dtype_of(rows.scalar_type())};
  const TypedSearchLevel<C> level = typed_search_level<C>();
  C* const to = static_cast<C*>(out.mutable_data_ptr());
  at::parallel_for(0, m.rows, 64,
                   [&](int64_t begin, int64_t end) { level.normalize_rows(m, to, begin, end); });
  return out;
}
Tensor normalize(const Tensor& rows) {
  return rows.scalar_type() == at::kDouble ? normalize_typed<double>(rows)
                                           : normalize_typed<float>(rows);
}

std::vector<Tensor> screen(const Tensor& rows, const Tensor& center) {
  const int64_t columns = rows.size(1), count = rows.size(0);
  if (rows.scalar_type() == at::kDouble || columns == 0 || columns > cpu::kMaxCodedColumns ||
      !cpu::multiplies_int8(checked_level())) {
    return {};
  }
  const int64_t panels = round_up(count, cpu::kCodeColumns) / cpu::kCodeColumns;
  const auto floats = rows.options().dtype(at::kFloat);
  Tensor codes =
      at::empty({panels, (columns + 3) / 4, cpu::kCodeColumns, 4}, rows.options().dtype(at::kByte));
  Tensor of_rows = at::empty({panels, 2, cpu::kCodeColumns}, floats);
  Tensor bounds = at::empty({panels, cpu::kCodeBounds}, floats);
  const cpu::Matrix m{rows.const_data_ptr(), count, columns, rows.stride(0),
                      dtype_of(rows.scalar_type())};
  const SearchLevel level = search_level();
  at::parallel_for(0, panels, 4, [&](int64_t begin, int64_t end) {
    level.pack_codes(m, center.const_data_ptr<float>(), codes.mutable_data_ptr<uint8_t>(),
                     of_rows.mutable_data_ptr<float>(), bounds.mutable_data_ptr<float>(), begin,
                     end);
  });
  return {codes, of_rows, bounds};
}

Tensor root(const Tensor& x) {
  Tensor out = at::empty_like(x);
  const auto run = [&](auto zero) {
    using C = decltype(zero);
    const C* const from = x.const_data_ptr<C>();
    C* const to = out.mutable_data_ptr<C>();
    at::parallel_for(0, x.numel(), 4096, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) to[at] = std::sqrt(from[at]);
    });
  };
  x.scalar_type() == at::kDouble ? run(double{}) : run(float{});
  return out;
}

// Rows of one step: expanded ones have 0.
Tensor hamming(const Tensor& x1, const Tensor& x2) {
  const int64_t bytes = x1.size(-1);
  Tensor counts = at::empty(x1.sizes().slice(0, x1.dim() - 1), x1.options().dtype(at::kInt));
  const auto flat = [&](const Tensor& x) {
    const Tensor rows = x.reshape({counts.numel(), bytes});
    return bytes > 1 && rows.stride(1) != 1 ? rows.contiguous() : rows;
  };
  const Tensor a = flat(x1), b = flat(x2);
  int32_t* const to = counts.mutable_data_ptr<int32_t>();
  const SearchLevel level = search_level();
  at::parallel_for(0, counts.numel(), 4096, [&](int64_t begin, int64_t end) {
    level.hamming_rows(a.const_data_ptr<uint8_t>(), a.stride(0), b.const_data_ptr<uint8_t>(),
                       b.stride(0), bytes, to, begin, end);
  });
  return counts;
}

}  // namespace

const SearchBackend& cpu_search_backend() {
  static const SearchBackend backend{normalize, screen, knn, range, root, hamming};
  return backend;
}

}  // namespace siamcuda::ops
