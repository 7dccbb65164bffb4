// Triplets of a batch: a row of distances per anchor, mined or counted, becomes a row of weights.
//
// An anchor needs the whole row of its distances, so a group of anchors has its rows in a bounded
// workspace. `anchor_rows` fills them (threads own anchors), turns each into weights and adds what
// its pairs give to the anchor; `column_rows` then adds what they give to the other end (threads
// own columns), in the order of the anchors. Hard and easy mining keep two columns an anchor
// instead, which `column_picks` hands to their owners.
//
// The hinge over all triplets is counted, not enumerated: a negative at distance v is too near for
// the positives with d + margin > v, so its weight is minus their number, and a positive's weight
// is the number of negatives nearer than its d + margin. Both are integers, the loss is Σ count·(d
// + margin) − Σ count·v, and none of it depends on an order.

template <class C>
using Native = typename Vec<C>::Native;
template <class C>
using Integers = typename Vec<C>::Integer;

// Integers as wide as C from 32-bit classes.
SIAM_INLINE Integers<float> load_classes(const int32_t* p, float) {
  Integers<float> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
SIAM_INLINE Integers<double> load_classes(const int32_t* p, double) {
  typedef int32_t Half __attribute__((vector_size(SIAM_VECTOR_BYTES / 2)));
  Half v;
  std::memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, Integers<double>);
}

// Lanes added up in double.
struct DoubleSum {
  static constexpr int kWidth = Vec<double>::kWidth;
  Native<double> lane[2] = {};
  SIAM_INLINE void add(Native<float> v) {
    typedef float Half __attribute__((vector_size(SIAM_VECTOR_BYTES / 2)));
    Half half[2];
    std::memcpy(half, &v, sizeof(v));
    lane[0] += __builtin_convertvector(half[0], Native<double>);
    lane[1] += __builtin_convertvector(half[1], Native<double>);
  }
  SIAM_INLINE void add(Native<double> v) { lane[0] += v; }
  SIAM_INLINE void add_product(Native<float> a, Native<float> b) {  // exact
    typedef float Half __attribute__((vector_size(SIAM_VECTOR_BYTES / 2)));
    Half x[2], y[2];
    std::memcpy(x, &a, sizeof(a));
    std::memcpy(y, &b, sizeof(b));
    for (int h = 0; h < 2; ++h) {
      lane[h] += __builtin_convertvector(x[h], Native<double>) *
                 __builtin_convertvector(y[h], Native<double>);
    }
  }
  SIAM_INLINE void add_product(Native<double> a, Native<double> b) { lane[0] += a * b; }
  double total() const { return add_lanes(Vec<double>(lane[0] + lane[1])); }
};

// A row of an anchor: distances to every column, padded with NaN to whole vectors.
template <class C>
struct AnchorRow {
  const C* d2;             // [padded count]
  const int32_t* classes;  // [padded count]
  int64_t count;
  int32_t own;
};

// The nearest column of another class that is farther than `beyond`, or the farthest of all; the
// lowest index among equals; -1 if there is none. A NaN distance is never taken.
template <class C, bool kFarthest>
SIAM_INLINE int64_t extreme_negative(const AnchorRow<C>& row, C beyond = C(-1)) {
  constexpr int kWidth = Vec<C>::kWidth;
  const C worst =
      kFarthest ? -std::numeric_limits<C>::infinity() : std::numeric_limits<C>::infinity();
  Native<C> best = worst - Native<C>{};
  Integers<C> index = Integers<C>{} - 1, here{};
  for (int l = 0; l < kWidth; ++l) here[l] = l;
  for (int64_t c = 0; c < row.count; c += kWidth) {
    const Native<C> v = load(row.d2 + c).v;
    const Integers<C> other = load_classes(row.classes + c, C()) != row.own;
    const Integers<C> better = (kFarthest ? v > best : (v < best) & (v > beyond)) & other;
    best = better ? v : best;
    index = better ? here : index;
    here += kWidth;
  }
  int64_t found = -1;
  C value = worst;
  for (int l = 0; l < kWidth; ++l) {
    if (index[l] < 0) continue;
    const bool better = kFarthest ? best[l] > value : best[l] < value;
    if (found < 0 || better || (best[l] == value && index[l] < found)) {
      found = index[l];
      value = best[l];
    }
  }
  if (found >= 0) return found;
  for (int64_t c = 0; c < row.count; ++c) {  // those at distance inf lose every comparison
    if (row.classes[c] != row.own && row.d2[c] == worst && worst > beyond) return c;
  }
  return -1;
}

