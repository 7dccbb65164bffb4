// Screening: a bit for each pair of a query and a row that may be near enough. Kernel text for nvcc
// and for the emulator; Note [Screening] in search_launch.h says why no bit is missing.
//
//                    tiles                      scan_kernel                 round_kernel
//                    (before them a thread a
//                    query: bounds_kernel)
//   for              more than kFewQueries      up to kFewQueries queries   16-bit rows
//   a block has      64 queries x 128 rows:     32 rows a warp              4 queries, a warp each
//                    tile_kernel, with its
//                    table
//   per thread       64 or 32 pairs             8 rows x 1 or 4 queries,    1 element in 32
//                                               a quarter of each
//   stages           2 of 12 KiB                none: 4 loads of 16 bytes   none
//                                               a row are under way
//   registers        fma32 128, D > 128 199,    74 or 128 (double: 78        26
//     (most)         mma16 99, tf32x3 125,      or 128)
//                    fma64 195, bits 168;
//                    bounds_kernel 32
//   shared memory    as tile_kernel's           none                        none
//   blocks an SM     2 or 3                     4                           8
//   bytes            what the tile reads; 1     rows once, queries from     queries once; 2 D + 4
//                    bit a pair                 L1; 1 bit a pair            a query
//   FLOPs            2 D a pair                 3 D a pair                  3 D a query, in double
//
// What a query accepts is in registers while a tile is judged: one number for each of a thread's
// queries, which bounds_kernel makes of the last entry of its list. A bit costs an addition, a
// comparison, a vote and a selection beside the 2 D operations of its pair. Bits behind the last
// row may have any value.
#pragma once

#include "cuda/entries.cuh"
#include "cuda/tiles.cuh"

namespace siamcuda::cuda {

// What a query accepts: distances up to this, or all of them where its list is not full.
template <class C>
SIAM_DEVICE C accepted_of(const NearestLists& lists, int64_t query) {
  if (lists.k == 0) return static_cast<C>(lists.bound);
  const Entry<C> last = load_entry<C>(lists.distances, lists.positions, (query + 1) * lists.k - 1);
  // +inf for NaN as well: whatever is nearer by position must pass, and what is NaN does.
  if constexpr (!std::is_integral_v<C>) {
    if (last.key == kNanKey<C>) return distance_of<C>(kPaddingKey<C>);
  }
  return distance_of<C>(last.key);
}

// C is float or double, or int32_t for counts, which are exact. Of a pair, half of
// (1 - slack)(|x|^2 + |y|^2) - bound is a sum of a number of its query and one of its row, and x.y
// is below that or the pair passes: an addition and a comparison.
template <class C>
struct ScreenNumbers {
  C share, growth, underflow, largest;

  // Of a norm that is too large, or NaN: nothing is below that.
  SIAM_DEVICE C of_norm(C norm, C bound) const {
    return norm <= largest ? C(0.5) * fused(share, norm, -bound) : -distance_of<C>(kPaddingKey<C>);
  }
};

template <class C>
SIAM_KERNEL(kSearchThreads, 8)
void bounds_kernel(const ScreenArgs args, const ScreenNumbers<C> numbers) {
  SIAM_NO_UNROLL
  for (int64_t query = int64_t{blockIdx.x} * kSearchThreads + threadIdx.x;
       query < args.queries.rows; query += int64_t{gridDim.x} * kSearchThreads) {
    C bound = accepted_of<C>(args.lists, query);
    if constexpr (!std::is_integral_v<C>) {
      bound = bound * numbers.growth;
      if (args.residuals != nullptr) {
        // Its own four roundings are covered by the last factor.
        const C rest = load<C>(static_cast<const C*>(args.residuals) + query);
        const C root = math::sqrt(bound) + rest;
        bound = root * root * (C(1) + C(0x1p-20));
      }
      bound = numbers.of_norm(load<C>(static_cast<const C*>(args.queries.norms) + query),
                              bound + numbers.underflow);
    }
    store(bound, static_cast<C*>(args.bounds) + query);
  }
}

template <class C>
struct ScreenSink {
  static constexpr bool kProducts = true;

  const C* bounds;  // [queries]
  const C* norms;   // [rows]
  ScreenNumbers<C> numbers;
  unsigned* mask;  // [queries, words]
  int64_t words;

