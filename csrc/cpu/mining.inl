// Mining and counting: an anchor's row of distances becomes its value and a weight for each column.
//
// The hinge over all triplets is counted, not enumerated: a negative at distance v is too near for
// the positives with d + margin > v, so its weight is minus their number, and a positive's weight
// is the number of negatives nearer than its d + margin. Both are integers, the loss is Σ count·(d
// + margin) − Σ count·v, and none of it depends on an order.

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
  bool spoilt = false;

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
  void pick(bool farthest) {
    Best<C> positive{C(0), -1};
    for (const Positive<C>& one : scratch.positives) {
      if (positive.index < 0 || (farthest ? one.d2 > positive.value : one.d2 < positive.value)) {
        positive = {one.d2, one.column};
      }
    }
    const int64_t n = positive.index < 0 ? -1 : extreme_negative<C, false>(row);
    pick(positive, {n < 0 ? C(0) : row.d2[n], n});
  }
  void pick(Best<C> positive, Best<C> negative) {
    int64_t* const picked = task.picked + 2 * i;
    picked[0] = picked[1] = -1;
    if (positive.index < 0 || negative.index < 0) return;
    const auto t = term(positive.value, negative.value);
    for (int end = 0; end < 2; ++end) {
      picked[end] = end == 0 ? positive.index : negative.index;
      task.picked_weight[2 * i + end] = t.slope[end];
    }
  }

  // An anchor that holds NaN: its terms by label alone.
  void spoil(int64_t self) {
    spoilt = true;
    terms = terms_by_label(task, i, self);
    if (terms) value = std::numeric_limits<double>::quiet_NaN();
    stats.active = terms;
    if (task.picked) task.picked[2 * i] = task.picked[2 * i + 1] = -1;
  }
  void spoil_gradient() {
    if (!spoilt || !task.anchor_gradient || !terms) return;
    std::fill_n(task.anchor_gradient + i * task.x.columns, task.x.columns,
                std::numeric_limits<C>::quiet_NaN());
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
