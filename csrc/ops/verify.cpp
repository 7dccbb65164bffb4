// Schemas, checks and fake tensors of the verification operators; see verify.h.
#include "ops/verify.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "ops/loss_op.h"
#include "ops/tensors.h"

namespace siamcuda::ops::verify {

math::Metric parse_metric(const char* name, std::string_view metric) {
  if (metric == "sqeuclidean") return math::Metric::kSquared;
  if (metric == "euclidean") return math::Metric::kEuclidean;
  TORCH_CHECK_VALUE(metric == "cosine", name,
                    ": metric must be 'sqeuclidean', 'euclidean' or 'cosine', got '", metric, "'");
  return math::Metric::kCosine;
}

namespace {

void check_place(const SweepOperands& o, const char* what, const Tensor& t) {
  TORCH_CHECK_VALUE(t.device() == o.rows.device(), o.name, ": ", what, " must be on ",
                    o.rows.device(), ", where rows are, got ", describe(t));
}

}  // namespace

void check_indices(const SweepOperands& o, const char* what, const Tensor& t,
                   std::initializer_list<c10::SymInt> shape) {
  TORCH_CHECK_TYPE(t.scalar_type() == at::kLong, o.name, ": ", what, " must be int64, got ",
                   describe(t));
  bool fits = t.dim() == static_cast<int64_t>(shape.size());
  int64_t d = 0;
  for (const c10::SymInt& size : shape) {
    fits = fits && (size == -1 || t.sym_size(d) == size);
    ++d;
  }
  TORCH_CHECK_VALUE(fits, o.name, ": ", what, " must have shape ", c10::SymIntArrayRef(shape),
                    ", got ", describe(t));
  check_place(o, what, t);
}

void check_sweep(const SweepOperands& o) {
  const Tensor* both[] = {&o.rows, &o.columns};
  const char* names[] = {"rows", "columns"};
  for (int k = 0; k < 2; ++k) {
    const Tensor& x = *both[k];
    TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, o.name, ": ",
                     names[k], " must be float32 or float64, got ", describe(x));
    TORCH_CHECK_VALUE(x.dim() == 2 && x.layout() == at::kStrided, o.name, ": ", names[k],
                      " must be a dense tensor of shape (rows, D), got ", describe(x));
  }
  TORCH_CHECK_VALUE(o.rows.scalar_type() == o.columns.scalar_type() &&
                        o.rows.sym_size(1) == o.columns.sym_size(1),
                    o.name, ": columns must have the dtype and the D of rows, got ",
                    describe(o.columns), " and ", describe(o.rows));
  check_place(o, "columns", o.columns);
  check_indices(o, "genuine", o.genuine, {o.rows.sym_size(0), 2});
  parse_metric(o.name, o.metric);
}

void check_ranges(const SweepOperands& o) {
  const int64_t columns = o.columns.size(0);
  const Tensor low = o.genuine.select(1, 0), high = o.genuine.select(1, 1);
  const Tensor beyond = low.lt(0).logical_or_(low.gt(high)).logical_or_(high.gt(columns));
  if (!beyond.any().item<bool>()) return;
  const int64_t row = beyond.nonzero()[0].item<int64_t>();
  TORCH_CHECK_VALUE(false, o.name, ": genuine must hold ranges within the ", columns,
                    " columns, got [", low[row].item<int64_t>(), ", ", high[row].item<int64_t>(),
                    ") for row ", row);
}

void check_table(const SweepOperands& o, const Tensor& table, int64_t size) {
  check_indices(o, "table", table, {math::kTopKeys});
  const Tensor here = table.to(at::kCPU).contiguous();
  const int64_t* const entry = here.const_data_ptr<int64_t>();
  const int bits =
      o.rows.scalar_type() == at::kDouble ? math::kTableBits<double> : math::kTableBits<float>;
  for (int64_t k = 0; k < math::kTopKeys; ++k) {
    const int64_t base = entry[k] >> 6, drop = entry[k] & 63;
    const int64_t parts = drop < bits ? int64_t{1} << (bits - drop) : 1;
    TORCH_CHECK_VALUE(base >= 0 && base <= size - parts, o.name, ": table must hold bins below ",
                      size, ", got ", base, " and ", parts - 1, " more for key ", k);
  }
}

void check_intervals(const SweepOperands& o, const Tensor& low, const Tensor& shift) {
  const int64_t intervals = low.numel();
  check_indices(o, "low", low, {intervals});
  check_indices(o, "shift", shift, {intervals});
  const Tensor here = shift.to(at::kCPU).contiguous();
  const int64_t most =
      o.rows.scalar_type() == at::kDouble ? math::kLowBits<double> : math::kLowBits<float>;
  for (int64_t p = 0; p < intervals; ++p) {
    const int64_t by = here.const_data_ptr<int64_t>()[p];
    TORCH_CHECK_VALUE(0 <= by && by < most, o.name, ": shift must lie in [0, ", most, "), got ",
                      by);
  }
}

