"""The CUDA kernels of exact search, on the emulator, against brute force to the bit.

What every backend owes is tested with the gallery; here are the paths that only these kernels have:
tiles and scans, lists in a block and lists that are too long for it, splits of rows, both passes of
a range, both ways to screen 16-bit rows, the orders in which a block's threads may run.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import itertools
import os
import subprocess
import sys

import direct as oracle
import numpy as np
import pytest
import torch
from emulation import extension
from gates import traffic

import siamcuda
from siamcuda import _ops

Lists = tuple[torch.Tensor, torch.Tensor]
INFINITY = float("inf")
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True)
def _emulated() -> None:
    extension.load()


def ops():
    return torch.ops.siamcuda_emulated


# --- the definition -------------------------------------------------------------------------------


def _fused_in_double(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    libm.fma.restype = ctypes.c_double
    libm.fma.argtypes = [ctypes.c_double] * 3
    return np.vectorize(libm.fma, otypes=[np.float64])(x, x, c)


def direct(queries: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    """Squared distances [Q, N] by the definition, or counts of bits."""
    if rows.dtype == torch.uint8:
        return oracle.distances(queries.numpy(), rows.numpy(), "hamming")
    if rows.dtype != torch.float64:
        return oracle.squared_distances(queries.float().numpy(), rows.float().numpy())
    x, y = queries.numpy(), rows.numpy()
    sums = [np.zeros((len(x), len(y))) for _ in range(16)]
    for k in range(x.shape[1]):
        with np.errstate(invalid="ignore"):
            delta = x[:, None, k] - y[None, :, k]
        sums[k % 16] = _fused_in_double(delta, sums[k % 16])
    for half in (8, 4, 2, 1):
        sums = [sums[i] + sums[i + half] for i in range(half)]
    return sums[0]


def with_zeros(d: np.ndarray, queries: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    """What cosine makes of zero vectors."""
    zero = (queries == 0).all(1).numpy()[:, None] | (rows == 0).all(1).numpy()[None]
    return np.where(zero, d.dtype.type(2), d)


def nearest(d: np.ndarray, k: int, first: int = 0) -> Lists:
    """The k smallest by (distance, position): finite, +inf, NaN, padding."""
    order = oracle.order(d)[:, :k]
    found = np.take_along_axis(d, order, 1)
    lists = empty_lists(len(d), k, torch.from_numpy(d).dtype)
    lists[0][:, : found.shape[1]] = torch.from_numpy(found)
    lists[1][:, : found.shape[1]] = torch.from_numpy(order) + first
    return lists


def empty_lists(queries: int, k: int, dtype: torch.dtype) -> Lists:
    padding = INFINITY if dtype.is_floating_point else 2**31 - 1
    distances = torch.full((queries, k), padding, dtype=dtype)
    return distances, torch.full((queries, k), -1, dtype=torch.int64)


def same(found: Lists, wanted: Lists) -> None:
    for f, w in zip(found, wanted, strict=True):
        assert f.dtype == w.dtype
        np.testing.assert_array_equal(f.numpy(), w.numpy())  # NaN equals NaN


def knn(
    queries: torch.Tensor,
    rows: torch.Tensor,
    k: int,
    metric: str = "sqeuclidean",
    cuts: tuple[int, ...] = (),
) -> Lists:
    """In parts of the gallery, which `cuts` separate."""
    dtype = {torch.uint8: torch.int32, torch.float64: torch.float64}.get(rows.dtype, torch.float32)
    lists = empty_lists(len(queries), k, dtype)
    ends = (0, *cuts, len(rows))
    for begin, end in itertools.pairwise(ends):
        lists = ops().gallery_knn(queries, rows[begin:end], [], begin, metric, *lists)
    return lists


def made(count: int, dim: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(256, (count, dim), generator=generator, dtype=dtype)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64).to(dtype)


# --- the k nearest --------------------------------------------------------------------------------

#: queries, rows, k: a scan of one and of a few, tiles, tiles in several chunks, splits.
SHAPES = [(1, 300, 5), (3, 150, 300), (5, 40, 1), (9, 700, 12), (70, 200, 3)]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8], ids=str)
@pytest.mark.parametrize(("count", "rows", "k"), SHAPES)
def test_promise_5_knn_is_the_direct_sum_to_the_bit(count, rows, k, dtype):
    if dtype == torch.float64 and count * rows > 5000:
        rows = 5000 // count
    dim = 13 if dtype == torch.float64 else 37
    metric = "hamming" if dtype == torch.uint8 else "sqeuclidean"
    q, r = made(count, dim, dtype, 1), made(rows, dim, dtype, 2)
    same(knn(q, r, k, metric), nearest(direct(q, r), k))


@pytest.mark.parametrize("capability", [75, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [1, 15, 16, 64, 129, 140])
def test_every_engine_and_dimension(dim, dtype, capability, monkeypatch):
    monkeypatch.setenv("SIAM_EMULATOR_CAPABILITY", str(capability))
    q, r = made(6, dim, torch.float32, 3), made(600, dim, dtype, 4)
    same(knn(q, r, 7), nearest(direct(q, r), 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8], ids=str)
def test_no_dimensions_and_one_row(dtype):
    metric = "hamming" if dtype == torch.uint8 else "sqeuclidean"
    for count in (2, 6):
        q = made(count, 3, dtype, 5)
        distances, positions = knn(q[:, :0], made(4, 3, dtype, 6)[:, :0], 2, metric)
        assert distances.count_nonzero() == 0
        assert positions.tolist() == [[0, 1]] * count
        row = made(1, 3, dtype, 7)
        same(knn(q, row, 3, metric), nearest(direct(q, row), 3))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_near_ties_and_duplicates(dtype):
    """Rows that screening can't tell apart, each of them four times, around the queries."""
    base = made(1, 24, torch.float64, 8)
    step = {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 1e-3)
    r = (base + step * made(60, 24, torch.float64, 9)).to(dtype).repeat(4, 1)
    q = (base + step * made(6, 24, torch.float64, 10)).to(dtype)
    q[0] = r[3]
    for count in (1, 6):
        same(knn(q[:count], r, 50), nearest(direct(q[:count], r), 50))


