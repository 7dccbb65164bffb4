"""The CUDA kernels of verification, on the emulator, against brute force to the bit.

Brute force counts the distances that ``squared_cdist`` of the same backend gives. What every
backend owes is tested with ``evaluate``; here are the operators alone: rectangles and triangles
anywhere about the diagonal, edges of tiles, every engine, ties, NaN and infinity, sets that take
several launches (the emulator's are small), the orders in which a block's threads may run.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from emulation import extension
from gates import traffic

import siamcuda
from siamcuda import _ops
from siamcuda.verification._intervals import Format, Intervals, shares_of_bins, table_of

METRICS = ("sqeuclidean", "euclidean", "cosine")
NONE = -(2**60)


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ops, "extension", extension.load())
    monkeypatch.setattr(_ops, "namespace", torch.ops.siamcuda_emulated)


def ops():
    return torch.ops.siamcuda_emulated


class Sets:
    """Rows and columns sorted by label, and what brute force knows of their pairs."""

    def __init__(
        self, rows: torch.Tensor, columns: torch.Tensor, own: np.ndarray, others: np.ndarray,
        metric: str = "sqeuclidean", diagonal: int = 0, triangle: bool = False,
    ) -> None:  # fmt: skip
        if metric == "cosine":
            rows, columns = map(ops().gallery_normalize, (rows, columns))
        self.rows, self.columns, self.metric = rows, columns, metric
        self.diagonal, self.triangle = diagonal, triangle
        low, high = (np.searchsorted(others, own, side=side) for side in ("left", "right"))
        self.genuine = torch.from_numpy(np.stack([low, high], 1))
        squared = siamcuda.squared_cdist(rows, columns).numpy()
        self.distance = squared
        if metric == "euclidean":
            self.distance = np.sqrt(squared)
        if metric == "cosine":
            zero = (rows == 0).all(1).numpy()[:, None] | (columns == 0).all(1).numpy()
            half = squared * squared.dtype.type(0.5)
            self.distance = np.where(zero & ~np.isnan(half), half.dtype.type(1), half)
        c = np.arange(len(columns))
        self.same = (low[:, None] <= c) & (c < high[:, None])
        self.self = c == diagonal + np.arange(len(rows))[:, None]
        self.taken = np.ones_like(self.same)
        if triangle:
            self.taken = c > diagonal + np.arange(len(rows))[:, None]

    @property
    def kinds(self) -> tuple[np.ndarray, np.ndarray]:
        return self.taken & self.same, self.taken & ~self.same

    @property
    def keys(self) -> np.ndarray:
        """[R, C] as uint64; NaN's are more than those of numbers."""
        wide = self.distance.dtype == np.float64
        keys = self.distance.view(np.uint64 if wide else np.uint32).astype(np.uint64)
        return np.where(np.isnan(self.distance), np.uint64(2**63), keys)

    def given(self) -> tuple:
        return self.rows, self.columns, self.genuine


def made(
    rows: int, columns: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0,
    people: int = 12, grid: bool = False, **options,
) -> Sets:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in (rows, columns))
    own, others = (torch.randint(people, (n,), generator=generator) for n in (rows, columns))
    if options.get("triangle"):  # a part of one set, as several calls have it
        every = max(rows + options["diagonal"], columns, rows)
        z = torch.randn(every + 400, dim, generator=generator, dtype=torch.float64)
        labels = torch.randint(people, (every + 400,), generator=generator).sort().values
        shift = options["diagonal"]  # row i is column shift + i
        first = max(0, -shift)
        y, others = z[first : first + columns], labels[first : first + columns]
        x, own = z[first + shift :][:rows], labels[first + shift :][:rows]
    x, y = ((v * 2).round() / 2 if grid else v for v in (x, y))
    return Sets(
        x.to(dtype), y.to(dtype), own.sort().values.numpy(), others.sort().values.numpy(), **options
    )


