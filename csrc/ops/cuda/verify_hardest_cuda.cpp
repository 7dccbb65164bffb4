// The hardest pairs on CUDA, from the least key of each row that the first pass left.
//
// Each of the `hardest` pairs lies in one of the `hardest` rows whose best pair is best: a pair of
// another row has all of theirs before it. So these rows alone are computed again, and those whose
// best is as good as the last one's; their keys are stored, a bounded part at a time, and sorted by
// (key, i, j) as far as they are below what is known. Where most distances are equal that is every
// row.
#include <ATen/Functions.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "math/verify.h"
#include "ops/cuda/verify_cuda.h"

namespace siamcuda::ops::verify {
namespace {

// Pairs by (key, i, j).
struct Found {
  Tensor key, i, j;

  Found at(const Tensor& which) const {
    return {key.index_select(0, which), i.index_select(0, which), j.index_select(0, which)};
  }
  Found with(const Found& other) const {
    return {at::cat({key, other.key}), at::cat({i, other.i}), at::cat({j, other.j})};
  }
  Found first(int64_t most) const {
    Tensor order = at::argsort(j, /*stable=*/true, 0, false);
    for (const Tensor* column : {&i, &key}) {
      const Tensor taken = column->index_select(0, order);
      order = order.index_select(0, at::argsort(taken, /*stable=*/true, 0, false));
    }
    return at(order.narrow(0, 0, std::min(most, order.size(0))));
  }
  // Those before the last of `most`, if so many are known.
  Found before(const Found& known, int64_t most) const {
    if (known.key.size(0) < most) return *this;
    const Tensor k = known.key[most - 1], a = known.i[most - 1], b = known.j[most - 1];
    const Tensor same = i.lt(a).logical_or_(i.eq(a).logical_and_(j.lt(b)));
    return at(key.lt(k).logical_or_(key.eq(k).logical_and_(same)).nonzero().view(-1));
  }
};

template <class C>
void find(const CudaSweep& sweep, bool genuine, const Tensor& least, const Tensor& row_index,
          const Tensor& column_index, Tensor& distances, Tensor& pairs) {
  const int64_t wanted = distances.size(0);
  const auto none = static_cast<int64_t>(math::kNoKey<C>);
  const auto [ascending, order] = least.sort();
  // So many rows have a pair each up to here; with fewer rows than pairs are wanted, all may be.
  const int64_t bound =
      least.size(0) < wanted ? none - 1 : std::min(ascending[wanted - 1].item<int64_t>(), none - 1);
  const int64_t chosen = ascending.le(bound).sum().item<int64_t>();
  if (chosen == 0) return;
  const cuda::SweepPlan plan =
      cuda::keys_plan(chosen, sweep.columns.size(0), sweep.columns.size(1), sweep_limits());
  const Tensor keys = at::empty({plan.rows * plan.columns}, least.options());
  const Tensor empty = at::empty({0}, row_index.options());
  Found known{at::empty({0}, least.options()), empty, empty};
  Tensor limit = at::full({}, bound, least.options());
  for (int64_t first = 0; first < chosen; first += plan.rows) {
    const Tensor numbers = order.narrow(0, first, std::min(plan.rows, chosen - first)).contiguous();
    const Tensor ends = row_index.index_select(0, numbers);
    const auto look = [&](const cuda::SweepArgs& part) {
      const int64_t across = part.columns.rows;
      const Tensor here = keys.narrow(0, 0, part.rows.rows * across);
      {
        LaunchMemory memory;
        memory.writes(here, "keys");
        cuda::launch_keys(part, {here.mutable_data_ptr(), genuine, genuine}, sweep.dtype,
                          sweep.device, sweep.stream);
        memory.check_written();
      }
      const Tensor near = here.le(limit).nonzero().view(-1);
      if (near.size(0) == 0) return;
      const Tensor i = ends.index_select(0, near.div(across, "floor"));
      const Tensor j = column_index.index_select(0, near.remainder(across).add_(part.first_column));
      Found found{here.index_select(0, near), i, j};
      if (sweep.args.triangle) {
        found.i = at::minimum(i, j);
        found.j = at::maximum(i, j);
      }
      known = known.with(found.before(known, wanted)).first(wanted);
      if (known.key.size(0) == wanted) limit = at::minimum(limit, known.key[wanted - 1]);
    };
    sweep.each_of(sweep.rows.index_select(0, numbers), numbers, plan, look);
  }
  const Tensor key =
      genuine ? at::rsub(known.key, static_cast<int64_t>(math::kInfinityKey<C>)) : known.key;
  const int64_t count = key.size(0);
  distances.narrow(0, 0, count).copy_(key.view(distances.scalar_type()));
  pairs.narrow(0, 0, count).copy_(at::stack({known.i, known.j}, 1));
}

}  // namespace

void find_hardest(const CudaSweep& sweep, bool genuine, const Tensor& least,
                  const Tensor& row_index, const Tensor& column_index, Tensor distances,
                  Tensor pairs) {
  if (distances.size(0) == 0 || least.size(0) == 0) return;
  if (sweep.dtype == DType::kFloat64) {
    find<double>(sweep, genuine, least, row_index, column_index, distances, pairs);
  } else {
    find<float>(sweep, genuine, least, row_index, column_index, distances, pairs);
  }
}

}  // namespace siamcuda::ops::verify
