// Selection: of the pairs that screening let through, computed directly, the nearest of each query,
// or all within a bound. Kernel text for nvcc and for the emulator.
//
//                    select_kernel                          within_kernel
//   a block has      a part of the rows for one query       the same
//   per thread       a word of the mask, then a quarter     the same
//                    of 4 pairs at a time
//   stages           4 loads of 16 bytes of either row      the same
//                    are under way
//   registers        91 (double: 94)                        90 (double: 92)
//   shared memory    29 KiB (double: 36): a queue of 1792   8 KiB: rows whose bit is set
//                    entries, rows whose bit is set
//   blocks an SM     5 (double: 4); with 100 KiB of shared  5
//                    memory an SM 3 (2), with 64 2 (1)
//   bytes            the mask once, D sizeof(T) a pair      the same; 12 or 16 a pair
//                    that passed, half of it from L1;       within
//                    the list twice
//   FLOPs            3 D a pair that passed; 66 steps of    3 D a pair that passed
//                    a network each time the queue is full
//
// A queue holds the list and what came before its last entry. Where it would overflow it is sorted,
// cut to the list, and the last entry is what must be undercut from then on. Which of its places an
// entry takes depends on the order in which threads come by; what is kept does not, since no two
// entries are equal: it is the smallest k of a set.
#pragma once

#include "cuda/entries.cuh"

namespace siamcuda::cuda {

using RowInBatch = unsigned short;
static_assert(kBatchRows == 32 * kSearchThreads && kBatchRows <= 1 << 16, "a word a thread");
static_assert(kRoundPairs == 4 * kSearchThreads / kPairLanes, "four pairs a group");

// The pairs of one query and one split that passed.
template <class T>
struct PassedPairs {
  using C = typename math::Storage<T>::Compute;
  using Q = QueryOf<T>;
  const SelectArgs& args;
  bool aligned;
  Shared<RowInBatch> rows;  // [kBatchRows]
  Shared<int> count;        // [1]
  int64_t query, begin, end;

  SIAM_DEVICE void place(int64_t item) {
    const int64_t split = item % args.launch.splits;
    query = item / args.launch.splits;
    begin = split * args.launch.split_rows;
    end = begin + args.launch.split_rows < args.rows.rows ? begin + args.launch.split_rows
                                                          : args.rows.rows;
  }
  SIAM_DEVICE unsigned word_at(int64_t row) const {
    const int64_t left = end - row;
    if (left <= 0) return 0;
    const unsigned there = left < 32 ? (1u << left) - 1 : ~0u;
    if (args.mask == nullptr) return there;
    return there & load<unsigned>(args.mask + query * args.words + row / 32);
  }
  // Squares may vanish where elements don't.
  template <class U>
  SIAM_DEVICE bool is_zero(const TileMatrix& matrix, int64_t row) const {
    if (load<C>(static_cast<const C*>(matrix.norms) + row) != 0) return false;
    const U* const x = static_cast<const U*>(matrix.data) + row * matrix.row_step;
    bool zero = true;
    SIAM_NO_UNROLL
    for (int64_t k = 0; k < args.dim; ++k) zero = zero && math::widen(load<U>(x + k)) == 0;
    return zero;
  }
  SIAM_DEVICE C distance(int64_t row) const {
    const Q* const x[1] = {static_cast<const Q*>(args.queries.data) +
                           query * args.queries.row_step};
    C found[1];
    DirectPairs<T, 1>::distances(x,
                                 static_cast<const T*>(args.rows.data) + row * args.rows.row_step,
                                 args.dim, aligned, found);
    if constexpr (!std::is_integral_v<C>) {
      if (args.cosine && (is_zero<Q>(args.queries, query) || is_zero<T>(args.rows, row))) {
        return C(2);
      }
    }
    return found[0];
  }

