// The CUDA entry point of the losses over a batch and of squared_cdist: panels, workspace,
// launches. Compiled a second time against the emulator, where it runs on CPU tensors.
//
// Nothing here waits for the device: classes are compared there, and how often a loop runs depends
// on shapes alone, so that a call can be captured in a graph.
#include <ATen/Functions.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "cuda/batch_launch.h"
#include "cuda/launch.h"
#include "ops/batch.h"
#include "ops/cdist.h"
#include "ops/cuda/device.h"
#include "ops/cuda/launches.h"
#include "ops/rows.h"
#include "ops/tensors.h"

namespace siamcuda::ops {

namespace {

using cuda::TileMatrix;

// Weights of a panel; partial sums of products take half as much, and masks a 32nd.
constexpr int64_t kPanelBytes = int64_t{16} << 20;
// Pairs have no array of distances besides: a larger panel fills the GPU with fewer launches.
constexpr int64_t kPairPanelBytes = int64_t{32} << 20;
constexpr int64_t kPanelColumns = 4096;  // as square as the sums' splitting likes it
// Far below every column: no row meets itself.
constexpr int64_t kNobody = std::numeric_limits<int64_t>::min() / 2;

int64_t pieces(int64_t n, int64_t size) { return n / size + (n % size != 0); }

// Rows [N, P, D] with their norms.
struct Rows {
  at::Tensor kept, norms;
  TileMatrix matrix;

  Rows(const at::Tensor& x, LaunchMemory& memory, const cuda::TileDevice& device, void* stream) {
    kept = x.size(2) > 1 && x.stride(2) != 1 ? x.contiguous() : x;
    norms = at::empty({x.size(0), x.size(1)}, x.options().dtype(compute_type(x.scalar_type())));
    memory.reads(kept, "rows");
    memory.scratch(norms, "norms");
    matrix = {kept.const_data_ptr(), kept.size(1), kept.stride(1), kept.stride(0),
              norms.mutable_data_ptr()};
    cuda::launch_norms(matrix, x.size(0), x.size(2), dtype_of(x.scalar_type()), device, stream);
  }

  // Rows from `first` on, of the only matrix.
  TileMatrix part(int64_t first, int64_t count) const {
    TileMatrix m = matrix;
    m.data = static_cast<const char*>(m.data) + first * m.row_step * kept.element_size();
    m.norms = static_cast<char*>(m.norms) + first * norms.element_size();
    m.rows = count;
    return m;
  }
};

// Partial sums of products, as large as any of the panels needs.
struct ProductScratch {
  at::Tensor partials, sums;

  void reserve(int64_t batch, int64_t rows, int64_t depth, int64_t dim, bool signs,
               const at::TensorOptions& compute) {
    const bool narrow = signs || compute.dtype() == at::kDouble;
    const cuda::ProductLaunch launch = cuda::product_launch(batch, rows, depth, dim, narrow, 1);
    lines_ = std::max(lines_, batch * launch.splits * rows);
    partials_ = std::max(partials_, batch * launch.splits * rows * dim);
    options_ = compute;
  }
  void allocate(LaunchMemory& memory) {
    partials = at::empty({partials_}, options_);
    sums = at::empty({lines_}, options_.dtype(at::kDouble));
    memory.scratch(partials, "partial products");
    memory.scratch(sums, "partial weights");
  }
  void give(cuda::ProductArgs& args) const {
    args.partials = partials.mutable_data_ptr();
    args.sums = sums.mutable_data_ptr<double>();
  }