def check_histogram(sets: Sets, hardest: int = 9, seed: int = 3) -> None:
    random = np.random.default_rng(seed)
    r, c = sets.distance.shape
    index = random.permutation(r), random.permutation(c)
    if sets.triangle:  # both are of one set
        every = random.permutation(r + c + abs(sets.diagonal) + 1)
        first = max(0, -sets.diagonal)
        index = every[first + sets.diagonal :][:r], every[first:][:c]
    counts, moments, distances, pairs = ops().verification_histogram(
        *sets.given(), *map(torch.from_numpy, index), sets.metric, sets.diagonal, sets.triangle,
        hardest,
    )  # fmt: skip
    keys, nan = sets.keys, np.isnan(sets.distance)
    low = 47 if sets.distance.dtype == np.float64 else 15
    for kind, taken in enumerate(sets.kinds):
        wanted = np.bincount((keys[taken & ~nan] >> np.uint64(low)).astype(int), minlength=65537)
        wanted[65536] = (taken & nan).sum()
        np.testing.assert_array_equal(counts[kind].numpy(), wanted)
        d = sets.distance[taken & ~nan].astype(np.float64)
        np.testing.assert_allclose(moments[kind].numpy(), [d.sum(), (d * d).sum()], rtol=1e-13)
        i, j = np.nonzero(taken & ~nan)
        value = sets.distance[i, j]
        i, j = index[0][i], index[1][j]
        if sets.triangle:
            i, j = np.minimum(i, j), np.maximum(i, j)
        order = np.lexsort((j, i, value if kind else -value))[:hardest]
        found = len(order)
        np.testing.assert_array_equal(distances[kind, :found].numpy(), value[order])
        np.testing.assert_array_equal(pairs[kind, :found].numpy(), np.stack([i, j], 1)[order])
        assert distances[kind, found:].isnan().all()
        assert (pairs[kind, found:] == -1).all()


def check_refine(sets: Sets) -> None:
    form = Format.of(sets.distance.dtype)
    keys, nan = sets.keys, np.isnan(sets.distance)
    top = np.stack([
        np.bincount((keys[t & ~nan] >> np.uint64(form.low)).astype(int), minlength=65536)
        for t in sets.kinds
    ])  # fmt: skip
    intervals = Intervals.of_top_keys(form, top)
    bits = shares_of_bins(intervals, 4096)
    table, size = table_of(intervals, bits)
    counts = ops().verification_refine(
        *sets.given(), torch.from_numpy(table), sets.metric, sets.diagonal, sets.triangle, size
    )
    for kind, taken in enumerate(sets.kinds):
        chosen = keys[taken & ~nan]
        entry = table[(chosen >> np.uint64(form.low)).astype(int)]
        within = (chosen >> np.uint64(form.low - form.table)).astype(np.int64) % 2**form.table
        bins = (entry >> 6) + (within >> (entry & 63))
        np.testing.assert_array_equal(counts[kind].numpy(), np.bincount(bins, minlength=size))


