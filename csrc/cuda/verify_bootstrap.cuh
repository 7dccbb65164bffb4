// The sink that counts pairs as often as their identities were drawn, in 64 samples at a time.
// Kernel text for nvcc and for the emulator.
//
//                    bootstrap, on tile_kernel, with its table
//   spread           16 columns of the tile at a time: threads say to which bin a pair goes; then a
//                    warp takes rows in turn, and of each pair two of the 64 samples a lane
//   registers        fma32 168, D > 128 222, tf32x3 128, fma64 252 (most)
//   shared memory    in the stages of the tile: 8 KiB
//   barriers, a tile 16
//   atomics, a tile  8192 pairs x 64 of 8 bytes, of which a warp's 32 lie side by side: 16 sectors
//                    a pair, spread over bins that hold alike
//   bytes besides    what is drawn of an identity, 64 a row and pair, from L1
//   operations       64 multiplications and additions of integers a pair
#pragma once

#include "cuda/sweep.cuh"

namespace siamcuda::cuda {

template <class C>
struct BootstrapSink {
  static constexpr bool kScratch = true;

  SweepView sweep;
  BootstrapArgs args;

  SIAM_DEVICE bool wants(const TilePlace& place) const { return sweep.wants(place); }

  // How often the lane's sample, and the one 32 further on, drew an identity.
  struct Drawn {
    unsigned first, second;
  };
  SIAM_DEVICE Drawn drawn(int32_t identity, int lane) const {
    const uint8_t* const at = args.drawn + int64_t{identity} * math::kReplicates + lane;
    return {load<uint8_t>(at), load<uint8_t>(at + 32)};
  }

  template <class Layout>
  SIAM_DEVICE void take(const TilePlace& place, const C (&d2)[Layout::kRows][Layout::kColumns],
                        const Shared<unsigned char>& scratch) const {
    static_assert(math::kReplicates == 64, "two a lane");
    constexpr int kAcross = Layout::kParts * Layout::kRowLanes;  // columns of a step
    constexpr int kEntries = kTileRows * kAcross;
    static_assert(kEntries * 8 <= kStages * kStageBytes, "fits the stages");
    const int thread = thread_afresh(), lane = thread % 32;
    const Shared<int> bins = shared_cast<int>(scratch);  // of impostors ~bin; with none kNone
    const Shared<int> columns = shared_cast<int>(scratch + kEntries * 4);
    constexpr int kNone = 0x7FFFFFFF;
    TilePairs<Layout, C> pairs(sweep, place, thread, d2);
    SIAM_NO_UNROLL
    for (int j = 0; j < Layout::kColumns; ++j) {
      __syncthreads();  // the last stage, or the last step's entries, are no longer read
      pairs.step(sweep, place, thread, j, [&](int i, int column, Pair kind, C distance) {
        const Key<C> key = math::key_of(distance);
        int bin = kNone;
        if (kind != Pair::kNone && key <= math::kInfinityKey<C>) {
          const int64_t entry = load<int64_t>(args.table + (key >> math::kLowBits<C>));
          bin = static_cast<int>(math::table_bin<C>(entry, key));
          if (kind == Pair::kImpostor) bin = ~bin;
        }
        const int at = Layout::row(thread, i) * kAcross + Layout::part(thread) * Layout::kRowLanes +
                       thread % Layout::kRowLanes;
        bins[at] = bin;
        columns[at] = column;
      });
      __syncwarp();
      __syncthreads();
      SIAM_NO_UNROLL
      for (int row = thread / 32; row < place.rows_here; row += Layout::kThreads / 32) {
        const Drawn own =
            drawn(load<int32_t>(args.row_identity + sweep.row_number(place, row)), lane);
        SIAM_NO_UNROLL
        for (int c = 0; c < kAcross; ++c) {
          const int bin = bins[row * kAcross + c];
          if (bin == kNone) continue;
          const int column = columns[row * kAcross + c];
          Drawn weight = own;
          if (bin < 0) {
            const Drawn other = drawn(
                load<int32_t>(args.column_identity + sweep.column_number(place, column)), lane);
            weight = {own.first * other.first, own.second * other.second};
          }
          const int64_t to = bin < 0 ? args.size + ~bin : bin;
          Counter* const counts = args.counts + to * math::kReplicates + lane;
          if (weight.first != 0) atomicAdd(counts, Counter{weight.first});
          if (weight.second != 0) atomicAdd(counts + 32, Counter{weight.second});
        }
      }
      __syncwarp();
    }
  }
};

}  // namespace siamcuda::cuda
