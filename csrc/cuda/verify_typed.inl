// Instantiates the launchers of verification for one type of rows, SIAM_ROWS.
// Included by one .cu file a type, so that they compile side by side.
#include "cuda/typed_verify.h"
#include "cuda/verify.cuh"
#include "cuda/verify_bootstrap.cuh"
#include "cuda/verify_rows.cuh"

namespace siamcuda::cuda {

namespace {

template <class T, class Sink>
void sweep_tiles(const SweepArgs& sweep, const Sink& sink, TileDevice device, void* stream) {
  constexpr DType kDType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
  launch_tiles<T>({sweep.rows, sweep.columns, 1, sweep.dim}, sink, kDType, device,
                  native_stream(stream));
}

}  // namespace

template <class T>
void TypedVerify<T>::run_histogram(const SweepArgs& sweep, const HistogramArgs& args,
                                   TileDevice device, void* stream) {
  sweep_tiles<T>(sweep, HistogramSink<T>{{sweep}, args}, device, stream);
}

template <class T>
void TypedVerify<T>::run_table(const SweepArgs& sweep, const TableArgs& args, TileDevice device,
                               void* stream) {
  sweep_tiles<T>(sweep, TableSink<T>{{sweep}, args}, device, stream);
}

template <class T>
void TypedVerify<T>::run_intervals(const SweepArgs& sweep, const IntervalArgs& args,
                                   TileDevice device, void* stream) {
  sweep_tiles<T>(sweep, IntervalSink<T>{{sweep}, args}, device, stream);
}

template <class T>
void TypedVerify<T>::run_ranks(const SweepArgs& sweep, const RankArgs& args, TileDevice device,
                               void* stream) {
  sweep_tiles<T>(sweep, RankSink<T>{{sweep}, args}, device, stream);
}

template <class T>
void TypedVerify<T>::run_bootstrap(const SweepArgs& sweep, const BootstrapArgs& args,
                                   TileDevice device, void* stream) {
  sweep_tiles<T>(sweep, BootstrapSink<T>{{sweep}, args}, device, stream);
}

template <class T>
void TypedVerify<T>::run_keys(const SweepArgs& sweep, const KeysArgs& args, TileDevice device,
                              void* stream) {
  sweep_tiles<T>(sweep, KeysSink<T>{{sweep}, args}, device, stream);
}

template struct TypedVerify<SIAM_ROWS>;

}  // namespace siamcuda::cuda