def check_select(sets: Sets) -> None:
    keys = sets.keys
    numbers = np.sort(keys[~np.isnan(sets.distance)])
    middle = int(numbers[len(numbers) // 2])
    low = np.array([middle, 0, middle - 3, int(numbers[-1]), middle + 1], np.int64)
    shift = np.array([0, 3, 14, 1, 7], np.int64)
    counts = ops().verification_select(
        *sets.given(), torch.from_numpy(low), torch.from_numpy(shift), sets.metric, sets.diagonal,
        sets.triangle,
    )  # fmt: skip
    for kind, taken in enumerate(sets.kinds):
        chosen = keys[taken & ~np.isnan(sets.distance)].astype(np.int64)
        for p in range(len(low)):
            at = (chosen - low[p]) >> shift[p]
            at = at[(chosen >= low[p]) & (at < 65536)]
            np.testing.assert_array_equal(counts[kind, p].numpy(), np.bincount(at, minlength=65536))


def check_ranks(sets: Sets, diagonal: int | None) -> None:
    mate, impostor, within = ops().verification_ranks(*sets.given(), sets.metric, diagonal)
    d = sets.distance
    r, c = d.shape
    itself = np.zeros_like(sets.same)
    if diagonal is not None:
        itself = np.arange(c) == diagonal + np.arange(r)[:, None]

    def least(chosen: np.ndarray) -> np.ndarray:
        values = np.where(chosen & ~np.isnan(d), d, np.inf)
        some = (chosen & ~np.isnan(d)).any(1)
        return np.where(some, values.min(1), np.nan).astype(d.dtype)

    wanted = least(sets.same & ~itself)
    np.testing.assert_array_equal(mate.numpy(), wanted)
    np.testing.assert_array_equal(impostor.numpy(), least(~sets.same))
    with np.errstate(invalid="ignore"):
        near = (~sets.same & (d <= wanted[:, None])).sum(1)
    np.testing.assert_array_equal(within.numpy(), near)


def check_bootstrap(sets: Sets, seed: int = 5) -> None:
    random = np.random.default_rng(seed)
    r, c = sets.distance.shape
    drawn = random.integers(0, 4, (20, 64)).astype(np.uint8)
    drawn[0] = 255
    own, others = random.integers(0, 20, r), np.sort(random.integers(0, 20, c))
    keys, nan = sets.keys, np.isnan(sets.distance)
    low = 47 if sets.distance.dtype == np.float64 else 15
    bits = 16 if low == 47 else 15
    table = np.arange(65536) // 8 * 64 + bits
    counts = ops().verification_bootstrap(
        *sets.given(), *map(torch.from_numpy, (table, own, others, drawn)), sets.metric,
        sets.diagonal, sets.triangle, 8192,
    )  # fmt: skip
    weights = drawn.astype(np.int64)
    for kind, taken in enumerate(sets.kinds):
        i, j = np.nonzero(taken & ~nan)
        weight = weights[own[i]] * (weights[others[j]] if kind else 1)
        wanted = np.zeros((8192, 64), np.int64)
        np.add.at(wanted, (keys[i, j] >> np.uint64(low)).astype(int) // 8, weight)
        np.testing.assert_array_equal(counts[kind].numpy(), wanted)


def check_all(sets: Sets) -> None:
    check_histogram(sets)
    check_refine(sets)
    check_select(sets)
    check_bootstrap(sets)


# --- shapes and engines ---------------------------------------------------------------------------

#: rows, columns, diagonal, triangle: edges of tiles and of launches, which have 320 columns here.
SHAPES = [
    (1, 1, 0, False),
    (63, 129, 0, False),
    (65, 127, 0, True),
    (64, 128, -30, True),
    (130, 70, 40, True),
    (70, 330, -200, True),
    (150, 400, 0, False),
]


@pytest.mark.parametrize(("rows", "columns", "diagonal", "triangle"), SHAPES)
def test_shapes(rows, columns, diagonal, triangle):
    check_all(made(rows, columns, 5, diagonal=diagonal, triangle=triangle))
    check_ranks(made(rows, columns, 5, seed=1, grid=True), diagonal)


ENGINES = [
    ("tf32x3", torch.float32, 80, 40),
    ("fma32", torch.float32, 75, 33),
    ("fma32_long", torch.float32, 75, 140),
    ("fma64", torch.float64, 80, 9),
]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("dtype", "capability", "dim"), [e[1:] for e in ENGINES])
def test_every_engine_and_metric(dtype, capability, dim, metric, monkeypatch):
    monkeypatch.setenv("SIAM_EMULATOR_CAPABILITY", str(capability))
    sets = made(66, 131, dim, dtype, seed=2, metric=metric)
    sets.rows[7] = sets.rows[9] = sets.columns[5] = sets.columns[130] = 0
    sets = Sets(sets.rows, sets.columns, np.arange(66) // 9, np.arange(131) // 18, metric)
    check_all(sets)
    check_ranks(sets, 3)
    check_ranks(sets, None)


@pytest.mark.parametrize("dim", [0, 1, 16])
def test_few_dimensions(dim):
    check_all(made(67, 90, dim, triangle=True, diagonal=0))


def test_no_rows_and_no_columns():
    for rows, columns in ((0, 5), (5, 0), (0, 0)):
        sets = made(rows, columns, 4)
        index = torch.arange(rows), torch.arange(columns)
        found = ops().verification_histogram(*sets.given(), *index, "sqeuclidean", 0, False, 3)
        assert not found[0].any()
        assert (found[3] == -1).all()
        mate, impostor, within = ops().verification_ranks(*sets.given(), "sqeuclidean", None)
        assert mate.isnan().all()
        assert impostor.isnan().all()
        assert not within.any()


def test_strided_rows_are_read_where_they_are():
    generator = torch.Generator().manual_seed(8)
    wide = torch.randn(140, 23, generator=generator)
    labels = np.arange(70) // 5
    check_histogram(Sets(wide[::2, 3:14], wide.t()[:11].t()[:70], labels, labels))


# --- values ---------------------------------------------------------------------------------------


def spoilt(dtype: torch.dtype) -> Sets:
    """NaN, infinities, zeros, duplicates and sizes far apart."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(150, 6, generator=generator, dtype=torch.float64)
    x[5] = torch.nan
    x[17, 3] = torch.inf
    x[18, 3] = -torch.inf
    x[40:60] = x[39]
    x[70:73] = 0
    x[80] *= 1e12
    x[81] *= 1e-12
    x[90] = 1e160 if dtype == torch.float64 else 1e25  # distances overflow
    labels = np.arange(150) // 4
    return Sets(x.to(dtype), x.to(dtype), labels, labels, triangle=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_of_every_kind(dtype):
    with np.errstate(all="ignore"):
        sets = spoilt(dtype)
        assert np.isnan(sets.distance).any()
        assert np.isinf(sets.distance).any()
        check_refine(sets)
        check_select(sets)
        check_bootstrap(sets)
        check_ranks(sets, 0)
        finite = Sets(sets.rows[:90], sets.columns[:90], np.arange(90) // 4, np.arange(90) // 4)
        for some in (sets, finite):
            moments = ops().verification_histogram(
                *some.given(), torch.arange(len(some.rows)), torch.arange(len(some.rows)),
                "sqeuclidean", 0, some.triangle, 0,
            )[1]  # fmt: skip
            for kind, taken in enumerate(some.kinds):
                d = some.distance[taken & ~np.isnan(some.distance)].astype(np.float64)
                wanted = [d.sum(), (d * d).sum()]
                np.testing.assert_allclose(moments[kind].numpy(), wanted, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_hardest_pairs_among_values_of_every_kind(dtype):
    with np.errstate(all="ignore"):
        check_histogram(spoilt(dtype), 40)


@pytest.mark.parametrize("hardest", [1, 7, 5000])
@pytest.mark.parametrize("triangle", [False, True])
def test_ties_go_by_the_numbers_of_rows(triangle, hardest):
    """Every distance alike: each row's best is as good as the last of the hardest."""
    x = torch.ones(140, 3)
    labels = np.arange(140) // 7
    check_histogram(Sets(x, x, labels, labels, triangle=triangle), hardest)
    check_histogram(made(90, 140, 2, grid=True, people=30, triangle=triangle, diagonal=0), hardest)


def test_a_zero_vector_beyond_the_largest_distance_of_its_tile():
    """Its cosine distance is 1, one key above the last of the window that the tile counts in."""
    x, y = torch.tensor([[1.0, 0.0]]).repeat(70, 1), torch.tensor([[0.001, 1.0]]).repeat(70, 1)
    x[3] = x[20] = y[3] = y[50] = 0
    labels = np.arange(70) // 7
    check_histogram(Sets(x, y, labels, labels, "cosine"))


def test_one_kind_alone():
    x = torch.randn(70, 4, generator=torch.Generator().manual_seed(1))
    for labels in (np.zeros(70, int), np.arange(70)):
        sets = Sets(x, x, labels, labels, triangle=True)
        check_histogram(sets)
        check_ranks(sets, 0)


# --- reproducibility ------------------------------------------------------------------------------


def test_sums_do_not_depend_on_which_calls_came_before():
    sets = made(200, 350, 6)
    index = torch.arange(200), torch.arange(350)
    given = (*sets.given(), *index, "euclidean", 0, False, 5)
    first = ops().verification_histogram(*given)
    check_all(made(70, 70, 3))
    again = ops().verification_histogram(*given)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("schedule", ["reverse", "random:5"])
def test_any_order_of_threads(schedule):
    """A process has one order."""
    chosen = "(shapes and True) or (every_engine and euclidean) or (ties and 7)"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen],
        env=os.environ | {"SIAM_EMULATOR_SCHEDULE": schedule},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


# --- launches -------------------------------------------------------------------------------------


def names(function, *arguments) -> list[str]:
    with traffic.recorded() as launches:
        function(*arguments)
    return [launch.name for launch in launches]


def test_kernels_per_operator():
    sets = made(60, 100, 4)
    norms, tile = ["row_norms_kernel"] * 2, "tile_kernel"
    index = torch.arange(60), torch.arange(100)
    counted = (*sets.given(), *index, "sqeuclidean", 0, False)
    histogram = ops().verification_histogram
    assert names(histogram, *counted, 0) == [*norms, tile, "moments_kernel"]
    assert names(histogram, *counted, 1) == [
        *norms, tile, "moments_kernel", *norms, tile, *norms, tile
    ]  # fmt: skip
    assert names(ops().verification_ranks, *sets.given(), "sqeuclidean", None) == [
        *norms, tile, *norms, tile
    ]  # fmt: skip


def test_tiles_without_pairs_are_not_loaded():
    """Under the diagonal, and among strangers where mates are looked for."""

    def accesses(function, *arguments) -> list[int]:
        with traffic.recorded() as launches:
            function(*arguments)
        tiles = [launch for launch in launches if launch.name == "tile_kernel"]
        return [sum(s.requests for s in t.sites if s.kind.startswith("shared")) for t in tiles]

    x = torch.randn(256, 40, generator=torch.Generator().manual_seed(1))
    table, labels = torch.arange(65536) * 64 + 15, np.arange(256) // 4
    whole, half = (
        sum(accesses(ops().verification_refine, *sets.given(), table, "sqeuclidean", 0,
                     sets.triangle, 65536))
        for sets in (Sets(x, x, labels, labels, triangle=t) for t in (False, True))
    )  # fmt: skip
    assert 0.7 < half / whole < 0.8  # 6 of 4 x 2 tiles have a pair behind the diagonal
    mates, ranks = accesses(
        ops().verification_ranks, *Sets(x, x, labels, labels).given(), "sqeuclidean", 0
    )
    assert 0.5 < mates / ranks < 0.6  # a label's rows lie in one of two tiles


# --- errors ---------------------------------------------------------------------------------------


def test_operators_refuse_what_would_leave_their_memory():
    sets = made(30, 30, 4, people=5)
    index, metric = torch.arange(30), "sqeuclidean"
    beyond = sets.genuine.clone()
    beyond[4, 1] = 31
    x, y, genuine = sets.given()
    with pytest.raises(ValueError, match=r"genuine must hold ranges within the 30 columns.*row 4"):
        ops().verification_ranks(x, y, beyond, metric, None)
    with pytest.raises(ValueError, match="column_index must have shape"):
        ops().verification_histogram(x, y, genuine, index, index[:5], metric, 0, True, 1)
    table = torch.arange(65536) * 64 + 14
    with pytest.raises(ValueError, match="table must hold bins below 65536"):
        ops().verification_refine(x, y, genuine, table, metric, 0, True, 65536)
    low, shift = torch.tensor([0]), torch.tensor([15])
    with pytest.raises(ValueError, match="shift must lie in"):
        ops().verification_select(x, y, genuine, low, shift, metric, 0, True)
    with pytest.raises(ValueError, match=r"row_identity must lie in \[0, 29\)"):
        ops().verification_bootstrap(
            x, y, genuine, table + 1, index, index, torch.ones(29, 64, dtype=torch.uint8), metric,
            0, True, 65536,
        )  # fmt: skip


def test_promise_9_operands_on_two_devices_are_an_error():
    x, y, genuine = made(30, 30, 4, people=5).given()
    for moved in ((x, y.to("meta"), genuine), (x, y, genuine.to("meta"))):
        with pytest.raises(ValueError, match=r"must be on cpu, where rows are, got .* on meta"):
            torch.ops.siamcuda.verification_ranks(*moved, "sqeuclidean", None)
