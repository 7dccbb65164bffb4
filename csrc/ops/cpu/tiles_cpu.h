// What the CPU's entry points of the tile engine share: memory, packing, threads, chunks, meetings.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <optional>
#include <vector>

#include "cpu/dispatch.h"
#include "ops/cpu/level.h"
#include "ops/tensors.h"

namespace siamcuda::ops {

// Columns packed at a time by a loss over pairs: what a batch of any size may take.
constexpr int64_t kChunkBytes = int64_t{24} << 20;
// Weights of meetings that are in memory together.
constexpr int64_t kMeetingBytes = int64_t{8} << 20;

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

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
inline cpu::Matrix matrix_of(const at::Tensor& t, at::Tensor& kept) {
  kept = t.size(1) > 1 && t.stride(1) != 1 ? t.contiguous() : t;
  return {kept.const_data_ptr(), t.size(0), t.size(1), kept.stride(0), dtype_of(t.scalar_type())};
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
inline int64_t grain_of(const cpu::TileGeometry& g, int64_t columns, int64_t others) {
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

}  // namespace siamcuda::ops
