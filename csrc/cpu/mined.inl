// Hard and easy mining within a batch: every distance is computed once and looked at from both
// ends.
//
// The batch is cut into a few groups of rows. Two groups, or a group and itself, are one unit of
// work: a tile of distances updates what is best for its rows and, for each row, what is best for
// all columns side by side. A unit writes the best of each of its rows in the other group; the best
// over all groups is chosen at the end, in ascending order, so that ties go to the lowest index.

// The best distance and its index in each lane. kLargest: the farthest, else the nearest.
template <class C, bool kLargest>
struct BestLanes {
  Native<C> value = worst() - Native<C>{};
  Integers<C> index = Integers<C>{} - 1;

  static constexpr C worst() { return kLargest ? C(-1) : std::numeric_limits<C>::infinity(); }
  // NaN is never better, and inf is no nearest: see find_infinite.
  SIAM_INLINE void update(Native<C> v, Integers<C> at, Integers<C> allowed) {
    const Integers<C> better = (kLargest ? v > value : v < value) & allowed;
    value = better ? v : value;
    index = better ? at : index;
  }
};

// The best lane, the lowest index among equals.
template <class C, bool kLargest>
SIAM_INLINE Best<C> best_lane(const BestLanes<C, kLargest>& lanes) {
#if defined(SIAM_LEVEL_AVX512)
  if constexpr (sizeof(C) == 4) {
    const __m512 v = (__m512)lanes.value;
    const float best = kLargest ? _mm512_reduce_max_ps(v) : _mm512_reduce_min_ps(v);
    const __mmask16 equal = _mm512_cmp_ps_mask(v, _mm512_set1_ps(best), _CMP_EQ_OQ);
    return {best, _mm512_mask_reduce_min_epi32(equal, (__m512i)lanes.index)};
  }
#endif
  Best<C> best{lanes.worst(), -1};
  for (int l = 0; l < Vec<C>::kWidth; ++l) {
    const C v = lanes.value[l];
    const int64_t at = lanes.index[l];
    if (at < 0) continue;
    const bool better = kLargest ? v > best.value : v < best.value;
    if (best.index < 0 || better || (v == best.value && at < best.index)) best = {v, at};
  }
  return best;
}

template <class C, bool kLargest>
SIAM_INLINE void take_better(Best<C>& best, Best<C> other) {
  if (other.index < 0) return;
  if (best.index < 0 || (kLargest ? other.value > best.value : other.value < best.value)) {
    best = other;
  }
}

// What a unit knows of the columns of its second group, by vectors of them.
template <class C, bool kFarthest>
struct ColumnBest {
  BestLanes<C, kFarthest> positive;
  BestLanes<C, false> negative;
};

template <class C, bool kFarthest>
void mine_unit(const MinedTask<C>& task, int64_t first, int64_t second) {
  constexpr int kWidth = Vec<C>::kWidth;
  const TripletTask<C>& triplets = task.triplets;
  const Packed<C>& all = triplets.refs;
  const int64_t columns = triplets.x.columns, rows = triplets.x.rows;
  const TileGeometry g = tile_geometry<C>(columns);
  const C threshold =
      static_cast<C>(math::tile_rescue_threshold(columns, std::numeric_limits<C>::epsilon() / 2));
  const int64_t i0 = first * task.group, i1 = std::min(i0 + task.group, rows);
  const int64_t j0 = second * task.group, j1 = std::min(j0 + task.group, rows);
  const bool same = first == second;
  Aligned<C> left(left_size<C>(columns)), sums(kTileRows * kScratchStep);
  Flag<C> flag[kMaxBlock];
  ColumnBest<C, kFarthest> columns_best[kMaxBlock / kWidth];
  RowPanel<C> panel;
  panel.left = left.data();
  Best<C>* const row_best = task.best + 2 * second * rows;
  Best<C>* const column_best = task.best + 2 * first * rows;
  for (int64_t i = i0; i < i1; ++i) row_best[2 * i] = row_best[2 * i + 1] = {C(0), -1};

  Integers<C> lane{};
  for (int l = 0; l < kWidth; ++l) lane[l] = l;
  for (int64_t j = j0; j < j1; j += g.block) {
    const int n = static_cast<int>(std::min(g.block, j1 - j));
    const int wide = static_cast<int>(round_up(n, kWidth));
    for (ColumnBest<C, kFarthest>& one : columns_best) one = {};
    const int32_t* const classes = triplets.column_class + j;
    for (int64_t i = i0; i < i1; i += kTileRows) {
      borrow_panel(all, columns, g.padded, i, all.pairs != nullptr, panel);
      panel.count = static_cast<int>(std::min<int64_t>(panel.count, i1 - i));
      tile_sums<C, true>(panel, all, j, columns, round_up(n, kTileColumns<C>), sums.data());
      for (int r = 0; r < panel.count; ++r) {
        C* const row = sums.data() + r * kScratchStep;
        finish_distances(triplets.x, triplets.ref, panel, r, all, j, n, g, threshold, row, flag);
        std::fill(row + n, row + wide, std::numeric_limits<C>::quiet_NaN());
        if (same && i + r >= j && i + r < j + n) {
          row[i + r - j] = std::numeric_limits<C>::quiet_NaN();
        }
        const Integers<C> own_class = triplets.row_class[i + r] - Integers<C>{};
        const Integers<C> own = static_cast<Flag<C>>(i + r) - Integers<C>{};
        Integers<C> at = lane + static_cast<Flag<C>>(j);
        BestLanes<C, kFarthest> positive;
        BestLanes<C, false> negative;
        for (int c = 0; c < wide; c += kWidth, at += kWidth) {
          const Native<C> v = load(row + c).v;
          const Integers<C> alike = load_classes(classes + c, C()) == own_class;
          positive.update(v, at, alike);
          negative.update(v, at, ~alike);
          if (same) continue;
          ColumnBest<C, kFarthest>& theirs = columns_best[c / kWidth];
          theirs.positive.update(v, own, alike);
          theirs.negative.update(v, own, ~alike);
        }
        take_better<C, kFarthest>(row_best[2 * (i + r)], best_lane(positive));
        take_better<C, false>(row_best[2 * (i + r) + 1], best_lane(negative));
      }
    }
    for (int c = 0; !same && c < n; ++c) {
      const ColumnBest<C, kFarthest>& theirs = columns_best[c / kWidth];
      const int l = c % kWidth;
      column_best[2 * (j + c)] = {theirs.positive.value[l], theirs.positive.index[l]};
      column_best[2 * (j + c) + 1] = {theirs.negative.value[l], theirs.negative.index[l]};
    }
  }
}