  SIAM_DEVICE static bool passes(C product, C of_query, C of_row) {
    if constexpr (std::is_integral_v<C>) {
      return product <= of_query;
    } else {
      return !(product < of_query + of_row);
    }
  }

  template <class Layout>
  SIAM_DEVICE void take(const TilePlace& place,
                        const C (&sums)[Layout::kRows][Layout::kColumns]) const {
    constexpr int kRows = Layout::kRows, kColumns = Layout::kColumns;
    constexpr bool kBytes = Layout::kRowLanes == 8;  // that a thread stores, else words
    const int thread = thread_afresh();
    C query[kRows];
    unsigned bits[kRows];
    SIAM_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const int row = Layout::row(thread, i);
      query[i] = row < place.rows_here ? load<C>(bounds + place.first_row + row) : C(0);
      bits[i] = 0;
    }
    SIAM_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const int column = Layout::column(thread, j);
      C row = 0;
      if constexpr (!std::is_integral_v<C>) {
        if (column < place.columns_here) {
          row = numbers.of_norm(load<C>(norms + place.first_column + column), 0);
        }
      }
      SIAM_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const bool pass = passes(sums[i][j], query[i], row);
        if constexpr (kBytes) {
          // Eight neighbours are a byte of each of the warp's four rows; lane j of them keeps it.
          const unsigned votes = __ballot_sync(kWarp, pass);
          bits[i] = thread % 8 == j ? votes : bits[i];
        } else {
          bits[i] |= pass ? 1u << (j / 2 * kMmaColumns + j % 2) : 0u;
        }
      }
    }
    unsigned* const line = mask + place.first_row * words + place.first_column / 32;
    SIAM_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const int row = Layout::row(thread, i);
      if constexpr (kBytes) {
        const int byte = 2 * (thread % 8) + Layout::part(thread);
        auto* const to = reinterpret_cast<unsigned char*>(line + row * words) + byte;
        if (row < place.rows_here) {
          store(static_cast<unsigned char>(bits[i] >> (thread % 32 / 8 * 8)), to);
        }
      } else {
        bits[i] <<= 2 * (thread % 4);
        bits[i] |= __shfl_xor_sync(kWarp, bits[i], 1);
        bits[i] |= __shfl_xor_sync(kWarp, bits[i], 2);
        if (thread % 4 == 0 && row < place.rows_here) {
          store(bits[i], line + row * words + Layout::part(thread));
        }
      }
    }
  }
};

// Queries in the order that launches were given; one that is not there repeats the first.
template <class T, int kQueries>
SIAM_KERNEL(kSearchThreads, kSearchBlocks)
void scan_kernel(const ScreenArgs args, const bool aligned) {
  using C = typename math::Storage<T>::Compute;
  using Q = QueryOf<T>;
  constexpr int kWarps = kSearchThreads / 32, kRowsAtOnce = 32 / kPairLanes;
  const int lane = static_cast<int>(threadIdx.x) % 32, group = lane / kPairLanes;
  const Q* x[kQueries];
  C accepted[kQueries];
  SIAM_UNROLL
  for (int q = 0; q < kQueries; ++q) {
    const int64_t query = q < args.queries.rows ? q : 0;
    x[q] = static_cast<const Q*>(args.queries.data) + query * args.queries.row_step;
    accepted[q] = accepted_of<C>(args.lists, query);
  }
  const auto* const rows = static_cast<const T*>(args.rows.data);
  SIAM_NO_UNROLL
  for (int64_t word = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; word < args.words;
       word += int64_t{gridDim.x} * kWarps) {
    unsigned bits[kQueries];
    SIAM_UNROLL
    for (int q = 0; q < kQueries; ++q) bits[q] = 0;
    SIAM_NO_UNROLL
    for (int r = 0; r < 32; r += kRowsAtOnce) {
      const int64_t row = word * 32 + r + group;
      const bool here = row < args.rows.rows;
      C distance[kQueries];
      DirectPairs<T, kQueries>::distances(x, rows + (here ? row : 0) * args.rows.row_step, args.dim,
                                          aligned, distance);
      SIAM_UNROLL
      for (int q = 0; q < kQueries; ++q) {
        const bool pass = here && !(distance[q] > accepted[q]);
        bits[q] |= static_cast<unsigned>(pass) << (r + group);
      }
    }
    SIAM_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      SIAM_UNROLL
      for (int lanes = kPairLanes; lanes < 32; lanes *= 2) {
        bits[q] |= __shfl_xor_sync(kWarp, bits[q], lanes);
      }
      if (lane == 0 && q < args.queries.rows) store(bits[q], args.mask + q * args.words + word);
    }
  }
}