 private:
  int64_t lines_ = 0, partials_ = 0;
  at::TensorOptions options_;
};

// --- squared_cdist -------------------------------------------------------------------------------

void cdist_forward(const at::Tensor& x1, const at::Tensor& x2, at::Tensor& out) {
  if (out.numel() == 0) return;
  const DeviceGuard guard(x1);
  void* stream = current_stream();
  const cuda::TileDevice device = device_in_use();
  LaunchMemory memory;
  const Rows a(x1, memory, device, stream), b(x2, memory, device, stream);
  memory.writes(out, "distances");
  const DType dtype = dtype_of(x1.scalar_type());
  cuda::launch_squared_cdist({a.matrix, b.matrix, x1.size(0), x1.size(2)}, dtype,
                             out.mutable_data_ptr(), dtype, device, stream);
  check_launch("squared_cdist");
  memory.check_written();
}

void cdist_backward(const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& weights,
                    const at::Tensor& distances, std::array<at::Tensor, 2>& gradients) {
  const auto wanted = [](const at::Tensor& t) { return t.defined() && t.numel() > 0; };
  if (!wanted(gradients[0]) && !wanted(gradients[1])) return;
  const DeviceGuard guard(x1);
  void* stream = current_stream();
  const cuda::TileDevice device = device_in_use();
  const DType dtype = dtype_of(x1.scalar_type());
  const int64_t batch = x1.size(0), dim = x1.size(2);
  const auto compute = x1.options().dtype(compute_type(x1.scalar_type()));
  LaunchMemory memory;
  // Norms and the mask serve both sides.
  const Rows a(x1, memory, device, stream), b(x2, memory, device, stream);
  const at::Tensor w = weights.to(compute.dtype());
  const int64_t words = pieces(x2.size(1), 32);
  const auto ints = x1.options().dtype(at::kInt);
  const at::Tensor mask = at::empty({batch, x1.size(1), words}, ints);
  const at::Tensor near = at::empty({cuda::near_tiles(batch, x1.size(1), x2.size(1))}, ints);
  memory.scratch(near, "near");
  memory.reads(w, "weights");
  memory.reads(distances, "distances");
  memory.scratch(mask, "mask");
  auto* const bits = reinterpret_cast<unsigned*>(mask.mutable_data_ptr<int>());
  cuda::launch_mask({distances.const_data_ptr(), a.matrix.norms, b.matrix.norms, batch, x1.size(1),
                     x2.size(1), dim, bits, words},
                    dtype, dtype, device, stream);
  cuda::launch_near({bits, batch, x1.size(1), words, near.mutable_data_ptr<int>()}, device, stream);
  check_launch("squared_cdist_backward");

  ProductScratch scratch;
  for (int side = 0; side < 2; ++side) {
    if (!wanted(gradients[side])) continue;
    memory.writes(gradients[side], "gradient");
    scratch.reserve(batch, (side == 0 ? x1 : x2).size(1), (side == 0 ? x2 : x1).size(1), dim, false,
                    compute);
  }
  scratch.allocate(memory);
  for (int side = 0; side < 2; ++side) {
    if (!wanted(gradients[side])) continue;
    cuda::ProductArgs args{};
    args.x = side == 0 ? a.matrix : b.matrix;
    args.y = side == 0 ? b.matrix : a.matrix;
    args.batch = batch;
    args.dim = dim;
    args.weights = w.const_data_ptr();
    args.mask = bits;
    args.mask_words = words;
    args.near = near.const_data_ptr<int>();
    args.transposed = side == 1;
    args.every_pair = true;
    args.out = gradients[side].mutable_data_ptr();
    scratch.give(args);
    cuda::launch_product(args, dtype, device, stream);
    check_launch("squared_cdist_backward");
  }
  memory.check_written();
}

// --- pairs ---------------------------------------------------------------------------------------

at::Tensor widened(const at::Tensor& t) { return t.to(compute_type(t.scalar_type())); }

at::Tensor long_labels(const at::Tensor& labels) { return labels.to(at::kLong).contiguous(); }

// One side of a loss over pairs: rows against columns, panel by panel. Values get their share, and
// weights theirs.
struct PairSide {
  const Rows& rows;
  const Rows& columns;
  at::Tensor row_labels, column_labels;
  int64_t self;
  double row_factor, column_factor;
  at::Tensor row_upstream, column_upstream;  // or undefined
  at::Tensor values;                         // [rows] double, written; or undefined
  at::Tensor counts, distances;              // [kPairCounts] int64 and [2] double; or undefined
  at::Tensor gradient;                       // [rows, D], written; or undefined
};

void run_side(const char* name, const cuda::PairFormula& formula, double share, double weight_share,
              DType dtype, const PairSide& side, LaunchMemory& memory,
              const cuda::TileDevice& device, void* stream) {
  const int64_t rows = side.rows.matrix.rows, columns = side.columns.matrix.rows;
  const int64_t dim = side.rows.kept.size(2);
  const bool weights_wanted = side.gradient.defined() && dim > 0;
  const auto compute = side.rows.norms.options();
  const int64_t element = compute.dtype().itemsize();
  // With weights panels are as large as they may be; without, there are only a tile's sums.
  const int64_t width = std::min(columns, weights_wanted ? kPanelColumns : int64_t{1} << 17);
  const int64_t row_bytes = weights_wanted ? width * element : pieces(width, 128) * 64;
  const int64_t height = std::min(
      rows, std::max<int64_t>(kPairPanelBytes / std::max<int64_t>(row_bytes, 1) / 64, 1) * 64);
  if (rows == 0 || columns == 0) {
    if (side.gradient.defined()) side.gradient.zero_();
    if (side.values.defined()) side.values.zero_();
    return;
  }

  const int64_t across = pieces(width, cuda::kTileColumns);
  const int64_t tiles = across * pieces(height, cuda::kTileRows);
  const int64_t words = pieces(width, 32);
  at::Tensor weights, mask, near, values, counts, distances;
  ProductScratch scratch;
  if (weights_wanted) {
    weights = at::empty({height * width}, compute);
    memory.scratch(weights, "weights");
    if (formula.squares) {
      mask = at::empty({height * words}, compute.dtype(at::kInt));
      near = at::empty({cuda::near_tiles(1, height, width)}, compute.dtype(at::kInt));
      memory.scratch(mask, "mask");
      memory.scratch(near, "near");
    }
    for (const int64_t h : {height, rows % height}) {
      for (const int64_t w : {width, columns % width}) {
        if (h > 0 && w > 0) scratch.reserve(1, h, w, dim, !formula.squares, compute);
      }
    }
    scratch.allocate(memory);
    memory.scratch(side.gradient, "gradient");
  }
  if (side.values.defined()) {
    values = at::empty({height * cuda::kTileParts * across}, compute.dtype(at::kDouble));
    memory.scratch(values, "values");
    memory.scratch(side.values, "sums of values");
  }
  if (side.counts.defined()) {
    counts = at::empty({tiles * cuda::kTileSlots * cuda::kPairCounts}, compute.dtype(at::kLong));
    distances = at::empty({tiles * cuda::kTileSlots * 2}, compute.dtype(at::kDouble));
    memory.scratch(counts, "counts");
    memory.scratch(distances, "distances");
  }
  memory.reads(side.row_labels, "row labels");
  memory.reads(side.column_labels, "column labels");
  memory.reads(side.row_upstream, "row upstream");
  memory.reads(side.column_upstream, "column upstream");

  const auto offset = [&](const at::Tensor& t, int64_t at) -> const void* {
    if (!t.defined()) return nullptr;
    return static_cast<const char*>(t.const_data_ptr()) + at * t.element_size();
  };
  for (int64_t i = 0; i < rows; i += height) {
    const int64_t h = std::min(height, rows - i);
    for (int64_t j = 0; j < columns; j += width) {
      const int64_t w = std::min(width, columns - j), w_across = pieces(w, cuda::kTileColumns);
      cuda::PairArgs args{};
      args.formula = formula;
      args.row_labels = side.row_labels.const_data_ptr<int64_t>() + i;
      args.column_labels = side.column_labels.const_data_ptr<int64_t>() + j;
      args.self = side.self + i - j;
      args.weight_share = weight_share;
      args.row_factor = side.row_factor;
      args.column_factor = side.column_factor;
      args.row_upstream = offset(side.row_upstream, i);
      args.column_upstream = offset(side.column_upstream, j);
      if (weights_wanted) {
        args.weights = weights.mutable_data_ptr();
        args.mask_words = pieces(w, 32);
        if (mask.defined()) {
          args.mask = reinterpret_cast<unsigned*>(mask.mutable_data_ptr<int>());
        }
      }
      if (values.defined()) args.values = values.mutable_data_ptr<double>();
      if (counts.defined()) {
        args.counts = counts.mutable_data_ptr<int64_t>();
        args.distances = distances.mutable_data_ptr<double>();
      }
      const cuda::TileArgs tile_args{side.rows.part(i, h), side.columns.part(j, w), 1, dim};
      cuda::launch_pairs(tile_args, args, dtype, device, stream);
      check_launch(name);
      if (values.defined()) {
        cuda::launch_values({values.const_data_ptr<double>(), h, cuda::kTileParts * w_across, share,
                             j > 0, side.values.mutable_data_ptr<double>() + i},
                            device, stream);
      }
      if (counts.defined()) {
        const int64_t slots = pieces(h, cuda::kTileRows) * w_across * cuda::kTileSlots;
        side.counts.add_(
            counts.narrow(0, 0, slots * cuda::kPairCounts).view({slots, cuda::kPairCounts}).sum(0));
        side.distances.add_(distances.narrow(0, 0, slots * 2).view({slots, 2}).sum(0));
      }
      if (!weights_wanted) continue;
      cuda::ProductArgs product{};
      if (mask.defined()) {
        product.near = near.const_data_ptr<int>();
        cuda::launch_near({args.mask, 1, h, args.mask_words, near.mutable_data_ptr<int>()}, device,
                          stream);
      }
      product.x = tile_args.x1;
      product.y = tile_args.x2;
      product.batch = 1;
      product.dim = dim;
      product.weights = args.weights;
      product.mask = args.mask;
      product.mask_words = args.mask_words;
      product.signs = !formula.squares;
      product.accumulate = j > 0;
      product.spoilt = side.values.defined() ? side.values.const_data_ptr<double>() + i : nullptr;
      product.out = static_cast<char*>(side.gradient.mutable_data_ptr()) + i * dim * element;
      scratch.give(product);
      cuda::launch_product(product, dtype, device, stream);
      check_launch(name);
    }
  }
}

// Counts and sums of distances of pairs as what a pass reports.
void report(BatchPass& pass, const at::Tensor& counts, const at::Tensor& distances, double share) {
  pass.counts = at::zeros({5}, pass.values.options());
  pass.counts.narrow(0, 1, 2).copy_(counts.narrow(0, 0, 2)).mul_(share);
  pass.counts.narrow(0, 3, 2).copy_(distances).div_(counts.narrow(0, 2, 2).clamp_min(1));
}

void run_pairs(const BatchLoss& loss, const BatchOptions& options, const BatchOperands& operands,
               BatchPass& pass, const cuda::TileDevice& device, void* stream) {
  const char* const name = loss.name.c_str();
  const bool joined = !operands.ref_embeddings.defined();
  // Pairs within a batch (or within the joined batch of all ranks) belong to both ends.
  const double share = joined || operands.self >= 0 ? 0.5 : 1.0;
  const cuda::PairFormula formula = loss.formula(options.params);
  // |x − y| has no tensor cores to feed: 16-bit rows are widened.
  const auto rows_of = [&](const at::Tensor& t) {
    return (formula.squares ? t : widened(t)).unsqueeze(0);
  };
  LaunchMemory memory;
  const Rows x(rows_of(operands.embeddings), memory, device, stream);
  std::optional<Rows> apart;
  if (!joined) apart.emplace(rows_of(operands.ref_embeddings), memory, device, stream);
  const Rows& other = joined ? x : *apart;
  check_launch(name);
  const DType dtype = dtype_of(x.kept.scalar_type());
  const at::Tensor labels = long_labels(operands.labels);
  const at::Tensor ref_labels = joined ? labels : long_labels(operands.ref_labels);
  const int64_t rows = x.matrix.rows, columns = other.matrix.rows;

  at::Tensor counts, distances;
  if (pass.want_stats) {
    counts = at::zeros({cuda::kPairCounts}, pass.values.options().dtype(at::kLong));
    distances = at::zeros({2}, pass.values.options());
  }
  const int64_t self = joined ? 0 : operands.self >= 0 ? operands.self : kNobody;
  const int64_t met = std::max<int64_t>(operands.self >= 0 || joined ? columns - 1 : columns, 0);
  const double terms = share * static_cast<double>(rows * met);
  pass.divided = pass.divide_by == 0;
  const double factor = pass.divided ? 1 / std::max(terms, 1.0) : 1.0;
  const at::Tensor none;
  const at::Tensor& upstream = pass.upstream;
  run_side(name, formula, share, factor * share, dtype,
           {x, other, labels, ref_labels, self, 1, joined ? 1.0 : 0.0, upstream,
            joined ? upstream : none, pass.values, counts, distances, pass.gradient[0]},
           memory, device, stream);
  if (pass.gradients[1]) {  // the other side: only weights, from the anchors' upstream gradients
    run_side(name, formula, share, factor * share, dtype,
             {other, x, ref_labels, labels, operands.self >= 0 ? -operands.self : kNobody, 0, 1,
              none, upstream, none, none, none, pass.gradient[1]},
             memory, device, stream);
  }
  pass.total = at::empty({}, pass.values.options());
  memory.reads(pass.values, "values");
  memory.writes(pass.total, "total");
  cuda::TotalArgs total{};
  total.values = pass.values.const_data_ptr<double>();
  total.rows = rows;
  total.factor = factor;
  total.total = pass.total.mutable_data_ptr<double>();
  cuda::launch_total(total, stream);
  check_launch(name);
  if (!pass.want_stats) return;
  report(pass, counts, distances, share);
  pass.counts.select(0, 0).fill_(terms);
}

// --- triplets ------------------------------------------------------------------------------------

// Every distance of a panel of anchors is in memory: an anchor needs its whole row.
void run_triplets(const BatchLoss& loss, const BatchOptions& options, const BatchOperands& operands,
                  BatchPass& pass, const cuda::TileDevice& device, void* stream) {
  const char* const name = loss.name.c_str();
  const bool joined = !operands.ref_embeddings.defined();
  LaunchMemory memory;
  const Rows x(operands.embeddings.unsqueeze(0), memory, device, stream);
  std::optional<Rows> apart;
  if (!joined) apart.emplace(operands.ref_embeddings.unsqueeze(0), memory, device, stream);
  const Rows& other = joined ? x : *apart;
  check_launch(name);
  const DType dtype = dtype_of(x.kept.scalar_type());
  const auto compute = x.norms.options();
  const int64_t element = compute.dtype().itemsize(), dim = x.kept.size(2);
  const int64_t rows = x.matrix.rows, columns = other.matrix.rows;
  const bool dense = options.mining == Mining::kAll || options.mining == Mining::kSemihard;
  const bool backward = pass.gradients[0] || pass.gradients[1];
  const bool alone = rows == 0 || columns == 0;
  const auto counts_of = compute.dtype(at::kLong), sums_of = compute.dtype(at::kDouble);
  at::Tensor counts = at::empty({rows, cuda::kAnchorCounts}, counts_of);
  at::Tensor sums = at::empty({rows, 2}, sums_of);
  if (alone) {
    counts.zero_();
    sums.zero_();
    for (int side = 0; side < 2; ++side) {
      if (pass.gradients[side]) pass.gradient[side].zero_();
    }
  } else {
    const int64_t fit = kPanelBytes / (columns * element);
    const int64_t height = std::min(rows, std::max<int64_t>(fit >= 64 ? fit / 64 * 64 : fit, 1));
    const bool weights_wanted = dense && backward && dim > 0;
    const at::Tensor labels = long_labels(operands.labels);
    const at::Tensor ref_labels = joined ? labels : long_labels(operands.ref_labels);
    const int64_t self = joined ? 0 : operands.self >= 0 ? operands.self : kNobody;
    const int64_t words = pieces(columns, 32);
    const at::Tensor distances = at::empty({height * columns}, compute);
    at::Tensor weights, mask, near, picked, picked_weights;
    ProductScratch scratch;
    memory.scratch(distances, "distances");
    if (weights_wanted) {
      weights = at::empty({height * columns}, compute);
      mask = at::empty({height * words}, compute.dtype(at::kInt));
      near = at::empty({cuda::near_tiles(1, height, columns)}, compute.dtype(at::kInt));
      memory.scratch(weights, "weights");
      memory.scratch(mask, "mask");
      memory.scratch(near, "near");
      for (const int64_t h : {height, rows % height}) {
        if (h == 0) continue;
        if (pass.gradients[0]) scratch.reserve(1, h, columns, dim, false, compute);
        if (joined || pass.gradients[1]) scratch.reserve(1, columns, h, dim, false, compute);
      }
      scratch.allocate(memory);
    }
    if (!dense) {
      picked = at::empty({rows, 2}, compute.dtype(at::kLong));
      picked_weights = at::empty({rows, 2}, compute);
      memory.scratch(picked, "picks");
      memory.scratch(picked_weights, "weights of picks");
    }
    // Where every row's weights are here, both ends of a pair are one product.
    const bool whole = joined && height == rows;
    const bool added = joined && dense && !whole;  // panels add to all rows of the gradient
    for (int side = 0; side < 2; ++side) {
      if (!pass.gradients[side]) continue;
      if (added) {
        pass.gradient[side].zero_();
        memory.changes(pass.gradient[side], "gradient");
      } else {
        memory.scratch(pass.gradient[side], "gradient");
      }
    }
    memory.reads(labels, "labels");
    memory.reads(ref_labels, "ref labels");
    memory.reads(pass.upstream, "upstream");
    memory.scratch(pass.values, "values");
    memory.scratch(counts, "counts");
    memory.scratch(sums, "sums of distances");

    for (int64_t i = 0; i < rows; i += height) {
      const int64_t h = std::min(height, rows - i);
      const cuda::TileArgs tiles{x.part(i, h), other.matrix, 1, dim};
      cuda::launch_panel(tiles, dtype, distances.mutable_data_ptr(), device, stream);
      cuda::AnchorArgs args{};
      args.distances = distances.const_data_ptr();
      args.weights = weights.defined() ? weights.mutable_data_ptr() : nullptr;
      auto* const bits =
          mask.defined() ? reinterpret_cast<unsigned*>(mask.mutable_data_ptr<int>()) : nullptr;
      args.mask = bits;
      args.mask_words = words;
      args.norms = tiles.x1.norms;
      args.column_norms = tiles.x2.norms;
      args.dim = dim;
      args.rows = h;
      args.columns = columns;
      args.row_labels = labels.const_data_ptr<int64_t>() + i;
      args.column_labels = ref_labels.const_data_ptr<int64_t>();
      args.self = self + i;
      args.mining = options.mining;
      args.params = *static_cast<const math::TripletLoss::Params*>(options.params);
      if (pass.upstream.defined()) {
        args.upstream = static_cast<const char*>(pass.upstream.const_data_ptr()) + i * element;
      }
      args.values = pass.values.mutable_data_ptr<double>() + i;
      args.counts = counts.mutable_data_ptr<int64_t>() + i * cuda::kAnchorCounts;
      args.distance_sums = sums.mutable_data_ptr<double>() + 2 * i;
      if (!dense) {
        args.picked = picked.mutable_data_ptr<int64_t>() + 2 * i;
        args.picked_weights =
            static_cast<char*>(picked_weights.mutable_data_ptr()) + 2 * i * element;
      }
      cuda::launch_anchors(args, dtype, device, stream);
      check_launch(name);
      if (!weights_wanted) continue;

      cuda::ProductArgs product{};
      product.batch = 1;
      product.dim = dim;
      product.weights = weights.const_data_ptr();
      product.mask = bits;
      product.mask_words = words;
      product.near = near.const_data_ptr<int>();
      scratch.give(product);
      if (whole) {
        cuda::launch_symmetric({weights.mutable_data_ptr(), bits, words, rows}, dtype, device,
                               stream);
      }
      cuda::launch_near({bits, 1, h, words, near.mutable_data_ptr<int>()}, device, stream);
      if (pass.gradients[0]) {
        product.x = tiles.x1;
        product.y = tiles.x2;
        product.spoilt = args.values;
        product.accumulate = added;
        product.out = static_cast<char*>(pass.gradient[0].mutable_data_ptr()) + i * dim * element;
        cuda::launch_product(product, dtype, device, stream);
      }
      const int column_side = joined ? 0 : 1;
      if (pass.gradients[column_side] && !whole) {
        product.x = tiles.x2;
        product.y = tiles.x1;
        product.transposed = true;
        product.spoilt = nullptr;
        product.accumulate = added || i > 0;
        product.out = pass.gradient[column_side].mutable_data_ptr();
        cuda::launch_product(product, dtype, device, stream);
      }
      check_launch(name);
    }
    for (int side = 0; !dense && side < 2; ++side) {
      if (!pass.gradients[side]) continue;
      cuda::PicksArgs picks{};
      picks.own = side == 0 ? x.matrix : other.matrix;
      picks.other = side == 0 ? other.matrix : x.matrix;
      picks.dim = dim;
      picks.of_anchors = side == 0;
      picks.of_columns = side == 1 || joined;
      picks.anchors = rows;
      picks.picked = picked.const_data_ptr<int64_t>();
      picks.picked_weights = picked_weights.const_data_ptr();
      picks.spoilt = side == 0 ? pass.values.const_data_ptr<double>() : nullptr;
      picks.out = pass.gradient[side].mutable_data_ptr();
      cuda::launch_picks(picks, dtype, device, stream);
      check_launch(name);
    }
  }
  pass.counts = at::empty({5}, sums.options());
  pass.total = at::empty({}, sums.options());
  pass.scale = at::empty({}, sums.options());
  pass.divided = pass.divide_by >= 0;
  memory.reads(pass.values, "values");
  memory.reads(counts, "counts");
  memory.reads(sums, "sums of distances");
  memory.writes(pass.counts, "report");
  memory.writes(pass.total, "total");
  memory.writes(pass.scale, "scale");
  cuda::launch_total(
      {pass.values.const_data_ptr<double>(), rows, 1.0, pass.total.mutable_data_ptr<double>(),
       counts.const_data_ptr<int64_t>(), sums.const_data_ptr<double>(), pass.divide_by,
       pass.scale.mutable_data_ptr<double>(), pass.counts.mutable_data_ptr<double>()},
      stream);
  check_launch(name);
  if (!pass.divided) pass.scale = at::Tensor();
}

void run_cuda(const BatchLoss& loss, const BatchOptions& options, const BatchOperands& operands,
              BatchPass& pass) {
  const at::Tensor& x = operands.embeddings;
  const DeviceGuard guard(x);
  const bool alone =
      x.size(0) == 0 || (operands.ref_embeddings.defined() && operands.ref_embeddings.size(0) == 0);
  const auto doubles = x.options().dtype(at::kDouble);
  pass.values = alone ? at::zeros({x.size(0)}, doubles) : at::empty({x.size(0)}, doubles);
  for (int side = 0; side < 2; ++side) {
    if (!pass.gradients[side]) continue;
    const at::Tensor& of = side == 0 ? x : operands.ref_embeddings;
    pass.gradient[side] = at::empty(of.sizes(), of.options().dtype(compute_type(of.scalar_type())));
  }
  if (loss.formula != nullptr) {
    run_pairs(loss, options, operands, pass, device_in_use(), current_stream());
  } else {
    run_triplets(loss, options, operands, pass, device_in_use(), current_stream());
  }
}

}  // namespace

const BatchBackend& cuda_batch_backend() {
  static const BatchBackend backend{run_cuda};
  return backend;
}

const CdistBackend& cuda_cdist_backend() {
  static const CdistBackend backend{cuda_backend().empty, cdist_forward, cdist_backward};
  return backend;
}

}  // namespace siamcuda::ops
