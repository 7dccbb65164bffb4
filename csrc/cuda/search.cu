// Host side of exact search on CUDA: picks the type of the rows.
#include "cuda/paired_bits.cuh"
#include "cuda/platform.cuh"
#include "cuda/typed_search.h"

namespace siamcuda::cuda {

namespace {

template <class Run>
void with_rows(RowType type, const Run& run) {
  switch (type) {
    case RowType::kFloat16: return run(TypedSearch<math::Half>());
    case RowType::kBFloat16: return run(TypedSearch<math::BFloat16>());
    case RowType::kFloat32: return run(TypedSearch<float>());
    case RowType::kFloat64: return run(TypedSearch<double>());
    case RowType::kBits: return run(TypedSearch<math::Bits>());
  }
}

}  // namespace

void launch_screen(const ScreenArgs& args, RowType type, TileDevice device, void* stream) {
  with_rows(type, [&](auto typed) { typed.run_screen(args, device, stream); });
}

void launch_scan(const ScreenArgs& args, RowType type, TileDevice device, void* stream) {
  with_rows(type, [&](auto typed) { typed.run_scan(args, device, stream); });
}

void launch_round(const RoundArgs& args, RowType type, TileDevice device, void* stream) {
  with_rows(type, [&](auto typed) { typed.run_round(args, device, stream); });
}

void launch_select(const SelectArgs& args, RowType type, TileDevice, void* stream) {
  with_rows(type, [&](auto typed) { typed.run_select(args, stream); });
}

void launch_within(const WithinArgs& args, RowType type, TileDevice, void* stream) {
  with_rows(type, [&](auto typed) { typed.run_within(args, stream); });
}

void launch_sort(const SortArgs& args, int64_t longest, RowType type, TileDevice device,
                 void* stream) {
  with_rows(is_half(type) ? RowType::kFloat32 : type,
            [&](auto typed) { typed.run_sort(args, longest, device, stream); });
}

void launch_unit_rows(const UnitArgs& args, RowType type, TileDevice device, void* stream) {
  with_rows(type, [&](auto typed) { typed.run_unit_rows(args, device, stream); });
}

void launch_hamming(const HammingArgs& args, TileDevice device, void* stream) {
  launch_hamming_rows(args, device, native_stream(stream));
}

void launch_root(const void* x, void* out, int64_t count, RowType type, TileDevice device,
                 void* stream) {
  with_rows(type, [&](auto typed) { typed.run_root(x, out, count, device, stream); });
}

}  // namespace siamcuda::cuda