template <class T>
SIAM_KERNEL(kSearchThreads, 8)
void round_kernel(const RoundArgs args) {
  constexpr int kWarps = kSearchThreads / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  SIAM_NO_UNROLL
  for (int64_t query = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; query < args.count;
       query += int64_t{gridDim.x} * kWarps) {
    double sum = 0;
    SIAM_NO_UNROLL
    for (int64_t k = lane; k < args.dim; k += 32) {
      const float x = load<float>(args.queries + query * args.dim + k);
      const T rounded = math::narrow<T>(x);
      store(rounded, static_cast<T*>(args.rounded) + query * args.dim + k);
      const double rest = static_cast<double>(x) - static_cast<double>(math::widen(rounded));
      sum = __fma_rn(rest, rest, sum);
    }
    SIAM_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kWarp, sum, lanes);
    // 2^-20 more than it is, for its own roundings and those of the sum.
    if (lane == 0) {
      store(static_cast<float>(math::sqrt(sum) * (1 + 0x1p-20)), args.residuals + query);
    }
  }
}

// --- launchers
// -----------------------------------------------------------------------------------

template <class T>
void launch_screen_typed(const ScreenArgs& args, DType dtype, TileDevice device, Stream stream) {
  using C = typename math::Storage<T>::Compute;
  const TileArgs tiles{args.queries, args.rows, 1, args.dim};
  ScreenSink<C> sink{};
  sink.bounds = static_cast<const C*>(args.bounds);
  sink.norms = static_cast<const C*>(args.rows.norms);
  sink.mask = args.mask;
  sink.words = args.words;
  const TileLaunch launch =
      tile_launch(1, args.queries.rows, args.rows.rows, device.multiprocessors);
  if (launch.tiles == 0) return;
  if constexpr (!std::is_integral_v<C>) {
    const ScreenRule rule =
        screen_rule(math::tile_engine(dtype, args.dim, device.capability), args.dim);
    sink.numbers = {static_cast<C>(1 - rule.slack), static_cast<C>(rule.growth),
                    static_cast<C>(rule.underflow), static_cast<C>(rule.largest)};
  }
  SIAM_LAUNCH((bounds_kernel<C>),
              Dim3(search_grid(pieces_of(args.queries.rows, kSearchThreads), device)),
              Dim3(kSearchThreads), 0, stream, args, sink.numbers);
  if constexpr (std::is_integral_v<C>) {
    TileArgs mended = tiles;
    mended.x1 = without_idle_steps(tiles.x1, 1);
    mended.x2 = without_idle_steps(tiles.x2, 1);
    launch_tile_kernel<TileEngine::kBits, T>(mended, sink, launch, stream);
  } else {
    launch_tiles<T>(tiles, sink, dtype, device, stream);
  }
}

template <class T>
void launch_scan_typed(const ScreenArgs& args, TileDevice device, Stream stream) {
  if (args.words == 0 || args.queries.rows == 0) return;
  const bool aligned = pairs_aligned<T>(args.queries, args.rows);
  const Dim3 grid(search_grid(pieces_of(args.words, kSearchThreads / 32), device));
  if (args.queries.rows == 1) {
    SIAM_LAUNCH((scan_kernel<T, 1>), grid, Dim3(kSearchThreads), 0, stream, args, aligned);
  } else {
    SIAM_LAUNCH((scan_kernel<T, kFewQueries>), grid, Dim3(kSearchThreads), 0, stream, args,
                aligned);
  }
}

template <class T>
void launch_round_typed(const RoundArgs& args, TileDevice device, Stream stream) {
  if (args.count == 0) return;
  const int64_t blocks = pieces_of(args.count, kSearchThreads / 32);
  const int64_t resident = static_cast<int64_t>(std::max(device.multiprocessors, 1)) * 8;
  SIAM_LAUNCH((round_kernel<T>), Dim3(static_cast<unsigned>(std::min(blocks, resident))),
              Dim3(kSearchThreads), 0, stream, args);
}

}  // namespace siamcuda::cuda
