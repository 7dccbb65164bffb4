// The CUDA entry point of exact search: parts of queries and rows, workspace, launches. Compiled a
// second time against the emulator, where it runs on CPU tensors.
//
// The k nearest never wait for the device, and can be captured in a graph. A range search waits
// once, for the number of entries that it has to return.
#include <ATen/Functions.h>

#include <cmath>
#include <limits>

#include "cuda/batch_launch.h"
#include "cuda/launch.h"
#include "cuda/search_launch.h"
#include "ops/batch.h"
#include "ops/cuda/device.h"
#include "ops/cuda/launches.h"
#include "ops/rows.h"
#include "ops/search.h"
#include "ops/tensors.h"

namespace siamcuda::ops {

namespace {

using at::Tensor;
using cuda::RowType;
using cuda::TileMatrix;

RowType row_type(at::ScalarType type) {
  switch (type) {
    case at::kHalf: return RowType::kFloat16;
    case at::kBFloat16: return RowType::kBFloat16;
    case at::kFloat: return RowType::kFloat32;
    case at::kByte: return RowType::kBits;
    default: return RowType::kFloat64;
  }
}

TileMatrix matrix_of(const Tensor& x) {
  return {x.const_data_ptr(), x.size(0), x.stride(0), 0, nullptr};
}

double accepted_bound(Metric metric, RowType type, double radius) {
  if (type == RowType::kBits) return largest_within<int32_t>(metric, radius);
  return type == RowType::kFloat64 ? largest_within<double>(metric, radius)
                                   : largest_within<float>(metric, radius);
}

// Some of the queries, with what screening and cosine want of them.
struct Queries {
  Tensor kept, rounded, residuals, norms, rounded_norms;
  TileMatrix exact, screened;

  Queries(const Tensor& x, RowType type, bool cosine, bool tiles, LaunchMemory& memory,
          const cuda::TileDevice& device, void* stream)
      : kept(x) {
    memory.reads(kept, "queries");
    exact = screened = matrix_of(kept);
    const auto norms_of = [&](TileMatrix& matrix, RowType of) {
      const DType dtype = of == RowType::kFloat64    ? DType::kFloat64
                          : of == RowType::kFloat32  ? DType::kFloat32
                          : of == RowType::kBFloat16 ? DType::kBFloat16
                                                     : DType::kFloat16;
      Tensor found = at::empty({x.size(0)}, x.options());
      memory.scratch(found, "norms of queries");
      matrix.norms = found.mutable_data_ptr();
      cuda::launch_norms(matrix, 1, x.size(1), dtype, device, stream);
      return found;
    };
    if (type == RowType::kBits) return;
    const bool half = cuda::is_half(type);
    const RowType own = half ? RowType::kFloat32 : type;
    if (cosine || (tiles && !half)) {
      norms = norms_of(exact, own);
      screened.norms = exact.norms;
    }
    if (!tiles || !half) return;
    rounded = at::empty(x.sizes(),
                        x.options().dtype(type == RowType::kFloat16 ? at::kHalf : at::kBFloat16));
    residuals = at::empty({x.size(0)}, x.options());
    memory.scratch(rounded, "rounded queries");
    memory.scratch(residuals, "residuals");
    cuda::launch_round({kept.const_data_ptr<float>(), x.size(0), x.size(1),
                        rounded.mutable_data_ptr(), residuals.mutable_data_ptr<float>()},
                       type, device, stream);
    screened = matrix_of(rounded);
    rounded_norms = norms_of(screened, type);
  }
};

// A search of some queries through all rows of a part, some at a time.
struct Search {
  const SearchPart& part;
  RowType type;
  cuda::TileDevice device;
  void* stream;
  cuda::SearchPlan plan;
  bool cosine, few;
  int64_t dim;

