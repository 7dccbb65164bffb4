// What screening promises of each pair, against exact arithmetic; see Note [Screening] in
// csrc/cpu/nearest.inl. For a program of one instruction set, which includes the standard headers
// and its search first.
//
// Elements are integers times a power of two, so that a squared distance is an exact integer of at
// most 80 bits, and sums of a frame and a bound fit into the 113 bits of __float128.
#pragma once

namespace siamcuda::cpu::SIAM_TESTED_LEVEL {
namespace {

using Exact = __float128;

struct Points {
  int64_t queries, rows, columns, padded;
  int exponent;
  std::vector<int64_t> integers;  // queries, then rows
  std::vector<float> query, row;  // [queries, padded], [rows, columns]

  Points(int64_t q, int64_t n, int64_t d, int e)
      : queries(q), rows(n), columns(d), padded(round_up(d, 16)), exponent(e) {
    integers.resize((q + n) * d);
    query.assign(q * padded, 0);
    row.resize(n * d);
  }
  void finish() {
    for (int64_t i = 0; i < queries + rows; ++i) {
      for (int64_t k = 0; k < columns; ++k) {
        const int64_t value = integers[i * columns + k];
        const float x = static_cast<float>(std::ldexp(static_cast<double>(value), exponent));
        (i < queries ? query[i * padded + k] : row[(i - queries) * columns + k]) = x;
      }
    }
  }
  Exact squared(int64_t q, int64_t r) const {
    Exact sum = 0;
    for (int64_t k = 0; k < columns; ++k) {
      const Exact delta = integers[q * columns + k] - integers[(queries + r) * columns + k];
      sum += delta * delta;
    }
    return sum * static_cast<Exact>(std::ldexp(1.0, exponent)) *
           static_cast<Exact>(std::ldexp(1.0, exponent));
  }
};

// Memory of a task that accepts everything and never thins out.
struct OpenTask {
  std::vector<float> bound, lower, upper, base;
  std::vector<int32_t> row, count;
  std::vector<double> frame;
  std::unique_ptr<bool[]> wild, zeros;
  std::vector<std::vector<Found<float>>> within;
  SearchTask<float> task{};