// Units [begin, end) of the pairs of groups, first with second ≥ first.
template <class C>
void mine_groups(const MinedTask<C>& task, int64_t begin, int64_t end) {
  int64_t unit = 0;
  for (int64_t first = 0; first < task.groups; ++first) {
    for (int64_t second = first; second < task.groups; ++second, ++unit) {
      if (unit < begin || unit >= end) continue;
      if (task.triplets.mining == Mining::kHard) {
        mine_unit<C, true>(task, first, second);
      } else {
        mine_unit<C, false>(task, first, second);
      }
    }
  }
}

// The first candidate at distance inf, which loses every comparison to be the nearest.
template <class C>
__attribute__((noinline, cold)) Best<C> find_infinite(const TripletTask<C>& task, int64_t i,
                                                      bool positive) {
  constexpr C kInfinity = std::numeric_limits<C>::infinity();
  const int64_t* const group = task.group_start + task.row_group[i];
  const int64_t alike = group[1] - group[0];  // with the anchor
  if (positive ? alike == 1 : alike == task.ref.rows) return {kInfinity, -1};
  for (int64_t c = 0; c < task.ref.rows; ++c) {
    if (c == i || (task.column_class[c] == task.row_class[i]) != positive) continue;
    if (static_cast<C>(exact_sum(task.x, i, task.ref, c, true)) == kInfinity) return {kInfinity, c};
  }
  return {kInfinity, -1};
}

// Anchors [begin, end): the best of all groups, the term they make and what it weighs.
template <class C>
void finish_mined(const MinedTask<C>& task, int64_t begin, int64_t end) {
  const TripletTask<C>& triplets = task.triplets;
  const bool farthest = triplets.mining == Mining::kHard;
  AnchorScratch<C> scratch;
  for (int64_t i = begin; i < end; ++i) {
    Anchor<C> anchor{triplets, scratch, i, {}, triplets.upstream ? triplets.upstream[i] : C(1)};
    triplets.finite_rows[i] = triplets.refs.finite[i];
    if (!triplets.refs.finite[i] && has_nan(triplets.x, i)) {
      anchor.spoil(i);
    } else {
      Best<C> best[2] = {{C(0), -1}, {C(0), -1}};
      for (int64_t k = 0; k < task.groups; ++k) {
        const Best<C>* const here = task.best + 2 * (k * triplets.x.rows + i);
        if (farthest) {
          take_better<C, true>(best[0], here[0]);
        } else {
          take_better<C, false>(best[0], here[0]);
        }
        take_better<C, false>(best[1], here[1]);
      }
      if (best[0].index < 0 && !farthest) best[0] = find_infinite(triplets, i, true);
      if (best[1].index < 0) best[1] = find_infinite(triplets, i, false);
      anchor.pick(best[0], best[1]);
    }
    anchor.stats.valid = anchor.terms;
    triplets.values[i] = anchor.value;
    triplets.stats[i] = anchor.stats;
    anchor.spoil_gradient();
  }
}
