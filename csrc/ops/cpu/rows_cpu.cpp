// The CPU entry point of the row losses: threads over blocks of rows, labels, sums, memory.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <atomic>
#include <cmath>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "at::parallel_for is serial in code that is compiled without OpenMP: compile with -fopenmp"
#endif

#include "cpu/plain_access.h"
#include "math/labels.h"
#include "ops/rows.h"

namespace siamcuda::ops {

namespace {

// Work per thread below which starting one costs more than it brings, in elements.
constexpr int64_t kGrainElements = 32768;
// Gradients that together exceed this leave the cache anyway, so they are stored past it.
constexpr size_t kStreamBytes = size_t{8} << 20;
// Fresh memory of this size is worth asking for 2 MiB pages: a page fault each 4 KiB costs more
// than computing what goes there.
constexpr size_t kHugeBytes = size_t{4} << 20;
constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

at::Tensor empty_cpu(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor t = at::empty(sizes, options);
#if defined(__linux__)
  if (t.nbytes() >= kHugeBytes) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
    const uintptr_t first = (start + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = (start + t.nbytes()) / kHugePage * kHugePage;
    // Advice only: where huge pages are off, or the pages are already there, nothing changes.
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return t;
}

[[noreturn]] void throw_bad_label(const LossInfo& loss, const RowArgs& args,
                                  const at::Tensor& target, int64_t row) {
  const double label =
      read_label(args.label_type, args.target.data,
                 row_offset(args.shape, args.target.strides, row), cpu::PlainLoad());
  at::DimVector index(target.dim());
  for (int64_t d = target.dim() - 1; d >= 0; --d) {
    index[d] = row % target.size(d);
    row /= target.size(d);
  }
  TORCH_CHECK_VALUE(false, loss.name, ": target must hold only 0 and 1, got ", label, " at index ",
                    at::IntArrayRef(index));
}

void run_cpu(const LossInfo& loss, const Options& options, Pass pass, RowArgs& args,
             const Operands& operands, const Views&, const Results& results) {
  const int64_t blocks = block_count(args.rows);
  const bool sums = results.total.defined() || results.stats.defined();
  c10::SmallVector<RowPartial, 16> partials(sums ? blocks : 0);
  args.partials = sums ? partials.data() : nullptr;
  args.want_stats = results.stats.defined();
  args.values = results.values.defined() ? results.values.mutable_data_ptr() : nullptr;
  size_t gradient_bytes = 0;
  for (int j = 0; j < loss.inputs; ++j) {
    if (!results.gradient[j].defined()) continue;
    args.gradient[j] = results.gradient[j].mutable_data_ptr();
    gradient_bytes += results.gradient[j].nbytes();
  }
  args.stream = gradient_bytes >= kStreamBytes;

  const int64_t block_elements = std::max<int64_t>(1, kBlockRows * args.columns);
  const int64_t grain = std::max<int64_t>(1, kGrainElements / block_elements);
  if (blocks <= grain) {
    const int64_t bad = loss.run_cpu(pass, args, options.params, 0, blocks);
    if (bad >= 0) throw_bad_label(loss, args, operands.target, bad);
  } else {
    std::atomic<int64_t> first_bad{args.rows};
    at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
      const int64_t bad = loss.run_cpu(pass, args, options.params, begin, end);
      if (bad < 0) return;
      int64_t seen = first_bad.load();
      while (bad < seen && !first_bad.compare_exchange_weak(seen, bad)) {
      }
    });
    if (first_bad.load() < args.rows) {
      throw_bad_label(loss, args, operands.target, first_bad.load());
    }
  }

  if (results.total.defined()) {
    double sum = 0;
    for (const RowPartial& partial : partials) sum += partial.sum;
    write_value(args.value_dtype, results.total.mutable_data_ptr(), 0, sum * results.scale,
                cpu::PlainStore());
  }
  if (results.stats.defined()) {
    RowStats all{};
    for (const RowPartial& partial : partials) {
      all.active += partial.stats.active;
      all.collapsed += partial.stats.collapsed;
      all.positives += partial.stats.positives;
      all.positive_distance += partial.stats.positive_distance;
      all.negatives += partial.stats.negatives;
      all.negative_distance += partial.stats.negative_distance;
    }
    double* out = results.stats.mutable_data_ptr<double>();
    out[0] = static_cast<double>(args.rows);
    out[1] = all.active;
    out[2] = all.collapsed;
    out[3] = all.positive_distance / std::max(all.positives, 1.0);
    out[4] = all.negative_distance / std::max(all.negatives, 1.0);
  }
}

// A factor that is not finite would make NaN of the rows that are 0.
bool scale_cpu(at::TensorList gradients, const at::Tensor& upstream) {
  const double factor = upstream.item().toDouble();
  if (!std::isfinite(factor)) return false;
  if (factor == 1.0) return true;
  for (const at::Tensor& gradient : gradients) gradient.mul_(factor);
  return true;
}

}  // namespace

const Backend& cpu_backend() {
  static const Backend backend{run_cpu, empty_cpu, scale_cpu};
  return backend;
}

}  // namespace siamcuda::ops
