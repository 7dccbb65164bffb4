// The operators of search.h: checks and schemas.
#include "ops/search.h"

#include <string>
#include <string_view>

#include "ops/tensors.h"

namespace siamcuda::ops {

namespace {

using at::Tensor;
using Lists = std::tuple<Tensor, Tensor>;
using Ranges = std::tuple<Tensor, Tensor, Tensor>;

Metric parse_metric(const char* name, std::string_view metric) {
  if (metric == "sqeuclidean") return Metric::kSquaredEuclidean;
  if (metric == "euclidean") return Metric::kEuclidean;
  if (metric == "cosine") return Metric::kCosine;
  if (metric == "hamming") return Metric::kHamming;
  TORCH_CHECK_VALUE(false, name, ": metric must be 'sqeuclidean', 'euclidean', 'cosine' or ",
                    "'hamming', got '", metric, "'");
}

at::ScalarType compute_of(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
}
at::ScalarType distance_type(at::ScalarType type) {
  return type == at::kByte ? at::kInt : compute_of(type);
}

void check_rows(const char* name, const char* what, const Tensor& rows, bool packed) {
  TORCH_CHECK_VALUE(rows.dim() == 2, name, ": ", what, " must have shape (N, D), got ",
                    describe(rows));
  TORCH_CHECK_TYPE(rows.layout() == at::kStrided, name, ": ", what,
                   " must be a dense tensor, got layout ", rows.layout());
  if (packed) {
    TORCH_CHECK_TYPE(rows.scalar_type() == at::kByte, name, ": ", what,
                     " must be packed bits in uint8 for hamming, got ", describe(rows));
  } else {
    TORCH_CHECK_TYPE(is_supported_dtype(rows.scalar_type()), name, ": ", what,
                     " must be float16, bfloat16, float32 or float64, got ", describe(rows));
  }
}

SearchPart checked_part(const char* name, const Tensor& queries, const Tensor& rows,
                        at::TensorList screen, int64_t first, std::string_view metric) {
  const Metric kind = parse_metric(name, metric);
  const bool packed = kind == Metric::kHamming;
  check_rows(name, "queries", queries, packed);
  check_rows(name, "rows", rows, packed);
  TORCH_CHECK_VALUE(queries.device() == rows.device(), name,
                    ": queries must be on the device of the gallery, got ", describe(queries),
                    " and ", describe(rows));
  TORCH_CHECK_VALUE(queries.sym_size(1) == rows.sym_size(1), name,
                    ": queries must have as many columns as the gallery, got ", describe(queries),
                    " and ", describe(rows));
  const at::ScalarType type = compute_of(rows.scalar_type());
  TORCH_CHECK_TYPE(type == at::kDouble || queries.scalar_type() != at::kDouble, name,
                   ": float64 queries need a float64 gallery, got ", describe(queries), " and ",
                   describe(rows));
  return {queries.to(type).contiguous(), rows.stride(1) == 1 ? rows : rows.contiguous(),
          screen.vec(), first, kind};
}

void check_lists(const char* name, const SearchPart& part, const Tensor& distances,
                 const Tensor& positions) {
  const at::ScalarType type = distance_type(part.rows.scalar_type());
  for (const Tensor* t : {&distances, &positions}) {
    TORCH_CHECK_VALUE(t->dim() == 2 && t->sym_size(0) == part.queries.sym_size(0) &&
                          t->sym_size(1) == distances.sym_size(1) && t->sym_size(1) > 0 &&
                          t->device() == part.rows.device(),
                      name, ": lists must have shape (queries, k), got ", describe(distances),
                      " and ", describe(positions));
  }
  TORCH_CHECK_TYPE(distances.scalar_type() == type && positions.scalar_type() == at::kLong, name,
                   ": lists must be ", type, " and int64, got ", describe(distances), " and ",
                   describe(positions));
}

Lists knn(const SearchBackend& backend, const Tensor& queries, const Tensor& rows,
          at::TensorList screen, int64_t first, std::string_view metric, const Tensor& distances,
          const Tensor& positions) {
  constexpr const char* kName = "gallery_knn";
  const SearchPart part = checked_part(kName, queries, rows, screen, first, metric);
  check_lists(kName, part, distances, positions);
  Tensor d = distances.clone(at::MemoryFormat::Contiguous);
  Tensor i = positions.clone(at::MemoryFormat::Contiguous);
  if (part.queries.size(0) > 0 && part.rows.size(0) > 0) backend.knn(part, d, i);
  return {d, i};
}

Ranges range(const SearchBackend& backend, const Tensor& queries, const Tensor& rows,
             at::TensorList screen, int64_t first, std::string_view metric, double radius) {
  constexpr const char* kName = "gallery_range";
  const SearchPart part = checked_part(kName, queries, rows, screen, first, metric);
  if (part.queries.size(0) == 0 || part.rows.size(0) == 0) {
    const auto type = distance_type(part.rows.scalar_type());
    return {at::zeros({part.queries.size(0)}, part.rows.options().dtype(at::kLong)),
            at::empty({0}, part.rows.options().dtype(type)),
            at::empty({0}, part.rows.options().dtype(at::kLong))};
  }
  return backend.range(part, radius);
}

// Rows of float64 whose squares a double can't hold, times a power of two: their direction is the
// same. (Squares of the other types always fit.)
Tensor within_range(const Tensor& rows) {
  if (rows.scalar_type() != at::kDouble || rows.numel() == 0) return rows;
  const Tensor largest = at::linalg_vector_norm(rows, std::numeric_limits<double>::infinity(),
                                                at::IntArrayRef{1}, true);
  const Tensor extreme =
      ((largest > 0x1p500) & largest.isfinite()) | ((largest < 0x1p-500) & (largest > 0));
  // On a GPU the answer would have to be waited for.
  if (rows.is_cpu() && !extreme.any().item<bool>()) return rows;
  const Tensor exponent = std::get<1>(at::frexp(largest)).clamp(-1022, 1022);
  const Tensor one = at::ones_like(largest);
  return rows * at::where(extreme, at::ldexp(one, -exponent), one);
}

Tensor normalize(const SearchBackend& backend, const Tensor& rows) {
  check_rows("gallery_normalize", "rows", rows, false);
  const Tensor safe = within_range(rows);
  return backend.normalize(safe.stride(1) == 1 ? safe : safe.contiguous());
}

std::vector<Tensor> screen(const SearchBackend& backend, const Tensor& rows, const Tensor& center) {
  constexpr const char* kName = "gallery_screen";
  check_rows(kName, "rows", rows, false);
  TORCH_CHECK_VALUE(center.dim() == 1 && center.size(0) == rows.size(1) &&
                        center.device() == rows.device() && center.scalar_type() == at::kFloat,
                    kName, ": center must be float32 of shape (D,), got ", describe(center),
                    " for ", describe(rows));
  return backend.screen(rows.stride(1) == 1 ? rows : rows.contiguous(), center.contiguous());
}

Tensor root(const SearchBackend& backend, const Tensor& x) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble,
                   "gallery_root: float32 or float64 is expected, got ", describe(x));
  return backend.root(x.contiguous());
}

