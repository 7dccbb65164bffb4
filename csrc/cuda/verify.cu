// Host side of verification on CUDA: picks the type of the rows.
#include "cuda/moments.cuh"
#include "cuda/platform.cuh"
#include "cuda/typed_verify.h"

namespace siamcuda::cuda {

namespace {

// 16-bit rows are widened before.
template <class Run>
void with_rows(DType dtype, const Run& run) {
  if (dtype == DType::kFloat64) return run(TypedVerify<double>());
  run(TypedVerify<float>());
}

}  // namespace

void launch_histogram(const SweepArgs& sweep, const HistogramArgs& args, DType dtype,
                      TileDevice device, void* stream) {
  const TileLaunch launch =
      tile_launch(1, sweep.rows.rows, sweep.columns.rows, device.multiprocessors);
  if (launch.tiles == 0) return;
  with_rows(dtype, [&](auto typed) { typed.run_histogram(sweep, args, device, stream); });
  SIAM_LAUNCH((moments_kernel<0>), Dim3(1), Dim3(kMomentThreads), 0, native_stream(stream),
              args.partials, launch.tiles, args.moments);
}

void launch_table(const SweepArgs& sweep, const TableArgs& args, DType dtype, TileDevice device,
                  void* stream) {
  with_rows(dtype, [&](auto typed) { typed.run_table(sweep, args, device, stream); });
}

void launch_intervals(const SweepArgs& sweep, const IntervalArgs& args, DType dtype,
                      TileDevice device, void* stream) {
  with_rows(dtype, [&](auto typed) { typed.run_intervals(sweep, args, device, stream); });
}

void launch_ranks(const SweepArgs& sweep, const RankArgs& args, DType dtype, TileDevice device,
                  void* stream) {
  with_rows(dtype, [&](auto typed) { typed.run_ranks(sweep, args, device, stream); });
}

void launch_bootstrap(const SweepArgs& sweep, const BootstrapArgs& args, DType dtype,
                      TileDevice device, void* stream) {
  with_rows(dtype, [&](auto typed) { typed.run_bootstrap(sweep, args, device, stream); });
}

void launch_keys(const SweepArgs& sweep, const KeysArgs& args, DType dtype, TileDevice device,
                 void* stream) {
  with_rows(dtype, [&](auto typed) { typed.run_keys(sweep, args, device, stream); });
}

}  // namespace siamcuda::cuda
