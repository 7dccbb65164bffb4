// Instantiates the search launchers for one type of rows, SIAM_ROWS.
// Included by one .cu file a type, so that they compile side by side.
#include "cuda/screen.cuh"
#include "cuda/search.cuh"
#include "cuda/sort.cuh"
#include "cuda/typed_search.h"
#include "cuda/unit_rows.cuh"

namespace siamcuda::cuda {

namespace {

template <class T>
constexpr DType kRowDType = sizeof(T) == 8                      ? DType::kFloat64
                            : sizeof(T) == 4                    ? DType::kFloat32
                            : std::is_same_v<T, math::BFloat16> ? DType::kBFloat16
                                                                : DType::kFloat16;
template <class T>
constexpr bool kIsBits = std::is_same_v<T, math::Bits>;

}  // namespace

template <class T>
void TypedSearch<T>::run_screen(const ScreenArgs& args, TileDevice device, void* stream) {
  launch_screen_typed<T>(args, kRowDType<T>, device, native_stream(stream));
}

template <class T>
void TypedSearch<T>::run_scan(const ScreenArgs& args, TileDevice device, void* stream) {
  launch_scan_typed<T>(args, device, native_stream(stream));
}

template <class T>
void TypedSearch<T>::run_round(const RoundArgs& args, TileDevice device, void* stream) {
  if constexpr (sizeof(T) == 2) launch_round_typed<T>(args, device, native_stream(stream));
}

template <class T>
void TypedSearch<T>::run_select(const SelectArgs& args, void* stream) {
  launch_select_typed<T>(args, native_stream(stream));
}

template <class T>
void TypedSearch<T>::run_within(const WithinArgs& args, void* stream) {
  launch_within_typed<T>(args, native_stream(stream));
}

// Those of 16-bit rows are sorted as those of float rows are.
template <class T>
void TypedSearch<T>::run_sort(const SortArgs& args, int64_t longest, TileDevice device,
                              void* stream) {
  if constexpr (sizeof(T) != 2) {
    launch_sort_typed<typename math::Storage<T>::Compute>(args, longest, device,
                                                          native_stream(stream));
  }
}

template <class T>
void TypedSearch<T>::run_unit_rows(const UnitArgs& args, TileDevice device, void* stream) {
  if constexpr (!kIsBits<T>) launch_unit_rows_typed<T>(args, device, native_stream(stream));
}

template <class T>
void TypedSearch<T>::run_root(const void* x, void* out, int64_t count, TileDevice device,
                              void* stream) {
  if constexpr (sizeof(T) >= 4) {
    launch_root_typed<T>(x, out, count, device, native_stream(stream));
  }
}

template struct TypedSearch<SIAM_ROWS>;

}  // namespace siamcuda::cuda