template <class C>
struct Positive {
  C d2;
  int64_t column;
};

// Up to here, comparing every positive with whole vectors of negatives beats a binary search: one
// comparison a pair where triplets are counted, a search for the nearest where they are mined.
constexpr size_t kCountDirectly = 256;
constexpr size_t kMineDirectly = 32;

template <class C>
struct AnchorScratch {
  std::vector<Positive<C>> positives;
  std::vector<C> keys;
  std::vector<int64_t> counts;
  std::vector<C> best;
  std::vector<int64_t> best_column;
};

using TripletTerms = math::Triplet<math::SquaredDifference>;

template <class C>
SIAM_INLINE C slope_of(C distance, bool squared) {
  return squared ? C(1) : distance == 0 ? C(0) : C(0.5) / distance;
}

template <class C>
struct Anchor {
  const TripletTask<C>& task;
  AnchorScratch<C>& scratch;
  int64_t i;
  AnchorRow<C> row;
  C upstream;
  double value = 0;
  int64_t terms = 0;
  BatchStats stats{};

  void gather_positives(int64_t self) {
    scratch.positives.clear();
    const int32_t group = task.row_group[i];
    if (group < 0) return;
    for (int64_t k = task.group_start[group]; k < task.group_start[group + 1]; ++k) {
      const int64_t c = task.members[k];
      if (c == self || row.d2[c] != row.d2[c]) continue;
      scratch.positives.push_back({row.d2[c], c});
    }
  }

  double unit(C d2) const {
    return task.params.squared ? static_cast<double>(d2) : std::sqrt(static_cast<double>(d2));
  }

  void count_term(C positive, C negative, double term) {
    stats.active += term != 0;
    stats.collapsed += negative == 0;
    ++stats.positives;
    stats.positive_distance += unit(positive);
    ++stats.negatives;
    stats.negative_distance += unit(negative);
  }

  // One term, its slopes times upstream.
  math::Terms<C, 2> term(C positive, C negative) {
    const C sums[2] = {positive, negative};
    math::Terms<C, 2> t =
        math::TripletLoss::evaluate<TripletTerms>(task.params, sums, Label::kGenuine);
    value += t.value;
    ++terms;
    count_term(positive, negative, t.value);
    t.slope[0] *= upstream;
    t.slope[1] *= upstream;
    return t;
  }

  // The farthest or nearest positive with the nearest negative.
  void pick(bool farthest, int64_t* picked, C* weight) {
    picked[0] = picked[1] = -1;
    int64_t p = -1;
    for (size_t k = 0; k < scratch.positives.size(); ++k) {
      const C d2 = scratch.positives[k].d2, best = p < 0 ? C(0) : scratch.positives[p].d2;
      if (p < 0 || (farthest ? d2 > best : d2 < best)) p = static_cast<int64_t>(k);
    }
    if (p < 0) return;
    const int64_t n = extreme_negative<C, false>(row);
    if (n < 0) return;
    const auto t = term(scratch.positives[p].d2, row.d2[n]);
    picked[0] = scratch.positives[p].column;
    picked[1] = n;
    weight[0] = t.slope[0];
    weight[1] = t.slope[1];
  }

