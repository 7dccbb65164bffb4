// Instantiates the row launchers of every loss for one storage type, SIAM_STORAGE.
// Included by one .cu file a type, so that they compile side by side.
#include "cuda/rows.cuh"
#include "cuda/rows_double_backward.cuh"
#include "cuda/typed_rows.h"
#include "math/row_table.h"

namespace siamcuda::cuda {
namespace {

struct RowsKernel {
  using Result = void;
  template <class F, class Row, class T>
  static void run(const RowArgs& args, const typename F::Params& params, int multiprocessors,
                  void* stream) {
    launch_typed<F, Row, T>(args, params, multiprocessors, native_stream(stream));
  }
};
struct DoubleBackwardKernel {
  using Result = void;
  template <class F, class Row, class T>
  static void run(const RowArgs& args, const typename F::Params& params, int multiprocessors,
                  void* stream) {
    launch_double_backward_typed<F, Row, T>(args, params, multiprocessors, native_stream(stream));
  }
};

}  // namespace

template <class F, class T>
void TypedRows<F, T>::run(const RowArgs& args, const typename F::Params& params,
                          int multiprocessors, void* stream) {
  run_for_row<RowsKernel, F, T>(args, params, multiprocessors, stream);
}
template <class F, class T>
void TypedRows<F, T>::run_double_backward(const RowArgs& args, const typename F::Params& params,
                                          int multiprocessors, void* stream) {
  run_for_row<DoubleBackwardKernel, F, T>(args, params, multiprocessors, stream);
}

#define SIAM_INSTANTIATE(F) template struct TypedRows<F, SIAM_STORAGE>;
SIAM_FOR_EACH_LOSS(SIAM_INSTANTIATE)
#undef SIAM_INSTANTIATE

}  // namespace siamcuda::cuda