void check_drawn(const SweepOperands& o, const Tensor& drawn) {
  TORCH_CHECK_TYPE(drawn.scalar_type() == at::kByte, o.name, ": drawn must be uint8, got ",
                   describe(drawn));
  TORCH_CHECK_VALUE(drawn.dim() == 2 && drawn.size(1) == math::kReplicates, o.name,
                    ": drawn must have shape (identities, ", math::kReplicates, "), got ",
                    describe(drawn));
  check_place(o, "drawn", drawn);
}

Tensor as_identities(const SweepOperands& o, const char* what, const Tensor& t, const Tensor& of,
                     const Tensor& drawn) {
  check_indices(o, what, t, {of.size(0)});
  const int64_t identities = drawn.size(0);
  TORCH_CHECK_VALUE(
      of.size(0) == 0 || (t.min().item<int64_t>() >= 0 && t.max().item<int64_t>() < identities),
      o.name, ": ", what, " must lie in [0, ", identities, ")");
  return t.to(at::kInt).contiguous();
}

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> histogram_meta(
    const Tensor& rows, const Tensor& columns, const Tensor& genuine, const Tensor& row_index,
    const Tensor& column_index, std::string_view metric, int64_t, bool, int64_t hardest) {
  check_sweep({"verification_histogram", rows, columns, genuine, metric});
  const auto options = genuine.options();
  return {at::empty({2, math::kTopKeys + 1}, options),
          at::empty({2, 2}, options.dtype(at::kDouble)), at::empty({2, hardest}, rows.options()),
          at::empty({2, hardest, 2}, options)};
}

Tensor refine_meta(const Tensor& rows, const Tensor& columns, const Tensor& genuine, const Tensor&,
                   std::string_view metric, int64_t, bool, int64_t size) {
  check_sweep({"verification_refine", rows, columns, genuine, metric});
  return at::empty({2, size}, genuine.options());
}

Tensor select_meta(const Tensor& rows, const Tensor& columns, const Tensor& genuine,
                   const Tensor& low, const Tensor&, std::string_view metric, int64_t, bool) {
  check_sweep({"verification_select", rows, columns, genuine, metric});
  return at::empty_symint({2, low.sym_size(0), math::kSelectBins}, genuine.options());
}

std::tuple<Tensor, Tensor, Tensor> ranks_meta(const Tensor& rows, const Tensor& columns,
                                              const Tensor& genuine, std::string_view metric,
                                              std::optional<int64_t>) {
  check_sweep({"verification_ranks", rows, columns, genuine, metric});
  const c10::SymInt n = rows.sym_size(0);
  return {at::empty_symint({n}, rows.options()), at::empty_symint({n}, rows.options()),
          at::empty_symint({n}, genuine.options())};
}

Tensor bootstrap_meta(const Tensor& rows, const Tensor& columns, const Tensor& genuine,
                      const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                      std::string_view metric, int64_t, bool, int64_t size) {
  check_sweep({"verification_bootstrap", rows, columns, genuine, metric});
  return at::empty({2, size, math::kReplicates}, genuine.options());
}

SIAM_TORCH_LIBRARY_FRAGMENT(SIAM_LIBRARY, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  // counts [2, 65537] (genuine, impostor; NaN last), Σd and Σd² [2, 2], hardest pairs [2, hardest]
  // with their rows [2, hardest, 2], NaN and -1 behind.
  m.def(
      "verification_histogram(Tensor rows, Tensor columns, Tensor genuine, Tensor row_index, "
      "Tensor column_index, str metric, int diagonal, bool triangle, int hardest) "
      "-> (Tensor, Tensor, Tensor, Tensor)",
      tags);
  // counts [2, size] by a table [65536] of top keys: first bin · 64 + low bits to drop
  m.def(
      "verification_refine(Tensor rows, Tensor columns, Tensor genuine, Tensor table, str metric, "
      "int diagonal, bool triangle, int size) -> Tensor",
      tags);
  // counts [2, intervals, 65536] of keys in [low, low + (65536 << shift))
  m.def(
      "verification_select(Tensor rows, Tensor columns, Tensor genuine, Tensor low, Tensor shift, "
      "str metric, int diagonal, bool triangle) -> Tensor",
      tags);
  // per row the nearest mate, the nearest impostor, and how many impostors are within the mate's
  // distance; NaN where there is none
  m.def(
      "verification_ranks(Tensor rows, Tensor columns, Tensor genuine, str metric, int? diagonal) "
      "-> (Tensor, Tensor, Tensor)",
      tags);
  // counts [2, size, 64]: each pair as often as its identities were drawn in each of 64 samples
  m.def(
      "verification_bootstrap(Tensor rows, Tensor columns, Tensor genuine, Tensor table, "
      "Tensor row_identity, Tensor column_identity, Tensor drawn, str metric, int diagonal, "
      "bool triangle, int size) -> Tensor",
      tags);
}

SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, Meta, m) {
  m.impl("verification_histogram", histogram_meta);
  m.impl("verification_refine", refine_meta);
  m.impl("verification_select", select_meta);
  m.impl("verification_ranks", ranks_meta);
  m.impl("verification_bootstrap", bootstrap_meta);
}

SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, Autograd, m) {
  for (const char* name : {"verification_histogram", "verification_refine", "verification_select",
                           "verification_ranks", "verification_bootstrap"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

}  // namespace
}  // namespace siamcuda::ops::verify