  // Each positive with the nearest negative that is farther than it, else with the farthest one.
  void semihard(C* weights) {
    auto& positives = scratch.positives;
    const int64_t farthest = positives.empty() ? -1 : extreme_negative<C, true>(row);
    if (farthest < 0) return clear(weights);
    if (positives.size() <= kMineDirectly) return semihard_directly(farthest, weights);
    std::vector<Positive<C>>& sorted = positives;
    std::stable_sort(sorted.begin(), sorted.end(), ByDistance());
    const size_t count = sorted.size();
    scratch.keys.resize(count);
    for (size_t k = 0; k < count; ++k) scratch.keys[k] = sorted[k].d2;
    scratch.best.assign(count, C(0));
    scratch.best_column.assign(count, -1);
    for (int64_t c = 0; c < row.count; ++c) {
      const C v = row.d2[c];
      if (row.classes[c] == row.own || v != v) continue;
      const size_t nearer = below(scratch.keys.data(), count, v);  // positives with d < v
      if (nearer == 0) continue;
      const size_t k = nearer - 1;
      if (scratch.best_column[k] < 0 || v < scratch.best[k]) {
        scratch.best[k] = v;
        scratch.best_column[k] = c;
      }
    }
    for (size_t k = count - 1; k-- > 0;) {
      const int64_t next = scratch.best_column[k + 1];
      if (next < 0) continue;
      const C v = scratch.best[k + 1];
      const bool take = scratch.best_column[k] < 0 || v < scratch.best[k] ||
                        (v == scratch.best[k] && next < scratch.best_column[k]);
      if (take) {
        scratch.best[k] = v;
        scratch.best_column[k] = next;
      }
    }
    const C farthest_d2 = row.d2[farthest];
    clear(weights);
    for (size_t k = 0; k < count; ++k) {
      const bool found = scratch.best_column[k] >= 0;
      const auto t = term(sorted[k].d2, found ? scratch.best[k] : farthest_d2);
      if (!weights) continue;
      weights[sorted[k].column] += t.slope[0];
      weights[found ? scratch.best_column[k] : farthest] += t.slope[1];
    }
  }

  void semihard_directly(int64_t farthest, C* weights) {
    const size_t count = scratch.positives.size();
    const C farthest_d2 = row.d2[farthest];
    scratch.best.resize(count);
    scratch.best_column.resize(count);
    for (size_t k = 0; k < count; ++k) {
      const C positive = scratch.positives[k].d2;
      // Nothing is farther than the farthest: no need to look.
      const int64_t found =
          positive < farthest_d2 ? extreme_negative<C, false>(row, positive) : int64_t{-1};
      scratch.best_column[k] = found < 0 ? farthest : found;
      scratch.best[k] = row.d2[scratch.best_column[k]];
    }
    clear(weights);
    for (size_t k = 0; k < count; ++k) {
      const auto t = term(scratch.positives[k].d2, scratch.best[k]);
      if (!weights) continue;
      weights[scratch.positives[k].column] += t.slope[0];
      weights[scratch.best_column[k]] += t.slope[1];
    }
  }

  struct ByDistance {
    bool operator()(const Positive<C>& a, const Positive<C>& b) const { return a.d2 < b.d2; }
  };

  void clear(C* weights) {
    if (weights) std::fill_n(weights, row.count, C(0));
  }

  // How many of `count` ascending keys are below v.
  SIAM_INLINE static size_t below(const C* keys, size_t count, C v) {
    const C* base = keys;
    while (count > 1) {
      const size_t half = count / 2;
      base = base[half - 1] < v ? base + half : base;
      count -= half;
    }
    return static_cast<size_t>(base - keys) + (count == 1 && *base < v);
  }
  // How many are at most v.
  SIAM_INLINE static size_t up_to(const C* keys, size_t count, C v) {
    const C* base = keys;
    while (count > 1) {
      const size_t half = count / 2;
      base = base[half - 1] <= v ? base + half : base;
      count -= half;
    }
    return static_cast<size_t>(base - keys) + (count == 1 && *base <= v);
  }