  explicit OpenTask(const Points& p)
      : bound(p.queries, std::numeric_limits<float>::infinity()),
        base(p.queries + kTileRows),
        count(p.queries),
        frame(p.queries),
        wild(new bool[p.queries]()),
        zeros(new bool[p.queries]()),
        within(p.queries) {
    const int64_t capacity = round_up(p.rows + 128, 16);
    lower.resize(p.queries * capacity);
    upper.resize(p.queries * capacity);
    row.resize(p.queries * capacity);
    task.rows = {p.row.data(), p.rows, p.columns, p.columns, DType::kFloat32};
    task.count = p.queries;
    task.queries = p.query.data();
    task.padded = p.padded;
    task.zeros = zeros.get();
    task.bound = bound.data();
    task.within = within.data();
    task.candidates = {capacity, lower.data(), upper.data(), row.data(), count.data()};
    task.frame = frame.data();
    task.wild = wild.get();
    task.base = base.data();
  }
};

// Every pair is a candidate once, its exact distance lies within its bounds, its computed distance
// within what those bounds are widened to, and a query that accepts just that distance lets it
// pass.
void check_bounds(const Points& p, OpenTask& open, const std::string& what) {
  SearchTask<float>& task = open.task;
  const double gamma = direct_roundings<float>(p.columns);
  for (int64_t q = 0; q < p.queries; ++q) {
    const std::string where = " (" + what + ", query " + std::to_string(q);
    if (open.count[q] != p.rows) {
      check::fail(__FILE__, __LINE__, std::to_string(open.count[q]) + " candidates" + where);
    }
    std::vector<int> seen(p.rows);
    for (int64_t at = q * task.candidates.capacity, end = at + p.rows; at < end; ++at) {
      const int64_t r = open.row[at];
      if (seen[r]++) check::fail(__FILE__, __LINE__, "a row stands twice" + where);
      const Exact exact = p.squared(q, r);
      const float computed =
          direct_distance(task.queries + q * p.padded, p.row.data() + r * p.columns, p.columns);
      const auto say = [&](const char* text) {
        check::fail(__FILE__, __LINE__,
                    text + where + ", row " + std::to_string(r) + "): exact " +
                        std::to_string(static_cast<double>(exact)) + ", frame " +
                        std::to_string(open.frame[q]) + ", bounds " +
                        std::to_string(open.lower[at]) + " " + std::to_string(open.upper[at]));
      };
      if (!task.wild[q] && !std::isinf(open.lower[at])) {
        const Exact slack = 32 * 0x1p-24 * (exact + std::fabs(open.frame[q])) +
                            static_cast<Exact>(tiny_of(p.columns));
        if (!(static_cast<Exact>(open.frame[q]) + open.lower[at] <= exact + slack)) say("lower");
        if (!(static_cast<Exact>(open.frame[q]) + open.upper[at] >= exact - slack)) say("upper");
      }
      const Exact error = computed > exact ? computed - exact : exact - computed;
      if (!(error <= gamma * exact + static_cast<Exact>(tiny_of(p.columns)))) say("direct");
      task.bound[q] = computed;
      set_base(task, q);
      if (open.lower[at] > task.base[q]) say("dropped");
      task.bound[q] = std::numeric_limits<float>::infinity();
    }
  }
}

[[maybe_unused]] void screen_by_tiles(const Points& p, const std::string& what) {
  OpenTask open(p);
  begin_tiles(open.task);
  const TileGeometry g = tile_geometry<float>(p.columns);
  const int64_t padded_rows = round_up(p.rows, g.panel_columns);
  Aligned<float> panels(padded_rows * p.columns), rows(padded_rows * g.padded), norms(padded_rows);
  std::vector<uint8_t> finite(padded_rows);
  const Packed<float> chunk{0,           p.rows,       panels.data(), rows.data(),
                            rows.data(), norms.data(), finite.data(), nullptr};
  pack_columns(open.task.rows, g, chunk, 0, padded_rows / g.panel_columns);
  prepare_norms(open.task, chunk);
  search_tiles(open.task, chunk);
  check_bounds(p, open, what + ", tiles");
}

[[maybe_unused]] void screen_by_codes(const Points& p, const std::string& what) {
  OpenTask open(p);
  const int64_t depth = (p.columns + kCodes - 1) / kCodes;
  const int64_t panels = round_up(p.rows, kCodeColumns) / kCodeColumns;
  const int64_t query_rows = round_up(p.queries, kTileRows);
  std::vector<uint8_t> codes(panels * depth * kCodeColumns * kCodes);
  std::vector<float> of_rows(panels * 2 * kCodeColumns), bounds(panels * kCodeBounds);
  std::vector<float> center(p.columns), scalars(3 * query_rows);
  for (int64_t k = 0; k < p.columns; ++k) {
    for (int64_t r = 0; r < p.rows; ++r) center[k] += p.row[r * p.columns + k] / p.rows;
  }
  std::vector<int32_t> query_codes(query_rows * depth), start(query_rows);
  pack_codes(open.task.rows, center.data(), codes.data(), of_rows.data(), bounds.data(), 0, panels);
  const CodedQueries queries{query_codes.data(), start.data(), scalars.data(),
                             scalars.data() + query_rows, scalars.data() + 2 * query_rows};
  begin_codes(open.task, center.data(), queries);
  search_codes(open.task, {codes.data(), of_rows.data(), bounds.data(), center.data()}, queries, 0,
               panels);
  check_bounds(p, open, what + ", codes");
}

// Whatever else of a search reads rows, on memory of exact size and rows of every length: the
// program is compiled with a sanitizer.
[[maybe_unused]] void touch_exact_memory() {
  for (const int64_t columns : {1, 3, 8, 15, 16, 17, 33, 64, 100}) {
    for (const int64_t rows : {1, 2, 31, 65}) {
      const std::vector<float> floats(rows * columns, 1);
      const std::vector<math::BFloat16> halves(rows * columns, math::narrow<math::BFloat16>(1.0f));
      const std::vector<uint8_t> bytes(rows * columns, 7);
      const int64_t padded = round_up(columns, 16), k = 3;
      const std::vector<float> query(2 * padded, 0);
      for (const bool half : {false, true}) {
        std::vector<float> bound(2, std::numeric_limits<float>::infinity());
        std::vector<Found<float>> nearest(2 * k);
        std::vector<int64_t> count(2);
        const bool zeros[2] = {};
        SearchTask<float> task{};
        task.rows = {half ? static_cast<const void*>(halves.data()) : floats.data(), rows, columns,
                     columns, half ? DType::kBFloat16 : DType::kFloat32};
        task.count = 2;
        task.queries = query.data();
        task.padded = padded;
        task.zeros = zeros;
        task.k = k;
        task.bound = bound.data();
        task.nearest = nearest.data();
        task.nearest_count = count.data();
        search_directly(task, 0, rows);
        finish_search(task);
        SIAM_EQUAL(nearest[0].distance, static_cast<float>(columns));
        std::vector<float> unit(rows * columns);
        normalize_rows(task.rows, unit.data(), 0, rows);
        std::vector<int32_t> counts(rows), bit_bound(2, 1 << 30);
        hamming_rows(bytes.data(), columns, bytes.data(), columns, columns, counts.data(), 0, rows);
        SIAM_EQUAL(counts[rows - 1], 0);
        std::vector<Found<int32_t>> found(2 * k);
        std::vector<int64_t> found_count(2);
        const std::vector<uint8_t> bits(2 * columns, 7);
        search_bits({bytes.data(), columns, columns, 0, 2, bits.data(), k, bit_bound.data(),
                     found.data(), found_count.data(), nullptr},
                    0, rows);
        SIAM_EQUAL(found_count[1], std::min(rows, k));
      }
    }
  }
}

// Points of several kinds, each with integers below 2^24, so that floats hold them.
template <class Screen>
void each_kind(const Screen& screen) {
  std::mt19937_64 random(7);
  const auto uniform = [&](int64_t most) {
    return static_cast<int64_t>(random() % (2 * most + 1)) - most;
  };
  for (const int64_t columns : {1, 3, 16, 31, 128, 200, 300}) {
    for (const int exponent : {-70, -20, 30}) {
      for (int kind = 0; kind < 4; ++kind) {
        Points p(14, 77, columns, exponent);
        const int64_t offset = kind == 1 ? (int64_t{1} << 23) : 0;
        std::vector<int64_t> first(columns);
        for (int64_t& x : first) x = uniform(1 << 20);
        for (int64_t i = 0; i < p.queries + p.rows; ++i) {
          for (int64_t k = 0; k < columns; ++k) {
            int64_t& x = p.integers[i * columns + k];
            switch (kind) {
              case 0: x = uniform((1 << 23) - 1); break;
              case 1: x = offset + uniform(300); break;  // far from zero
              case 2: x = first[k] + uniform(2); break;  // near-duplicates
              default: x = i % 3 ? uniform(5) : (k % 7 ? 0 : uniform(1 << 23)); break;
            }
          }
        }
        p.finish();
        screen(p, "D " + std::to_string(columns) + ", 2^" + std::to_string(exponent) + ", kind " +
                      std::to_string(kind));
      }
    }
  }
}

}  // namespace
}  // namespace siamcuda::cpu::SIAM_TESTED_LEVEL