  Search(const SearchPart& p, int64_t k)
      : part(p),
        type(row_type(p.rows.scalar_type())),
        device(device_in_use()),
        stream(current_stream()),
        plan(cuda::search_plan(p.queries.size(0), p.queries.size(1), k, type)),
        cosine(p.metric == Metric::kCosine),
        few(p.queries.size(0) <= cuda::kFewQueries),
        dim(p.queries.size(1)) {}

  at::TensorOptions scores() const {
    return type == RowType::kBits ? part.rows.options().dtype(at::kInt) : part.queries.options();
  }

  // visit(pairs): rows that passed for these queries, whatever lists say. `screen_first`: also the
  // first rows of a gallery, of which nothing is known.
  template <class Visit>
  void each_rows(const Queries& queries, const cuda::NearestLists& lists, bool screen_first,
                 LaunchMemory& memory, const Visit& visit) const {
    const int64_t count = queries.exact.rows, rows = part.rows.size(0);
    // As large as any of the chunks needs.
    const int64_t most = std::min(rows, plan.rows);
    const Tensor mask =
        at::empty({count * cuda::mask_words(most)}, part.rows.options().dtype(at::kInt));
    const bool normed = type != RowType::kBits && (cosine || !few);
    const Tensor bounds = at::empty({few ? 0 : count}, scores());
    Tensor norms;
    memory.scratch(mask, "mask");
    memory.scratch(bounds, "bounds");
    if (normed) {
      norms = at::empty({most}, part.queries.options());
      memory.scratch(norms, "norms of rows");
    }
    for (int64_t begin = 0; begin < rows;) {
      const int64_t n = cuda::rows_to_take(plan, begin, rows - begin);
      cuda::SelectArgs pairs{};
      pairs.queries = queries.exact;
      pairs.rows = matrix_of(part.rows);
      pairs.rows.data = static_cast<const char*>(pairs.rows.data) +
                        begin * pairs.rows.row_step * part.rows.element_size();
      pairs.rows.rows = n;
      pairs.dim = dim;
      pairs.cosine = cosine;
      pairs.first = part.first + begin;
      pairs.lists = lists;
      if (normed) {
        pairs.rows.norms = norms.mutable_data_ptr();
        cuda::launch_norms(pairs.rows, 1, dim, dtype_of(part.rows.scalar_type()), device, stream);
      }
      if (screen_first || part.first + begin > 0) {
        pairs.words = cuda::mask_words(n);
        auto* const bits = reinterpret_cast<unsigned*>(mask.mutable_data_ptr<int>());
        pairs.mask = bits;
        cuda::ScreenArgs args{};
        args.queries = few ? queries.exact : queries.screened;
        args.rows = pairs.rows;
        args.dim = dim;
        args.lists = lists;
        args.bounds = few ? nullptr : bounds.mutable_data_ptr();
        args.mask = bits;
        args.words = pairs.words;
        if (few) {
          cuda::launch_scan(args, type, device, stream);
        } else {
          if (queries.residuals.defined()) args.residuals = queries.residuals.const_data_ptr();
          cuda::launch_screen(args, type, device, stream);
        }
      }
      visit(pairs);
      begin += n;
    }
  }
};

// --- the k nearest -------------------------------------------------------------------------------

void knn(const SearchPart& part, Tensor& distances, Tensor& positions) {
  constexpr const char* kName = "gallery_knn";
  const DeviceGuard guard(part.rows);
  const int64_t k = distances.size(1), all = part.queries.size(0);
  const Search search(part, k);
  for (int64_t first = 0; first < all; first += search.plan.queries) {
    const int64_t count = std::min(search.plan.queries, all - first);
    LaunchMemory memory;
    memory.reads(part.rows, "rows");
    Tensor own_distances = distances.narrow(0, first, count);
    Tensor own_positions = positions.narrow(0, first, count);
    memory.changes(own_distances, "distances");
    memory.changes(own_positions, "positions");
    const Queries queries(part.queries.narrow(0, first, count), search.type, search.cosine,
                          !search.few, memory, search.device, search.stream);
    const cuda::NearestLists lists{own_distances.mutable_data_ptr(),
                                   own_positions.mutable_data_ptr<int64_t>(), k, 0};
    search.each_rows(queries, lists, false, memory, [&](cuda::SelectArgs& args) {
      args.launch = cuda::select_launch(count, args.rows.rows, k, search.device.multiprocessors);
      if (args.launch.in_place) {
        cuda::launch_select(args, search.type, search.device, search.stream);
        check_launch(kName);
        return;
      }
      const int64_t length = k + args.launch.splits * args.launch.run;
      const Tensor run_distances = at::empty({count, length}, own_distances.options());
      const Tensor run_positions = at::empty({count, length}, own_positions.options());
      {
        LaunchMemory runs;
        runs.scratch(run_distances, "distances of runs");
        runs.scratch(run_positions, "positions of runs");
        args.run_distances = run_distances.mutable_data_ptr();
        args.run_positions = run_positions.mutable_data_ptr<int64_t>();
        cuda::launch_select(args, search.type, search.device, search.stream);
        cuda::launch_sort(cuda::sort_equal(args.run_distances, args.run_positions, count, length),
                          length, search.type, search.device, search.stream);
        check_launch(kName);
      }
      own_distances.copy_(run_distances.narrow(1, 0, k));
      own_positions.copy_(run_positions.narrow(1, 0, k));
    });
  }
}

// --- all within a radius -------------------------------------------------------------------------

// One pass over all pairs: counts them, or with entries writes them where `next` says.
void pass_within(const Search& search, double bound, const Tensor& next, const Tensor& distances,
                 const Tensor& positions) {
  const SearchPart& part = search.part;
  const int64_t all = part.queries.size(0);
  for (int64_t first = 0; first < all; first += search.plan.queries) {
    const int64_t count = std::min(search.plan.queries, all - first);
    LaunchMemory memory;
    memory.reads(part.rows, "rows");
    const Tensor own = next.narrow(0, first, count);
    memory.changes(own, "counts");
    memory.changes(distances, "distances");
    memory.changes(positions, "positions");
    const Queries queries(part.queries.narrow(0, first, count), search.type, search.cosine,
                          !search.few, memory, search.device, search.stream);
    const cuda::NearestLists lists{nullptr, nullptr, 0, bound};
    search.each_rows(queries, lists, true, memory, [&](cuda::SelectArgs& args) {
      args.launch = cuda::select_launch(count, args.rows.rows, 0, search.device.multiprocessors);
      cuda::WithinArgs within{};
      within.pairs = args;
      within.next = reinterpret_cast<unsigned long long*>(own.mutable_data_ptr<int64_t>());
      if (distances.numel() > 0) {
        within.distances = distances.mutable_data_ptr();
        within.positions = positions.mutable_data_ptr<int64_t>();
      }
      cuda::launch_within(within, search.type, search.device, search.stream);
      check_launch("gallery_range");
    });
  }
}

std::tuple<Tensor, Tensor, Tensor> range(const SearchPart& part, double radius) {
  const DeviceGuard guard(part.rows);
  const Search search(part, 0);
  const double bound = accepted_bound(part.metric, search.type, radius);
  const int64_t all = part.queries.size(0);
  const auto longs = part.rows.options().dtype(at::kLong);
  const auto scores =
      search.type == RowType::kBits ? part.rows.options().dtype(at::kInt) : part.queries.options();
  const Tensor counts = at::zeros({all}, longs), none = at::empty({0}, scores);
  if (bound < 0) return {counts, none, at::empty({0}, longs)};
  pass_within(search, bound, counts, none, none);

  // Where each query's entries begin, and which blocks sort them; the last of both and the longest
  // go to the host at once.
  const Tensor starts = at::zeros({2, all + 1}, longs);
  starts[0].narrow(0, 1, all).copy_(counts.cumsum(0));
  starts[1].narrow(0, 1, all).copy_(
      counts.add(cuda::kSortEntries - 1).div(cuda::kSortEntries, "floor").cumsum(0));
  const Tensor known = at::stack({starts[0][all], starts[1][all], counts.max()}).to(at::kCPU);
  const int64_t* const numbers = known.const_data_ptr<int64_t>();
  const int64_t total = numbers[0], blocks = numbers[1], longest = numbers[2];
  const Tensor distances = at::empty({total}, scores), positions = at::empty({total}, longs);
  if (total == 0) return {counts, distances, positions};

  const Tensor next = starts[0].narrow(0, 0, all).clone();
  pass_within(search, bound, next, distances, positions);
  LaunchMemory memory;
  memory.changes(distances, "distances");
  memory.changes(positions, "positions");
  memory.reads(starts, "starts");
  cuda::SortArgs sort{};
  sort.distances = distances.mutable_data_ptr();
  sort.positions = positions.mutable_data_ptr<int64_t>();
  sort.starts = starts.const_data_ptr<int64_t>();
  sort.blocks = sort.starts + all + 1;
  sort.segments = all;
  sort.total_blocks = blocks;
  cuda::launch_sort(sort, longest, search.type, search.device, search.stream);
  check_launch("gallery_range");
  return {counts, distances, positions};
}

// --- rows and roots ------------------------------------------------------------------------------

Tensor normalize(const Tensor& rows) {
  const DeviceGuard guard(rows);
  Tensor out = at::empty(rows.sizes(), rows.options().dtype(compute_type(rows.scalar_type())));
  if (out.numel() == 0) return out;
  LaunchMemory memory;
  memory.reads(rows, "rows");
  memory.writes(out, "unit rows");
  cuda::launch_unit_rows({matrix_of(rows), rows.size(1), out.mutable_data_ptr()},
                         row_type(rows.scalar_type()), device_in_use(), current_stream());
  check_launch("gallery_normalize");
  memory.check_written();
  return out;
}

Tensor root(const Tensor& x) {
  const DeviceGuard guard(x);
  Tensor out = at::empty(x.sizes(), x.options());
  if (out.numel() == 0) return out;
  LaunchMemory memory;
  memory.reads(x, "x");
  memory.writes(out, "roots");
  cuda::launch_root(x.const_data_ptr(), out.mutable_data_ptr(), x.numel(),
                    row_type(x.scalar_type()), device_in_use(), current_stream());
  check_launch("gallery_root");
  memory.check_written();
  return out;
}

Tensor hamming(const Tensor& x1, const Tensor& x2) {
  const DeviceGuard guard(x1);
  auto shape = x1.sizes().vec();
  shape.pop_back();
  const Tensor out = at::empty(shape, x1.options().dtype(at::kInt));
  if (out.numel() == 0) return out;
  const int64_t bytes = x1.size(-1);
  const auto rows_of = [&](const Tensor& x) {
    const Tensor rows = x.reshape({out.numel(), bytes});
    return bytes > 1 && rows.stride(1) != 1 ? rows.contiguous() : rows;
  };
  const Tensor a = rows_of(x1), b = rows_of(x2);
  LaunchMemory memory;
  memory.reads(a, "x1");
  memory.reads(b, "x2");
  memory.writes(out, "counts");
  cuda::launch_hamming({matrix_of(a), matrix_of(b), bytes, out.mutable_data_ptr<int32_t>()},
                       device_in_use(), current_stream());
  check_launch("hamming");
  memory.check_written();
  return out;
}

// Tiles read rows as they are.
std::vector<Tensor> screen(const Tensor&, const Tensor&) { return {}; }

}  // namespace

const SearchBackend& cuda_search_backend() {
  static const SearchBackend backend{normalize, screen, knn, range, root, hamming};
  return backend;
}

}  // namespace siamcuda::ops