  // Every triplet. `distances` is the row in the loss's own unit; weights may be the same memory.
  void all(const C* distances, C* weights) {
    auto& positives = scratch.positives;
    const size_t count = positives.size();
    constexpr int kWidth = Vec<C>::kWidth;
    const bool squared = task.params.squared;
    constexpr C kInfinity = std::numeric_limits<C>::infinity();
    int64_t negatives = 0, collapsed = 0, infinite = 0;
    DoubleSum total;
    {
      Integers<C> seen{}, zero{}, far{};
      for (int64_t c = 0; c < row.count; c += kWidth) {
        const Native<C> v = load(distances + c).v;
        const Integers<C> other = (load_classes(row.classes + c, C()) != row.own) & (v == v);
        seen -= other;
        zero -= other & (v == 0);
        far -= other & (v == kInfinity);
        total.add(other ? v : Native<C>{});
      }
      for (int l = 0; l < kWidth; ++l) {
        negatives += seen[l];
        collapsed += zero[l];
        infinite += far[l];
      }
    }
    terms = static_cast<int64_t>(count) * negatives;
    if (terms == 0) return clear(weights);
    const C margin = static_cast<C>(task.params.margin);
    scratch.keys.resize(count);
    double positive_sum = 0;
    for (size_t k = 0; k < count; ++k) {
      const C d = distances[positives[k].column];
      positive_sum += d;
      scratch.keys[k] = d + margin;
    }
    stats.collapsed = collapsed * static_cast<int64_t>(count);
    stats.positives = stats.negatives = terms;
    stats.positive_distance = positive_sum * static_cast<double>(negatives);
    stats.negative_distance = total.total() * static_cast<double>(count);
    scratch.counts.assign(count, 0);
    if (count <= kCountDirectly) {
      count_directly(distances, weights);
    } else {
      count_sorted(distances, weights);
    }
    for (size_t k = 0; k < count; ++k) {
      const int64_t times = scratch.counts[k];
      stats.active += times;
      if (times == 0) continue;
      value += static_cast<double>(times) * static_cast<double>(scratch.keys[k]);
    }
    if (infinite != 0) {
      // inf + margin − inf is NaN, which counts as active so that it is seen.
      const int64_t keys = std::count(scratch.keys.begin(), scratch.keys.end(), kInfinity);
      stats.active += keys * infinite;
      if (keys != 0) value = std::numeric_limits<double>::quiet_NaN();
    }
    if (!weights) return;
    for (size_t k = 0; k < count; ++k) {
      const C slope = slope_of(squared ? C(1) : std::sqrt(positives[k].d2), squared);
      weights[positives[k].column] = upstream * static_cast<C>(scratch.counts[k]) * slope;
    }
  }

  // Weights of the negatives from how many positives each is too near for.
  SIAM_INLINE void weigh(Native<C> v, Native<C> times, DoubleSum& nearer, C* weights) {
    nearer.add_product(times, times != 0 ? v : Native<C>{});
    if (!weights) return;
    Native<C> w = times * (-upstream - Native<C>{});
    if (!task.params.squared) w = v != 0 ? w * ((C(0.5) - Native<C>{}) / v) : Native<C>{};
    w = times != 0 ? w : Native<C>{};
    store(weights, Vec<C>(w));
  }

  void count_directly(const C* distances, C* weights) {
    constexpr int kWidth = Vec<C>::kWidth;
    const size_t count = scratch.keys.size();
    Integers<C> lanes[kCountDirectly];
    std::memset(static_cast<void*>(lanes), 0, count * sizeof(lanes[0]));
    const C* const keys = scratch.keys.data();
    DoubleSum nearer;
    for (int64_t c = 0; c < row.count; c += kWidth) {
      const Native<C> v = load(distances + c).v;
      const Integers<C> other = load_classes(row.classes + c, C()) != row.own;
      Integers<C> times{};
      for (size_t k = 0; k < count; ++k) {
        const Integers<C> active = ((keys[k] - Native<C>{}) > v) & other;
        times -= active;
        lanes[k] -= active;
      }
      weigh(v, __builtin_convertvector(times, Native<C>), nearer, weights ? weights + c : nullptr);
    }
    for (size_t k = 0; k < count; ++k) {
      for (int l = 0; l < kWidth; ++l) scratch.counts[k] += lanes[k][l];
    }
    value -= nearer.total();
  }

