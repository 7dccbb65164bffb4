"""Exact search against its definition, on every instruction set, screened in every way."""

from __future__ import annotations

import itertools
import math
import warnings

import direct
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import siamcuda
from siamcuda import Gallery, _ops

FLOAT_METRICS = ("sqeuclidean", "euclidean", "cosine")
#: Queries, rows, columns, k: panels of 12 queries, blocks of 32 and 256 rows, 16 sums.
SIZES = [
    (1, 1, 1, 1),
    (1, 700, 128, 10),
    (2, 257, 17, 3),
    (3, 33, 0, 5),
    (13, 500, 24, 5),
    (12, 96, 16, 200),
    (40, 3000, 7, 100),
    (100, 1021, 33, 3),
    (25, 600, 130, 12),
]


def screenings(device="cpu"):
    return ["float32", *(["int8"] if _codes_here(device) else [])]


def _codes_here(device="cpu"):
    zeros = torch.zeros(1, 1, device=device)
    return bool(_ops.namespace.gallery_screen(zeros, zeros[0]))


def random_rows(seed, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same_bits(found, expected):
    found, expected = (x.cpu() if isinstance(x, torch.Tensor) else x for x in (found, expected))
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype, (found.dtype, expected.dtype)
    np.testing.assert_array_equal(found, expected)  # NaN equals NaN; no -0 appears


def check_search(queries, rows, k, metric, radii=(), device="cpu"):
    """Every screening against the definition."""
    wide = [t.float().numpy() if t.dtype != torch.uint8 else t.numpy() for t in (queries, rows)]
    expected = direct.knn(*wide, k, metric)
    queries, rows = queries.to(device), rows.to(device)
    for screening in screenings(device):
        if metric == "hamming" and screening == "int8":
            continue
        gallery = Gallery(rows, metric=metric, screening=screening, nonfinite="allow")
        found = gallery.search(queries, k)
        same_bits(found.distances, expected[0])
        same_bits(found.ids, expected[1])
        for radius in radii:
            lims, distances, ids = direct.within(*wide, radius, metric)
            inside = gallery.range_search(queries, radius)
            same_bits(inside.lims, lims)
            same_bits(inside.distances, distances)
            same_bits(inside.ids, ids)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("metric", FLOAT_METRICS)
def test_promise_5_one_answer(size, metric, backend):
    q, n, d, k = size
    queries, rows = random_rows(1, q, d), random_rows(2, n, d)
    rows[n // 2] = rows[0]
    rows[-1] = queries[0]
    middle = direct.in_unit(direct.distances(queries.numpy(), rows.numpy(), metric), metric)
    radius = float(np.sort(middle.ravel())[middle.size // 3])  # one of the distances: not inside
    check_search(queries, rows, k, metric, (radius, math.inf, 0.0, -1.0), device=backend.device)


def test_promise_5_rows_that_are_packed_in_several_chunks(simd):
    """Products of three depths each, and a last tile of a few rows."""
    queries, rows = random_rows(50, 30, 300), random_rows(51, 8200, 300)
    rows[8100:] = rows[:100]
    check_search(queries, rows, 20, "sqeuclidean")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric", FLOAT_METRICS)
def test_promise_5_half_precision(dtype, metric, backend):
    queries, rows = random_rows(3, 20, 50, dtype=dtype), random_rows(4, 400, 50, dtype=dtype)
    check_search(queries, rows, 7, metric, device=backend.device)
    # Queries of another float type are what they are.
    wide = random_rows(5, 20, 50)
    found = Gallery(rows.to(backend.device)).search(wide.to(backend.device), 3)
    same_bits(found.ids, direct.knn(wide.numpy(), rows.float().numpy(), 3, "sqeuclidean")[1])


@pytest.mark.parametrize("scale", [1e-18, 1e-9, 1.0, 1e9, 1e18])
def test_promise_5_scales(scale, backend):
    queries, rows = random_rows(6, 13, 40) * scale, random_rows(7, 300, 40) * scale
    rows[10] *= 1e-12
    check_search(queries, rows, 20, "sqeuclidean", (scale * scale * 60,), device=backend.device)


@pytest.mark.parametrize("offset", [10.0, 1e4, 1e7])
def test_promise_5_near_ties_far_from_zero(offset, backend):
    """Distances that differ in the last bits only, where the expanded form has none left."""
    queries, rows = random_rows(8, 13, 24) * 1e-3 + offset, random_rows(9, 500, 24) * 1e-3 + offset
    rows[100:300] = rows[:1] + (torch.arange(200) % 3).unsqueeze(1) * offset * 1e-7
    check_search(queries, rows, 30, "sqeuclidean", (1e-5,), device=backend.device)


def test_promise_5_ties_go_to_the_earlier_row(backend):
    rows = random_rows(10, 8, 32)[torch.arange(800) % 8]
    check_search(random_rows(11, 14, 32), rows, 150, "sqeuclidean", device=backend.device)
    check_search(rows[:12], rows, 400, "cosine", device=backend.device)
    check_search(
        torch.zeros(12, 32),
        torch.zeros(500, 32),
        40,
        "sqeuclidean",
        (1e-30,),
        device=backend.device,
    )
    check_search(
        torch.zeros(12, 32), torch.zeros(500, 32), 40, "cosine", (1.0, 1.5), device=backend.device
    )


def test_promise_2_nonfinite_rows_come_last(backend):
    queries, rows = random_rows(12, 13, 20), random_rows(13, 300, 20)
    rows[5, 3], rows[7, 0], rows[9] = math.nan, math.inf, 3e38
    rows[11, 1] = -math.inf
    queries[2, 0], queries[3, 1], queries[4] = math.nan, math.inf, -3e38
    check_search(queries, rows, 300, "sqeuclidean", (50.0, math.inf), device=backend.device)
    check_search(queries, rows, 10, "euclidean", (math.inf,), device=backend.device)
    check_search(queries, rows, 300, "cosine", (1.0,), device=backend.device)
    check_search(
        queries, rows.fill_(math.nan), 7, "sqeuclidean", (math.inf,), device=backend.device
    )


def test_cosine_of_zero_vectors_is_one(backend):
    rows = torch.cat([torch.zeros(40, 6), random_rows(14, 60, 6)])
    queries = torch.cat([random_rows(15, 13, 6), torch.zeros(2, 6)])
    check_search(queries, rows, 100, "cosine", (1.0,), device=backend.device)
    for few in (queries[:3], queries[12:14]):  # which are not screened
        check_search(few, rows, 30, "cosine", (0.9, 1.0, 1.5), device=backend.device)
    found = Gallery(rows, metric="cosine").search(queries[-1:], 100)
    assert (found.distances == 1).all()
    assert found.ids.tolist() == [list(range(100))]


def test_cosine_of_float64_at_any_scale(backend):
    rows, queries = (
        random_rows(44 + i, n, 7).double().to(backend.device) for i, n in ((0, 40), (1, 3))
    )
    expected = Gallery(rows, metric="cosine").search(queries, 40)
    scales = torch.tensor([2.0**-900, 1.0, 2.0**900], dtype=torch.float64, device=backend.device)
    scaled = Gallery(rows * scales[torch.arange(40) % 3].unsqueeze(1), metric="cosine")
    found = scaled.search(queries * scales.unsqueeze(1), 40)
    same_bits(found.distances, expected.distances)
    same_bits(found.ids, expected.ids)
    rows[0], rows[1] = 0, math.inf
    odd = Gallery(rows, metric="cosine", nonfinite="allow").search(queries[:1], 40)
    assert odd.distances[0, odd.ids[0] == 0] == 1
    assert odd.ids[0, -1] == 1


@pytest.mark.parametrize("size", [(1, 65, 1, 4), (13, 700, 4, 9), (30, 130, 37, 140)], ids=str)
def test_hamming(size, backend):
    q, n, width, k = size
    generator = torch.Generator().manual_seed(16)
    queries = torch.randint(0, 256, (q, width), dtype=torch.uint8, generator=generator)
    rows = torch.randint(0, 256, (n, width), dtype=torch.uint8, generator=generator)
    rows[n // 2] = rows[0]
    check_search(
        queries, rows, k, "hamming", (0, 3, 3.5, 4.0 * width, math.inf), device=backend.device
    )
    assert Gallery(rows, metric="hamming").search(queries, k).distances.dtype == torch.int32


@pytest.mark.parametrize("metric", FLOAT_METRICS)
def test_float64_runs_in_float64(metric, simd):
    # Integers: every order of operations gives the same sums.
    generator = torch.Generator().manual_seed(17)
    queries = torch.randint(-9, 9, (9, 21), generator=generator).double()
    rows = torch.randint(-9, 9, (300, 21), generator=generator).double()
    found = Gallery(rows, metric=metric).search(queries, 11)
    assert found.distances.dtype == torch.float64
    if metric == "cosine":
        unit = [t / t.norm(dim=1, keepdim=True) for t in (queries, rows)]
        expected = 1 - unit[0] @ unit[1].T
        torch.testing.assert_close(found.distances, expected.sort(1).values[:, :11])
        return
    squares = (queries[:, None] - rows).square().sum(2)
    values, columns = squares.sort(dim=1, stable=True)
    unit_values = values.numpy() if metric == "sqeuclidean" else np.sqrt(values.numpy())
    same_bits(found.distances, unit_values[:, :11])
    same_bits(found.ids, columns[:, :11])


@pytest.mark.parametrize("metric", [*FLOAT_METRICS, "hamming"])
def test_promise_4_no_result_depends_on_threads_or_company(metric, simd):
    queries, rows = random_rows(18, 37, 48), random_rows(19, 2500, 48)
    if metric == "hamming":
        queries, rows = ((t > 0).to(torch.uint8) for t in (queries, rows))
    threads = torch.get_num_threads()
    whole = Gallery(rows, metric=metric).search(queries, 20)
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            again = Gallery(rows, metric=metric).search(queries, 20)
            same_bits(again.distances, whole.distances)
            same_bits(again.ids, whole.ids)
    finally:
        torch.set_num_threads(threads)
    gallery = Gallery(rows, metric=metric)
    for part in (slice(0, 1), slice(5, 7), slice(11, 36)):
        alone = gallery.search(queries[part], 20)
        same_bits(alone.distances, whole.distances[part])
        same_bits(alone.ids, whole.ids[part])


@pytest.mark.parametrize("splits", [(0, 1, 2500), (0, 999, 1000, 2500), (0, 32, 64, 70, 2500)])
def test_promise_5_a_gallery_in_parts_is_the_same_gallery(splits):
    queries, rows = random_rows(20, 30, 19), random_rows(21, 2500, 19)
    rows[1500] = rows[3]
    expected = Gallery(rows).search(queries, 25)
    distances = torch.full((30, 25), math.inf)
    positions = torch.full((30, 25), -1)
    for first, last in itertools.pairwise(splits):
        distances, positions = _ops.namespace.gallery_knn(
            queries, rows[first:last], [], first, "sqeuclidean", distances, positions
        )
    same_bits(distances, expected.distances)
    same_bits(positions, expected.ids)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_property_screening_changes_nothing(data):
    """Adversarial values: duplicates, zeros, huge and tiny numbers, NaN and infinities."""
    d = data.draw(st.integers(1, 20))
    n, q, k = (data.draw(st.integers(1, m)) for m in (80, 16, 30))
    values = st.one_of(
        st.sampled_from([0.0, 1.0, -1.0, 1e-3, 1 + 1e-6, 1e-30, 1e19, -1e19, math.inf, math.nan]),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.floats(-2, 2, width=32),
    )
    pool = data.draw(st.lists(values, min_size=1, max_size=40))
    pick = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    rows = torch.from_numpy(pick.choice(np.float32(pool), (n, d)))
    queries = torch.from_numpy(pick.choice(np.float32(pool), (q, d)))
    metric = data.draw(st.sampled_from(FLOAT_METRICS))
    check_search(queries, rows, k, metric, (data.draw(st.floats(0, 100)),))


def test_more_than_the_gallery_holds_is_padding():
    found = siamcuda.knn(torch.zeros(1, 2), torch.ones(2, 2), 4)
    assert found.distances.tolist() == [[2.0, 2.0, math.inf, math.inf]]
    assert found.ids.tolist() == [[0, 1, -1, -1]]


def test_many_neighbours():
    queries, rows = random_rows(22, 3, 8), random_rows(23, 20000, 8)
    found = siamcuda.knn(queries, rows, 20000)
    same_bits(found.distances, direct.knn(queries.numpy(), rows.numpy(), 20000, "sqeuclidean")[0])
    assert (found.ids.sort(1).values == torch.arange(20000)).all()


def test_arrays_in_arrays_out():
    rows = random_rows(24, 50, 6).numpy()
    found = Gallery(rows[:, ::2], ids=np.arange(50) + 5).search(rows[:3, ::2], 1)
    assert isinstance(found.distances, np.ndarray)
    assert found.ids[:, 0].tolist() == [5, 6, 7]
    reversed_rows = Gallery(rows[::-1]).search(rows[:1], 1)
    assert reversed_rows.ids.tolist() == [[49]]
    rows.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Gallery(rows).range_search(rows[:1], 1.0)


def test_against_reference():
    queries, rows = random_rows(25, 10, 12), random_rows(26, 90, 12)
    bits = (rows > 0).to(torch.uint8)
    for metric in (*FLOAT_METRICS, "hamming"):
        q, g = (bits[:10], bits) if metric == "hamming" else (queries, rows)
        expected = siamcuda.reference.knn(q, g, 5, metric)
        found = siamcuda.knn(q, g, 5, metric)
        torch.testing.assert_close(found.distances, expected[0])
        torch.testing.assert_close(found.ids, expected[1])
        radius = float(expected[0][0, 3])
        lims, distances, ids = siamcuda.reference.range_search(q, g, radius * 1.001, metric)
        inside = Gallery(g, metric=metric).range_search(q, radius * 1.001)
        torch.testing.assert_close(inside.lims, lims)
        torch.testing.assert_close(inside.distances, distances)
        torch.testing.assert_close(inside.ids, ids)


def test_against_faiss():
    faiss = pytest.importorskip("faiss")
    queries, rows = random_rows(27, 40, 64).numpy(), random_rows(28, 5000, 64).numpy()
    index = faiss.IndexFlatL2(64)
    index.add(rows)
    distances, ids = index.search(queries, 10)
    found = Gallery(rows).search(queries, 10)
    assert (found.ids == ids).all()
    np.testing.assert_allclose(found.distances, distances, rtol=1e-5)
    lims, _, near = index.range_search(queries, 90.0)
    inside = Gallery(rows).range_search(queries, 90.0)
    assert (inside.lims == lims.astype(np.int64)).all()
    for q in range(40):
        part = slice(lims[q], lims[q + 1])
        assert set(inside.ids[part]) == set(near[part])
    bits = np.packbits(rows > 0, axis=1)
    binary = faiss.IndexBinaryFlat(64)
    binary.add(bits)
    counts, _ = binary.search(bits[:40], 10)
    assert (Gallery(bits, metric="hamming").search(bits[:40], 10).distances == counts).all()


def test_against_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    queries, rows = random_rows(29, 40, 20).numpy(), random_rows(30, 900, 20).numpy()
    for metric in ("euclidean", "cosine"):
        brute = neighbors.NearestNeighbors(n_neighbors=6, algorithm="brute", metric=metric)
        distances, ids = brute.fit(rows).kneighbors(queries)
        found = Gallery(rows, metric=metric).search(queries, 6)
        assert (found.ids == ids).all()
        np.testing.assert_allclose(found.distances, distances, rtol=1e-4, atol=1e-6)


# --- torch --------------------------------------------------------------------------------------


def test_opcheck():
    queries, rows = random_rows(31, 5, 9), random_rows(32, 40, 9)
    lists = torch.full((5, 3), math.inf), torch.full((5, 3), -1)
    ops = torch.ops.siamcuda
    arguments = (queries, rows, [], 0, "sqeuclidean", *lists)
    torch.library.opcheck(ops.gallery_knn.default, arguments)
    torch.library.opcheck(ops.gallery_normalize.default, (rows,))
    torch.library.opcheck(ops.gallery_root.default, (rows.abs(),))
    checks = ("test_schema", "test_autograd_registration")
    torch.library.opcheck(
        ops.gallery_range.default, (queries, rows, [], 0, "sqeuclidean", 9.0), test_utils=checks
    )
    torch.library.opcheck(ops.gallery_screen.default, (rows, rows[0]), test_utils=checks)


def test_embeddings_with_a_graph_are_searched_without_it():
    rows = random_rows(33, 20, 4).requires_grad_()
    found = Gallery(rows).search(rows[:2] * 2, 1)
    assert not found.distances.requires_grad


# --- changes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine", "hamming"])
def test_a_grown_gallery_is_the_gallery(metric):
    rows, queries = random_rows(34, 700, 12), random_rows(35, 20, 12)
    if metric == "hamming":
        rows, queries = ((t > 0).to(torch.uint8) for t in (rows, queries))
    given = rows[:50].clone()
    grown = Gallery(given, metric=metric)
    for first, last in ((50, 51), (51, 64), (64, 300), (300, 700)):
        grown.add(rows[first:last])
    assert len(grown) == 700
    assert torch.equal(given, rows[:50])
    expected = Gallery(rows, metric=metric).search(queries, 30)
    found = grown.search(queries, 30)
    same_bits(found.distances, expected.distances)
    same_bits(found.ids, expected.ids)


@pytest.mark.parametrize("screening", screenings())
def test_small_additions_copy_nothing_while_there_is_room(screening):
    rows, queries = random_rows(41, 400, 12), random_rows(42, 14, 12)
    gallery = Gallery(rows[:200], screening=screening)
    gallery.add(rows[200:201])
    memory = set()
    for at in range(201, 300):
        gallery.add(rows[at : at + 1])
        part = next(gallery._store.parts(1))
        memory.add(tuple(t.data_ptr() for t in (part.rows, *part.screen)))
    assert len({pointers[0] for pointers in memory}) == 1
    assert len(memory) <= 2  # codes come in panels of 32 rows: their room ended once on the way
    gallery.add(rows[300:])
    same_bits(gallery.search(queries, 9).ids, Gallery(rows).search(queries, 9).ids)


def test_a_gallery_may_begin_empty():
    rows = random_rows(43, 90, 5) + 1000
    gallery = Gallery(rows[:0])
    gallery.add(rows)
    same_bits(gallery.search(rows[:20], 4).ids, Gallery(rows).search(rows[:20], 4).ids)


def test_added_rows_that_are_not_finite_are_reported():
    bad = torch.full((2, 3), math.nan)
    gallery = Gallery(torch.zeros(4, 3), nonfinite="raise")
    with pytest.raises(ValueError, match="2 of 2 rows hold NaN"):
        gallery.add(bad)
    assert len(gallery) == 4
    gallery = Gallery(torch.zeros(4, 3))
    with pytest.warns(UserWarning, match="2 of 2 rows hold NaN"):
        gallery.add(bad)
    assert gallery.nonfinite == 2


def test_removing_keeps_order_and_ids():
    rows, queries = random_rows(36, 300, 12), random_rows(37, 20, 12)
    gallery = Gallery(rows)
    assert gallery.remove(torch.arange(0, 300, 3)) == 100
    left = torch.tensor([i for i in range(300) if i % 3])
    assert torch.equal(gallery.ids, left)
    expected = Gallery(rows[left]).search(queries, 9)
    found = gallery.search(queries, 9)
    same_bits(found.distances, expected.distances)
    same_bits(found.ids, left[expected.ids])
    gallery.add(rows[:2], ids=[0, 3])
    assert gallery.search(rows[:1], 1).ids.tolist() == [[0]]
    with pytest.raises(ValueError, match="ids: 6 is not in the gallery"):
        gallery.remove([1, 6])
    assert len(gallery) == 202


def test_adding_what_does_not_fit_changes_nothing():
    gallery = Gallery(random_rows(38, 10, 4), ids=range(10))
    for vectors, ids, message in (
        (torch.zeros(1, 3), [77], "vectors: have 3 columns, the gallery has 4"),
        (torch.zeros(1, 4), None, "ids: the gallery has ids of its own"),
        (torch.zeros(1, 4), [3], "ids: must be unique, 3 stands twice"),
        (torch.zeros(1, 4), [1, 2], r"ids: shape \(1,\) is expected, got \(2,\)"),
        (torch.zeros(4), [77], r"vectors: shape \(N, D\) is expected, got \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            gallery.add(vectors, ids)
        assert len(gallery) == 10
        assert gallery.ids.tolist() == list(range(10))
    with pytest.raises(ValueError, match="the gallery numbers its rows"):
        Gallery(torch.zeros(1, 4)).add(torch.zeros(1, 4), [1])


def test_vectors_changed_behind_its_back_are_noticed():
    rows = random_rows(39, 10, 4)
    gallery = Gallery(rows)
    rows[0] = 9
    with pytest.raises(RuntimeError, match="changed in place"):
        gallery.search(rows[:1], 1)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g, q: g.search(q, 0), ValueError, "k must be at least 1, got 0"),
        (lambda g, q: g.search(q, -3), ValueError, "k must be at least 1"),
        (lambda g, q: g.search(q, 1.5), TypeError, "k must be an integer"),
        (lambda g, q: g.search(q, True), TypeError, "k must be an integer"),
        (lambda g, q: g.range_search(q, math.nan), ValueError, "radius must not be NaN"),
        (lambda g, q: g.search(q[:, :3], 1), ValueError, "queries: have 3 columns"),
        (lambda g, q: g.search(q[:0], 1), ValueError, "queries: at least one is needed"),
        (lambda g, q: g.search(q[0], 1), ValueError, r"queries: shape \(N, D\) is expected"),
        (lambda g, q: g.search(q.double(), 1), TypeError, "queries: float64 needs a gallery of"),
        (lambda g, q: g.search(q.long(), 1), TypeError, "queries: float16, bfloat16"),
        (lambda g, q: g.search([[1.0]], 1), TypeError, "queries: a tensor or an array"),
        (lambda g, q: g.search(q.to("meta"), 1), ValueError, "queries: are on meta"),
        (lambda g, q: Gallery(q[:0]).search(q, 1), ValueError, "gallery: is empty"),
        (lambda g, q: Gallery(q, metric="l3"), ValueError, "metric must be one of sqeuclidean"),
        (lambda g, q: Gallery(q, metric="hamming"), TypeError, "packed bits in uint8"),
        (lambda g, q: Gallery(q.to(torch.uint8)), TypeError, "vectors: float16"),
        (lambda g, q: Gallery(q, screening="pq"), ValueError, "screening must be one of"),
        (lambda g, q: Gallery(q.double(), screening="int8"), ValueError, "'int8' is not avail"),
        (lambda g, q: Gallery(q, ids=[1, 1]), ValueError, "ids: must be unique, 1 stands twice"),
        (lambda g, q: Gallery(q, ids=[-1, 1]), ValueError, "ids: must be at least 0, got -1"),
        (lambda g, q: Gallery(q, ids=[0.5, 1]), TypeError, "ids: integers are expected"),
        (lambda g, q: Gallery(q, ids=[1]), ValueError, r"ids: shape \(2,\) is expected"),
        (lambda g, q: Gallery(q * math.nan, nonfinite="raise"), ValueError, "2 of 2 rows hold"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    queries = torch.ones(2, 4)
    with pytest.raises(error, match=message):
        call(Gallery(torch.zeros(3, 4)), queries)


def test_a_screen_of_other_rows_is_refused():
    if not _codes_here():
        pytest.skip("this CPU does not screen by codes")
    rows = random_rows(40, 100, 8)
    screen = [*_ops.namespace.gallery_screen(rows, rows[0]), rows[0]]
    lists = torch.full((1, 3), math.inf), torch.full((1, 3), -1)
    for bad in (screen[:3], [*screen[:3], rows[0, :7]], [screen[0][:1], *screen[1:]]):
        with pytest.raises(ValueError, match="screen must be what gallery_screen made"):
            _ops.namespace.gallery_knn(rows[:1], rows, bad, 0, "sqeuclidean", *lists)


def test_nonfinite_rows_are_reported():
    rows = torch.zeros(5, 2)
    rows[1, 0] = math.nan
    with pytest.warns(UserWarning, match="1 of 5 rows hold NaN or infinities"):
        gallery = Gallery(rows)
    assert gallery.nonfinite == 1
    assert gallery.search(torch.zeros(1, 2), 5).ids.tolist() == [[0, 2, 3, 4, 1]]


def test_vectors_and_queries_made_in_inference_mode_are_searched() -> None:
    """Such tensors have no version counter; a change behind the gallery goes unseen."""
    with torch.inference_mode():
        rows = torch.rand(40, 7, generator=torch.Generator().manual_seed(0))
    for metric in ("sqeuclidean", "euclidean", "cosine"):
        gallery = siamcuda.Gallery(rows, metric=metric)
        found = gallery.search(rows, 3)
        expected = siamcuda.knn(rows.clone(), rows.clone(), 3, metric)
        assert torch.equal(found.distances, expected.distances)
        assert torch.equal(found.ids, expected.ids)
        gallery.add(rows[:2] + 1)
        assert gallery.remove([0, 41]) == 2
        assert len(gallery.range_search(rows, math.inf).ids) == 40 * 40