@pytest.mark.parametrize("count", [2, 6])
def test_promise_2_nan_and_inf_come_last(count):
    q, r = made(count, 10, torch.float32, 11), made(30, 10, torch.float32, 12)
    r[3, 4], r[7, 0], r[8, 0], r[9] = float("nan"), INFINITY, -INFINITY, 3e38
    q[1, 2] = INFINITY
    wanted = nearest(direct(q, r), 40)
    assert torch.isnan(wanted[0]).any()
    same(knn(q, r, 40), wanted)
    same(knn(q, r, 29), nearest(direct(q, r), 29))


@pytest.mark.parametrize("scale", [1e18, 1e-18, 1e-22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scales(scale, dtype):
    q, r = made(6, 20, torch.float64, 13), made(200, 20, torch.float64, 14)
    q, r = (q * scale).float(), (r * scale).to(dtype)
    same(knn(q, r, 9), nearest(direct(q, r), 9))


def test_queries_that_16_bits_do_not_hold():
    """They screen what they are rounded to, and bounds know how far that is."""
    r = made(400, 16, torch.float16, 15)
    q = r[:6].float() + 1e-4 * made(6, 16, torch.float32, 16)
    q[1] *= 1e5  # beyond 16 bits
    q[2] *= 1e-9
    same(knn(q, r, 5), nearest(direct(q, r), 5))


def test_rows_of_any_step():
    whole = made(90, 70, torch.float32, 17)
    q = made(6, 33, torch.float32, 18)
    for rows in (whole[:, :33], whole[::2, 1:34], whole[:1].expand(40, 70)[:, :33]):
        same(knn(q, rows, 4), nearest(direct(q, rows), 4))
        same(knn(q[:1], rows, 4), nearest(direct(q[:1], rows), 4))
    codes = made(60, 40, torch.uint8, 19)
    for rows in (codes[:, :32], codes[:, 1:6]):
        q = made(6, rows.shape[1], torch.uint8, 20)
        same(knn(q, rows, 4, "hamming"), nearest(direct(q, rows), 4))


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("k", [1, 30, 1100])
def test_promise_4_parts_of_a_gallery_give_what_the_whole_gives(count, k):
    r = made(1300, 8, torch.float32, 21)
    r[700:800] = r[:100]
    r[5] = float("nan")
    q = made(count, 8, torch.float32, 22)
    wanted = nearest(direct(q, r), k)
    same(knn(q, r, k), wanted)
    same(knn(q, r, k, cuts=(1, 40, 1299)), wanted)
    same(knn(q, r, k, cuts=(650,)), wanted)


def test_lists_that_no_block_holds():
    """1,500 nearest: runs of 1,024 in each block, merged in memory."""
    q, r = made(2, 4, torch.float32, 23), made(5000, 4, torch.float32, 24)
    same(knn(q, r, 1500), nearest(direct(q, r), 1500))
    same(knn(q, r[:70], 3000), nearest(direct(q, r[:70]), 3000))
    codes, rows = made(5, 2, torch.uint8, 25), made(2600, 2, torch.uint8, 26)
    same(knn(codes, rows, 1300, "hamming"), nearest(direct(codes, rows), 1300))


def test_a_queue_that_overflows():
    """Rows in falling distance: every one undercuts the list, and all of them pass."""
    r = torch.linspace(9, 1, 6000)[:, None].repeat(1, 2)
    for count in (1, 5):
        q = torch.zeros(count, 2)
        same(knn(q, r, 33), nearest(direct(q, r), 33))
        same(knn(q, r, 1024), nearest(direct(q, r), 1024))


@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cosine_of_zero_vectors(count, dtype):
    q, r = (ops().gallery_normalize(made(n, 9, dtype, n)) for n in (count, 40))
    q[1] = 0
    r[[3, 17]] = 0
    r[5] = 1e-30 if dtype == torch.float32 else 1e-200  # its square vanishes, and it is no zero
    wanted = nearest(with_zeros(direct(q, r), q, r), 40)
    same(knn(q, r, 40, "cosine"), wanted)
    same(knn(q, r, 11, "cosine"), nearest(with_zeros(direct(q, r), q, r), 11))


def test_promise_4_neither_batch_nor_position_changes_a_bit():
    q, r = made(70, 20, torch.float32, 27), made(520, 20, torch.float32, 28)
    distances, positions = knn(q, r, 6)
    for at in (0, 63, 64, 69):
        same(knn(q[at : at + 1], r, 6), (distances[at : at + 1], positions[at : at + 1]))


# --- all within a radius --------------------------------------------------------------------------


def within(d: np.ndarray, metric: str, radius: float) -> tuple[torch.Tensor, ...]:
    counts, distances, positions = [], [], []
    with np.errstate(all="ignore"):
        inside = oracle.in_unit(d, metric).astype(np.float64) < radius
    for row, mine in zip(d, inside, strict=True):
        at = np.flatnonzero(mine)
        at = at[np.argsort(row[at], kind="stable")]
        counts.append(len(at))
        distances.append(row[at])
        positions.append(at)
    return (
        torch.tensor(counts),
        torch.from_numpy(np.concatenate(distances)),
        torch.from_numpy(np.concatenate(positions)),
    )


def check_range(q: torch.Tensor, r: torch.Tensor, metric: str, radius: float) -> int:
    d = direct(q, r)
    if metric == "cosine":
        d = with_zeros(d, q, r)
    found = ops().gallery_range(q, r, [], 0, metric, radius)
    same(found, within(d, metric, radius))
    return len(found[1])


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine", "hamming"])
def test_ranges(metric, count):
    if metric == "hamming":
        q, r = made(count, 6, torch.uint8, 30), made(300, 6, torch.uint8, 31)
    else:
        q, r = made(count, 12, torch.float32, 32), made(300, 12, torch.float32, 33)
    if metric == "cosine":
        q, r = (ops().gallery_normalize(x) for x in (q, r))
        r[4] = 0
    d = direct(q, r)
    unit = oracle.in_unit(d, metric).astype(np.float64)
    middle = float(np.median(unit))
    assert 0 < check_range(q, r, metric, middle) < d.size  # strict: the median itself is outside
    at = float(unit.flat[7])
    assert check_range(q, r, metric, np.nextafter(at, INFINITY)) > check_range(q, r, metric, at)
    for radius in (0.0, -1.0, -INFINITY):
        assert check_range(q, r, metric, radius) == 0
    check_range(q, r, metric, INFINITY)
    check_range(q, r, metric, 0.7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_ranges_of_other_types(dtype):
    q, r = made(5, 9, dtype, 34), made(90, 9, dtype, 35)
    for metric in ("sqeuclidean", "euclidean"):
        assert check_range(q, r, metric, 3.5) > 0


def test_ranges_never_hold_nan_and_order_ties_by_position():
    q, r = made(6, 10, torch.float32, 36), made(50, 10, torch.float32, 37).repeat(2, 1)
    r[3, 4], r[7, 0] = float("nan"), INFINITY
    q[2, 2] = float("nan")
    check_range(q, r, "sqeuclidean", 20.0)
    check_range(q, r, "sqeuclidean", INFINITY)  # +inf is not below +inf


def test_ranges_longer_than_a_block_sorts():
    """One query has thousands of entries, one none: sorted where they lie, across blocks."""
    r = made(6000, 2, torch.float32, 38)
    q = torch.tensor([[0.0, 0.0], [50.0, 50.0], [1.0, 0.0]])
    assert check_range(q, r, "sqeuclidean", 4.0) > 4096
    assert check_range(torch.cat([q, q]), r[:2500], "euclidean", 3.0) > 4096


# --- rows and roots -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dim", [1, 7, 16, 45])
def test_unit_rows(dim, dtype):
    x = made(40, dim + 3, dtype, 40)[:, :dim]
    x[3] = 0
    x[4] = -0.0 if dtype.itemsize < 8 else 1e-200
    x[5, 0] = float("nan")
    found = ops().gallery_normalize(x)
    if dtype != torch.float64:
        np.testing.assert_array_equal(found.numpy(), oracle.normalized(x.float().numpy()))
        return
    wide = x.clone().numpy()
    wide[4] = np.ldexp(wide[4], -np.frexp(np.abs(wide[4]).max())[1])  # its squares would vanish
    sums = [np.zeros(len(x)) for _ in range(16)]
    for k in range(dim):
        sums[k % 16] = sums[k % 16] + wide[:, k] * wide[:, k]
    for half in (8, 4, 2, 1):
        sums = [sums[i] + sums[i + half] for i in range(half)]
    norm = np.sqrt(sums[0])[:, None]
    wanted = np.divide(wide, norm, out=wide.copy(), where=norm != 0)
    np.testing.assert_array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_roots(dtype):
    x = torch.tensor([0.0, 2.0, 1e-40, 3e38, INFINITY, float("nan")], dtype=dtype)
    x = torch.cat([x, made(300, 1, dtype, 41).abs()[:, 0]])
    np.testing.assert_array_equal(ops().gallery_root(x).numpy(), np.sqrt(x.numpy()))


@pytest.mark.parametrize("width", [0, 1, 5, 16, 48, 70])
def test_hamming_of_pairs(width):
    x, y = made(70, width + 3, torch.uint8, 45), made(70, width + 3, torch.uint8, 46)
    for a, b in ((x[:, :width], y[:, :width]), (x[:, 3:].contiguous(), y[:1, 3:])):
        wanted = np.unpackbits((a ^ b).numpy(), axis=1).sum(1)
        np.testing.assert_array_equal(ops().hamming(a, b).numpy(), wanted.astype(np.int32))


# --- launches -------------------------------------------------------------------------------------


def names(function, *arguments) -> list[str]:
    with traffic.recorded() as launches:
        function(*arguments)
    return [launch.name for launch in launches]


def test_kernels_per_search():
    q, r = made(6, 8, torch.float32, 42), made(600, 8, torch.float32, 43)
    norms, select = "row_norms_kernel", "select_kernel"
    tile = ["bounds_kernel", "tile_kernel"]
    # Of the first 512 rows nothing is known; the others are screened.
    assert names(knn, q, r, 4) == [norms, norms, select, norms, *tile, select]
    # One query: no norms, and no tile that would be empty but for a row.
    assert names(knn, q[:1], r, 4) == [select]
    split = names(knn, q[:1], made(4200, 8, torch.float32, 44), 4)
    assert split[:2] == [select, "sort_kernel"]
    assert "scan_kernel" in split
    within_names = names(ops().gallery_range, q, r, [], 0, "sqeuclidean", 3.0)
    one_pass = [norms, norms, *tile, "within_kernel"]
    assert within_names == [*one_pass, *one_pass, "sort_kernel"]


@pytest.mark.parametrize("schedule", ["reverse", "random:5"])
def test_any_order_of_threads(schedule):
    """Queues fill in the order in which threads come by; a process has one order."""
    chosen = "overflows or no_block_holds or near_ties or whole_gives or longer or forward"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen],
        env=os.environ | {"SIAM_EMULATOR_SCHEDULE": schedule},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine", "hamming"])
def test_a_gallery_on_these_kernels(metric, monkeypatch):
    monkeypatch.setattr(_ops, "extension", extension.load())
    monkeypatch.setattr(_ops, "namespace", ops())
    dtype = torch.uint8 if metric == "hamming" else torch.float32
    q, r = made(7, 20, dtype, 47), made(800, 20, dtype, 48)
    r[5] = r[700] = q[3]
    if metric != "hamming":
        r[9] = q[1] = 0
    gallery = siamcuda.Gallery(r[:300], metric=metric)
    gallery.add(r[300:])
    for k in (4, 900):
        for found, wanted in zip(
            gallery.search(q, k), oracle.knn(q.numpy(), r.numpy(), k, metric), strict=True
        ):
            np.testing.assert_array_equal(found.numpy(), wanted)
    radius = {"hamming": 70, "cosine": 0.8}.get(metric, 25.0)
    for found, wanted in zip(
        gallery.range_search(q, radius),
        oracle.within(q.numpy(), r.numpy(), radius, metric),
        strict=True,
    ):
        np.testing.assert_array_equal(found.numpy(), wanted)