  void count_sorted(const C* distances, C* weights) {
    constexpr int kWidth = Vec<C>::kWidth;
    const size_t count = scratch.keys.size();
    // counts[k] for the k-th smallest key; the positives are put into the same order.
    std::stable_sort(scratch.positives.begin(), scratch.positives.end(), ByDistance());
    std::stable_sort(scratch.keys.begin(), scratch.keys.end());
    DoubleSum nearer;
    scratch.counts.assign(count + 1, 0);
    const C* const keys = scratch.keys.data();
    for (int64_t c = 0; c < row.count; c += kWidth) {
      C times[kWidth];
      for (int l = 0; l < kWidth; ++l) {
        const C v = distances[c + l];
        const bool other = row.classes[c + l] != row.own && v == v;
        const size_t idle = up_to(keys, count, v);  // positives whose key is not above v
        times[l] = other ? static_cast<C>(count - idle) : C(0);
        scratch.counts[idle] += other;
      }
      weigh(load(distances + c).v, load(times).v, nearer, weights ? weights + c : nullptr);
    }
    for (size_t k = 1; k <= count; ++k) scratch.counts[k] += scratch.counts[k - 1];
    value -= nearer.total();
  }

  // Every triplet through softplus, which does not factorise: O(positives · negatives).
  void soft(C* weights, C* work) {
    auto& positives = scratch.positives;
    const size_t count = positives.size();
    int64_t negatives = 0;
    for (int64_t c = 0; c < row.count; ++c) {
      const bool other = row.classes[c] != row.own && row.d2[c] == row.d2[c];
      negatives += other;
      // A stand-in for the others, at no cost in range; its terms are left out.
      work[c] = other ? row.d2[c] : C(1);
      work[row.count + c] = other ? C(1) : C(0);
      work[2 * row.count + c] = 0;
    }
    terms = static_cast<int64_t>(count) * negatives;
    if (terms == 0) return clear(weights);
    const C *d2 = work, *real = work + row.count;
    C *slope = work + 2 * row.count, *terms_of = work + 3 * row.count, *own = work + 4 * row.count;
    const math::TripletLoss::Params params = task.params;
    std::vector<C> positive_weight(count);
    for (size_t k = 0; k < count; ++k) {
      const C positive = positives[k].d2;
      for (int64_t c = 0; c < row.count; ++c) {
        const C sums[2] = {positive, d2[c]};
        const auto t = math::TripletLoss::evaluate<TripletTerms>(params, sums, Label::kGenuine);
        terms_of[c] = real[c] != 0 ? t.value : C(0);
        own[c] = real[c] != 0 ? t.slope[0] : C(0);
        slope[c] += real[c] != 0 ? t.slope[1] : C(0);
      }
      value += sum_row(terms_of, static_cast<int>(row.count));
      positive_weight[k] = static_cast<C>(sum_row(own, static_cast<int>(row.count)));
      for (int64_t c = 0; c < row.count; ++c) {
        if (real[c] != 0) count_term(positive, row.d2[c], terms_of[c]);
      }
    }
    if (!weights) return;
    for (int64_t c = 0; c < row.count; ++c) weights[c] = upstream * slope[c];
    for (size_t k = 0; k < count; ++k) {
      weights[positives[k].column] = upstream * positive_weight[k];
    }
  }
};

// What an anchor that holds NaN counts: its terms by label alone.
template <class C>
int64_t terms_by_label(const TripletTask<C>& task, int64_t i, int64_t self) {
  const int32_t group = task.row_group[i];
  if (group < 0) return 0;
  const int64_t members = task.group_start[group + 1] - task.group_start[group];
  const int64_t positives = members - (self >= 0 && self < task.ref.rows);
  const int64_t negatives = task.ref.rows - members;
  if (positives <= 0 || negatives <= 0) return 0;
  switch (task.mining) {
    case Mining::kAll: return positives * negatives;
    case Mining::kSemihard: return positives;
    default: return 1;
  }
}

