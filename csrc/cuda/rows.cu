// Host side of the CUDA row engine: picks the storage type, and the second stage of sums.
#include "cuda/reduce.cuh"
#include "cuda/typed_rows.h"

namespace siamcuda::cuda {

namespace {

template <template <class> class Door, class... Arguments>
void by_storage(DType dtype, Arguments&&... arguments) {
  switch (dtype) {
    case DType::kFloat16: return Door<math::Half>::run(arguments...);
    case DType::kBFloat16: return Door<math::BFloat16>::run(arguments...);
    case DType::kFloat32: return Door<float>::run(arguments...);
    case DType::kFloat64: return Door<double>::run(arguments...);
  }
}

template <class F>
struct Doors {
  template <class T>
  struct Rows {
    static void run(const RowArgs& args, const typename F::Params& params, int multiprocessors,
                    void* stream) {
      TypedRows<F, T>::run(args, params, multiprocessors, stream);
    }
  };
  template <class T>
  struct DoubleBackward {
    static void run(const RowArgs& args, const typename F::Params& params, int multiprocessors,
                    void* stream) {
      TypedRows<F, T>::run_double_backward(args, params, multiprocessors, stream);
    }
  };
};

}  // namespace

template <class F>
void launch_rows(const RowArgs& args, const typename F::Params& params, int multiprocessors,
                 void* stream) {
  by_storage<Doors<F>::template Rows>(args.dtype, args, params, multiprocessors, stream);
}

template <class F>
void launch_rows_double_backward(const RowArgs& args, const typename F::Params& params,
                                 int multiprocessors, void* stream) {
  by_storage<Doors<F>::template DoubleBackward>(args.dtype, args, params, multiprocessors, stream);
}

#define SIAM_INSTANTIATE(F)                                                                    \
  template void launch_rows<F>(const RowArgs&, const typename F::Params&, int, void*);         \
  template void launch_rows_double_backward<F>(const RowArgs&, const typename F::Params&, int, \
                                               void*);
SIAM_FOR_EACH_LOSS(SIAM_INSTANTIATE)
#undef SIAM_INSTANTIATE

void launch_reduce(const RowPartial* partials, int64_t count, int64_t rows, DType dtype,
                   void* total, double scale, double* stats, void* stream) {
  const ReduceArgs args{partials, count, rows, dtype, total, scale, stats};
  SIAM_LAUNCH((reduce_kernel<0>), Dim3(1), Dim3(kRowThreads), 0, native_stream(stream), args);
}

const char* launch_error() { return check_launch(); }

int device_multiprocessors(int device) { return multiprocessor_count(device); }

}  // namespace siamcuda::cuda