// Both at their broadcast shape.
std::vector<Tensor> checked_bits(const Tensor& x1, const Tensor& x2) {
  constexpr const char* kName = "hamming";
  for (const Tensor* x : {&x1, &x2}) {
    const char* what = x == &x1 ? "x1" : "x2";
    TORCH_CHECK_TYPE(x->scalar_type() == at::kByte, kName, ": ", what,
                     " must be packed bits in uint8, got ", describe(*x));
    TORCH_CHECK_VALUE(x->dim() >= 1, kName, ": ", what, " must have shape (..., bytes), got ",
                      describe(*x));
  }
  TORCH_CHECK_VALUE(x1.device() == x2.device(), kName, ": x2 must be on the device of x1, got ",
                    describe(x2), " and ", describe(x1));
  TORCH_CHECK_VALUE(x1.sym_size(-1) == x2.sym_size(-1), kName,
                    ": x2 must have as many bytes a row as x1, got ", describe(x2), " and ",
                    describe(x1));
  for (int64_t d = 2; d <= std::min(x1.dim(), x2.dim()); ++d) {
    const auto a = x1.sym_size(-d), b = x2.sym_size(-d);
    TORCH_CHECK_VALUE(a == b || a == 1 || b == 1, kName,
                      ": the leading dimensions of x2 can't be broadcast with those of x1: ",
                      describe(x2), " and ", describe(x1));
  }
  return at::broadcast_tensors({x1, x2});
}