// to[d] += weight · (y[d] − x[d]) in double, from the tensors themselves.
template <class C>
__attribute__((noinline, cold)) void add_exact_difference(double weight, const Matrix& x, int64_t i,
                                                          const Matrix& y, int64_t j, C* to) {
  for (int64_t d = 0; d < x.columns; ++d) {
    to[d] += static_cast<C>(weight * (element(y, j, d) - element(x, i, d)));
  }
}

// Panels of anchors [begin, end), counted from the group's first anchor.
template <class C>
void anchor_rows(const TripletTask<C>& task, int64_t begin, int64_t end) {
  const int64_t columns = task.x.columns, count = task.ref.rows, step = task.row_step;
  const TileGeometry g = tile_geometry<C>(columns);
  const C threshold =
      static_cast<C>(math::tile_rescue_threshold(columns, std::numeric_limits<C>::epsilon() / 2));
  const bool dense = task.mining == Mining::kAll || task.mining == Mining::kSemihard;
  const bool soft = task.params.soft && task.mining == Mining::kAll;
  const bool backward = task.weights_wanted;
  const int64_t panel_size = kTileRows * g.padded;
  Aligned<C> left(kPanelGroup * left_size<C>(columns)), rows(kPanelGroup * panel_size);
  Aligned<C> gradient(dense && backward ? panel_size : 0), sums(kTileRows * kScratchStep);
  Aligned<C> work(soft ? 5 * step : dense && !task.params.squared ? step : 0);
  // Rows of distances: the group's own where they become weights, else this thread's.
  Aligned<C> local(task.weights ? 0 : kPanelGroup * kTileRows * step);
  Flag<C> flag[kMaxBlock];
  AnchorScratch<C> scratch;
  RowPanel<C> panel[kPanelGroup];
  const Packed<C>& all = task.refs;

  for (int64_t p = begin; p < end; p += kPanelGroup) {
    const int group = static_cast<int>(std::min<int64_t>(kPanelGroup, end - p));
    const int64_t offset = p * kTileRows;
    C* const matrix = task.weights ? task.weights + offset * step : local.data();
    uint8_t* const flags = task.weights ? task.flags + offset * step : nullptr;
    for (int q = 0; q < group; ++q) {
      panel[q].left = left.data() + q * left_size<C>(columns);
      panel[q].rows = rows.data() + q * panel_size;
      load_panel(task.x, g, task.group_first + (p + q) * kTileRows, task.refs.pairs, panel[q]);
      if (task.group_rows) {
        std::copy_n(panel[q].rows, panel_size,
                    task.group_rows + (offset + q * kTileRows) * g.padded);
      }
    }
    for (int64_t j = 0; j < count; j += g.block) {
      const int n = static_cast<int>(std::min<int64_t>(g.block, count - j));
      for (int q = 0; q < group; ++q) {
        tile_sums<C, true>(panel[q], all, j, columns, round_up(n, kTileColumns<C>), sums.data());
        for (int r = 0; r < panel[q].count; ++r) {
          C* row = sums.data() + r * kScratchStep;
          const bool special =
              finish_distances(task.x, task.ref, panel[q], r, all, j, n, g, threshold, row, flag);
          const int64_t at = (q * kTileRows + r) * step + j;
          std::copy_n(row, n, matrix + at);
          if (!flags) continue;
          if (special) {
            for (int c = 0; c < n; ++c) flags[at + c] = static_cast<uint8_t>(flag[c]);
          } else {
            std::memset(flags + at, 0, n);
          }
        }
      }
    }
    for (int q = 0; q < group; ++q) {
      for (int r = 0; r < panel[q].count; ++r) {
        const int64_t i = panel[q].first + r, self = i + task.self;
        C* const row = matrix + (q * kTileRows + r) * step;
        std::fill(row + count, row + step, std::numeric_limits<C>::quiet_NaN());
        Anchor<C> anchor{task,
                         scratch,
                         i,
                         {row, task.column_class, count, task.row_class[i]},
                         task.upstream ? task.upstream[i] : C(1)};
        C* const weights = task.weights && backward ? row : nullptr;
        task.finite_rows[i] = panel[q].finite[r];
        const bool spoilt = !panel[q].finite[r] && has_nan(task.x, i);
        if (spoilt) {
          anchor.terms = terms_by_label(task, i, self);
          if (anchor.terms) anchor.value = std::numeric_limits<double>::quiet_NaN();
          anchor.stats.active = anchor.terms;
          anchor.clear(weights);
          if (task.picked) task.picked[2 * i] = task.picked[2 * i + 1] = -1;
        } else {
          anchor.gather_positives(self >= 0 && self < count ? self : -1);
          if (task.mining == Mining::kHard || task.mining == Mining::kEasyPositive) {
            anchor.pick(task.mining == Mining::kHard, task.picked + 2 * i,
                        task.picked_weight + 2 * i);
          } else if (task.mining == Mining::kSemihard) {
            // The row of distances is read to the end before its weights are written.
            anchor.semihard(weights);
          } else if (soft) {
            anchor.soft(weights, work.data());
          } else if (task.params.squared) {
            anchor.all(row, weights);
          } else {
            for (int64_t c = 0; c < step; ++c) work.data()[c] = std::sqrt(row[c]);
            anchor.all(work.data(), weights);
          }
        }
        anchor.stats.valid = anchor.terms;
        task.values[i] = anchor.value;
        task.stats[i] = anchor.stats;
        if (weights) std::fill(row + count, row + step, C(0));
        if (spoilt && task.anchor_gradient && anchor.terms) {
          std::fill_n(task.anchor_gradient + i * columns, columns,
                      std::numeric_limits<C>::quiet_NaN());
        }
      }
    }
    if (!dense || !task.anchor_gradient) continue;
    // What the pairs give to their anchor.
    for (int q = 0; q < group; ++q) {
      gradient.clear();
      double weight_sum[kTileRows] = {};
      sums.clear();
      for (int64_t j = 0; j < count; j += g.block) {
        const int n = static_cast<int>(std::min<int64_t>(g.block, count - j));
        for (int r = 0; r < panel[q].count; ++r) {
          const int64_t i = panel[q].first + r;
          const int64_t at = (q * kTileRows + r) * step + j;
          C* row = sums.data() + r * kScratchStep;
          std::copy_n(matrix + at, n, row);
          C* own_gradient = gradient.data() + r * g.padded;
          const C* own = panel[q].rows + r * g.padded;
          for (int c = 0; c < n; ++c) {
            if (!flags[at + c] || row[c] == 0) continue;
            const C weight = row[c];
            row[c] = 0;
            if (flags[at + c] == 1) {
              add_difference(weight, own, all.rows + (j + c) * g.padded, g.padded, own_gradient);
            } else if (!panel[q].finite[r] || all.finite[j + c]) {
              add_exact_difference(weight, task.x, i, task.ref, j + c, own_gradient);
            }
          }
          weight_sum[r] += sum_row(row, n);
        }
        add_weighted_rows(sums.data(), all.rows + j * g.padded, n, g.padded, gradient.data());
      }
      for (int r = 0; r < panel[q].count; ++r) {
        C* out = task.anchor_gradient + (panel[q].first + r) * columns;
        const C* own = panel[q].rows + r * g.padded;
        const C* sum = gradient.data() + r * g.padded;
        for (int64_t d = 0; d < columns; ++d) {
          out[d] += static_cast<C>(2 * (weight_sum[r] * own[d] - sum[d]));
        }
      }
    }
  }
}

