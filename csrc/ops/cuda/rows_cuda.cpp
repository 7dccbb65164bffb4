// The CUDA entry point of the row losses: device, stream, partial sums, launch checks. Compiled a
// second time against the emulator, where it runs on CPU tensors.
#include <ATen/Functions.h>

#include <cstdlib>
#include <cstring>

#include "cuda/launch.h"
#include "cuda/scale.h"
#include "ops/cuda/device.h"
#include "ops/rows.h"
#include "ops/tensors.h"

namespace siamcuda::ops {

namespace {

at::Tensor empty_cuda(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options);
}

void check(const LossInfo& loss) {
  const char* error = cuda::launch_error();
  TORCH_CHECK(error == nullptr, loss.name, ": CUDA launch failed: ", error ? error : "");
}

// SIAMCUDA_VALIDATE=1: waits for the device to learn whether every label is 0 or 1.
void validate_labels(const LossInfo& loss, const at::Tensor& target) {
  const char* wanted = std::getenv("SIAMCUDA_VALIDATE");
  if (!loss.has_target || wanted == nullptr || std::strcmp(wanted, "1") != 0) return;
  const at::Tensor bad = at::logical_and(target.ne(0), target.ne(1));
  if (!bad.any().item<bool>()) return;
  const at::Tensor index = bad.nonzero().select(0, 0).cpu();
  at::Tensor label = target;
  for (int64_t d = 0; d < index.numel(); ++d) label = label.select(0, index[d].item<int64_t>());
  TORCH_CHECK_VALUE(false, loss.name, ": target must hold only 0 and 1, got ",
                    label.item().toDouble(), " at index ",
                    at::IntArrayRef(index.const_data_ptr<int64_t>(), index.numel()));
}

void run_cuda(const LossInfo& loss, const Options& options, Pass pass, RowArgs& args,
              const Operands& operands, const Views& views, const Results& results) {
  const DeviceGuard guard(operands.input[0]);
  validate_labels(loss, operands.target);
  void* stream = current_stream();
  const int multiprocessors = cuda::device_multiprocessors(current_device());
  const cuda::RowLaunch launch =
      cuda::row_launch(args.rows, args.columns, args.dtype, multiprocessors);

  LaunchMemory memory;
  for (const at::Tensor& view : views) memory.reads(view, "operand");
  if (results.values.defined()) {
    args.values = results.values.mutable_data_ptr();
    memory.writes(results.values, "values");
  }
  for (int j = 0; j < loss.inputs; ++j) {
    if (!results.gradient[j].defined()) continue;
    args.gradient[j] = results.gradient[j].mutable_data_ptr();
    memory.writes(results.gradient[j], "gradient");
  }
  at::Tensor partials;
  args.want_stats = results.stats.defined();
  if (results.total.defined() || results.stats.defined()) {
    const int64_t doubles = sizeof(RowPartial) / sizeof(double);
    partials = at::empty({launch.tiles, doubles}, operands.input[0].options().dtype(at::kDouble));
    args.partials = static_cast<RowPartial*>(partials.mutable_data_ptr());
    memory.scratch(partials, "partials");
    if (results.total.defined()) memory.writes(results.total, "total");
    if (results.stats.defined()) memory.writes(results.stats, "stats");
  }

  loss.run_cuda(pass, args, options.params, multiprocessors, stream);
  check(loss);
  if (partials.defined()) {
    cuda::launch_reduce(
        args.partials, launch.tiles, args.rows, args.value_dtype,
        results.total.defined() ? results.total.mutable_data_ptr() : nullptr, results.scale,
        results.stats.defined() ? results.stats.mutable_data_ptr<double>() : nullptr, stream);
    check(loss);
  }
  memory.check_written();
}

// The host does not learn the factor: it would have to wait, and can't under graph capture.
bool scale_cuda(at::TensorList gradients, const at::Tensor& upstream) {
  cuda::ScaleArgs args{};
  LaunchMemory memory;
  for (size_t j = 0; j < gradients.size(); ++j) {
    const at::Tensor& gradient = gradients[j];
    // Hooks on saved tensors may have made anything of what was saved.
    if (!gradient.is_contiguous() || gradient.scalar_type() != upstream.scalar_type() ||
        gradient.device() != upstream.device()) {
      return false;
    }
    args.gradient[j] = gradient.mutable_data_ptr();
    args.count[j] = gradient.numel();
    memory.changes(gradient, "gradient");
  }
  const DeviceGuard guard(upstream);
  memory.reads(upstream, "upstream");
  args.upstream = upstream.const_data_ptr();
  cuda::launch_scale(args, dtype_of(upstream.scalar_type()),
                     cuda::device_multiprocessors(current_device()), current_stream());
  const char* error = cuda::launch_error();
  TORCH_CHECK(error == nullptr, "CUDA launch failed: ", error ? error : "");
  return true;
}

}  // namespace

const Backend& cuda_backend() {
  static const Backend backend{run_cuda, empty_cuda, scale_cuda};
  return backend;
}

}  // namespace siamcuda::ops