Tensor hamming(const SearchBackend& backend, const Tensor& x1, const Tensor& x2) {
  const std::vector<Tensor> both = checked_bits(x1, x2);
  if (backend.hamming != nullptr) return backend.hamming(both[0], both[1]);
  // Sums of neighbouring bits, of pairs, of fours.
  Tensor x = both[0].bitwise_xor(both[1]);
  x = x - x.bitwise_right_shift(1).bitwise_and(0x55);
  x = x.bitwise_and(0x33) + x.bitwise_right_shift(2).bitwise_and(0x33);
  x = (x + x.bitwise_right_shift(4)).bitwise_and(0x0f);
  return x.sum({-1}, false, at::kInt);
}

Tensor hamming_meta(const Tensor& x1, const Tensor& x2) {
  const Tensor x = checked_bits(x1, x2)[0];
  auto shape = x.sym_sizes().vec();
  shape.pop_back();
  return at::empty_symint(shape, x.options().dtype(at::kInt));
}

Lists knn_meta(const Tensor& queries, const Tensor& rows, at::TensorList screen, int64_t first,
               std::string_view metric, const Tensor& distances, const Tensor& positions) {
  const SearchPart part = checked_part("gallery_knn", queries, rows, screen, first, metric);
  check_lists("gallery_knn", part, distances, positions);
  return {at::empty_symint(distances.sym_sizes(), distances.options()),
          at::empty_symint(positions.sym_sizes(), positions.options())};
}

Tensor normalize_meta(const Tensor& rows) {
  check_rows("gallery_normalize", "rows", rows, false);
  return at::empty_symint(rows.sym_sizes(), rows.options().dtype(compute_of(rows.scalar_type())));
}

Tensor root_meta(const Tensor& x) { return at::empty_symint(x.sym_sizes(), x.options()); }

}  // namespace

void define_search(torch::Library& m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "gallery_knn(Tensor queries, Tensor rows, Tensor[] screen, int first, str metric, "
      "Tensor distances, Tensor positions) -> (Tensor, Tensor)",
      tags);
  m.def(
      "gallery_range(Tensor queries, Tensor rows, Tensor[] screen, int first, str metric, "
      "float radius) -> (Tensor, Tensor, Tensor)");
  m.def("gallery_normalize(Tensor rows) -> Tensor", tags);
  m.def("gallery_screen(Tensor rows, Tensor center) -> Tensor[]");
  m.def("gallery_root(Tensor x) -> Tensor", tags);
  m.def("hamming(Tensor x1, Tensor x2) -> Tensor", tags);
}

// Ranges and screens have sizes that depend on data or on the machine: they have no fake kernel.
void implement_search_meta(torch::Library& m) {
  m.impl("gallery_knn", knn_meta);
  m.impl("gallery_normalize", normalize_meta);
  m.impl("gallery_root", root_meta);
  m.impl("hamming", hamming_meta);
}

void implement_search(torch::Library& m, const SearchBackend& (*backend)()) {
  m.impl("gallery_knn",
         [backend](const Tensor& queries, const Tensor& rows, at::TensorList screen, int64_t first,
                   std::string_view metric, const Tensor& distances, const Tensor& positions) {
           return knn(backend(), queries, rows, screen, first, metric, distances, positions);
         });
  m.impl("gallery_range",
         [backend](const Tensor& queries, const Tensor& rows, at::TensorList screen, int64_t first,
                   std::string_view metric, double radius) {
           return range(backend(), queries, rows, screen, first, metric, radius);
         });
  m.impl("gallery_normalize", [backend](const Tensor& rows) { return normalize(backend(), rows); });
  m.impl("gallery_screen", [backend](const Tensor& rows, const Tensor& center) {
    return screen(backend(), rows, center);
  });
  m.impl("gallery_root", [backend](const Tensor& x) { return root(backend(), x); });
  m.impl("hamming",
         [backend](const Tensor& x1, const Tensor& x2) { return hamming(backend(), x1, x2); });
}

}  // namespace siamcuda::ops