// total[r][v] += Σ_k a[k·a_step + r] · b[k·b_step + v·width]: `multiply` with A the other way
// round.
template <class C>
SIAM_INLINE void multiply_transposed(const C* a, int64_t a_step, const C* b, int64_t b_step,
                                     int64_t depth, Vec<C> (&sum)[kTileRows][2]) {
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) sum[r][0] = sum[r][1] = Vec<C>();
  for (int64_t k = 0; k < depth; ++k) {
    const Vec<C> b0 = load(b), b1 = load(b + Vec<C>::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const Vec<C> ar(a[r]);
      sum[r][0] = multiply_add(ar, b0, sum[r][0]);
      sum[r][1] = multiply_add(ar, b1, sum[r][1]);
    }
    a += a_step;
    b += b_step;
  }
}

// What the pairs of a group of anchors give to the panels [begin, end) of columns.
template <class C>
void column_rows(const TripletTask<C>& task, int64_t begin, int64_t end) {
  constexpr int kWide = kTileColumns<C>, kWidth = Vec<C>::kWidth;
  const int64_t columns = task.x.columns, step = task.row_step;
  const TileGeometry g = tile_geometry<C>(columns);
  const Packed<C>& all = task.refs;
  Aligned<C> gradient(kTileRows * g.padded);
  for (int64_t p = begin; p < end; ++p) {
    const int64_t first = p * kTileRows;
    const int count = static_cast<int>(std::min<int64_t>(kTileRows, task.ref.rows - first));
    gradient.clear();
    double weight_sum[kTileRows] = {};
    for (int64_t a = 0; a < task.group_count; ++a) {
      C* const weights = task.weights + a * step + first;
      uint8_t* const flags = task.flags + a * step + first;
      const int64_t i = task.group_first + a;
      for (int r = 0; r < count; ++r) {
        if (flags[r] && weights[r] != 0) {
          const C weight = weights[r];
          weights[r] = 0;  // this thread's own column, whose product comes next
          C* to = gradient.data() + r * g.padded;
          if (flags[r] == 1) {
            add_difference(weight, all.rows + (first + r) * g.padded,
                           task.group_rows + a * g.padded, g.padded, to);
          } else if (!all.finite[first + r] || task.row_finite(i)) {
            add_exact_difference(weight, task.ref, first + r, task.x, i, to);
          }
        }
        weight_sum[r] += weights[r];
      }
    }
    for (int64_t d = 0; d < g.padded; d += kWide) {
      Vec<C> sum[kTileRows][2];
      multiply_transposed(task.weights + first, step, task.group_rows + d, g.padded,
                          task.group_count, sum);
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          C* to = gradient.data() + r * g.padded + d + v * kWidth;
          store(to, load(to) + sum[r][v]);
        }
      }
    }
    for (int r = 0; r < count; ++r) {
      C* out = task.column_gradient + (first + r) * columns;
      const C* own = all.rows + (first + r) * g.padded;
      const C* sum = gradient.data() + r * g.padded;
      for (int64_t d = 0; d < columns; ++d) {
        out[d] += static_cast<C>(2 * (weight_sum[r] * own[d] - sum[d]));
      }
    }
  }
}

// The gradients of hard and easy mining: rows [begin, end) of one side. `start` and `entries` list,
// for each of them, the pairs it is an end of, in ascending order of the anchors.
template <class C>
void add_picks(const TripletTask<C>& task, const int64_t* start, const Pick<C>* entries,
               bool anchors, C* gradient, int64_t begin, int64_t end) {
  const Matrix& own = anchors ? task.x : task.ref;
  const Matrix& other = anchors ? task.ref : task.x;
  const int64_t columns = own.columns;
  std::vector<C> x(columns), y(columns);
  for (int64_t i = begin; i < end; ++i) {
    if (start[i] == start[i + 1]) continue;
    C* const out = gradient + i * columns;
    widen_row(own, i, x.data());
    const bool finite = all_finite(x.data(), columns);
    for (int64_t k = start[i]; k < start[i + 1]; ++k) {
      const C weight = 2 * entries[k].weight;
      if (weight == 0) continue;
      widen_row(other, entries[k].row, y.data());
      if (finite && !all_finite(y.data(), columns)) continue;
      for (int64_t d = 0; d < columns; ++d) out[d] += weight * (x[d] - y[d]);
    }
  }
}
