// Sorting entries of segments by (distance, position), where they lie. Kernel text for nvcc and for
// the emulator.
//
//                    sort_kernel                       merge_kernel
//   a block has      2048 entries of a segment, in     2048 entries of a segment, each with the
//                    shared memory                     one that the step compares it with
//   per thread       8 comparisons a step              8 comparisons
//   steps            66, or where larger runs are      1, of 2048 entries apart or more
//                    merged the last 11
//   registers        36                                42
//   shared memory    24 KiB (double: 32)               none
//   blocks an SM     8 (sm_75: 2)                      8
//   bytes            every entry twice                 every entry once, and again if it moves
//
// A network whose comparisons point upwards sorts any number of entries, so that segments need no
// padding and nothing is copied: what the result takes is all the memory there is.
#pragma once

#include "cuda/entries.cuh"

namespace siamcuda::cuda {

struct SortPlace {
  int64_t start;    // of the segment
  int64_t entries;  // of the segment
  int64_t first;    // of the block, in the segment
};

SIAM_DEVICE SortPlace sort_place(const SortArgs& args, int64_t block) {
  if (args.starts == nullptr) {
    const int64_t each = args.total_blocks / args.segments, segment = block / each;
    return {segment * args.length, args.length, (block - segment * each) * kSortEntries};
  }
  // The last segment that begins at this block or before it: those before may be empty.
  int64_t low = 0, high = args.segments - 1;
  SIAM_NO_UNROLL
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (load<int64_t>(args.blocks + middle) <= block) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int64_t start = load<int64_t>(args.starts + low);
  return {start, load<int64_t>(args.starts + low + 1) - start,
          (block - load<int64_t>(args.blocks + low)) * kSortEntries};
}

template <class C>
SIAM_KERNEL(kSearchThreads, 8)
void sort_kernel(const SortArgs args, const bool merged) {
  SIAM_SHARED(OrderKey<C>, keys, kSortEntries);
  SIAM_SHARED(int64_t, positions, kSortEntries);
  const SharedEntries<C> entries{keys, positions};
  SIAM_NO_UNROLL
  for (int64_t block = blockIdx.x; block < args.total_blocks; block += gridDim.x) {
    const SortPlace place = sort_place(args, block);
    const int64_t left = place.entries - place.first;
    const int count = left < kSortEntries ? static_cast<int>(left) : kSortEntries;
    const int64_t start = place.start + place.first;
    SIAM_NO_UNROLL
    for (int e = static_cast<int>(threadIdx.x); e < count; e += kSearchThreads) {
      entries.set(e, load_entry<C>(args.distances, args.positions, start + e));
    }
    sort_shared<C>(entries, count, merged);
    __syncthreads();
    SIAM_NO_UNROLL
    for (int e = static_cast<int>(threadIdx.x); e < count; e += kSearchThreads) {
      store_entry<C>(entries.get(e), args.distances, args.positions, start + e);
    }
    __syncthreads();
  }
}

template <class C>
SIAM_KERNEL(kSearchThreads, 8)
void merge_kernel(const SortArgs args, const int64_t apart, const bool flip) {
  SIAM_NO_UNROLL
  for (int64_t block = blockIdx.x; block < args.total_blocks; block += gridDim.x) {
    const SortPlace place = sort_place(args, block);
    if ((place.first & apart) != 0) continue;  // the upper ones of their pairs
    SIAM_NO_UNROLL
    for (int e = static_cast<int>(threadIdx.x); e < kSortEntries; e += kSearchThreads) {
      const int64_t low = place.first + e, high = high_of(low, apart, flip);
      if (high >= place.entries) continue;
      const Entry<C> a = load_entry<C>(args.distances, args.positions, place.start + low);
      const Entry<C> b = load_entry<C>(args.distances, args.positions, place.start + high);
      if (!before<C>(b, a)) continue;
      store_entry<C>(b, args.distances, args.positions, place.start + low);
      store_entry<C>(a, args.distances, args.positions, place.start + high);
    }
  }
}

template <class C>
void launch_sort_typed(const SortArgs& args, int64_t longest, TileDevice device, Stream stream) {
  if (args.total_blocks == 0 || longest <= 1) return;
  const int64_t resident = static_cast<int64_t>(std::max(device.multiprocessors, 1)) * 8;
  const Dim3 grid(static_cast<unsigned>(std::min(args.total_blocks, resident)));
  const Dim3 block(kSearchThreads);
  SIAM_LAUNCH((sort_kernel<C>), grid, block, 0, stream, args, false);
  for (int64_t run = kSortEntries; run < longest; run *= 2) {
    SIAM_LAUNCH((merge_kernel<C>), grid, block, 0, stream, args, run, true);
    for (int64_t apart = run / 2; apart >= kSortEntries; apart /= 2) {
      SIAM_LAUNCH((merge_kernel<C>), grid, block, 0, stream, args, apart, false);
    }
    SIAM_LAUNCH((sort_kernel<C>), grid, block, 0, stream, args, true);
  }
}

}  // namespace siamcuda::cuda