  // visit(here, distance, row) by all threads, the four lanes of a pair alike; then, between
  // barriers, settle().
  template <class Visit, class Settle>
  SIAM_DEVICE void each(const Visit& visit, const Settle& settle) const {
    const int thread = static_cast<int>(threadIdx.x), group = thread / kPairLanes;
    SIAM_NO_UNROLL
    for (int64_t base = begin; base < end; base += kBatchRows) {
      if (thread == 0) count[0] = 0;
      __syncthreads();
      unsigned word = word_at(base + thread * 32);
      int at = word != 0 ? atomicAdd(count + 0, __popc(word)) : 0;
      while (word != 0) {
        rows[at++] = static_cast<RowInBatch>(thread * 32 + __ffs(static_cast<int>(word)) - 1);
        word &= word - 1;
      }
      __syncthreads();
      const int passed = count[0];
      SIAM_NO_UNROLL
      for (int i = 0; i < passed; i += kRoundPairs) {
        SIAM_NO_UNROLL
        for (int p = i + group; p < i + kRoundPairs; p += kSearchThreads / kPairLanes) {
          // The whole warp computes or none of it; who has no pair takes part with another one's.
          if (__ballot_sync(kWarp, p < passed) == 0) break;
          const bool here = p < passed;
          const RowInBatch mine = rows[here ? p : i];
          const int64_t row = base + mine;
          const C found = distance(row);
          visit(here, found, row);
        }
        settle();
      }
      __syncthreads();
    }
  }
};

template <class T>
SIAM_KERNEL(kSearchThreads, kSearchBlocks)
void select_kernel(const SelectArgs args, const bool aligned) {
  using C = typename math::Storage<T>::Compute;
  SIAM_SHARED(OrderKey<C>, keys, kQueueEntries);
  SIAM_SHARED(int64_t, positions, kQueueEntries);
  SIAM_SHARED(RowInBatch, rows, kBatchRows);
  SIAM_SHARED(int, counts, 2);
  const SharedEntries<C> queue{keys, positions};
  PassedPairs<T> pairs{args, aligned, rows, counts + 1, 0, 0, 0};
  const NearestLists& lists = args.lists;
  const int thread = static_cast<int>(threadIdx.x);
  SIAM_NO_UNROLL
  for (int64_t item = blockIdx.x; item < args.launch.items; item += gridDim.x) {
    pairs.place(item);
    const int64_t list = pairs.query * lists.k;
    const int64_t run = pairs.query * (lists.k + args.launch.splits * args.launch.run);
    // In place, the list is at the front of the queue. Else the first split hands it on.
    const int held = args.launch.in_place ? static_cast<int>(lists.k) : 0;
    Entry<C> last = load_entry<C>(lists.distances, lists.positions, list + lists.k - 1);
    __syncthreads();  // the last query's entries are no longer read
    SIAM_NO_UNROLL
    for (int e = thread; e < held; e += kSearchThreads) {
      queue.set(e, load_entry<C>(lists.distances, lists.positions, list + e));
    }
    if (!args.launch.in_place && pairs.begin == 0) {
      SIAM_NO_UNROLL
      for (int64_t e = thread; e < lists.k; e += kSearchThreads) {
        store_entry<C>(load_entry<C>(lists.distances, lists.positions, list + e),
                       args.run_distances, args.run_positions, run + e);
      }
    }
    if (thread == 0) counts[0] = held;
    bool changed = false;  // by a cut, which leaves as many entries as there were
    const int kept = lists.k < kListEntries ? static_cast<int>(lists.k) : kListEntries;
    pairs.each(
        [&](bool here, C distance, int64_t row) {
          const Entry<C> entry = entry_of<C>(distance, args.first + row);
          if (here && thread % kPairLanes == 0 && before<C>(entry, last)) {
            queue.set(atomicAdd(counts + 0, 1), entry);
          }
        },
        [&] {
          __syncthreads();
          const int queued = counts[0];
          if (queued <= kQueueEntries - kRoundPairs) {
            __syncthreads();  // before it is added to
            return;
          }
          sort_shared<C>(queue, queued);
          last = queue.get(kept - 1);
          changed = true;
          if (thread == 0) counts[0] = kept;
          __syncthreads();
        });
    __syncthreads();  // also where there was no row
    const int queued = counts[0];
    if (args.launch.in_place && queued == held && !changed) continue;
    sort_shared<C>(queue, queued);
    const int wanted = args.launch.in_place ? held : static_cast<int>(args.launch.run);
    void* const distances = args.launch.in_place ? lists.distances : args.run_distances;
    int64_t* const to = args.launch.in_place ? lists.positions : args.run_positions;
    const int64_t first =
        args.launch.in_place ? list : run + lists.k + item % args.launch.splits * args.launch.run;
    SIAM_NO_UNROLL
    for (int e = thread; e < wanted; e += kSearchThreads) {
      store_entry<C>(e < queued ? queue.get(e) : padding_entry<C>(), distances, to, first + e);
    }
  }
}

template <class T>
SIAM_KERNEL(kSearchThreads, kSearchBlocks)
void within_kernel(const WithinArgs args, const bool aligned) {
  using C = typename math::Storage<T>::Compute;
  SIAM_SHARED(RowInBatch, rows, kBatchRows);
  SIAM_SHARED(int, count, 1);
  PassedPairs<T> pairs{args.pairs, aligned, rows, count, 0, 0, 0};
  const C bound = static_cast<C>(args.pairs.lists.bound);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  SIAM_NO_UNROLL
  for (int64_t item = blockIdx.x; item < args.pairs.launch.items; item += gridDim.x) {
    pairs.place(item);
    unsigned long long* const next = args.next + pairs.query;
    int found = 0;
    __syncthreads();  // the last item's count is no longer read
    pairs.each(
        [&](bool here, C distance, int64_t row) {
          const bool within = here && lane % kPairLanes == 0 && distance <= bound;
          found += within;
          if (args.distances == nullptr) return;
          const unsigned votes = __ballot_sync(kWarp, within);
          if (votes == 0) return;
          unsigned long long at = 0;
          if (lane == 0) at = atomicAdd(next, static_cast<unsigned long long>(__popc(votes)));
          at = __shfl_sync(kWarp, at, 0) +
               static_cast<unsigned long long>(__popc(votes & ((1u << lane) - 1)));
          if (within) {
            store_entry<C>(entry_of<C>(distance, args.pairs.first + row), args.distances,
                           args.positions, static_cast<int64_t>(at));
          }
        },
        [] {});
    if (args.distances != nullptr) continue;
    SIAM_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) found += __shfl_xor_sync(kWarp, found, lanes);
    if (lane == 0 && found != 0) atomicAdd(next, static_cast<unsigned long long>(found));
  }
}

// --- launchers -----------------------------------------------------------------------------------

template <class T>
void launch_select_typed(const SelectArgs& args, Stream stream) {
  if (args.launch.items == 0) return;
  SIAM_LAUNCH((select_kernel<T>), Dim3(args.launch.grid), Dim3(kSearchThreads), 0, stream, args,
              pairs_aligned<T>(args.queries, args.rows));
}

template <class T>
void launch_within_typed(const WithinArgs& args, Stream stream) {
  if (args.pairs.launch.items == 0) return;
  SIAM_LAUNCH((within_kernel<T>), Dim3(args.pairs.launch.grid), Dim3(kSearchThreads), 0, stream,
              args, pairs_aligned<T>(args.pairs.queries, args.pairs.rows));
}

}  // namespace siamcuda::cuda
